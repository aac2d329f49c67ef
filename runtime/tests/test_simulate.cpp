// The simulator against a plain loop over the same policies, Belady against a search of the whole routing, and the
// calls that it refuses. tests/limits/test_simulate.py has slow twins of the policies, too.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "cache_traces.h"
#include "expect.h"
#include "experts/policy.h"
#include "experts/simulate.h"
#include "sbr/sbr.h"

namespace {

using sbr_test::Routing;
using sbr_test::RoutingShape;

sbr_simulate_options options_of(RoutingShape shape, uint32_t policy, uint32_t capacity, uint64_t warmup = 0) {
  sbr_simulate_options options = {};
  options.struct_size = sizeof options;
  options.n_layer = shape.n_layer;
  options.n_expert = shape.n_expert;
  options.n_expert_used = shape.n_used;
  options.policy = policy;
  options.capacity = capacity;
  options.warmup_tokens = warmup;
  return options;
}

uint64_t tokens_of(const std::vector<uint16_t>& experts, RoutingShape shape) {
  return experts.size() / (shape.n_layer * shape.n_used);
}

void test_same_as_a_plain_loop(const Routing& routing, RoutingShape shape) {
  for (const uint32_t policy : {SBR_CACHE_AUTO, SBR_CACHE_LRU, SBR_CACHE_LFU, SBR_CACHE_REUSE}) {
    for (const uint32_t capacity : {shape.n_used, shape.n_used + 1, shape.units() / 2, shape.units()}) {
      std::vector<uint64_t> sets(shape.n_used + 1, 99);
      sbr_simulate_options options = options_of(shape, policy, capacity, 5);
      options.sets_by_misses = sets.data();
      const uint64_t n_tokens = tokens_of(routing.experts, shape);
      const sbr_simulate_result found = sbr::simulate(routing.experts.data(), n_tokens, options);
      const auto plain = sbr::make_policy(policy, {shape.n_layer, shape.n_expert});
      const double expected = sbr_test::hit_rate(routing.experts, shape, *plain, capacity, 5);
      EXPECT(found.requests == (n_tokens - 5) * shape.n_layer * shape.n_used);
      EXPECT(std::fabs(100.0 * double(found.hits) / double(found.requests) - expected) < 1e-9);
      uint64_t all = 0, misses = 0;
      for (uint32_t n = 0; n <= shape.n_used; ++n) {
        all += sets[n];
        misses += n * sets[n];
      }
      EXPECT(all == (n_tokens - 5) * shape.n_layer);
      EXPECT(misses == found.requests - found.hits);
    }
  }
}

// Evicts by looking at all that is still to come.
uint64_t belady_hits(const std::vector<uint16_t>& experts, RoutingShape shape, uint32_t capacity) {
  const size_t n_sets = experts.size() / shape.n_used;
  const auto unit = [&](size_t set, uint32_t k) {
    return static_cast<uint32_t>(set % shape.n_layer * shape.n_expert + experts[set * shape.n_used + k]);
  };
  const auto next_use = [&](size_t set, uint32_t of) {
    for (size_t next = set + 1; next < n_sets; ++next) {
      for (uint32_t k = 0; k < shape.n_used; ++k) {
        if (unit(next, k) == of) return next;
      }
    }
    return n_sets;
  };
  std::set<uint32_t> there;
  uint64_t hits = 0;
  for (size_t set = 0; set < n_sets; ++set) {
    std::set<uint32_t> pinned, missing;
    for (uint32_t k = 0; k < shape.n_used; ++k)
      (there.count(unit(set, k)) != 0 ? pinned : missing).insert(unit(set, k));
    hits += pinned.size();
    for (const uint32_t wanted : missing) {
      if (there.size() == capacity) {
        std::pair<size_t, uint32_t> farthest = {0, 0};
        for (const uint32_t candidate : there) {
          if (pinned.count(candidate) == 0) farthest = std::max(farthest, {next_use(set, candidate), candidate});
        }
        there.erase(farthest.second);
      }
      there.insert(wanted);
      pinned.insert(wanted);
    }
  }
  return hits;
}

void test_belady(const Routing& routing, RoutingShape shape) {
  const uint64_t n_tokens = tokens_of(routing.experts, shape);
  for (const uint32_t capacity : {shape.n_used, shape.n_used + 1, shape.units() / 2, shape.units() - 1}) {
    const auto found = sbr::simulate(routing.experts.data(), n_tokens, options_of(shape, SBR_CACHE_BELADY, capacity));
    EXPECT(found.hits == belady_hits(routing.experts, shape, capacity));
  }
}

// A set larger than the cache is fetched in waves, by every policy; what is larger than all units makes no difference.
void test_extremes(const Routing& routing, RoutingShape shape) {
  const uint64_t n_tokens = tokens_of(routing.experts, shape);
  for (const uint32_t policy : {SBR_CACHE_LRU, SBR_CACHE_LFU, SBR_CACHE_REUSE, SBR_CACHE_BELADY}) {
    for (const uint32_t capacity : {1u, shape.n_used - 1}) {
      const auto found = sbr::simulate(routing.experts.data(), n_tokens, options_of(shape, policy, capacity));
      EXPECT(found.hits < found.requests);
    }
    const auto whole = sbr::simulate(routing.experts.data(), n_tokens, options_of(shape, policy, UINT32_MAX));
    EXPECT(whole.requests - whole.hits <= shape.units());
  }
  const auto fixed = sbr::simulate(routing.experts.data(), n_tokens, options_of(shape, SBR_CACHE_STATIC, UINT32_MAX));
  EXPECT(fixed.hits == fixed.requests);
}

void test_refused() {
  const std::vector<uint16_t> experts = {0, 1, 2, 3};
  const RoutingShape shape = {2, 4, 2};
  const auto refused = [&](sbr_simulate_options options, const char* because, uint64_t n_tokens = 1,
                           std::vector<uint16_t> values = {0, 1, 2, 3}) {
    std::string said;
    try {
      sbr::simulate(values.data(), n_tokens, options);
    } catch (const sbr::Error& error) {
      said = error.what();
      EXPECT(error.status() == SBR_ERR_ARGUMENT);
    }
    if (!EXPECT(said.find(because) != std::string::npos)) std::fprintf(stderr, "  %s: %s\n", because, said.c_str());
  };
  const auto good = options_of(shape, SBR_CACHE_LRU, 2);
  const auto with = [&](uint32_t sbr_simulate_options::* member, uint32_t value) {
    auto options = good;
    options.*member = value;
    return options;
  };
  refused(with(&sbr_simulate_options::n_layer, 0), "n_layer is 0");
  refused(with(&sbr_simulate_options::n_layer, UINT32_MAX), "n_layer is 4294967295");
  refused(with(&sbr_simulate_options::n_expert, 0), "n_expert is 0");
  refused(with(&sbr_simulate_options::n_expert, 1), "n_expert_used is 2");
  refused(with(&sbr_simulate_options::n_expert_used, 0), "n_expert_used is 0");
  refused(with(&sbr_simulate_options::capacity, 0), "capacity is 0");
  refused(with(&sbr_simulate_options::policy, 77), "policy is 77");
  refused(options_of(shape, SBR_CACHE_LRU, 2, 1), "warmup_tokens is 1");
  refused(good, "n_tokens is 0", 0);
  refused(good, "n_tokens is 18446744073709551615", UINT64_MAX);
  refused(good, "layer 1: 4 is not below", 1, {0, 1, 2, 4});
  refused(good, "layer 0: 1 is not below n_expert, or does not ascend", 1, {1, 1, 2, 3});
}

}  // namespace

int main() {
  for (const RoutingShape shape : {RoutingShape{4, 32, 4}, RoutingShape{1, 9, 3}, RoutingShape{6, 2, 2}}) {
    Routing routing(shape, 11);
    routing.prefer(0.25, 8);
    routing.stay(1.0);
    routing.draw(60);
    test_same_as_a_plain_loop(routing, shape);
    test_belady(routing, shape);
    test_extremes(routing, shape);
  }
  test_refused();
  return sbr_test::finish("test_simulate");
}
