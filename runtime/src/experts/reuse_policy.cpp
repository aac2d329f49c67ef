// A unit can only be used when its layer comes round, once per step. If a share p of the steps uses it, the first use
// is expected at the 1/p-th turn from now: after d + (1/p - 1) * n_layer layers, d being the way to the layer's next
// turn. So of two units used equally often the one leaves whose layer has just been, and over a cyclic scan (p = 1 for
// all) that is what a cache that knew the future would do, where LRU misses everything.
//
// p is learnt in two parts. How often: an average over past steps whose weights halve every 64 steps. How lately:
// routing is not drawn anew for every token; text stays with its subject, and the experts of the last token are more
// likely than their average. So for each number of turns since the last use it is counted how often units are used,
// against how often their averages said that they would be, over all layers together; the average is multiplied by that
// ratio. For routing without memory the ratios come out as 1 (and above all mend the averages' own errors).
//
// Hit rates with room for 30 % of 26 x 64 experts, 6 per token, as test_policy.cpp prints them (LRU, LFU, this, the
// most frequent units known beforehand): a hot set 55.2, 73.1, 73.2, 73.9; tokens alike 51.3, 35.7, 52.9, 36.9.
// Half-lives tried with 32 x 32, 4 per token: 32, 64 and 128 steps give 81.1, 81.5 and 81.9 % where nothing changes
// (room for half), and 56.5, 44.8 and 38.0 % in the 64 tokens after the hot set moved (room for 30 %; LRU 55.7).
#include "experts/reuse_policy.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace sbr {
namespace {

constexpr float kGrowth = 1.0f + 0.6931472f / 64;  // of a step's weight: rather than lower all earlier ones, raise it
constexpr float kLargestWeight = 0x1p60f;
constexpr float kPriorSteps = 8;  // for which a unit is believed to be like the average of its layer
constexpr uint32_t kAges = 64;    // turns since the last use, at most
constexpr uint32_t kAgeClasses = 12;
constexpr float kPriorUses = 64;    // for which a ratio is believed to be 1
constexpr float kMostUses = 16384;  // then both of its sums are halved
constexpr uint32_t kSampled = 4;    // one turn in so many is counted: 48 to 80 uses per token are
constexpr float kAbsent = std::numeric_limits<float>::lowest();

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

class Reuse final : public EvictionPolicy {
 public:
  explicit Reuse(const PolicyShape& shape)
      : n_layer_(shape.n_layer),
        per_layer_(shape.units_per_layer),
        scores_(static_cast<size_t>(n_layer_) * per_layer_, 0),
        layer_scores_(n_layer_, 0),
        ages_(scores_.size(), kAges),
        waits_(scores_.size(), kAbsent),
        longest_(n_layer_, kAbsent),
        stale_(n_layer_, 0),
        ranks_(n_layer_, 0),
        layer_(n_layer_) {
    for (uint32_t age = 0; age <= kAges; ++age) class_of_[age] = age_class(age);
    std::fill(uses_, uses_ + kAgeClasses, kPriorUses);
    std::fill(expected_, expected_ + kAgeClasses, kPriorUses);
  }

  void used(uint32_t unit) override {
    const uint32_t layer = unit / per_layer_;
    // Only a model of one layer asks for more than all units of a layer in a row.
    if (layer != layer_ || ++asked_ > per_layer_) begin_turn(layer);
    if (counted_ && ages_[unit] != 0) uses_[class_of_[ages_[unit]]] += 1;
    ages_[unit] = 0;
    scores_[unit] += weight_;
    layer_scores_[layer] += weight_;
    waits_[unit] = wait(scores_[unit] + prior_, 0);
    stale_[layer] = 1;
  }

  uint32_t evict(const uint8_t* held) override {
    for (uint32_t layer = 0; layer < n_layer_; ++layer) {
      if (stale_[layer] == 0) continue;
      longest_[layer] = largest(&waits_[static_cast<size_t>(layer) * per_layer_], per_layer_);
      stale_[layer] = 0;
    }
    const uint32_t behind = std::min(layer_ + 1, n_layer_);  // the layers before have had their turn
    for (uint32_t layer = 0; layer < behind; ++layer) ranks_[layer] = rank(longest_[layer], layer + n_layer_);
    for (uint32_t layer = behind; layer < n_layer_; ++layer) ranks_[layer] = rank(longest_[layer], layer);
    for (;;) {
      const float most = largest(ranks_.data(), n_layer_);
      if (most == kAbsent) return kNoUnit;
      const auto layer = static_cast<uint32_t>(std::find(ranks_.begin(), ranks_.end(), most) - ranks_.begin());
      const uint32_t unit = longest_wait(layer, held);
      const float found = unit == kNoUnit ? kAbsent : rank(waits_[unit], layer < behind ? layer + n_layer_ : layer);
      if (found == most) {
        waits_[unit] = kAbsent;
        stale_[layer] = 1;
        return unit;
      }
      ranks_[layer] = found;  // the one that waits longest is held; the layer's next one competes
    }
  }

 private:
  // Layers from now until the use, for a unit that waits that long beyond its layer's next turn, at `turn`. An absent
  // one stays absent: what is added is lost in rounding.
  float rank(float wait, uint32_t turn) const { return wait + static_cast<float>(turn - layer_); }

  // Layers from a unit's next turn to its expected use, `age` being the turns since the last one.
  float wait(float score, uint32_t age) const {
    const auto round = static_cast<float>(n_layer_);
    return std::max(scale_ / (score * ratio_of_[age]), round) - round;
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
      if (longest == longest_[layer]) break;
    }
    return found;
  }

  // What the layer's units can expect if they are not used now; used() mends it for those that are.
  void begin_turn(uint32_t layer) {
    if (layer <= layer_) begin_step();
    layer_ = layer;
    asked_ = 1;
    counted_ = (steps_ + layer) % kSampled == 0;
    const float average_score = layer_scores_[layer] / static_cast<float>(per_layer_);
    const float prior_weight = kPriorSteps * weight_;
    prior_ = total_ > 0 ? prior_weight * average_score / total_ : 0;
    scale_ = static_cast<float>(n_layer_) * (total_ + prior_weight);
    const uint32_t first = layer * per_layer_;
    for (uint32_t unit = first; unit < first + per_layer_; ++unit) {
      ages_[unit] = static_cast<uint8_t>(ages_[unit] < kAges ? ages_[unit] + 1 : kAges);
    }
    if (counted_) {
      const float share = 1 / (total_ + prior_weight);
      for (uint32_t unit = first; unit < first + per_layer_; ++unit) {
        expected_[class_of_[ages_[unit]]] += (scores_[unit] + prior_) * share;
      }
    }
    for (uint32_t unit = first; unit < first + per_layer_; ++unit) {
      if (waits_[unit] != kAbsent) waits_[unit] = wait(scores_[unit] + prior_, ages_[unit]);
    }
    stale_[layer] = 1;
  }

  void begin_step() {
    ++steps_;
    weight_ *= kGrowth;
    total_ += weight_;
    if (weight_ > kLargestWeight) {
      for (float& score : scores_) score /= kLargestWeight;
      for (float& score : layer_scores_) score /= kLargestWeight;
      total_ /= kLargestWeight;
      weight_ /= kLargestWeight;
    }
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

  const uint32_t n_layer_, per_layer_;
  std::vector<float> scores_;        // of every unit, in the cache or not: sum of the weights of the steps that used it
  std::vector<float> layer_scores_;  // [n_layer] their sums
  std::vector<uint8_t> ages_;        // of every unit: turns since its last use
  std::vector<float> waits_;         // of every unit: wait() as of its layer's last turn; kAbsent: not in the cache
  std::vector<float> longest_;       // [n_layer] of waits_, unless stale
  std::vector<uint8_t> stale_;
  std::vector<float> ranks_;  // [n_layer] of the present eviction
  float weight_ = 1;          // of the present step
  float total_ = 0;           // of all steps
  float uses_[kAgeClasses], expected_[kAgeClasses];
  uint32_t class_of_[kAges + 1];
  float ratio_of_[kAges + 1];  // at the next turn
  uint64_t steps_ = 0;
  // Of the present turn:
  uint32_t layer_;      // n_layer_ before the first
  uint32_t asked_ = 0;  // uses
  bool counted_ = false;
  float prior_ = 0;  // score that every unit has from the beginning
  float scale_ = 0;  // that over a score is the expected number of layers between uses
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_reuse_policy(const PolicyShape& shape) { return std::make_unique<Reuse>(shape); }

}  // namespace sbr
