// The simulator against a plain loop over the same policies, Belady against a search of the whole routing, and the
// calls that it refuses. tests/limits/test_simulate.py has slow twins of the policies, too.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <set>
#include <string>
#include <utility>
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

sbr_simulate_clock clock_of(uint32_t guess_layers, double guess_right) {
  sbr_simulate_clock clock = {};
  clock.struct_size = sizeof clock;
  clock.guess_layers = guess_layers;
  clock.guess_right = guess_right;
  clock.units_at_once = 2;
  clock.ns_head = 5000;
  clock.ns_lead = 100;
  clock.ns_rest = 300;
  clock.ns_expert = 50;
  clock.ns_router = 7;
  clock.ns_latency = 200;
  clock.ns_unit = 1000;
  return clock;
}

// A layer of n units of which m are read, two at a time, beside 400 ns of attention: by hand, up to 4 of 4.
uint64_t layer_ns(uint32_t n, uint32_t m) {
  uint64_t done = 100 + 300 + (n - m) * 50, arrived = 100 + 200;
  for (uint32_t first = 0; first < m; first += 2) {
    const uint32_t together = std::min(2u, m - first);
    arrived += together * 1000;
    done = std::max(done, arrived) + together * 50;
  }
  return done;
}

// Without guesses no layer depends on another, and the clock changes nothing about hits.
void test_clock(const Routing& routing, RoutingShape shape) {
  const uint64_t n_tokens = tokens_of(routing.experts, shape);
  const sbr_simulate_clock clock = clock_of(0, 0);
  for (const uint32_t policy : {SBR_CACHE_LRU, SBR_CACHE_REUSE}) {
    for (const uint32_t capacity : {1u, shape.n_used, shape.units() / 2, shape.units()}) {
      std::vector<uint64_t> sets(shape.n_used + 1), timed_sets(shape.n_used + 1);
      sbr_simulate_options options = options_of(shape, policy, capacity, 5);
      options.sets_by_misses = sets.data();
      const auto plain = sbr::simulate(routing.experts.data(), n_tokens, options);
      options.sets_by_misses = timed_sets.data();
      options.clock = &clock;
      const auto timed = sbr::simulate(routing.experts.data(), n_tokens, options);
      EXPECT(sets == timed_sets);
      EXPECT(plain.hits == timed.hits && plain.requests == timed.requests && plain.ns_decode == 0);
      EXPECT(timed.loads == timed.requests - timed.hits);
      EXPECT(timed.guesses == 0 && timed.hits_on_the_way == 0);
      uint64_t expected = (n_tokens - 5) * 5000;
      for (uint32_t m = 0; m <= shape.n_used; ++m) expected += sets[m] * layer_ns(shape.n_used, m);
      EXPECT(timed.ns_decode == expected);
    }
  }
}

// An experts' routing of which nothing can be hit: every token asks for other experts than the one before.
void test_guesses() {
  const RoutingShape shape = {8, 64, 2};
  std::vector<uint16_t> experts;
  for (uint32_t set = 0; set < 60 * shape.n_layer; ++set) {
    const auto first = static_cast<uint16_t>(set / shape.n_layer * 2 % 64);
    experts.insert(experts.end(), {first, static_cast<uint16_t>(first + 1)});
  }
  const auto run = [&](uint32_t layers, double right, double ns_unit, uint32_t capacity = 64) {
    sbr_simulate_clock clock = clock_of(layers, right);
    clock.ns_unit = ns_unit;
    clock.ns_latency = 0;
    sbr_simulate_options options = options_of(shape, SBR_CACHE_LRU, capacity, 10);
    options.clock = &clock;
    return sbr::simulate(experts.data(), 60, options);
  };
  // A unit takes a tenth of a layer: all that is named is there in time, and only the first layer of a token waits.
  const auto exact = run(0, 0, 40), right = run(1, 1, 40);
  EXPECT(exact.hits == 0);
  EXPECT(right.hits == 50 * 7 * 2);
  EXPECT(right.loads == exact.loads);
  EXPECT(right.guesses == right.hits && right.guesses_used == right.hits);
  // Names that are all wrong leave everything to be read, and are read besides.
  const auto wrong = run(1, 0, 40);
  EXPECT(wrong.hits < exact.requests / 20);
  EXPECT(wrong.loads > exact.loads + wrong.guesses / 2);
  // A device that is never idle reads no guess that its layer does not come to: those cost nothing.
  const auto busy = run(0, 0, 1e6), busy_wrong = run(1, 0, 1e6), busy_right = run(1, 1, 1e6);
  EXPECT(busy_wrong.ns_decode >= busy.ns_decode);
  EXPECT(busy_right.ns_decode <= busy.ns_decode + busy.ns_decode / 100);
  EXPECT(busy_right.hits_on_the_way > 0);
  // Not more than a quarter of the slots: of 4 one, of 3 none.
  EXPECT(run(4, 1, 40, 3).guesses == 0);
  EXPECT(run(4, 1, 40, 4).guesses > 0);
  // Where only every fourth layer misses, its units may be read during three others, if they are named by then.
  for (uint32_t set = 0; set < 60 * shape.n_layer; ++set) {
    if (set % 4 == 3) continue;
    experts[2 * set] = 0;
    experts[2 * set + 1] = 1;
  }
  EXPECT(run(4, 1, 700).ns_decode < run(1, 1, 700).ns_decode * 95 / 100);
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
  for (const auto& [member, value] :
       std::vector<std::pair<double sbr_simulate_clock::*, double>>{{&sbr_simulate_clock::ns_unit, -1},
                                                                    {&sbr_simulate_clock::ns_lead, NAN},
                                                                    {&sbr_simulate_clock::ns_head, 1e13}}) {
    sbr_simulate_clock clock = clock_of(0, 0);
    clock.*member = value;
    auto options = good;
    options.clock = &clock;
    refused(options, "ns_*: expected 0 to 1e12");
  }
  sbr_simulate_clock clock = clock_of(1, 1.5);
  auto timed = good;
  timed.clock = &clock;
  refused(timed, "guess_right: expected 0 to 1");
  clock.guess_right = 1;
  clock.guess_layers = 65;
  refused(timed, "guess_layers: expected 0 to 64");
  clock.guess_layers = 1;
  clock.units_at_once = 0;
  refused(timed, "units_at_once: expected 1 or more");
  clock.units_at_once = 1;
  timed.policy = SBR_CACHE_BELADY;
  refused(timed, "not for oracles");
  timed.policy = SBR_CACHE_STATIC;
  refused(timed, "not for oracles");
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
    test_clock(routing, shape);
  }
  test_guesses();
  test_refused();
  return sbr_test::finish("test_simulate");
}
