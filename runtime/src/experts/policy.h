// Which unit leaves a full cache. A unit is layer * units_per_layer + expert. The same classes run in the cache and in
// the simulator (simulate.h).
#pragma once

#include <cstdint>
#include <memory>

namespace sbr {

constexpr uint32_t kNoUnit = UINT32_MAX;

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  // A step asked for `unit`, which is in the cache from now on (perhaps still on its way). Steps ask layer by layer.
  virtual void used(uint32_t unit) = 0;
  // Takes one unit out of its books and returns it: one for which held[unit] is 0 (others are pinned, or on their way);
  // kNoUnit when there is none.
  virtual uint32_t evict(const uint8_t* held) = 0;
};

struct PolicyShape {
  uint32_t n_layer;
  uint32_t units_per_layer;
};

// `policy` is SBR_CACHE_*; nullptr for one that is unknown.
std::unique_ptr<EvictionPolicy> make_policy(uint32_t policy, const PolicyShape& shape);

}  // namespace sbr
