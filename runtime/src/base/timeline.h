// What a session did and when: spans of its threads, requests of storage, events of the cache.
//
// A bounded ring of events per thread, and one for storage and cache, which several threads write. Recording takes a
// clock reading and a few stores: no lock, no allocation, nothing that waits. What does not fit overwrites the oldest
// and is counted.
#pragma once

#include <time.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "sbr/sbr.h"

namespace sbr {

// CLOCK_MONOTONIC.
inline uint64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1000000000u + static_cast<uint64_t>(t.tv_nsec);
}

// The numbers of tools.h.
enum class Event : uint16_t {
  kToken = SBR_TIMELINE_TOKEN,
  kStep = SBR_TIMELINE_STEP,
  kEmbed = SBR_TIMELINE_EMBED,
  kNorm = SBR_TIMELINE_NORM,
  kAttention = SBR_TIMELINE_ATTENTION,
  kRouter = SBR_TIMELINE_ROUTER,
  kIoWait = SBR_TIMELINE_IO_WAIT,
  kGate = SBR_TIMELINE_GATE,
  kUp = SBR_TIMELINE_UP,
  kGateUp = SBR_TIMELINE_GATE_UP,
  kDown = SBR_TIMELINE_DOWN,
  kUpDown = SBR_TIMELINE_UP_DOWN,
  kLmHead = SBR_TIMELINE_LM_HEAD,
  kBarrier = SBR_TIMELINE_BARRIER,
  kRead = SBR_TIMELINE_READ,
  kHit = SBR_TIMELINE_HIT,
  kLoad = SBR_TIMELINE_LOAD,
  kEvict = SBR_TIMELINE_EVICT,
  kGuess = SBR_TIMELINE_GUESS,
};

constexpr uint32_t kNoneOfTimeline = UINT32_MAX;  // no layer, no unit, no thread

class Timeline {
 public:
  static constexpr uint64_t kMaxEvents = 1 << 24;

  // Room for `events` of each thread, rounded up to a power of 2, and for as many of storage.
  Timeline(uint32_t n_threads, uint64_t events);
  static uint64_t bytes_for(uint32_t n_threads, uint64_t events);
  uint64_t bytes() const { return bytes_for(n_threads_, capacity_); }

  // Between steps: the number of the step that comes, and when it begins.
  void begin_step(uint64_t at) {
    step_.store(steps_++, std::memory_order_relaxed);
    step_began_ = at;
  }
  uint64_t step_began() const { return step_began_; }

  // A span of a thread of the session, by that thread.
  void span(uint32_t thread, Event event, uint32_t layer, uint64_t begin, uint64_t end,
            uint32_t unit = kNoneOfTimeline) {
    write(thread, event, static_cast<uint16_t>(thread), layer, unit, begin, end, 0);
  }
  // A request of storage that has ended (bytes 0: it failed), or an event of the cache; from any thread.
  void read(uint32_t layer, uint32_t unit, uint64_t begin, uint64_t end, uint64_t bytes) {
    write(n_threads_, Event::kRead, kNobody, layer, unit, begin, end, bytes);
  }
  void cache(Event event, uint32_t layer, uint32_t unit) {
    const uint64_t at = now_ns();
    write(n_threads_, event, kNobody, layer, unit, at, at, 0);
  }

  // By the session's thread, between steps. Requests of storage may end meanwhile.
  void clear();
  // Up to `capacity` events, each thread's oldest first; `info` says how many there are and how many were overwritten.
  // `out` has `stride` bytes per event, of which those that both sides know are written.
  void copy(uint8_t* out, uint32_t stride, uint64_t capacity, sbr_timeline_info* info) const;

 private:
  static constexpr uint16_t kNobody = UINT16_MAX;

  // Every member is atomic because a writer that was overtaken by a whole lap may meet another one here; `number` (the
  // event's, from 1) then tells that what is read is not of one piece.
  struct Cell {
    std::atomic<uint64_t> number{0};
    std::atomic<uint64_t> begin{0}, end{0}, bytes{0};
    std::atomic<uint64_t> what{0};   // event, thread << 16, layer << 32
    std::atomic<uint64_t> where{0};  // step, unit << 32
  };
  struct alignas(64) Ring {
    std::unique_ptr<Cell[]> cells;
    std::atomic<uint64_t> next{0};
    uint64_t cleared = 0;
  };

  static uint64_t capacity_of(uint64_t events);
  static bool load(const Cell& cell, uint64_t number, sbr_timeline_event* event);

  // Release, each store after the one before: who sees a new member sees the old number gone.
  void write(uint32_t ring, Event event, uint16_t thread, uint32_t layer, uint32_t unit, uint64_t begin, uint64_t end,
             uint64_t bytes) {
    Ring& to = rings_[ring];
    const uint64_t i = to.next.fetch_add(1, std::memory_order_relaxed);
    Cell& cell = to.cells[i & (capacity_ - 1)];
    constexpr auto kRelease = std::memory_order_release;
    cell.number.store(0, std::memory_order_relaxed);
    cell.begin.store(begin, kRelease);
    cell.end.store(end, kRelease);
    cell.bytes.store(bytes, kRelease);
    cell.what.store(static_cast<uint64_t>(event) | uint64_t{thread} << 16 | uint64_t{layer} << 32, kRelease);
    cell.where.store(step_.load(std::memory_order_relaxed) | uint64_t{unit} << 32, kRelease);
    cell.number.store(i + 1, kRelease);
  }

  const uint32_t n_threads_;
  const uint64_t capacity_;  // a power of 2
  std::vector<Ring> rings_;  // threads, then storage
  std::atomic<uint32_t> step_{0};
  uint32_t steps_ = 0;
  uint64_t step_began_ = 0;
};

}  // namespace sbr
