// Interleaved matrices in readable form: every row is put together again and goes through the definition of its type.
// Included by scalar.cpp.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels/interleaved.h"
#include "kernels/kernels.h"

namespace sbr {
namespace {

// A block of a row, as the file had it, from the row's place in a tile's block. kWords: 16-bit header words.
template <class Block, size_t kWords>
Block extract_block(const uint8_t* tile_block, size_t row) {
  uint8_t bytes[sizeof(Block)];
  for (size_t i = 0; i < kWords; ++i) memcpy(bytes + 2 * i, tile_block + 2 * (i * kInterleavedRows + row), 2);
  const uint8_t* dwords = tile_block + 2 * kWords * kInterleavedRows;
  for (size_t i = 0; i < (sizeof(Block) - 2 * kWords) / 4; ++i)
    memcpy(bytes + 2 * kWords + 4 * i, dwords + 4 * (i * kInterleavedRows + row), 4);
  Block block;
  memcpy(&block, bytes, sizeof block);
  return block;
}

// Add::add(block, its number, activation, sum) is the rule of the type.
template <class Add, size_t kWords>
void interleaved_gemm_scalar(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x,
                             size_t n_tokens, float* y, size_t y_stride) {
  typedef typename Add::Block Block;
  for (size_t r = 0; r < n_rows; ++r) {
    const uint8_t* block = w + r / kInterleavedRows * kInterleavedRows * row_bytes;
    for (size_t t = 0; t < n_tokens; ++t) y[t * y_stride + r] = 0;
    for (size_t b = 0; b < n / Add::kElements; ++b, block += kInterleavedRows * sizeof(Block)) {
      const Block weights = extract_block<Block, kWords>(block, r % kInterleavedRows);
      for (size_t t = 0; t < n_tokens; ++t) y[t * y_stride + r] = Add::add(weights, b, x[t], y[t * y_stride + r]);
    }
  }
}

template <class Add, size_t kWords>
void interleaved_gemv_scalar(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x,
                             float* y) {
  interleaved_gemm_scalar<Add, kWords>(w, row_bytes, n_rows, n, x, 1, y, 0);
}

template <class Add, size_t kWords>
constexpr WeightKernels interleaved_scalar_kernels() {
  return {interleaved_gemv_scalar<Add, kWords>, nullptr, interleaved_gemm_scalar<Add, kWords>, nullptr};
}

}  // namespace
}  // namespace sbr
