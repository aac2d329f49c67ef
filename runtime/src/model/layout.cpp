#include "model/layout.h"

#include <algorithm>

#include "kernels/kernels.h"
#include "quant/interleave.h"
#include "sbr/sbr.h"

namespace sbr {

bool whole_tiles(const Matrix& matrix, uint64_t rows_of_each) {
  return can_interleave(matrix.type) && rows_of_each % kInterleavedRows == 0;
}

std::array<PlacedMatrix, kLayerMatrices> place_matrices(const LayerWeights& layer, const Config& config,
                                                        bool transposed_down, uint32_t gathers) {
  // One run of rows is dealt out to the threads, so that one matrix of odd rows would shift the next one's tiles.
  const Matrix* const qkv[3] = {&layer.attn_q, &layer.attn_k, &layer.attn_v};
  const bool tiles = std::all_of(qkv, qkv + 3, [](const Matrix* matrix) { return whole_tiles(*matrix, matrix->rows); });
  return {{
      {&LayerWeights::attn_q, tiles},
      {&LayerWeights::attn_k, tiles},
      {&LayerWeights::attn_v, tiles},
      {&LayerWeights::attn_output, whole_tiles(layer.attn_output, layer.attn_output.rows)},
      // Tiles must not reach from one expert into the next.
      {&LayerWeights::gate, whole_tiles(layer.gate, config.n_ff)},
      {&LayerWeights::up, (gathers & SBR_GATHER_UP) == 0 && whole_tiles(layer.up, config.n_ff)},
      {&LayerWeights::down, !transposed_down && whole_tiles(layer.down, config.n_embd)},
  }};
}

}  // namespace sbr
