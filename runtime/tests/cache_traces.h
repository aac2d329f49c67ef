// Synthetic routing for tests of eviction policies, and a plain cache to run it through.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "experts/policy.h"
#include "synth/random.h"

namespace sbr_test {

struct RoutingShape {
  uint32_t n_layer, n_expert, n_used;
  uint32_t units() const { return n_layer * n_expert; }
};

// Draws every token's experts of every layer: without replacement, by weight, perhaps in favour of the last token's.
class Routing {
 public:
  Routing(RoutingShape shape, uint64_t seed) : shape_(shape), seed_(seed), logs_(shape.units(), 0) {}

  // From now on `share` of each layer's experts, others than before, weigh `ratio` times as much as the rest.
  void prefer(double share, double ratio) {
    std::vector<std::pair<double, uint32_t>> order(shape_.n_expert);
    const auto n_hot = static_cast<uint32_t>(std::lround(share * shape_.n_expert));
    for (uint32_t layer = 0; layer < shape_.n_layer; ++layer) {
      for (uint32_t e = 0; e < shape_.n_expert; ++e) order[e] = {uniform(), e};
      std::sort(order.begin(), order.end());
      for (uint32_t i = 0; i < shape_.n_expert; ++i) {
        logs_[layer * shape_.n_expert + order[i].second] = std::log((i < n_hot ? ratio : 1) * (0.5 + uniform()));
      }
    }
  }

  // From now on each layer's experts, in some order, weigh 1, 1/2^power, 1/3^power ...
  void decline(double power) {
    std::vector<std::pair<double, uint32_t>> order(shape_.n_expert);
    for (uint32_t layer = 0; layer < shape_.n_layer; ++layer) {
      for (uint32_t e = 0; e < shape_.n_expert; ++e) order[e] = {uniform(), e};
      std::sort(order.begin(), order.end());
      for (uint32_t i = 0; i < shape_.n_expert; ++i) {
        logs_[layer * shape_.n_expert + order[i].second] = -power * std::log(i + 1.0);
      }
    }
  }

  // An expert of the last token weighs e^stay times as much.
  void stay(double stay) { stay_ = stay; }

  void draw(uint32_t n_tokens) {
    std::vector<std::pair<double, uint16_t>> order(shape_.n_expert);
    for (uint64_t set = 0; set < uint64_t{n_tokens} * shape_.n_layer; ++set) {
      const size_t layer = set % shape_.n_layer, at = experts.size(), step = shape_.n_layer * shape_.n_used;
      for (uint32_t e = 0; e < shape_.n_expert; ++e) {
        const double gumbel = -std::log(-std::log(uniform()));
        order[e] = {logs_[layer * shape_.n_expert + e] + gumbel, static_cast<uint16_t>(e)};
      }
      for (uint32_t k = 0; stay_ > 0 && at >= step && k < shape_.n_used; ++k)
        order[experts[at - step + k]].first += stay_;
      std::partial_sort(order.begin(), order.begin() + shape_.n_used, order.end(), std::greater<>());
      for (uint32_t k = 0; k < shape_.n_used; ++k) experts.push_back(order[k].second);
      std::sort(experts.begin() + static_cast<std::ptrdiff_t>(at), experts.end());
    }
  }

  std::vector<uint16_t> experts;  // [tokens][n_layer][n_used]

 private:
  double uniform() { return (static_cast<double>(sbr::random_u64(seed_, count_++) >> 11) + 0.5) * 0x1p-53; }

  const RoutingShape shape_;
  const uint64_t seed_;
  uint64_t count_ = 0;
  std::vector<double> logs_;
  double stay_ = 0;
};

// Percent of the requests from token `from` on that a cache of `capacity` units answers. A layer's set is asked for at
// once: what is there first, and nothing of it leaves for the rest.
inline double hit_rate(const std::vector<uint16_t>& experts, RoutingShape shape, sbr::EvictionPolicy& policy,
                       uint32_t capacity, uint32_t from) {
  std::vector<uint8_t> there(shape.units(), 0), held(shape.units(), 0);
  std::vector<uint32_t> missing;
  uint64_t hits = 0, requests = 0;
  for (size_t set = 0; set < experts.size() / shape.n_used; ++set) {
    const auto base = static_cast<uint32_t>(set % shape.n_layer * shape.n_expert);
    const uint16_t* chosen = &experts[set * shape.n_used];
    missing.clear();
    for (uint32_t k = 0; k < shape.n_used; ++k) {
      const uint32_t unit = base + chosen[k];
      held[unit] = 1;
      if (there[unit] != 0) {
        policy.used(unit);
      } else {
        missing.push_back(unit);
      }
    }
    for (const uint32_t unit : missing) {
      if (capacity != 0) {
        --capacity;
      } else {
        there[policy.evict(held.data())] = 0;
      }
      there[unit] = 1;
      policy.used(unit);
    }
    for (uint32_t k = 0; k < shape.n_used; ++k) held[base + chosen[k]] = 0;
    if (set / shape.n_layer < from) continue;
    requests += shape.n_used;
    hits += shape.n_used - missing.size();
  }
  return 100.0 * static_cast<double>(hits) / static_cast<double>(requests);
}

// The same of a cache that holds the most frequent units of the whole routing from the beginning.
inline double static_hit_rate(const std::vector<uint16_t>& experts, RoutingShape shape, uint32_t capacity,
                              uint32_t from) {
  std::vector<std::pair<uint64_t, uint32_t>> uses(shape.units());
  for (uint32_t unit = 0; unit < shape.units(); ++unit) uses[unit] = {0, unit};
  const auto unit_of = [&](size_t i) { return i / shape.n_used % shape.n_layer * shape.n_expert + experts[i]; };
  for (size_t i = 0; i < experts.size(); ++i) ++uses[unit_of(i)].first;
  std::sort(uses.begin(), uses.end(), std::greater<>());
  std::vector<uint8_t> there(shape.units(), 0);
  for (uint32_t i = 0; i < capacity; ++i) there[uses[i].second] = 1;
  uint64_t hits = 0;
  const size_t first = size_t{from} * shape.n_layer * shape.n_used;
  for (size_t i = first; i < experts.size(); ++i) hits += there[unit_of(i)];
  return 100.0 * static_cast<double>(hits) / static_cast<double>(experts.size() - first);
}

}  // namespace sbr_test
