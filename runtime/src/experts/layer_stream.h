// The layers of a model without experts in less memory than they take. Every step uses all layers in the same order, so
// what was used longest ago is what is needed next, and a cache that evicts by that (as the page cache does) misses
// everything. Here a fixed part of the layers stays, and the others pass through a few buffers, read in the order of
// their use and ahead of it, across steps: behind the last layer comes the first.
//
// Every thread of a step calls wait(l) before it uses layer l and release(l) after it, before the barrier that ends the
// layer. Where a layer lies follows from how many were read before it, so nobody has to be asked.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/buffer.h"
#include "base/thread_pool.h"
#include "base/timeline.h"
#include "experts/bundle.h"
#include "io/reader.h"
#include "model/weights.h"
#include "sbr/sbr.h"

namespace sbr {

// Which layers stay and which are streamed.
struct LayerSchedule {
  uint32_t n_layer = 0;
  uint32_t n_buffers = 0;          // 0: every layer stays
  std::vector<uint32_t> streamed;  // ascending

  uint32_t n_resident() const { return n_layer - static_cast<uint32_t>(streamed.size()); }
  uint32_t n_slots() const { return n_resident() + n_buffers; }
};

// For `n_slots` layers' memory, at least 1. One slot: each read waits for the layer before it to be used. More: two
// buffers, and the layers that stay lie evenly between those that are streamed, so that the storage never rests.
LayerSchedule make_layer_schedule(uint32_t n_layer, uint64_t n_slots);

struct StreamOptions {
  uint64_t bytes = 0;   // at most; whole layers are taken
  uint32_t verify = 0;  // SBR_VERIFY_*
  ReaderOptions reader;
  Timeline* timeline = nullptr;  // outlives the stream
};

class LayerStream : private ReadListener {
 public:
  // Begins to read. `weights` (norms, and what else the bundle lacks) outlives this. Errors: ARGUMENT (less memory than
  // a layer takes, saying how much that is), MEMORY, and those of Reader::open.
  LayerStream(const Bundle& bundle, const Weights& weights, const StreamOptions& options);
  ~LayerStream() override;

  // Around each step, by the session's thread. What failed before is read again. `complete` false: the step was
  // stopped.
  void begin_step(uint32_t n_threads);
  void end_step(bool complete);

  // Within a step, by each of its threads.
  const LayerWeights& layer(uint32_t l) const;  // its matrices lie where it is, or will be
  bool arrived(uint32_t l) const;
  // Until it may be read (spins briefly, then sleeps); false: it cannot be had, and every thread of the step is told
  // so. The first to come compares the checksum, where that is due. Thread 0 also counts.
  bool wait(uint32_t l, uint32_t tid);
  void release(uint32_t l);

  // Why wait() said false: IO or FORMAT. After the step.
  [[noreturn]] void throw_failure() const;

  const LayerSchedule& schedule() const { return schedule_; }
  uint64_t bytes() const { return memory_.bytes(); }
  ReaderInfo reader() const { return reader_->info(); }
  sbr_cache_counters counters() const;
  void reset_counters();

 private:
  enum Phase : uint32_t { kEmpty, kLoading, kUnchecked, kChecking, kReady, kFailed };

  // Memory for one layer.
  struct alignas(64) Slot {
    std::atomic<uint32_t> phase{kEmpty};
    std::atomic<uint32_t> users{0};  // threads that have yet to release it
    Gate changed;                    // advances with the phase
    uint32_t layer = 0;
    bool check = false;     // compare the checksum of what arrives
    int error = 0;          // of the read, an errno
    uint64_t asked_at = 0;  // for the timeline
  };

  void read_done(uint64_t tag, int error) override;
  void become(Slot& slot, Phase phase);
  void load(uint32_t slot, uint32_t layer, bool urgent);
  void read_ahead(uint64_t turn);
  void fill();
  uint32_t slot_of(uint32_t l) const;

  const Bundle& bundle_;
  const uint32_t verify_;
  Timeline* const timeline_;
  const LayerSchedule schedule_;
  std::vector<uint32_t> place_;      // [n_layer] slot of a layer that stays; else n_resident + its index in streamed
  std::vector<LayerWeights> views_;  // [n_layer][buffers]; of a layer that stays only the first
  std::vector<uint8_t> intact_;      // [n_layer] its checksum was compared
  Pages memory_;
  std::vector<Slot> slots_;  // those of layers that stay, then the buffers
  uint32_t n_threads_ = 0;
  // Turn t is the t-th use of a buffer since the beginning: slot n_resident + t % n_buffers. The present step's
  // streamed layers have the turns from turn_ on; those before next_ are being read, or were.
  uint64_t turn_ = 0;
  std::atomic<uint64_t> next_{0};
  bool filled_ = false;  // the buffers hold, or will hold, the first turns of the next step
  uint32_t failed_slot_ = 0;

  std::atomic<uint64_t> loads_{0}, evictions_{0}, verified_{0};
  uint64_t requests_ = 0, hits_ = 0, late_ = 0, ns_wait_ = 0;  // by thread 0
  ReaderCounters read_before_;                                 // at the last reset
  std::unique_ptr<Reader> reader_;                             // the first to go: it writes to all of the above
};

}  // namespace sbr
