// The tensors of a model, checked against its configuration: views into memory that Model owns.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gguf/gguf.h"
#include "model/config.h"

namespace sbr {

// Rows of `cols` weights. An expert tensor is one matrix: expert e's rows are [e * n, (e + 1) * n).
struct Matrix {
  const uint8_t* data = nullptr;  // nullptr: the model has no such matrix, or it is in a bundle
  uint32_t type = 0;
  uint64_t cols = 0;
  uint64_t rows = 0;
  uint64_t row_bytes = 0;
  uint64_t gap = 0;  // bytes between two rows: of up and down whose rows lie in turns (repack.h)

  uint64_t stride() const { return row_bytes + gap; }
  const uint8_t* row(uint64_t r) const { return data + r * stride(); }
  uint64_t bytes() const { return rows * row_bytes; }
  explicit operator bool() const { return rows != 0; }  // the model has such a matrix
};

// True for weight types whose dot product reads the quantised activation (docs/arithmetic.md, rule 4).
bool reads_quantised(uint32_t type);
inline bool reads_quantised(const Matrix& matrix) { return matrix && reads_quantised(matrix.type); }

struct LayerWeights {
  const float* attn_norm = nullptr;    // [D]
  const float* attn_q_norm = nullptr;  // [head_dim] or nullptr
  const float* attn_k_norm = nullptr;
  const float* ffn_norm = nullptr;  // [D]
  Matrix attn_q, attn_k, attn_v;    // [D -> heads * head_dim]
  Matrix attn_output;               // [heads * head_dim -> D]
  Matrix router;                    // [D -> E], or none
  Matrix gate, up;                  // [D -> F], of experts [D -> E * F]
  Matrix down;                      // [F -> D] (experts: E * D rows); transposed: E * F rows of D
};

struct Weights {
  Matrix token_embd;  // [V rows of D]
  Matrix output;      // token_embd when tied
  const float* output_norm = nullptr;
  std::vector<LayerWeights> layers;
  Matrix predictor_fc1;  // [D -> r], or none
  Matrix predictor_fc2;  // [r -> V]
  uint32_t predictor_rank = 0;
  bool tied_output = false;
  bool transposed_down = false;  // every layer's down is neuron-major
  uint64_t n_params = 0;
  uint64_t weight_bytes = 0;
};

// `data` holds the whole file. Errors: FORMAT (a tensor is missing or has the wrong shape), UNSUPPORTED (a type that
// cannot be computed with, or a tensor that this architecture should not have and that would be ignored); both name
// file and tensor.
Weights bind_weights(const GgufFile& file, const uint8_t* data, const Config& config);

}  // namespace sbr
