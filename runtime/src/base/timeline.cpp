#include "base/timeline.h"

#include <algorithm>
#include <cstring>

namespace sbr {

uint64_t Timeline::capacity_of(uint64_t events) {
  uint64_t capacity = 1;
  while (capacity < events) capacity *= 2;
  return capacity;
}

uint64_t Timeline::bytes_for(uint32_t n_threads, uint64_t events) {
  return events == 0 ? 0 : (uint64_t{n_threads} + 1) * capacity_of(events) * sizeof(Cell);
}

Timeline::Timeline(uint32_t n_threads, uint64_t events)
    : n_threads_(n_threads), capacity_(capacity_of(events)), rings_(size_t{n_threads} + 1) {
  for (Ring& ring : rings_) ring.cells.reset(new Cell[capacity_]());
}

void Timeline::clear() {
  for (Ring& ring : rings_) ring.cleared = ring.next.load(std::memory_order_relaxed);
  steps_ = 0;
}

bool Timeline::load(const Cell& cell, uint64_t number, sbr_timeline_event* event) {
  constexpr auto kAcquire = std::memory_order_acquire;
  if (cell.number.load(kAcquire) != number) return false;
  event->begin_ns = cell.begin.load(kAcquire);
  event->end_ns = cell.end.load(kAcquire);
  event->bytes = cell.bytes.load(kAcquire);
  const uint64_t what = cell.what.load(kAcquire), where = cell.where.load(kAcquire);
  if (cell.number.load(std::memory_order_relaxed) != number) return false;
  event->kind = static_cast<uint16_t>(what);
  const auto thread = static_cast<uint16_t>(what >> 16);
  event->thread = thread == kNobody ? kNoneOfTimeline : thread;
  event->layer = static_cast<uint32_t>(what >> 32);
  event->step = static_cast<uint32_t>(where);
  event->unit = static_cast<uint32_t>(where >> 32);
  return true;
}

void Timeline::copy(uint8_t* out, uint32_t stride, uint64_t capacity, sbr_timeline_info* info) const {
  *info = {};
  info->struct_size = sizeof *info;
  info->n_threads = n_threads_;
  info->capacity = capacity_;
  for (const Ring& ring : rings_) {
    const uint64_t next = ring.next.load(std::memory_order_acquire);
    const uint64_t first = std::max(ring.cleared, next - std::min(next, capacity_));
    info->n_lost += first - ring.cleared;
    for (uint64_t i = first; i < next; ++i) {
      sbr_timeline_event event = {};
      if (!load(ring.cells[i & (capacity_ - 1)], i + 1, &event)) {
        ++info->n_lost;
        continue;
      }
      ++info->n_events;
      if (info->n_written == capacity) continue;
      std::memcpy(out + info->n_written * stride, &event, std::min<size_t>(stride, sizeof event));
      ++info->n_written;
    }
  }
}

}  // namespace sbr
