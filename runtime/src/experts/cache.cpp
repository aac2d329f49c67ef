#include "experts/cache.h"

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "base/error.h"

namespace sbr {
namespace {

// Before sleeping: some microseconds. A read takes a millisecond, and the reader's thread may need this very core.
constexpr uint32_t kSpins = 100;

// Slot::error of a unit whose checksum differs; an errno otherwise.
constexpr int32_t kDamaged = -1;

UnitSource source_of(const Bundle& bundle) {
  return {bundle.path(),
          bundle.unit_bytes(),
          bundle.n_units(),
          bundle.units_per_layer(),
          [&bundle](uint32_t unit) { return bundle.offset(unit); },
          [&bundle](uint32_t unit, const uint8_t* bytes) { return bundle.intact(unit, bytes); },
          [&bundle](uint32_t unit) { return bundle.unit_name(unit); }};
}

uint32_t capacity_of(const UnitSource& source, uint64_t bytes) {
  if (bytes < source.unit_bytes) {
    throw Error(SBR_ERR_ARGUMENT, "options.cache_bytes is " + std::to_string(bytes) + ", less than one unit of " +
                                      source.path + " takes: at least " + std::to_string(source.unit_bytes) +
                                      " are needed");
  }
  return static_cast<uint32_t>(std::min<uint64_t>(bytes / source.unit_bytes, source.n_units));
}

}  // namespace

UnitCache::UnitCache(const Bundle& bundle, const CacheOptions& options) : UnitCache(source_of(bundle), options) {}

UnitCache::UnitCache(UnitSource source, const CacheOptions& options)
    : source_(std::move(source)),
      verify_(options.verify),
      timeline_(options.timeline),
      arena_(capacity_of(source_, options.bytes) * source_.unit_bytes, true),
      slots_(capacity_of(source_, options.bytes)),
      slot_of_(source_.n_units, kNoSlot),
      held_(source_.n_units, 0),
      verified_(source_.n_units, 0) {
  if (verify_ > SBR_VERIFY_NEVER) {
    throw Error(SBR_ERR_ARGUMENT, "options.verify is " + std::to_string(verify_) + ", expected one of SBR_VERIFY_*");
  }
  const uint32_t n_layer = source_.n_units / source_.units_per_layer;
  policy_ = make_policy(options.policy, {n_layer, source_.units_per_layer});
  if (policy_ == nullptr) {
    throw Error(SBR_ERR_ARGUMENT, "options.cache_policy is " + std::to_string(options.policy) +
                                      ", expected SBR_CACHE_AUTO, LRU, LFU or REUSE");
  }
  for (uint32_t slot = capacity(); slot-- > 0;) empty_.push_back(slot);
  loading_.reserve(capacity());
  guesses_.reserve(capacity());
  reader_ = Reader::open(source_.path, options.reader, this);
}

// A guess that fails meanwhile is submitted once more.
UnitCache::~UnitCache() { reader_->end(); }

// ---- pins ----------------------------------------------------------------------------------------

bool UnitCache::Pin::ready() const { return cache_->slots_[slot_].phase.load(std::memory_order_acquire) != kLoading; }

bool UnitCache::Pin::wait() const { return cache_->await(cache_->slots_[slot_]); }

uint32_t UnitCache::wait_for(Slot& slot) {
  for (;;) {
    // The gate first: a load that ends between the two looks moves it, and wait_beyond returns at once.
    const uint32_t seen = slot.changed.value();
    const uint32_t phase = slot.phase.load(std::memory_order_acquire);
    if (phase != kLoading) return phase;
    slot.changed.wait_beyond(seen, kSpins);
  }
}

bool UnitCache::await(Slot& slot) {
  uint32_t phase = slot.phase.load(std::memory_order_acquire);
  if (phase == kLoading) {
    if (!slot.awaited.exchange(true, std::memory_order_relaxed)) late_.fetch_add(1, std::memory_order_relaxed);
    phase = wait_for(slot);
  }
  if (phase == kReady) return true;
  uint64_t none = 0;
  const uint64_t failure = (uint64_t{slot.unit} + 1) << 32 | static_cast<uint32_t>(slot.error);
  failure_.compare_exchange_strong(none, failure, std::memory_order_relaxed);
  return false;
}

void UnitCache::release(uint32_t slot) {
  Slot& at = slots_[slot];
  if (--at.pins != 0) return;
  if (at.phase.load(std::memory_order_acquire) == kReady) {
    held_[at.unit] = 0;
  } else {
    settle();
  }
}

// ---- loads ---------------------------------------------------------------------------------------

void UnitCache::load(uint32_t slot, uint32_t unit, Guess guess) {
  Slot& at = slots_[slot];
  at.unit = unit;
  at.guess = guess;
  at.error = 0;
  at.again = guess != Guess::kNone;
  at.check = verify_ == SBR_VERIFY_EVERY || (verify_ == SBR_VERIFY_FIRST && verified_[unit] == 0);
  at.awaited.store(false, std::memory_order_relaxed);
  at.phase.store(kLoading, std::memory_order_relaxed);  // the reader's lock carries it over
  slot_of_[unit] = slot;
  held_[unit] = 1;
  loading_.push_back(slot);
  uint8_t* to = arena_.data() + slot * source_.unit_bytes;
  note(guess == Guess::kNone ? Event::kLoad : Event::kGuess, unit);
  if (timeline_ != nullptr) at.asked_at = now_ns();
  try {
    const bool urgent = guess == Guess::kNone;
    reader_->submit({slot, source_.offset(unit), source_.unit_bytes, to, urgent, !urgent});
  } catch (...) {  // no memory. Whoever waits for it is told; the other threads of a step would wait for one that left
    at.error = ENOMEM;
    at.phase.store(kFailed, std::memory_order_release);
    at.changed.advance();
  }
}

// On a thread of the reader.
void UnitCache::read_done(uint64_t tag, int error) {
  Slot& at = slots_[tag];
  at.error = error;
  if (timeline_ != nullptr) {
    timeline_->read(at.unit / source_.units_per_layer, at.unit % source_.units_per_layer, at.asked_at, now_ns(),
                    error == 0 ? source_.unit_bytes : 0);
  }
  if (error == 0) loads_.fetch_add(1, std::memory_order_release);
  if (error == 0 && at.check) {
    verified_count_.fetch_add(1, std::memory_order_release);
    if (source_.intact(at.unit, arena_.data() + tag * source_.unit_bytes)) {
      verified_[at.unit] = 1;
    } else {
      at.error = kDamaged;
    }
  }
  if (at.error != 0 && at.again && read_again(static_cast<uint32_t>(tag))) return;
  at.phase.store(at.error == 0 ? kReady : kFailed, std::memory_order_release);
  at.changed.advance();
}

// Likewise. Urgent: that it failed may have been noticed late.
bool UnitCache::read_again(uint32_t slot) {
  Slot& at = slots_[slot];
  at.again = false;
  try {
    reader_->submit(
        {slot, source_.offset(at.unit), source_.unit_bytes, arena_.data() + slot * source_.unit_bytes, true});
    return true;
  } catch (...) {  // no memory: then the failure stands
    return false;
  }
}

// A slot that is given up without settle() in between: what arrived since the last one is still listed.
void UnitCache::no_longer_loading(uint32_t slot) {
  loading_.erase(std::remove(loading_.begin(), loading_.end(), slot), loading_.end());
}

// The slot holds nothing from now on. Its unit may stay in the policy's books: evict() is asked again then.
void UnitCache::vacate(uint32_t slot) {
  Slot& at = slots_[slot];
  slot_of_[at.unit] = kNoSlot;
  held_[at.unit] = 0;
  at.unit = kNoUnit;
  at.guess = Guess::kNone;
  at.phase.store(kEmpty, std::memory_order_relaxed);
  empty_.push_back(slot);
}

// Takes notice of what has arrived. Comes before any eviction.
void UnitCache::settle() {
  size_t kept = 0;
  for (size_t i = 0; i < loading_.size(); ++i) {
    const uint32_t slot = loading_[i];
    Slot& at = slots_[slot];
    const uint32_t phase = at.phase.load(std::memory_order_acquire);
    if (phase == kLoading || (phase == kFailed && at.pins != 0)) {
      loading_[kept++] = slot;
    } else if (phase == kFailed) {
      guesses_.erase(std::remove(guesses_.begin(), guesses_.end(), slot), guesses_.end());
      vacate(slot);
    } else if (at.pins == 0 && at.guess == Guess::kNone) {
      held_[at.unit] = 0;
    }
  }
  loading_.resize(kept);
}

// ---- room ----------------------------------------------------------------------------------------

// A slot for another unit, of those that are empty, dropped guesses, or what the policy gives up; kNoSlot.
uint32_t UnitCache::free_slot() {
  if (empty_.empty()) evict_guess(Guess::kDropped);
  while (empty_.empty()) {
    const uint32_t unit = policy_->evict(held_.data());
    if (unit == kNoUnit) return kNoSlot;
    if (slot_of_[unit] == kNoSlot) continue;  // its load failed
    ++counters_.evictions;
    note(Event::kEvict, unit);
    vacate(slot_of_[unit]);
  }
  const uint32_t slot = empty_.back();
  empty_.pop_back();
  return slot;
}

// The oldest of such guesses that has arrived.
bool UnitCache::evict_guess(Guess guess) {
  for (auto at = guesses_.begin(); at != guesses_.end(); ++at) {
    Slot& slot = slots_[*at];
    if (slot.guess != guess || slot.phase.load(std::memory_order_acquire) != kReady) continue;
    ++counters_.evictions;
    note(Event::kEvict, slot.unit);
    no_longer_loading(*at);
    vacate(*at);
    guesses_.erase(at);
    return true;
  }
  return false;
}

// Gives up a guess that is not being read yet.
bool UnitCache::cancel_guess(uint32_t slot) {
  if (slots_[slot].phase.load(std::memory_order_acquire) != kLoading || !reader_->cancel(slot)) return false;
  ++counters_.guesses_cancelled;
  no_longer_loading(slot);
  guesses_.erase(std::remove(guesses_.begin(), guesses_.end(), slot), guesses_.end());
  vacate(slot);
  return true;
}

uint32_t UnitCache::slot_for_demand() {
  for (;;) {
    const uint32_t slot = free_slot();
    if (slot != kNoSlot) return slot;
    if (evict_guess(Guess::kOpen)) continue;
    bool cancelled = false;
    for (size_t i = guesses_.size(); i-- > 0 && !cancelled;) cancelled = cancel_guess(guesses_[i]);
    if (cancelled) continue;
    const auto unpinned =
        std::find_if(loading_.begin(), loading_.end(), [this](uint32_t i) { return slots_[i].pins == 0; });
    if (unpinned == loading_.end()) return kNoSlot;
    wait_for(slots_[*unpinned]);
    settle();
  }
}

// ---- what a session asks -------------------------------------------------------------------------

UnitCache::Pin UnitCache::acquire(uint32_t unit) {
  settle();
  uint32_t slot = slot_of_[unit];
  if (slot == kNoSlot) {
    slot = slot_for_demand();
    if (slot == kNoSlot) return Pin();
    load(slot, unit, Guess::kNone);
  } else {
    Slot& at = slots_[slot];
    const uint32_t phase = at.phase.load(std::memory_order_acquire);
    if (phase == kReady) {
      ++counters_.hits;
      note(Event::kHit, unit);
    }
    if (at.guess != Guess::kNone) {
      at.guess = Guess::kNone;
      guesses_.erase(std::remove(guesses_.begin(), guesses_.end(), slot), guesses_.end());
      ++counters_.guesses_used;
      if (phase == kLoading) {
        ++counters_.hits_on_the_way;
        reader_->promote(slot);
      }
    }
  }
  ++counters_.requests;
  ++slots_[slot].pins;
  held_[unit] = 1;
  policy_->used(unit);
  return Pin(this, slot);
}

void UnitCache::guess(uint32_t unit) {
  settle();
  if (slot_of_[unit] != kNoSlot) {
    Slot& at = slots_[slot_of_[unit]];
    if (at.guess == Guess::kDropped) at.guess = Guess::kOpen;
    return;
  }
  const auto open = std::count_if(guesses_.begin(), guesses_.end(),
                                  [this](uint32_t slot) { return slots_[slot].guess == Guess::kOpen; });
  if (static_cast<uint64_t>(open) >= capacity() / 4) return;
  const uint32_t slot = free_slot();
  if (slot == kNoSlot) return;
  load(slot, unit, Guess::kOpen);
  guesses_.push_back(slot);
  ++counters_.guesses;
}

void UnitCache::drop_guess(uint32_t unit) {
  settle();
  const uint32_t slot = slot_of_[unit];
  if (slot == kNoSlot || slots_[slot].guess != Guess::kOpen) return;
  if (!cancel_guess(slot)) slots_[slot].guess = Guess::kDropped;
}

void UnitCache::drop_guesses() {
  settle();
  for (size_t i = guesses_.size(); i-- > 0;) {
    Slot& at = slots_[guesses_[i]];
    if (at.guess == Guess::kOpen && !cancel_guess(guesses_[i])) at.guess = Guess::kDropped;
  }
}

// ---- what became of it ---------------------------------------------------------------------------

std::string UnitCache::failure() const {
  const uint64_t failure = failure_.load(std::memory_order_relaxed);
  if (failure == 0) return "";
  const auto error = static_cast<int32_t>(failure & UINT32_MAX);
  std::string text = source_.path + ": " + source_.name(static_cast<uint32_t>(failure >> 32) - 1);
  if (error == kDamaged) {
    return text + ": its bytes are not those that were written (their checksum differs); make the bundle again";
  }
  text += ": cannot be read: " + std::generic_category().message(error);
  if (error == EIO)
    text += " (a failing disk, or a file that was cut short: its system's log, or its size, tells which)";
  return text;
}

int32_t UnitCache::failure_status() const {
  const uint64_t failure = failure_.load(std::memory_order_relaxed);
  if (failure == 0) return SBR_OK;
  switch (static_cast<int32_t>(failure & UINT32_MAX)) {
    case kDamaged:
      return SBR_ERR_FORMAT;
    case ENOMEM:
      return SBR_ERR_MEMORY;
    default:
      return SBR_ERR_IO;
  }
}

sbr_cache_counters UnitCache::counters() const {
  sbr_cache_counters counters = counters_;
  counters.struct_size = sizeof counters;
  // In the reverse of the order in which a read is counted: guesses that arrive meanwhile leave no sum out of step.
  counters.verified = verified_count_.load(std::memory_order_acquire);
  counters.loads = loads_.load(std::memory_order_acquire);
  counters.late = late_.load(std::memory_order_relaxed);
  const ReaderCounters read = reader_->counters();
  counters.bytes_read = read.bytes - read_before_.bytes;
  counters.ns_io_busy = read.ns_busy - read_before_.ns_busy;
  return counters;
}

void UnitCache::reset_counters() {
  counters_ = {};
  loads_.store(0, std::memory_order_relaxed);
  late_.store(0, std::memory_order_relaxed);
  verified_count_.store(0, std::memory_order_relaxed);
  read_before_ = reader_->counters();
}

}  // namespace sbr
