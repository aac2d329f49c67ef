// Which matrices of a layer are stored interleaved: one decision for SBR_LOAD_REPACK and for bundles, so that kernels
// find the same bytes in either. Plain data; experts/ uses it too.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "model/config.h"
#include "model/weights.h"

namespace sbr {

struct PlacedMatrix {
  Matrix LayerWeights::* member;
  bool interleave;
};

// A layer's large matrices: q, k, v, output, gate, up, down. The last three are what an expert has.
constexpr size_t kLayerMatrices = 7;
constexpr size_t kFirstOfFfn = 4;

// Whether a matrix of a file, or each of the pieces of `rows_of_each` rows that it consists of, is made of whole tiles.
bool whole_tiles(const Matrix& matrix, uint64_t rows_of_each);

// `layer` as bind_weights() gave it; `gathers`: SBR_GATHER_*.
std::array<PlacedMatrix, kLayerMatrices> place_matrices(const LayerWeights& layer, const Config& config,
                                                        bool transposed_down, uint32_t gathers);

}  // namespace sbr
