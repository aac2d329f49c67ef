// Whether a layer's FFN should skip zero neurons, by measuring: skipping reads less but gathers scattered rows, and
// which is faster depends on the machine, the layer's zeros and the batch. Both give the same bits, so that changing
// over at any step changes nothing but time.
#pragma once

#include <cstdint>
#include <vector>

namespace sbr {

class SparsityChoice {
 public:
  // Steps in which both are tried, three of each, begin every kPeriod steps; in between the faster one is used.
  static constexpr uint32_t kPeriod = 256;
  static constexpr uint32_t kTries = 3;

  SparsityChoice(uint32_t n_layer, bool automatic, bool fixed);

  bool automatic() const { return automatic_; }
  bool sparse(uint32_t layer) const;  // in the present step
  bool chosen(uint32_t layer) const { return layers_[layer].sparse; }
  // After each step: how long each layer's FFN took, of wall time.
  void observe(const uint64_t* ns);

 private:
  struct Layer {
    bool sparse;
    uint64_t best[2] = {UINT64_MAX, UINT64_MAX};  // [dense, sparse] the shortest of the tries
  };
  bool automatic_;
  uint32_t step_ = 0;  // of the period
  std::vector<Layer> layers_;
};

}  // namespace sbr
