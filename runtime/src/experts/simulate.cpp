#include "experts/simulate.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "experts/policy.h"
#include "experts/simulate_clock.h"
#include "experts/trace.h"

namespace sbr {
namespace {

constexpr uint32_t kMostExperts = 1u << 16;
constexpr uint32_t kMostUnits = 1u << 28;
constexpr uint32_t kMostGuessLayers = 64;
constexpr double kLongestNs = 1e12;

void require_shape(const sbr_simulate_options& o, uint64_t n_tokens) {
  const auto wrong = [](const char* member, uint64_t value, const std::string& expected) {
    throw Error(SBR_ERR_ARGUMENT,
                std::string("options->") + member + " is " + std::to_string(value) + ", expected " + expected);
  };
  if (o.n_expert == 0 || o.n_expert > kMostExperts) wrong("n_expert", o.n_expert, "1 to 65536");
  if (o.n_layer == 0 || o.n_layer > kMostUnits / o.n_expert)
    wrong("n_layer", o.n_layer, "1 or more, and 2^28 units at most");
  if (o.n_expert_used == 0 || o.n_expert_used > o.n_expert) wrong("n_expert_used", o.n_expert_used, "1 to n_expert");
  if (o.capacity == 0) wrong("capacity", 0, "1 unit or more");
  if (n_tokens == 0) throw Error(SBR_ERR_ARGUMENT, "n_tokens is 0");
  if (n_tokens > UINT64_MAX / 8 / (uint64_t{o.n_layer} * o.n_expert_used))
    throw Error(SBR_ERR_ARGUMENT, "n_tokens is " + std::to_string(n_tokens) + ", more than fit into memory");
  if (o.warmup_tokens >= n_tokens) wrong("warmup_tokens", o.warmup_tokens, "less than the routing's tokens");
}

void require_clock(const sbr_simulate_clock& clock) {
  const auto wrong = [](const char* member, const char* expected) {
    throw Error(SBR_ERR_ARGUMENT, std::string("options->clock->") + member + ": expected " + expected);
  };
  if (clock.guess_layers > kMostGuessLayers) wrong("guess_layers", "0 to 64");
  if (clock.units_at_once == 0) wrong("units_at_once", "1 or more");
  if (!(clock.guess_right >= 0 && clock.guess_right <= 1)) wrong("guess_right", "0 to 1");
  const double times[] = {clock.ns_head,   clock.ns_lead,    clock.ns_rest, clock.ns_expert,
                          clock.ns_router, clock.ns_latency, clock.ns_unit};
  for (const double ns : times) {
    if (!(ns >= 0 && ns <= kLongestNs)) wrong("ns_*", "0 to 1e12");
  }
}

void require_sets(const Trace& trace) {
  for (uint64_t set = 0; set < trace.n_tokens * trace.n_layer; ++set) {
    const uint16_t* experts = trace.experts + set * trace.per_set;
    for (uint32_t k = 0; k < trace.per_set; ++k) {
      if (experts[k] < trace.n_expert && (k == 0 || experts[k - 1] < experts[k])) continue;
      throw Error(SBR_ERR_ARGUMENT, "experts of token " + std::to_string(set / trace.n_layer) + ", layer " +
                                        std::to_string(set % trace.n_layer) + ": " + std::to_string(experts[k]) +
                                        " is not below n_expert, or does not ascend");
    }
  }
}

// A set of numbers below a limit, of which the largest is found at once: bits, and for every 64 of them one bit of the
// level above.
class Numbers {
 public:
  explicit Numbers(uint64_t limit) {
    do {
      limit = (limit + 63) / 64;
      levels_.emplace_back(limit, 0);
    } while (limit > 1);
  }

  void insert(uint64_t number) {
    for (std::vector<uint64_t>& words : levels_) {
      uint64_t& word = words[number / 64];
      const bool known_above = word != 0;
      word |= uint64_t{1} << number % 64;
      if (known_above) return;
      number /= 64;
    }
  }

  void remove(uint64_t number) {
    for (std::vector<uint64_t>& words : levels_) {
      uint64_t& word = words[number / 64];
      word &= ~(uint64_t{1} << number % 64);
      if (word != 0) return;
      number /= 64;
    }
  }

  bool empty() const { return levels_.back()[0] == 0; }

  uint64_t largest() const {  // of one that is not empty
    uint64_t number = 0;
    for (size_t i = levels_.size(); i-- > 0;) {
      number = number * 64 + 63 - static_cast<uint64_t>(__builtin_clzll(levels_[i][number]));
    }
    return number;
  }

 private:
  std::vector<std::vector<uint64_t>> levels_;  // the last has one word
};

// The unit whose next use is farthest leaves; of those that are never used again the highest. Due is a place of the
// routing, or beyond its end, by unit. Places of one set ascend with the units, so that the choice does not depend on
// the order of acquisition within it.
class Belady final : public EvictionPolicy {
 public:
  explicit Belady(const Trace& trace)
      : trace_(trace), next_(trace.size()), due_(trace.units(), kAbsent), all_due_(trace.size() + trace.units()) {
    std::vector<uint64_t> last(trace.units(), kAbsent);
    trace.each_unit([&](uint64_t place, uint32_t unit) {
      next_[place] = trace.size() + unit;
      const uint64_t before = std::exchange(last[unit], place);
      if (before != kAbsent) next_[before] = place;
    });
  }

  // used() is told the unit at this place of the routing.
  void at(uint64_t place) { place_ = place; }

  void used(uint32_t unit) override {
    if (due_[unit] != kAbsent) all_due_.remove(due_[unit]);
    due_[unit] = next_[place_];
    all_due_.insert(due_[unit]);
  }

  uint32_t evict(const uint8_t* held) override {
    uint32_t victim = kNoUnit;
    aside_.clear();
    while (victim == kNoUnit && !all_due_.empty()) {
      const uint64_t due = all_due_.largest();
      all_due_.remove(due);
      const uint32_t unit = unit_due(due);
      if (held[unit] != 0) {
        aside_.push_back(due);
      } else {
        victim = unit;
      }
    }
    for (const uint64_t due : aside_) all_due_.insert(due);
    if (victim != kNoUnit) due_[victim] = kAbsent;
    return victim;
  }

 private:
  static constexpr uint64_t kAbsent = UINT64_MAX;

  uint32_t unit_due(uint64_t due) const {
    if (due >= trace_.size()) return static_cast<uint32_t>(due - trace_.size());
    return static_cast<uint32_t>(due / trace_.per_set % trace_.n_layer) * trace_.n_expert + trace_.experts[due];
  }

  const Trace& trace_;
  std::vector<uint64_t> next_;   // [accesses] the place that uses the same unit next
  std::vector<uint64_t> due_;    // [units] the place of the next use; kAbsent: not in the cache
  Numbers all_due_;              // due_ of what is in the cache
  std::vector<uint64_t> aside_;  // what was held
  uint64_t place_ = 0;
};

// The most frequent units of the whole routing (the lower unit on a tie): [units] 1 for those.
std::vector<uint8_t> most_frequent(const Trace& trace, uint32_t capacity) {
  std::vector<uint64_t> uses(trace.units(), 0);
  trace.each_unit([&](uint64_t, uint32_t unit) { ++uses[unit]; });
  std::vector<uint32_t> order(trace.units());
  std::iota(order.begin(), order.end(), 0u);
  std::nth_element(order.begin(), order.begin() + (capacity - 1), order.end(),
                   [&](uint32_t a, uint32_t b) { return uses[a] != uses[b] ? uses[a] > uses[b] : a < b; });
  std::vector<uint8_t> kept(trace.units(), 0);
  for (uint32_t i = 0; i < capacity; ++i) kept[order[i]] = 1;
  return kept;
}

// A token's set of a layer.
struct Set {
  const uint16_t* experts;
  uint64_t place;  // of its first access
  uint32_t base, size;
  uint32_t unit(uint32_t k) const { return base + experts[k]; }
};

class Cache {
 public:
  Cache(const Trace& trace, EvictionPolicy& policy, Belady* oracle, uint32_t capacity)
      : policy_(policy), oracle_(oracle), free_(capacity), cached_(trace.units(), 0), held_(trace.units(), 0) {}

  // How many of a set were not there; now they are.
  uint32_t acquire(const Set& set) {
    missing_.clear();
    for (uint32_t k = 0; k < set.size; ++k) cached_[set.unit(k)] != 0 ? use(set, k) : missing_.push_back(k);
    for (const uint32_t k : missing_) {
      make_room(set);
      cached_[set.unit(k)] = 1;
      use(set, k);
    }
    release(set);
    return static_cast<uint32_t>(missing_.size());
  }

 private:
  void use(const Set& set, uint32_t k) {
    held_[set.unit(k)] = 1;
    if (oracle_ != nullptr) oracle_->at(set.place + k);
    policy_.used(set.unit(k));
  }

  void release(const Set& set) {
    for (uint32_t k = 0; k < set.size; ++k) held_[set.unit(k)] = 0;
  }

  void make_room(const Set& set) {
    if (free_ != 0) {
      --free_;
      return;
    }
    uint32_t victim = policy_.evict(held_.data());
    if (victim == kNoUnit) {  // the set is larger than the cache: what it holds is computed and released first
      release(set);
      victim = policy_.evict(held_.data());
    }
    if (victim == kNoUnit) throw Error(SBR_ERR_INTERNAL, "The policy evicts nothing although nothing is pinned");
    cached_[victim] = 0;
  }

  EvictionPolicy& policy_;
  Belady* oracle_;
  uint32_t free_;                  // slots
  std::vector<uint8_t> cached_;    // [units]
  std::vector<uint8_t> held_;      // [units]
  std::vector<uint32_t> missing_;  // of the set: what was not there
};

// missed(set) for every set of the routing in order; those of tokens from warmup_tokens on are counted.
template <typename Missed>
void run(const Trace& trace, const sbr_simulate_options& options, sbr_simulate_result& result, Missed missed) {
  std::vector<uint64_t> sets(trace.per_set + 1, 0);
  uint64_t place = 0;
  for (uint64_t token = 0; token < trace.n_tokens; ++token) {
    const bool counted = token >= options.warmup_tokens;
    for (uint32_t layer = 0; layer < trace.n_layer; ++layer, place += trace.per_set) {
      const uint32_t n = missed(Set{trace.experts + place, place, layer * trace.n_expert, trace.per_set});
      if (counted) ++sets[n];
    }
  }
  for (uint32_t n = 0; n <= trace.per_set; ++n) {
    result.requests += sets[n] * trace.per_set;
    result.hits += sets[n] * (trace.per_set - n);
    if (options.sets_by_misses != nullptr) options.sets_by_misses[n] = sets[n];
  }
}

}  // namespace

sbr_simulate_result simulate(const uint16_t* experts, uint64_t n_tokens, const sbr_simulate_options& options) {
  const auto begin = std::chrono::steady_clock::now();
  require_shape(options, n_tokens);
  const Trace trace = {experts, n_tokens, options.n_layer, options.n_expert, options.n_expert_used};
  require_sets(trace);
  if (options.clock != nullptr) {
    require_clock(*options.clock);
    if (options.policy == SBR_CACHE_STATIC || options.policy == SBR_CACHE_BELADY)
      throw Error(SBR_ERR_ARGUMENT, "options->clock is for policies that a session can run, not for oracles");
  }
  const uint32_t capacity = std::min(options.capacity, trace.units());
  sbr_simulate_result result = {};
  if (options.policy == SBR_CACHE_STATIC) {
    const std::vector<uint8_t> kept = most_frequent(trace, capacity);
    run(trace, options, result, [&](const Set& set) {
      uint32_t missing = set.size;
      for (uint32_t k = 0; k < set.size; ++k) missing -= kept[set.unit(k)];
      return missing;
    });
  } else if (options.policy == SBR_CACHE_BELADY) {
    Belady belady(trace);
    Cache cache(trace, belady, &belady, capacity);
    run(trace, options, result, [&](const Set& set) { return cache.acquire(set); });
  } else {
    const auto policy = make_policy(options.policy, {trace.n_layer, trace.n_expert});
    if (policy == nullptr) {
      throw Error(SBR_ERR_ARGUMENT,
                  "options->policy is " + std::to_string(options.policy) + ", expected one of SBR_CACHE_*");
    }
    if (options.clock != nullptr) {
      result = simulate_clock(trace, options, *options.clock, *policy);
    } else {
      Cache cache(trace, *policy, nullptr, capacity);
      run(trace, options, result, [&](const Set& set) { return cache.acquire(set); });
    }
  }
  const auto taken = std::chrono::steady_clock::now() - begin;
  result.ns = static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(taken).count());
  return result;
}

}  // namespace sbr
