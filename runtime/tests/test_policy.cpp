// Which unit leaves: each policy's order on small cases, what all of them owe the cache, and hit rates on routing like
// that of the models.
#include <cstdio>
#include <memory>
#include <vector>

#include "cache_traces.h"
#include "expect.h"
#include "experts/policy.h"
#include "sbr/sbr.h"

namespace {

using sbr::kNoUnit;
using sbr::make_policy;
using sbr::PolicyShape;
using sbr_test::hit_rate;
using sbr_test::Routing;
using sbr_test::RoutingShape;
using sbr_test::static_hit_rate;

constexpr uint32_t kPolicies[] = {SBR_CACHE_LRU, SBR_CACHE_LFU, SBR_CACHE_REUSE};

void test_unknown() {
  EXPECT(make_policy(SBR_CACHE_STATIC, {2, 2}) == nullptr);  // those two know the future
  EXPECT(make_policy(SBR_CACHE_BELADY, {2, 2}) == nullptr);
  EXPECT(make_policy(77, {2, 2}) == nullptr);
  EXPECT(make_policy(SBR_CACHE_AUTO, {2, 2}) != nullptr);
}

void test_lru_order() {
  const std::vector<uint8_t> held(4, 0);
  const auto lru = make_policy(SBR_CACHE_LRU, {1, 4});
  for (uint32_t unit : {0u, 1u, 2u, 3u, 0u, 2u}) lru->used(unit);
  for (uint32_t unit : {1u, 3u, 0u, 2u}) EXPECT(lru->evict(held.data()) == unit);
  EXPECT(lru->evict(held.data()) == kNoUnit);
}

void test_lfu_order() {
  const std::vector<uint8_t> held(8, 0);
  const auto lfu = make_policy(SBR_CACHE_LFU, {1, 8});
  for (uint32_t unit : {2u, 2u, 2u, 1u, 0u, 3u, 3u, 1u}) lfu->used(unit);
  for (uint32_t unit : {0u, 3u, 1u, 2u}) EXPECT(lfu->evict(held.data()) == unit);
  lfu->used(0);  // its count outlives its absence
  lfu->used(4);
  EXPECT(lfu->evict(held.data()) == 4);
  EXPECT(lfu->evict(held.data()) == 0);
  // Counts are halved: what was used 100 times and then no more leaves before what was used 20 times in the end.
  for (int i = 0; i < 100; ++i) lfu->used(5);
  for (int i = 0; i < 120; ++i) {
    lfu->used(6);
    lfu->used(7);
  }
  EXPECT(lfu->evict(held.data()) == 5);
}

// A model without experts: every unit is used in every step, in the same order. LRU misses everything; a cache that
// knew the future would hit 9 of its 10 units in every 19 uses.
void test_cyclic_scan() {
  const RoutingShape shape = {20, 1, 1};
  const std::vector<uint16_t> experts(20 * 50, 0);
  const auto lru = make_policy(SBR_CACHE_LRU, {20, 1}), reuse = make_policy(SBR_CACHE_REUSE, {20, 1});
  EXPECT(hit_rate(experts, shape, *lru, 10, 2) == 0);
  const double hits = hit_rate(experts, shape, *reuse, 10, 2);
  EXPECT(hits > 100 * 9.0 / 19 - 1 && hits < 100 * 9.0 / 19 + 1);
}

// Random uses and evictions. What leaves was there and is not held; nothing leaves only when all is held; and holding
// some does not change the order of the others.
void test_held(uint32_t policy, PolicyShape shape, uint64_t seed) {
  const uint32_t n = shape.n_layer * shape.units_per_layer;
  uint64_t count = 0;
  const auto below = [&](uint64_t limit) { return static_cast<uint32_t>(sbr::random_u64(seed, count++) % limit); };
  std::vector<uint32_t> history;  // a unit, or n: an eviction of history's own
  std::vector<uint8_t> there(n, 0), held(n, 0);
  const auto repeat = [&] {
    auto twin = make_policy(policy, shape);
    const std::vector<uint8_t> none(n, 0);
    for (const uint32_t event : history) {
      if (event < n) {
        twin->used(event);
      } else {
        twin->evict(none.data());
      }
    }
    return twin;
  };
  const auto subject = make_policy(policy, shape);
  for (uint32_t round = 0; round < 60; ++round) {
    for (uint32_t layer = 0; layer < shape.n_layer; ++layer) {
      for (uint32_t k = 0; k < 2; ++k) {
        const uint32_t unit = layer * shape.units_per_layer + below(shape.units_per_layer);
        subject->used(unit);
        there[unit] = 1;
        history.push_back(unit);
      }
      if (below(3) != 0) continue;
      const std::vector<uint8_t> none(n, 0);
      const uint32_t unit = subject->evict(none.data());
      if (EXPECT(unit < n && there[unit] == 1)) there[unit] = 0;
      history.push_back(n);
    }
    if (round % 10 != 9) continue;
    // The whole order, and then what a twin of the same history gives up with some held.
    std::vector<uint32_t> order;
    const auto drained = repeat();
    const std::vector<uint8_t> none(n, 0);
    for (uint32_t unit = drained->evict(none.data()); unit != kNoUnit; unit = drained->evict(none.data())) {
      order.push_back(unit);
    }
    EXPECT(order.size() == static_cast<size_t>(std::count(there.begin(), there.end(), 1)));
    for (uint32_t attempt = 0; attempt < 4; ++attempt) {
      uint32_t expected = kNoUnit;
      for (uint32_t unit = 0; unit < n; ++unit) held[unit] = attempt == 3 || below(2) == 0;
      for (size_t i = order.size(); i-- > 0;) expected = held[order[i]] == 0 ? order[i] : expected;
      EXPECT(repeat()->evict(held.data()) == expected);
    }
  }
}

struct Rates {
  double lru, lfu, reuse, fixed;
};

Rates measure(const char* what, const Routing& routing, RoutingShape shape, double share, uint32_t from) {
  const auto capacity = static_cast<uint32_t>(share * shape.units());
  const auto rate = [&](uint32_t policy) {
    return hit_rate(routing.experts, shape, *make_policy(policy, {shape.n_layer, shape.n_expert}), capacity, from);
  };
  const Rates rates = {rate(SBR_CACHE_LRU), rate(SBR_CACHE_LFU), rate(SBR_CACHE_REUSE),
                       static_hit_rate(routing.experts, shape, capacity, from)};
  std::printf("%-28s %2u of %2u, room for %2.0f %%: lru %5.1f  lfu %5.1f  reuse %5.1f  static %5.1f\n", what,
              shape.n_used, shape.n_expert, 100 * share, rates.lru, rates.lfu, rates.reuse, rates.fixed);
  return rates;
}

// Routing as measured in SmallThinker: 70 to 80 % of experts are used by fewer than 14 % of tokens, few by half of
// them.
void test_hit_rates(RoutingShape shape) {
  Routing hot(shape, 1);
  hot.prefer(0.25, 8);
  hot.draw(1024);
  for (const double share : {0.1, 0.3, 0.5}) {
    const Rates rates = measure("hot set", hot, shape, share, 128);
    EXPECT(rates.reuse - rates.lru >= (share < 0.5 ? 0.7 : 0.6) * (rates.fixed - rates.lru));
    EXPECT(rates.reuse >= rates.lfu);
  }
  // Worst case for any cache: room for x % gives x % of hits, and the static oracle's advantage is hindsight.
  Routing uniform(shape, 2);
  uniform.draw(512);
  const Rates even = measure("no preference", uniform, shape, 0.3, 64);
  EXPECT(even.reuse > 28 && even.reuse > even.lru + 3);

  // Another hot set halfway: for 64 tokens hits are not far below LRU's, which forgets fastest, and better from then
  // on.
  Routing moved(shape, 3);
  moved.prefer(0.25, 8);
  moved.draw(512);
  moved.prefer(0.25, 8);
  moved.draw(64);
  const Rates at_once = measure("hot set, 64 since its move", moved, shape, 0.3, 512);
  EXPECT(at_once.reuse > at_once.lru - 15);
  moved.draw(448);
  const Rates later = measure("hot set, 64 to 512 since", moved, shape, 0.3, 576);
  EXPECT(later.reuse > later.lru + 5);

  // Tokens that resemble the one before: here LRU is better than what is right on average.
  Routing alike(shape, 4);
  alike.stay(2);
  alike.draw(512);
  const Rates near = measure("tokens alike", alike, shape, 0.3, 64);
  EXPECT(near.reuse > near.lru + 1 && near.reuse > near.lfu + 5);
}

}  // namespace

int main() {
  test_unknown();
  test_lru_order();
  test_lfu_order();
  test_cyclic_scan();
  for (const uint32_t policy : kPolicies) {
    test_held(policy, {5, 7}, 11);
    test_held(policy, {1, 9}, 12);
    test_held(policy, {9, 1}, 13);
  }
  test_hit_rates({32, 32, 4});
  test_hit_rates({26, 64, 6});
  return sbr_test::finish("test_policy");
}
