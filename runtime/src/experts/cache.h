// Units of a bundle in a bounded piece of memory. Loads are single-flight; what is pinned or on its way is never
// evicted.
//
// All calls are made by one thread at a time (thread 0 of a session), the making, moving and dropping of Pins included.
// Pin::wait, ready and data may be used by any thread while that one keeps the Pin.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "base/thread_pool.h"
#include "base/timeline.h"
#include "experts/bundle.h"
#include "experts/policy.h"
#include "io/reader.h"
#include "sbr/sbr.h"

namespace sbr {

struct CacheOptions {
  uint64_t bytes = 0;   // at most; the arena takes whole units
  uint32_t policy = 0;  // SBR_CACHE_*
  uint32_t verify = 0;  // SBR_VERIFY_*
  ReaderOptions reader;
  Timeline* timeline = nullptr;  // outlives the cache
};

// What a cache needs to know of a bundle; intact() is called on the reader's threads.
struct UnitSource {
  std::string path;
  uint64_t unit_bytes;
  uint32_t n_units, units_per_layer;
  std::function<uint64_t(uint32_t unit)> offset;
  std::function<bool(uint32_t unit, const uint8_t* bytes)> intact;
  std::function<std::string(uint32_t unit)> name;
};

class UnitCache : private ReadListener {
 public:
  // A unit that stays where it is while this lives; gone before its cache.
  class Pin {
   public:
    Pin() = default;
    Pin(Pin&& other) noexcept { *this = std::move(other); }
    Pin& operator=(Pin&& other) noexcept {
      std::swap(cache_, other.cache_);
      std::swap(slot_, other.slot_);
      return *this;
    }
    ~Pin() {
      if (cache_ != nullptr) cache_->release(slot_);
    }
    explicit operator bool() const { return cache_ != nullptr; }
    const uint8_t* data() const { return cache_->arena() + slot_ * cache_->source_.unit_bytes; }  // once ready
    bool ready() const;                                                                           // loaded, or failed
    bool wait() const;  // until ready (spins briefly, then sleeps); false: the load failed

   private:
    friend class UnitCache;
    Pin(UnitCache* cache, uint32_t slot) : cache_(cache), slot_(slot) {}

    UnitCache* cache_ = nullptr;
    uint32_t slot_ = 0;
  };

  // `bundle` outlives this. Errors: ARGUMENT (fewer bytes than one unit: the message says how many are needed), MEMORY,
  // and those of Reader::open.
  UnitCache(const Bundle& bundle, const CacheOptions& options);
  UnitCache(UnitSource source, const CacheOptions& options);
  // Waits for reads that are under way. All Pins must be gone.
  ~UnitCache() override;

  // Whether `unit` is there, or on its way. What is there is best acquired first: acquiring what is missing may evict
  // it.
  bool has(uint32_t unit) const { return slot_of_[unit] != kNoSlot; }
  // Pins a unit; what is not there begins to load. What failed to load is tried again, once nobody pins it any more. An
  // empty Pin: every slot is pinned. Waits only where all that is not pinned is a guess that is being read.
  Pin acquire(uint32_t unit);
  // A guess that `unit` will be acquired soon: loads it behind all that was acquired and as far as the device would be
  // idle, if a slot can be had (not more than a quarter of them is given to guesses on their way). Nobody waits for it,
  // and what fails is read once more, so that a unit acquired meanwhile has failed twice when its Pin says so.
  void guess(uint32_t unit);
  // A guess, if it is one, that turned out wrong: given up where it has not begun to load; otherwise among the first to
  // be evicted.
  void drop_guess(uint32_t unit);
  // The same of all guesses that nobody acquired.
  void drop_guesses();

  // The first failure that a wait() told of since clear_failure(): a sentence ("<path>: expert 3 of layer 5: ...") and
  // its SBR_ERR_*; "" and SBR_OK when there was none. Not while others wait.
  std::string failure() const;
  int32_t failure_status() const;
  void clear_failure() { failure_.store(0, std::memory_order_relaxed); }

  uint32_t capacity() const { return static_cast<uint32_t>(slots_.size()); }  // units
  const uint8_t* arena() const { return arena_.data(); }  // slot s begins at arena() + s * unit_bytes
  uint64_t bytes() const { return arena_.bytes(); }
  ReaderInfo reader() const { return reader_->info(); }
  // `late` counts a load once, however many threads waited for it. `predicted`, `predicted_right` and `ns_wait` are 0
  // here: they are their caller's.
  sbr_cache_counters counters() const;
  void reset_counters();

 private:
  static constexpr uint32_t kNoSlot = UINT32_MAX;
  enum Phase : uint32_t { kEmpty, kLoading, kReady, kFailed };
  enum class Guess : uint8_t { kNone, kOpen, kDropped };  // kDropped: nobody acquired it in its time

  // A place for one unit. The reader's threads write phase and error of one that is loading, nothing else.
  struct alignas(64) Slot {
    std::atomic<uint32_t> phase{kEmpty};
    std::atomic<bool> awaited{false};
    Gate changed;  // advances when it has loaded, or failed
    int32_t error = 0;
    bool check = false;  // compare the checksum of what arrives
    bool again = false;  // a guess that fails is read once more: somebody may need it by now
    Guess guess = Guess::kNone;
    uint32_t unit = kNoUnit;
    uint32_t pins = 0;
    uint64_t asked_at = 0;  // for the timeline
  };

  void read_done(uint64_t tag, int error) override;
  bool read_again(uint32_t slot);
  void release(uint32_t slot);
  void load(uint32_t slot, uint32_t unit, Guess guess);
  void no_longer_loading(uint32_t slot);
  void vacate(uint32_t slot);
  void settle();
  uint32_t free_slot();
  bool evict_guess(Guess guess);
  bool cancel_guess(uint32_t slot);
  uint32_t slot_for_demand();
  static uint32_t wait_for(Slot& slot);
  bool await(Slot& slot);

  // An event of the timeline, if there is one.
  void note(Event event, uint32_t unit) const {
    if (timeline_ == nullptr) return;
    timeline_->cache(event, unit / source_.units_per_layer, unit % source_.units_per_layer);
  }

  const UnitSource source_;
  const uint32_t verify_;
  Timeline* const timeline_;
  Pages arena_;
  std::vector<Slot> slots_;
  std::vector<uint32_t> slot_of_;  // [n_units]
  std::vector<uint8_t> held_;      // [n_units] pinned, or on its way as far as settle() has seen, or a guess
  std::vector<uint8_t> verified_;  // [n_units]
  std::vector<uint32_t> empty_;    // slots
  std::vector<uint32_t> loading_;  // slots, as far as settle() has seen
  std::vector<uint32_t> guesses_;  // slots of guesses that nobody acquired, oldest first
  std::unique_ptr<EvictionPolicy> policy_;

  sbr_cache_counters counters_ = {};
  std::atomic<uint64_t> loads_{0}, late_{0}, verified_count_{0};
  std::atomic<uint64_t> failure_{0};  // unit + 1, shifted by 32, and the slot's error
  ReaderCounters read_before_;        // at the last reset
  std::unique_ptr<Reader> reader_;    // the first to go: it writes to all of the above
};

}  // namespace sbr
