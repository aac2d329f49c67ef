// A unit can only be used when its layer comes round, once per step. If a share p of the steps uses it, the first use
// is expected at the 1/p-th turn from now: after d + (1/p - 1) * n_layer layers, d being the way to the layer's next
// turn. So of two units used equally often the one leaves whose layer has just been, and over a cyclic scan (p = 1 for
// all) that is what a cache that knew the future would do, where LRU misses everything.
//
// p is learnt in three parts.
//   How often: averages over past steps whose weights halve every 6, 48 and 2048 steps. The short one has forgotten a
// hot set that moved after a few tokens, the long one tells units apart that are used almost equally often.
//   Which of these is right now: each layer trusts an average by how probable it had called the units that the layer
// was then asked for (Bayes' rule over the three, with a share of the trust spread evenly in each turn, so that one
// that was wrong for long is believed again after a token or two). p is the average of the three by trust.
//   How lately: routing is not drawn anew for every token; text stays with its subject, and the experts of the last
// token are more likely than their average. So for each number of turns since the last use it is counted how often
// units are used, against how often their averages said that they would be, over all layers together; p is multiplied
// by that ratio. For routing without memory the ratios come out as 1.
//
// docs/expert-cache.md has the hit rates. Tried for the short average: 4, 8 and 16 steps (in the first 16 tokens after
// a move they hit 62, 60 and 56 %, LRU 62); for the long one 256 to 100000, which differ by 0.2 % and less from 1024
// on. Without the middle one, 1 to 2 % are lost in the 64 to 512 tokens after a move.
//
// A turn is learnt from when it is over, in one pass over its layer's units. Until the next one the layer has one
// candidate, and a tournament among the layers finds the victim; the few units of the present turn, which are mostly
// pinned, are looked at one by one.
#include "experts/reuse_policy.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace sbr {
namespace {

constexpr uint32_t kAverages = 3;
constexpr float kHalfLives[kAverages] = {6, 48, 2048};  // steps
constexpr float kPriorSteps = 8;                        // for which a unit is believed to be like its layer's average
constexpr float kSpread = 1.0f / 256;                   // of the trust, in each turn
constexpr uint32_t kMostJudged = 16;                    // a turn of more uses is a batch's: it says little
constexpr float kLargestWeight = 0x1p40f;
constexpr float kLeastScore = 0x1p-40f;  // less is nothing: not to end up with subnormal numbers, which are slow
constexpr uint32_t kAges = 64;           // turns since the last use, at most
constexpr uint32_t kAgeClasses = 12;
constexpr float kPriorUses = 64;    // for which a ratio is believed to be 1
constexpr float kMostUses = 16384;  // then both of its sums are halved
constexpr uint32_t kSampled = 8;    // one turn in so many is counted: 16 to 20 uses per token are
constexpr float kLongest = 1e9f;    // layers
constexpr float kAbsent = std::numeric_limits<float>::lowest();  // adding up to kLongest leaves it as it is
constexpr double kNoKey = -1;

uint32_t age_class(uint32_t age) {
  if (age <= 4) return age;
  if (age <= 6) return 5;
  if (age <= 8) return 6;
  if (age <= 12) return 7;
  if (age <= 16) return 8;
  if (age <= 32) return 9;
  return age < kAges ? 10 : 11;
}

// Four chains, since each comparison waits for the one before it.
float largest(const float* values, uint32_t n) {
  float most[4] = {kAbsent, kAbsent, kAbsent, kAbsent};
  uint32_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (uint32_t k = 0; k < 4; ++k) most[k] = values[i + k] > most[k] ? values[i + k] : most[k];
  }
  for (; i < n; ++i) most[0] = std::max(most[0], values[i]);
  return std::max(std::max(most[0], most[1]), std::max(most[2], most[3]));
}

// Where the first of n values is that equals `value`; n. Without a way out of the loop: compilers then use vectors.
uint32_t first_equal(const float* values, uint32_t n, float value) {
  uint32_t first = n;
  for (uint32_t i = n; i-- > 0;) first = values[i] == value ? i : first;
  return first;
}

// The player with the largest key; the first of equals.
class Tournament {
 public:
  explicit Tournament(uint32_t n) {
    while (leaves_ < n) leaves_ *= 2;
    keys_.assign(leaves_, kNoKey);
    winners_.resize(2 * size_t{leaves_});
    for (uint32_t i = 0; i < leaves_; ++i) winners_[leaves_ + i] = i;
    for (uint32_t node = leaves_; --node > 0;) winners_[node] = winners_[2 * node];
  }

  void set(uint32_t player, double key) {
    keys_[player] = key;
    for (uint32_t node = (leaves_ + player) / 2; node > 0; node /= 2) {
      const uint32_t left = winners_[2 * node], right = winners_[2 * node + 1];
      const uint32_t swap = 0 - static_cast<uint32_t>(keys_[right] > keys_[left]);  // no branch: nobody can foresee it
      winners_[node] = left ^ ((left ^ right) & swap);
    }
  }

  uint32_t winner() const { return winners_[1]; }
  double key(uint32_t player) const { return keys_[player]; }

 private:
  uint32_t leaves_ = 1;
  std::vector<double> keys_;       // [leaves]
  std::vector<uint32_t> winners_;  // a heap: [1] is the root, [leaves + player] a player
};

struct Average {
  std::vector<float> scores;        // of every unit, in the cache or not: sum of the weights of the steps that used it
  std::vector<float> layer_scores;  // [n_layer] their sums
  std::vector<float> trust;         // [n_layer] the averages' sum is 1
  float growth = 1;                 // of a step's weight: rather than lower all earlier ones, raise it
  float weight = 1;                 // of the present step
  float total = 0;                  // of all steps

  // What each unit of a layer has from the beginning, if the steps weigh `steps` in all.
  float prior(uint32_t layer, float steps, uint32_t per_layer) const {
    return steps > 0 ? kPriorSteps * weight / (steps * static_cast<float>(per_layer)) * layer_scores[layer] : 0;
  }

  void begin_step() {
    weight *= growth;
    total += weight;
    if (weight <= kLargestWeight) return;
    for (float& score : scores) score = score < kLeastScore * kLargestWeight ? 0 : score / kLargestWeight;
    for (float& score : layer_scores) score /= kLargestWeight;
    total /= kLargestWeight;
    weight /= kLargestWeight;
  }
};

class Reuse final : public EvictionPolicy {
 public:
  explicit Reuse(const PolicyShape& shape)
      : n_layer_(shape.n_layer),
        per_layer_(shape.units_per_layer),
        ages_(static_cast<size_t>(n_layer_) * per_layer_, kAges),
        rates_(ages_.size(), 0),
        absent_(ages_.size(), kAbsent),
        waits_(ages_.size(), kAbsent),
        asked_now_(ages_.size(), 0),
        best_(n_layer_, kNoUnit),
        turns_(n_layer_, 0),
        tournament_(n_layer_),
        layer_(n_layer_) {
    for (uint32_t k = 0; k < kAverages; ++k) {
      averages_[k].scores.assign(ages_.size(), 0);
      averages_[k].layer_scores.assign(n_layer_, 0);
      averages_[k].trust.assign(n_layer_, 1.0f / kAverages);
      averages_[k].growth = 1 + 0.6931472f / kHalfLives[k];
    }
    for (uint32_t age = 0; age <= kAges; ++age) class_of_[age] = age_class(age);
    std::fill(uses_, uses_ + kAgeClasses, kPriorUses);
    std::fill(expected_, expected_ + kAgeClasses, kPriorUses);
  }

  void used(uint32_t unit) override {
    const uint32_t layer = unit / per_layer_;
    // In a model of one layer, only a unit that is asked for again tells that a step is over.
    if (layer != layer_ || asked_now_[unit] != 0) begin_turn(layer);
    asked_.push_back(unit);
    asked_now_[unit] = 1;
    absent_[unit] = 0;
    waits_[unit] = kAbsent;
    if (best_[layer] == unit) find_best(layer);
  }

  uint32_t evict(const uint8_t* held) override {
    for (const uint32_t layer : passed_over_) find_best(layer);
    passed_over_.clear();
    uint32_t layer = tournament_.winner();
    while (tournament_.key(layer) != kNoKey && held[best_[layer]] != 0) {
      passed_over_.push_back(layer);  // its next one competes, for this time
      compete(layer, longest_wait(layer, held));
      layer = tournament_.winner();
    }
    const uint32_t of_this_turn = longest_asked(held, tournament_.key(layer));
    const uint32_t unit = of_this_turn != kNoUnit ? of_this_turn : best_[layer];
    if (unit == kNoUnit) return kNoUnit;
    absent_[unit] = waits_[unit] = kAbsent;
    if (unit == best_[layer]) find_best(layer);
    return unit;
  }

 private:
  void compete(uint32_t layer, uint32_t unit) {
    best_[layer] = unit;
    tournament_.set(layer, unit == kNoUnit ? kNoKey : turns_[layer] + static_cast<double>(waits_[unit]));
  }

  void find_best(uint32_t layer) {
    const float* waits = &waits_[static_cast<size_t>(layer) * per_layer_];
    const float most = largest(waits, per_layer_);
    compete(layer, most == kAbsent ? kNoUnit : layer * per_layer_ + first_equal(waits, per_layer_, most));
  }

  // The first that waits longest of those not held.
  uint32_t longest_wait(uint32_t layer, const uint8_t* held) const {
    uint32_t found = kNoUnit;
    float longest = kAbsent;
    const uint32_t first = layer * per_layer_;
    for (uint32_t unit = first; unit < first + per_layer_; ++unit) {
      if (waits_[unit] <= longest || held[unit] != 0) continue;
      longest = waits_[unit];
      found = unit;
    }
    return found;
  }

  // Of this turn's units that are not held (where it is over, or the cache smaller than what it asks for) the one that
  // waits longest, if its key is above `least`; of equals the first asked for.
  uint32_t longest_asked(const uint8_t* held, double least) {
    uint32_t found = kNoUnit;
    for (size_t i = 0; i < asked_.size(); ++i) {
      const uint32_t unit = asked_[i];
      if (held[unit] != 0 || absent_[unit] == kAbsent) continue;
      if (asked_waits_.size() != asked_.size()) expect_asked();
      const double key = turns_[layer_] + static_cast<double>(asked_waits_[i]);
      if (key <= least) continue;
      least = key;
      found = unit;
    }
    return found;
  }

  void expect_asked() {
    float factors[kAverages];
    const float constant = weigh(factors);
    for (size_t i = asked_waits_.size(); i < asked_.size(); ++i) {
      float rate = constant;
      for (uint32_t k = 0; k < kAverages; ++k) {
        rate += factors[k] * (averages_[k].scores[asked_[i]] + averages_[k].weight);
      }
      asked_waits_.push_back(wait(rate * ratio_of_[0]));
    }
  }

  // Layers from a unit's next turn to its expected use.
  float wait(float rate) const {
    const auto round = static_cast<float>(n_layer_);
    return std::min(std::max(round / rate, round) - round, kLongest);
  }

  // A unit of the present layer is used in the returned share of the steps, and by factors[k] for each of its scores.
  float weigh(float* factors) const {
    float constant = 0;
    for (uint32_t k = 0; k < kAverages; ++k) {
      const Average& average = averages_[k];
      factors[k] = average.trust[layer_] / (average.total + kPriorSteps * average.weight);
      constant += average.prior(layer_, average.total, per_layer_) * factors[k];
    }
    return constant;
  }

  void begin_turn(uint32_t layer) {
    if (layer_ != n_layer_) end_turn();
    if (layer_ == n_layer_ || layer <= layer_) begin_step();
    layer_ = layer;
    // What is not asked for now has another round to wait.
    turns_[layer] = static_cast<double>(steps_ + 1) * n_layer_ + layer;
    compete(layer, best_[layer]);
  }

  void begin_step() {
    ++steps_;
    for (Average& average : averages_) average.begin_step();
    for (uint32_t i = 0; i < kAgeClasses; ++i) {
      if (expected_[i] < kMostUses) continue;
      uses_[i] /= 2;
      expected_[i] /= 2;
    }
    for (uint32_t age = 0; age <= kAges; ++age) {
      const uint32_t next = class_of_[std::min(age + 1, kAges)];  // its age at its next turn
      ratio_of_[age] = uses_[next] / expected_[next];
    }
  }

  void end_turn() {
    const uint32_t first = layer_ * per_layer_;
    for (uint32_t unit = first; unit < first + per_layer_; ++unit) {
      ages_[unit] = static_cast<uint8_t>(ages_[unit] < kAges ? ages_[unit] + 1 : kAges);
    }
    if ((steps_ + layer_) % kSampled == 0) {
      for (uint32_t unit = first; unit < first + per_layer_; ++unit) expected_[class_of_[ages_[unit]]] += rates_[unit];
      for (const uint32_t unit : asked_) uses_[class_of_[ages_[unit]]] += 1;
    }
    if (asked_.size() <= kMostJudged) judge();
    for (const uint32_t unit : asked_) {
      ages_[unit] = 0;
      asked_now_[unit] = 0;
      for (Average& average : averages_) average.scores[unit] += average.weight;
    }
    for (Average& average : averages_) {
      average.layer_scores[layer_] += average.weight * static_cast<float>(asked_.size());
    }
    float factors[kAverages];
    const float constant = weigh(factors);
    expect(first, factors, constant);
    find_best(layer_);
    asked_.clear();
    asked_waits_.clear();
  }

  // How well did each average foretell what this turn asked for?
  void judge() {
    float trust[kAverages], sum = 0;
    for (uint32_t k = 0; k < kAverages; ++k) {
      const Average& average = averages_[k];
      trust[k] = average.trust[layer_];
      const float prior = average.prior(layer_, average.total - average.weight, per_layer_);
      const float all = average.layer_scores[layer_] + static_cast<float>(per_layer_) * prior;
      if (all > 0) {
        const float scale = static_cast<float>(per_layer_) / all;  // a unit like all others: 1
        for (const uint32_t unit : asked_) trust[k] *= (average.scores[unit] + prior) * scale;
      }
      sum += trust[k];
    }
    // Neither lost in rounding nor beyond all numbers, which 16 uses of a layer of hundreds of units might be.
    const bool known = sum > std::numeric_limits<float>::min() && sum < std::numeric_limits<float>::max();
    for (uint32_t k = 0; k < kAverages; ++k) {
      averages_[k].trust[layer_] =
          (known ? trust[k] / sum * (1 - kSpread) : (1 - kSpread) / kAverages) + kSpread / kAverages;
    }
  }

  // At which share of the steps the layer's units will be used, and how long those in the cache wait beyond their next
  // turn. Every unit of every step comes through here: arrays alone, so that compilers use vectors.
  void expect(uint32_t first, const float* factors, float constant) {
    static_assert(kAverages == 3, "the sum below has three terms");
    const float *s0 = &averages_[0].scores[first], *s1 = &averages_[1].scores[first], *s2 = &averages_[2].scores[first];
    const float *absent = &absent_[first], f0 = factors[0], f1 = factors[1], f2 = factors[2];
    const uint8_t* ages = &ages_[first];
    float *rates = &rates_[first], *waits = &waits_[first];
    for (uint32_t i = 0; i < per_layer_; ++i) waits[i] = ratio_of_[ages[i]];
    for (uint32_t i = 0; i < per_layer_; ++i) {
      const float rate = constant + f0 * s0[i] + f1 * s1[i] + f2 * s2[i];
      rates[i] = rate;
      waits[i] = wait(rate * waits[i]) + absent[i];
    }
  }

  const uint32_t n_layer_, per_layer_;
  Average averages_[kAverages];
  std::vector<uint8_t> ages_;       // of every unit: turns since its last use
  std::vector<float> rates_;        // of every unit, as of its layer's last turn: share of the steps that will use it
  std::vector<float> absent_;       // of every unit: 0 in the cache, else kAbsent
  std::vector<float> waits_;        // of every unit: layers beyond its next turn; kAbsent: not there, or of this turn
  std::vector<uint8_t> asked_now_;  // of every unit
  std::vector<uint32_t> best_;      // [n_layer] the unit of the longest wait; kNoUnit
  std::vector<double> turns_;       // [n_layer] the next one, in layers from the beginning
  Tournament tournament_;           // by when best_ is expected to be used
  std::vector<uint32_t> passed_over_;  // layers whose best_ of all is held
  std::vector<uint32_t> asked_;        // units, in this turn
  std::vector<float> asked_waits_;     // of the first of asked_: like waits_
  float uses_[kAgeClasses], expected_[kAgeClasses];
  uint32_t class_of_[kAges + 1];
  float ratio_of_[kAges + 1] = {};  // at the next turn
  uint64_t steps_ = 0;
  uint32_t layer_;  // whose turn it is; n_layer_ before the first
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_reuse_policy(const PolicyShape& shape) { return std::make_unique<Reuse>(shape); }

}  // namespace sbr
