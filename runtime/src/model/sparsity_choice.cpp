#include "model/sparsity_choice.h"

#include <algorithm>

namespace sbr {

SparsityChoice::SparsityChoice(uint32_t n_layer, bool automatic, bool fixed) : automatic_(automatic), layers_(n_layer) {
  for (Layer& layer : layers_) layer.sparse = automatic || fixed;
}

bool SparsityChoice::sparse(uint32_t layer) const {
  if (!automatic_ || step_ >= 2 * kTries) return layers_[layer].sparse;
  return step_ % 2 == 0;
}

void SparsityChoice::observe(const uint64_t* ns) {
  if (!automatic_) return;
  if (step_ < 2 * kTries) {
    for (size_t l = 0; l < layers_.size(); ++l) {
      uint64_t& best = layers_[l].best[step_ % 2 == 0];
      best = std::min(best, ns[l]);
    }
  }
  if (step_ == 2 * kTries - 1) {
    for (Layer& layer : layers_) {
      layer.sparse = layer.best[1] <= layer.best[0];
      layer.best[0] = layer.best[1] = UINT64_MAX;
    }
  }
  step_ = (step_ + 1) % kPeriod;
}

}  // namespace sbr
