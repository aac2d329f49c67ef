// SBR_CACHE_REUSE as its comment tells it (reuse_policy.cpp), without anything that makes it fast: every victim is
// found by looking at all units. The same sums in the same order, so that both decide alike to the last bit.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "experts/policy.h"

namespace sbr_test {

class ReuseReference final : public sbr::EvictionPolicy {
 public:
  explicit ReuseReference(const sbr::PolicyShape& shape)
      : n_layer_(shape.n_layer), per_layer_(shape.units_per_layer), units_(n_layer_ * per_layer_), layers_(n_layer_) {
    uses_.fill(64);
    expected_.fill(64);
  }

  void used(uint32_t unit) override {
    const uint32_t layer = unit / per_layer_;
    if (turn_ < 0 || layer != static_cast<uint32_t>(turn_) || units_[unit].asked) begin_turn(layer);
    asked_.push_back(unit);
    units_[unit].asked = units_[unit].there = true;
  }

  uint32_t evict(const uint8_t* held) override {
    uint32_t found = sbr::kNoUnit;
    double latest = -1;
    for (const bool asked : {false, true}) {  // of equals, one of this turn goes last
      const auto look = [&](uint32_t unit) {
        if (!units_[unit].there || units_[unit].asked != asked || held[unit] != 0 || key(unit) <= latest) return;
        latest = key(unit);
        found = unit;
      };
      if (asked) {
        for (const uint32_t unit : asked_) look(unit);
      } else {
        for (uint32_t unit = 0; unit < units_.size(); ++unit) look(unit);
      }
    }
    if (found != sbr::kNoUnit) units_[found].there = false;
    return found;
  }

 private:
  struct Unit {
    float scores[3] = {0, 0, 0}, rate = 0, wait = 0;
    uint32_t age = 64;
    bool there = false, asked = false;
  };
  struct Layer {
    float scores[3] = {0, 0, 0}, trust[3] = {1.0f / 3, 1.0f / 3, 1.0f / 3};
    double next = 0;
  };

  // When the unit is expected to be used, in layers from the beginning.
  double key(uint32_t unit) const {
    const Unit& at = units_[unit];
    const Layer& layer = layers_[unit / per_layer_];
    return layer.next + static_cast<double>(at.asked ? wait(rate(unit, true), 0) : at.wait);
  }

  float prior(const Layer& layer, int k, float steps) const {
    return steps > 0 ? 8 * weight_[k] / (steps * static_cast<float>(per_layer_)) * layer.scores[k] : 0;
  }

  float rate(uint32_t unit, bool and_now) const {
    const Layer& layer = layers_[unit / per_layer_];
    float factors[3], sum = 0;
    for (int k = 0; k < 3; ++k) {
      factors[k] = layer.trust[k] / (total_[k] + 8 * weight_[k]);
      sum += prior(layer, k, total_[k]) * factors[k];
    }
    for (int k = 0; k < 3; ++k) sum += factors[k] * (units_[unit].scores[k] + (and_now ? weight_[k] : 0));
    return sum;
  }

  float wait(float rate, uint32_t age) const {
    const auto round = static_cast<float>(n_layer_);
    return std::min(std::max(round / (rate * ratios_[std::min(age + 1, 64u)]), round) - round, 1e9f);
  }

  static uint32_t age_class(uint32_t age) {
    static constexpr uint32_t kLast[] = {0, 1, 2, 3, 4, 6, 8, 12, 16, 32, 63};
    uint32_t i = 0;
    while (i < 11 && age > kLast[i]) ++i;
    return i;
  }

  void begin_turn(uint32_t layer) {
    if (turn_ >= 0) end_turn();
    if (turn_ < 0 || layer <= static_cast<uint32_t>(turn_)) begin_step();
    turn_ = layer;
    layers_[layer].next = static_cast<double>(steps_ + 1) * n_layer_ + layer;
  }

  void begin_step() {
    static constexpr float kHalfLives[] = {6, 48, 2048};
    ++steps_;
    for (int k = 0; k < 3; ++k) {
      weight_[k] *= 1 + 0.6931472f / kHalfLives[k];
      total_[k] += weight_[k];
      if (weight_[k] <= 0x1p40f) continue;
      for (Unit& unit : units_) unit.scores[k] = unit.scores[k] < 1 ? 0 : unit.scores[k] / 0x1p40f;
      for (Layer& layer : layers_) layer.scores[k] /= 0x1p40f;
      total_[k] /= 0x1p40f;
      weight_[k] /= 0x1p40f;
    }
    for (uint32_t i = 0; i < 12; ++i) {
      if (expected_[i] < 16384) continue;
      uses_[i] /= 2;
      expected_[i] /= 2;
    }
    for (uint32_t age = 0; age <= 64; ++age) ratios_[age] = uses_[age_class(age)] / expected_[age_class(age)];
  }

  void end_turn() {
    const auto index = static_cast<uint32_t>(turn_);
    Layer& layer = layers_[index];
    const uint32_t first = index * per_layer_, end = first + per_layer_;
    for (uint32_t unit = first; unit < end; ++unit) units_[unit].age = std::min(units_[unit].age + 1, 64u);
    if ((steps_ + index) % 8 == 0) {
      for (uint32_t unit = first; unit < end; ++unit) expected_[age_class(units_[unit].age)] += units_[unit].rate;
      for (const uint32_t unit : asked_) uses_[age_class(units_[unit].age)] += 1;
    }
    if (asked_.size() <= 16) judge(layer);
    for (const uint32_t unit : asked_) {
      units_[unit].age = 0;
      units_[unit].asked = false;
      for (int k = 0; k < 3; ++k) units_[unit].scores[k] += weight_[k];
    }
    for (int k = 0; k < 3; ++k) layer.scores[k] += weight_[k] * static_cast<float>(asked_.size());
    for (uint32_t unit = first; unit < end; ++unit) {
      units_[unit].rate = rate(unit, false);
      units_[unit].wait = wait(units_[unit].rate, units_[unit].age);
    }
    asked_.clear();
  }

  void judge(Layer& layer) const {
    float sum = 0;
    for (int k = 0; k < 3; ++k) {
      const float before = prior(layer, k, total_[k] - weight_[k]);
      const float all = layer.scores[k] + static_cast<float>(per_layer_) * before;
      for (const uint32_t unit : asked_) {
        if (all > 0) layer.trust[k] *= (units_[unit].scores[k] + before) * (static_cast<float>(per_layer_) / all);
      }
      sum += layer.trust[k];
    }
    for (float& trust : layer.trust) {
      trust = trust / sum * (1 - 1.0f / 256) + 1.0f / 256 / 3;
    }
  }

  const uint32_t n_layer_, per_layer_;
  std::vector<Unit> units_;
  std::vector<Layer> layers_;
  std::vector<uint32_t> asked_;
  std::array<float, 12> uses_, expected_;
  float ratios_[65] = {};
  float weight_[3] = {1, 1, 1}, total_[3] = {0, 0, 0};
  uint64_t steps_ = 0;
  int64_t turn_ = -1;  // whose it is
};

}  // namespace sbr_test
