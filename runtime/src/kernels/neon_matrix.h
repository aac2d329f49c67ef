// Quantised matrices times one vector or several, with NEON (rule 4 of docs/arithmetic.md). Included after
//   int32x4_t dot_halves(first, second, x_first, x_second)   four partial sums of 32 products; kNarrow: |w| <= 32
// has been defined for the instruction set at hand.
//
// A step is one block of a tile: four rows' partial sums fold into the 4 lanes of a register by pairwise adds.
#pragma once

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels/kernels.h"
#include "kernels/neon_types.h"
#include "kernels/tiles.h"

namespace sbr {
namespace {

constexpr size_t kTilesAhead = 4;

// ---- products

// Four partial sums of block b of one row.
template <class T>
int32x4_t partial_sums(const uint8_t* row, size_t b, Bytes w, Bytes x) {
  if constexpr (T::kHalfBlockScales) {
    const int8_t* scale = T::half_scales(row, b);
    const int8x16_t none = vdupq_n_s8(0);
    const int32x4_t first = dot_halves<T::kNarrow>(w.first, none, x.first, none);
    const int32x4_t second = dot_halves<T::kNarrow>(w.second, none, x.second, none);
    return vmlaq_n_s32(vmulq_n_s32(first, scale[0]), second, scale[1]);
  } else {
    return dot_halves<T::kNarrow>(w.first, w.second, x.first, x.second);
  }
}

// Block b of four rows, unpacked once for all tokens.
template <class T>
struct UnpackedBlock {
  Bytes bytes[kTileRows];
  float32x4_t scale, min;

  UnpackedBlock(const uint8_t* const* row, size_t b) {
    for (size_t r = 0; r < kTileRows; ++r) bytes[r] = T::unpack(row[r], b);
    scale = T::scale(row, b);
    if constexpr (T::kHasMin) {
      min = T::min(row, b);
    } else {
      min = vdupq_n_f32(0);
    }
  }

  float32x4_t times(const uint8_t* const* row, size_t b, const Activation& x, float32x4_t acc) const {
    const Bytes q = {vld1q_s8(x.q + b * kBlock), vld1q_s8(x.q + b * kBlock + 16)};
    const int32x4_t s0 = partial_sums<T>(row[0], b, bytes[0], q), s1 = partial_sums<T>(row[1], b, bytes[1], q);
    const int32x4_t s2 = partial_sums<T>(row[2], b, bytes[2], q), s3 = partial_sums<T>(row[3], b, bytes[3], q);
    const int32x4_t sums = vpaddq_s32(vpaddq_s32(s0, s1), vpaddq_s32(s2, s3));
    acc = vfmaq_f32(acc, vcvtq_f32_s32(sums), vmulq_n_f32(scale, x.d[b]));
    if constexpr (T::kHasMin) acc = vfmaq_f32(acc, min, vdupq_n_f32(x.sum[b]));
    return acc;
  }
};

void store_rows(float* y, size_t count, float32x4_t v) {
  if (count == kTileRows) return vst1q_f32(y, v);
  float lanes[kTileRows];
  vst1q_f32(lanes, v);
  memcpy(y, lanes, count * sizeof(float));
}

template <class T>
void rows_times_vector(const uint8_t* w, size_t row_bytes, const uint32_t* rows, size_t n_rows, size_t n,
                       const Activation& x, float* y) {
  constexpr size_t kLinesPerStep = (kTileRows * T::kBlockBytes + 63) / 64;
  for_each_tile<kTileRows, kTilesAhead>(w, row_bytes, rows, n_rows,
                                        [=, &x](const uint8_t* const* row, size_t count, Prefetch prefetch, size_t r) {
                                          float32x4_t acc = vdupq_n_f32(0);
                                          for (size_t b = 0; b < n / kBlock; ++b) {
                                            prefetch.lines(kLinesPerStep);
                                            acc = UnpackedBlock<T>(row, b).times(row, b, x, acc);
                                          }
                                          store_rows(y + r, count, acc);
                                        });
}

template <class T>
void rows_times_tokens(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x,
                       size_t n_tokens, float* y, size_t y_stride) {
  constexpr size_t kTokens = 16;
  for (size_t t = 0; t < n_tokens; t += kTokens) {
    const size_t tokens = n_tokens - t < kTokens ? n_tokens - t : kTokens;
    for_each_tile<kTileRows, kTilesAhead>(w, row_bytes, nullptr, n_rows,
                                          [=](const uint8_t* const* row, size_t count, Prefetch prefetch, size_t r) {
                                            float32x4_t acc[kTokens];
                                            for (size_t i = 0; i < tokens; ++i) acc[i] = vdupq_n_f32(0);
                                            for (size_t b = 0; b < n / kBlock; ++b) {
                                              prefetch.lines((kTileRows * T::kBlockBytes + 63) / 64);
                                              const UnpackedBlock<T> block(row, b);
                                              for (size_t i = 0; i < tokens; ++i)
                                                acc[i] = block.times(row, b, x[t + i], acc[i]);
                                            }
                                            for (size_t i = 0; i < tokens; ++i)
                                              store_rows(y + (t + i) * y_stride + r, count, acc[i]);
                                          });
  }
}

}  // namespace
}  // namespace sbr
