#include "experts/policy.h"

#include <algorithm>
#include <vector>

#include "experts/reuse_policy.h"
#include "sbr/sbr.h"

namespace sbr {
namespace {

// Units in lists, each from the oldest use to the latest.
class UseLists {
 public:
  UseLists(uint32_t n_units, uint32_t n_lists) : n_units_(n_units), links_(n_units + n_lists, {kNoUnit, kNoUnit}) {
    for (uint32_t end = n_units; end < links_.size(); ++end) links_[end] = {end, end};
  }

  // As the latest of a list, wherever it was before.
  void append(uint32_t list, uint32_t unit) {
    remove(unit);
    const uint32_t end = n_units_ + list, latest = links_[end].previous;
    links_[unit] = {latest, end};
    links_[latest].next = unit;
    links_[end].previous = unit;
  }

  void remove(uint32_t unit) {
    Link& link = links_[unit];
    if (link.next == kNoUnit) return;
    links_[link.previous].next = link.next;
    links_[link.next].previous = link.previous;
    link = {kNoUnit, kNoUnit};
  }

  // Takes the oldest that is not held out of a list; kNoUnit.
  uint32_t take(uint32_t list, const uint8_t* held) {
    for (uint32_t unit = oldest(list); unit != kNoUnit; unit = later(unit)) {
      if (held[unit] != 0) continue;
      remove(unit);
      return unit;
    }
    return kNoUnit;
  }

  uint32_t oldest(uint32_t list) const { return unit_or_end(links_[n_units_ + list].next); }

 private:
  struct Link {
    uint32_t previous, next;  // kNoUnit: in no list
  };

  uint32_t later(uint32_t unit) const { return unit_or_end(links_[unit].next); }
  uint32_t unit_or_end(uint32_t at) const { return at < n_units_ ? at : kNoUnit; }

  const uint32_t n_units_;
  std::vector<Link> links_;  // [n_units + n_lists]; of a list: its end
};

class Lru final : public EvictionPolicy {
 public:
  explicit Lru(const PolicyShape& shape) : lists_(shape.n_layer * shape.units_per_layer, 1) {}
  void used(uint32_t unit) override { lists_.append(0, unit); }
  uint32_t evict(const uint8_t* held) override { return lists_.take(0, held); }

 private:
  UseLists lists_;
};

// How often each unit was used, whether it is in the cache or not. All counts are halved when the average unit has been
// used kPeriod times, so that what was popular long ago does not stay for ever. Of units used equally often the least
// recently used leaves.
class Lfu final : public EvictionPolicy {
 public:
  explicit Lfu(const PolicyShape& shape)
      : counts_(static_cast<size_t>(shape.n_layer) * shape.units_per_layer, 0),
        lists_(static_cast<uint32_t>(counts_.size()), kMost + 1),
        period_(kPeriod * counts_.size()) {}

  void used(uint32_t unit) override {
    if (++uses_ == period_) age();
    if (counts_[unit] < kMost) ++counts_[unit];
    lists_.append(counts_[unit], unit);
  }

  uint32_t evict(const uint8_t* held) override {
    for (uint32_t count = 0; count <= kMost; ++count) {
      const uint32_t unit = lists_.take(count, held);
      if (unit != kNoUnit) return unit;
    }
    return kNoUnit;
  }

 private:
  static constexpr uint64_t kPeriod = 8;
  static constexpr uint32_t kMost = 127;  // a unit that each of 100 tokens uses, where the average one is used by 8 %

  void age() {
    uses_ = 0;
    for (uint32_t& count : counts_) count /= 2;
    // From the lowest on: a list is emptied before units move into it.
    for (uint32_t count = 1; count <= kMost; ++count) {
      for (uint32_t unit = lists_.oldest(count); unit != kNoUnit; unit = lists_.oldest(count)) {
        lists_.append(count / 2, unit);
      }
    }
  }

  std::vector<uint32_t> counts_;
  UseLists lists_;  // by count
  const uint64_t period_;
  uint64_t uses_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_policy(uint32_t policy, const PolicyShape& shape) {
  switch (policy) {
    case SBR_CACHE_AUTO:
    case SBR_CACHE_REUSE:
      return make_reuse_policy(shape);
    case SBR_CACHE_LRU:
      return std::make_unique<Lru>(shape);
    case SBR_CACHE_LFU:
      return std::make_unique<Lfu>(shape);
    default:
      return nullptr;
  }
}

}  // namespace sbr
