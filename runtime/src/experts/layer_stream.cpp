#include "experts/layer_stream.h"

#include <time.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <system_error>

#include "base/error.h"

namespace sbr {
namespace {

constexpr uint64_t kBuffers = 2;

// A read takes milliseconds, and who waits for it in a loop may keep its reader from a core.
constexpr uint32_t kSpins = 200;

uint64_t now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1000000000u + static_cast<uint64_t>(t.tv_nsec);
}

uint64_t require_slots(const Bundle& bundle, uint64_t bytes) {
  if (bytes >= bundle.unit_bytes()) return bytes / bundle.unit_bytes();
  throw Error(SBR_ERR_ARGUMENT, "options.cache_bytes is " + std::to_string(bytes) + ", but one layer takes " +
                                    std::to_string(bundle.unit_bytes()) + " bytes, which is the least that works");
}

}  // namespace

LayerSchedule make_layer_schedule(uint32_t n_layer, uint64_t n_slots) {
  LayerSchedule schedule;
  schedule.n_layer = n_layer;
  if (n_slots >= n_layer) return schedule;
  schedule.n_buffers = static_cast<uint32_t>(std::min(n_slots, kBuffers));
  const uint64_t n_streamed = n_layer - (n_slots - schedule.n_buffers);
  for (uint64_t i = 0; i < n_streamed; ++i)
    schedule.streamed.push_back(static_cast<uint32_t>((2 * i + 1) * n_layer / (2 * n_streamed)));
  return schedule;
}

LayerStream::LayerStream(const Bundle& bundle, const Weights& weights, const StreamOptions& options)
    : bundle_(bundle),
      verify_(options.verify),
      timeline_(options.timeline),
      schedule_(make_layer_schedule(bundle.n_units(), require_slots(bundle, options.bytes))),
      place_(schedule_.n_layer),
      intact_(schedule_.n_layer, 0),
      memory_(schedule_.n_slots() * bundle.unit_bytes(), true),
      slots_(schedule_.n_slots()) {
  const uint32_t copies = std::max(schedule_.n_buffers, 1u);
  uint32_t n_streamed = 0, n_resident = 0;
  for (uint32_t l = 0; l < schedule_.n_layer; ++l) {
    const bool streamed = n_streamed < schedule_.streamed.size() && schedule_.streamed[n_streamed] == l;
    place_[l] = streamed ? schedule_.n_resident() + n_streamed++ : n_resident++;
    for (uint32_t copy = 0; copy < copies; ++copy) {
      LayerWeights view = weights.layers[l];
      const uint64_t slot = streamed ? uint64_t{schedule_.n_resident()} + copy : place_[l];
      for (const BundlePart& part : bundle.parts(l)) {
        view.*part.member = part.view;
        (view.*part.member).data = memory_.data() + slot * bundle.unit_bytes() + part.offset;
      }
      views_.push_back(view);
    }
  }
  reader_ = Reader::open(bundle.path(), options.reader, this);
  fill();
  for (uint32_t l = 0; l < schedule_.n_layer; ++l) {
    if (place_[l] < schedule_.n_resident()) load(place_[l], l, false);
  }
}

LayerStream::~LayerStream() = default;

// A layer that is streamed lies in the buffer of its turn.
uint32_t LayerStream::slot_of(uint32_t l) const {
  const uint32_t place = place_[l], n_resident = schedule_.n_resident();
  return place < n_resident ? place
                            : n_resident + static_cast<uint32_t>((turn_ + place - n_resident) % schedule_.n_buffers);
}

const LayerWeights& LayerStream::layer(uint32_t l) const {
  const uint32_t slot = slot_of(l), n_resident = schedule_.n_resident();
  return views_[size_t{l} * std::max(schedule_.n_buffers, 1u) + (slot < n_resident ? 0 : slot - n_resident)];
}

bool LayerStream::arrived(uint32_t l) const {
  return slots_[slot_of(l)].phase.load(std::memory_order_acquire) == kReady;
}

void LayerStream::become(Slot& slot, Phase phase) {
  slot.phase.store(phase, std::memory_order_release);
  slot.changed.advance();
}

void LayerStream::load(uint32_t slot, uint32_t layer, bool urgent) {
  Slot& to = slots_[slot];
  to.layer = layer;
  to.check = verify_ == SBR_VERIFY_EVERY || (verify_ == SBR_VERIFY_FIRST && intact_[layer] == 0);
  to.error = 0;
  if (timeline_ != nullptr) to.asked_at = now_ns();
  become(to, kLoading);
  try {
    reader_->submit(
        {slot, bundle_.offset(layer), bundle_.unit_bytes(), memory_.data() + slot * bundle_.unit_bytes(), urgent});
  } catch (...) {  // no memory. All threads are told alike; one that threw would leave the others at a barrier
    to.error = ENOMEM;
    become(to, kFailed);
  }
}

void LayerStream::read_done(uint64_t tag, int error) {
  Slot& slot = slots_[tag];
  slot.error = error;
  if (timeline_ != nullptr)
    timeline_->read(slot.layer, kNoneOfTimeline, slot.asked_at, now_ns(), error == 0 ? bundle_.unit_bytes() : 0);
  if (error == 0) loads_.fetch_add(1, std::memory_order_relaxed);
  become(slot, error != 0 ? kFailed : slot.check ? kUnchecked : kReady);
}

// What comes in this turn of the buffers. All streamed layers have a turn in each step.
void LayerStream::read_ahead(uint64_t turn) {
  const uint64_t n_streamed = schedule_.streamed.size();
  const auto slot = static_cast<uint32_t>(schedule_.n_resident() + turn % schedule_.n_buffers);
  slots_[slot].users.store(n_threads_, std::memory_order_relaxed);
  next_.store(turn + 1, std::memory_order_relaxed);
  load(slot, schedule_.streamed[(turn - turn_) % n_streamed], true);
}

void LayerStream::fill() {
  for (uint32_t i = 0; i < schedule_.n_buffers; ++i) read_ahead(turn_ + i);
  filled_ = true;
}

void LayerStream::begin_step(uint32_t n_threads) {
  n_threads_ = n_threads;
  if (!filled_) fill();
  for (uint32_t slot = 0; slot < slots_.size(); ++slot) {
    slots_[slot].users.store(n_threads, std::memory_order_relaxed);
    if (slots_[slot].phase.load(std::memory_order_acquire) == kFailed) load(slot, slots_[slot].layer, true);
  }
}

void LayerStream::end_step(bool complete) {
  if (complete) {
    turn_ += schedule_.streamed.size();
    return;
  }
  // The buffers hold later layers than the next step begins with.
  for (uint32_t i = 0; i < schedule_.n_buffers; ++i) {
    const uint32_t slot = schedule_.n_resident() + i;
    Slot& buffer = slots_[slot];
    for (;;) {
      const uint32_t seen = buffer.changed.value();
      if (buffer.phase.load(std::memory_order_acquire) != kLoading || reader_->cancel(slot)) break;
      buffer.changed.wait_beyond(seen, kSpins);
    }
    become(buffer, kEmpty);
  }
  turn_ = next_.load(std::memory_order_relaxed);
  filled_ = false;
}

bool LayerStream::wait(uint32_t l, uint32_t tid) {
  const uint32_t at = slot_of(l);
  Slot& slot = slots_[at];
  const uint32_t first_seen = slot.phase.load(std::memory_order_acquire);
  if (tid == 0) {
    ++requests_;
    ++(first_seen == kLoading || first_seen == kFailed ? late_ : hits_);
  }
  if (first_seen == kReady) return true;
  const uint64_t begin = now();
  for (;;) {
    const uint32_t seen = slot.changed.value();
    uint32_t phase = slot.phase.load(std::memory_order_acquire);
    if (phase == kReady || phase == kFailed) {
      if (tid == 0) {
        ns_wait_ += now() - begin;
        failed_slot_ = at;
      }
      return phase == kReady;
    }
    if (phase == kUnchecked && slot.phase.compare_exchange_strong(phase, kChecking, std::memory_order_acq_rel)) {
      const bool intact = bundle_.intact(l, memory_.data() + at * bundle_.unit_bytes());
      intact_[l] = intact ? 1 : 0;
      verified_.fetch_add(1, std::memory_order_relaxed);
      become(slot, intact ? kReady : kFailed);
      continue;
    }
    slot.changed.wait_beyond(seen, kSpins);
  }
}

void LayerStream::release(uint32_t l) {
  const uint32_t place = place_[l];
  if (place < schedule_.n_resident()) return;
  if (slots_[slot_of(l)].users.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  evictions_.fetch_add(1, std::memory_order_relaxed);
  read_ahead(turn_ + place - schedule_.n_resident() + schedule_.n_buffers);
}

void LayerStream::throw_failure() const {
  const Slot& slot = slots_[failed_slot_];
  const std::string what = bundle_.path() + ": " + bundle_.unit_name(slot.layer);
  if (slot.error == 0) {
    throw Error(SBR_ERR_FORMAT,
                what + ": its bytes are not those that were written (their checksum differs); make the bundle again");
  }
  const char* hint = slot.error == EIO ? " (a failing disk, or a file that was cut short)" : "";
  throw Error(slot.error == ENOMEM ? SBR_ERR_MEMORY : SBR_ERR_IO,
              what + ": cannot be read: " + std::generic_category().message(slot.error) + hint);
}

sbr_cache_counters LayerStream::counters() const {
  const ReaderCounters read = reader_->counters();
  sbr_cache_counters counters = {};
  counters.struct_size = sizeof counters;
  counters.requests = requests_;
  counters.hits = hits_;
  counters.loads = loads_.load(std::memory_order_relaxed);
  counters.bytes_read = read.bytes - read_before_.bytes;
  counters.evictions = evictions_.load(std::memory_order_relaxed);
  counters.late = late_;
  counters.ns_wait = ns_wait_;
  counters.ns_io_busy = read.ns_busy - read_before_.ns_busy;
  counters.verified = verified_.load(std::memory_order_relaxed);
  return counters;
}

void LayerStream::reset_counters() {
  loads_ = 0;
  evictions_ = 0;
  verified_ = 0;
  requests_ = hits_ = late_ = ns_wait_ = 0;
  read_before_ = reader_->counters();
}

}  // namespace sbr
