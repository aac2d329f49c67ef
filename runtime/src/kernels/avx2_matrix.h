// Quantised matrices times one vector or several, in 256-bit registers (rule 4 of docs/arithmetic.md). Included after
// avx2_dot.h or avxvnni_dot.h, which differ in how bytes are multiplied and define
//   StepInput, load_input<T>(q, valid)        an activation's quants of one step, in the lanes of T::unpack
//   partial_sums<T>(row, step, first, second, in)   four partial sums of each of the step's two blocks
//   kBias<T>, prepared<T>(quad)               how bytes are kept for several tokens
//   block_sums<T>(quad, half_scale, q, start) the exact sums of a block of 8 rows
//
// Each row and step of a tile leaves four partial sums per block, which are folded for four rows at once, until a
// register holds a block's exact sums of 8 rows.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels/avx2_types.h"
#include "kernels/kernels.h"
#include "kernels/tiles.h"

namespace sbr {
namespace {

// 4 were as fast.
constexpr size_t kTilesAhead = 3;

// ---- rows times one vector

// Adds up each aligned group of 4 lanes of four registers: lane 4 b + i of the result is group b of register i.
__m256i fold_partials(const __m256i* s) {
  const __m256i s01 = _mm256_add_epi32(_mm256_unpacklo_epi32(s[0], s[1]), _mm256_unpackhi_epi32(s[0], s[1]));
  const __m256i s23 = _mm256_add_epi32(_mm256_unpacklo_epi32(s[2], s[3]), _mm256_unpackhi_epi32(s[2], s[3]));
  return _mm256_add_epi32(_mm256_unpacklo_epi64(s01, s23), _mm256_unpackhi_epi64(s01, s23));
}

// The scales of one block of 8 rows, in the rule's order.
template <class T>
struct BlockScales {
  __m256 scale, min;
  BlockScales(const typename T::Scales& scales, size_t b) : scale(scales.scale(b)) {
    if constexpr (T::kHasMin) min = scales.min(b);
  }
  __m256 finish(__m256i sum, float d, float sum_x, __m256 acc) const {
    acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(scale, _mm256_set1_ps(d)), acc);
    if constexpr (T::kHasMin) acc = _mm256_fmadd_ps(min, _mm256_set1_ps(sum_x), acc);
    return acc;
  }
};

template <class T>
__m256 step_rows(const uint8_t* const* row, size_t step, size_t valid, const Activation& x, __m256 acc) {
  const size_t block = step * kStepBlocks;
  const StepInput in = load_input<T>(x.q + block * kBlock, valid);
  typename T::Scales scales;
  __m256i folded[2];
#pragma GCC unroll 2
  for (size_t g = 0; g < 2; ++g) {
    __m256i partial[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) {
      __m256i first, second;
      T::unpack(row[4 * g + i], step, valid, 4 * g + i, &scales, &first, &second);
      partial[i] = partial_sums<T>(row[4 * g + i], step, first, second, in);
    }
    folded[g] = fold_partials(partial);
  }
  __m256i sums[2];
  split_halves(folded[0], folded[1], &sums[0], &sums[1]);
  acc = BlockScales<T>(scales, 0).finish(sums[0], x.d[block], x.sum[block], acc);
  if (valid > 1) acc = BlockScales<T>(scales, 1).finish(sums[1], x.d[block + 1], x.sum[block + 1], acc);
  return acc;
}

void store_rows(float* y, size_t count, __m256 v) {
  if (count == kTileRows) return _mm256_storeu_ps(y, v);
  float lanes[kTileRows];
  _mm256_storeu_ps(lanes, v);
  memcpy(y, lanes, count * sizeof(float));
}

template <class T>
void rows_times_vector(const uint8_t* w, size_t row_bytes, const uint32_t* rows, size_t n_rows, size_t n,
                       const Activation& x, float* y) {
  const size_t blocks = n / kBlock;
  typedef TileRing<kTileRows, kTilesAhead> Tiles;
  for_each_ring<kTileRows, kTilesAhead>(w, row_bytes, rows, n_rows, [=, &x](const Tiles& tiles, size_t r) {
    const uint8_t* const* row = tiles.row[tiles.now];
    RepeatedPrefetch<kTileRows, kTilesAhead> prefetch(tiles, row_bytes);
    __m256 acc = _mm256_setzero_ps();
    for (size_t step = 0; step < blocks / kStepBlocks; ++step) {
      prefetch.until((step + 1) * T::kStepBytes);
      acc = step_rows<T>(row, step, kStepBlocks, x, acc);
    }
    prefetch.until(row_bytes);
    if (blocks % kStepBlocks) acc = step_rows<T>(row, blocks / kStepBlocks, 1, x, acc);
    store_rows(y + r, tiles.count[tiles.now], acc);
  });
}

// ---- rows times several vectors

// A step of 8 rows with rows in lanes: quad k of block b holds elements 4 k .. 4 k + 3 of each row.
template <class T>
struct UnpackedStep {
  __m256i quad[kStepBlocks][8];
  typename T::Scales scales;
  __m256i half_scale[kStepBlocks][2];
};

template <class T>
void unpack_step(const uint8_t* const* row, size_t step, size_t valid, UnpackedStep<T>* out) {
  __m256i half[2][kTileRows];
  for (size_t r = 0; r < kTileRows; ++r) T::unpack(row[r], step, valid, r, &out->scales, &half[0][r], &half[1][r]);
  for (size_t h = 0; h < 2; ++h) {
    __m256i four[2][4];  // [rows 0..3 or 4..7][quad]: low 128 bits of block 0, high of block 1
    for (size_t g = 0; g < 2; ++g) {
      const __m256i* v = &half[h][4 * g];
      const __m256i a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
      const __m256i c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
      four[g][0] = _mm256_unpacklo_epi64(a, c);
      four[g][1] = _mm256_unpackhi_epi64(a, c);
      four[g][2] = _mm256_unpacklo_epi64(b, d);
      four[g][3] = _mm256_unpackhi_epi64(b, d);
    }
    for (size_t k = 0; k < 4; ++k) {
      __m256i quad0, quad1;
      split_halves(four[0][k], four[1][k], &quad0, &quad1);
      out->quad[0][4 * h + k] = prepared<T>(quad0);
      out->quad[1][4 * h + k] = prepared<T>(quad1);
    }
  }
  if constexpr (T::kHalfBlockScales) {
    for (size_t b = 0; b < kStepBlocks; ++b) {
      for (size_t h = 0; h < 2; ++h) {
        int32_t scale[kTileRows];
        for (size_t r = 0; r < kTileRows; ++r) scale[r] = T::half_scales(row[r], step)[2 * b + h];
        out->half_scale[b][h] = load256(scale);
      }
    }
  }
}

// The same of half a tile of interleaved rows.
template <class T>
void load_step(const uint8_t* tile, size_t half, size_t step, size_t valid, UnpackedStep<T>* out) {
  for (size_t b = 0; b < valid; ++b) {
    const size_t number = step * kStepBlocks + b;
    const uint8_t* block = tile + number / T::kBlocks * T::Layout::kBlockBytes;
    if (b == 0) out->scales = T::scales(block, half, number % T::kBlocks);
    T::quads(block, half, number % T::kBlocks, out->quad[b]);
    for (__m256i& quad : out->quad[b]) quad = prepared<T>(quad);
  }
}

int32_t sum_quants(const int8_t* q, size_t n) {
  int32_t sum = 0;
  for (size_t i = 0; i < n; ++i) sum += q[i];
  return sum;
}

constexpr size_t kTokens = 16;  // that pass over an unpacked tile together
constexpr size_t kPanelBlocks = 64;

template <class T>
void rows_times_panel(const uint8_t* w, size_t row_bytes, size_t n_rows, const Activation* x, size_t n_tokens,
                      size_t block_begin, size_t blocks, float* y, size_t y_stride) {
  int32_t start[kPanelBlocks][kTokens][2];
  if (kBias<T> != 0) {
    for (size_t p = 0; p < blocks; ++p) {
      for (size_t t = 0; t < n_tokens; ++t) {
        const int8_t* q = x[t].q + (block_begin + p) * kBlock;
        const int32_t first = sum_quants(q, kBlock / 2), second = sum_quants(q + kBlock / 2, kBlock / 2);
        start[p][t][0] = -kBias<T> * (T::kHalfBlockScales ? first : first + second);
        start[p][t][1] = -kBias<T> * second;
      }
    }
  }
  for (size_t r = 0; r < n_rows; r += kTileRows) {
    const uint8_t* row[kTileRows];
    const size_t count = tile_rows<kTileRows>(w, row_bytes, nullptr, r, n_rows, row);
    __m256 acc[kTokens];
    for (size_t t = 0; t < n_tokens; ++t) {
      float lanes[kTileRows] = {};
      if (block_begin) memcpy(lanes, y + t * y_stride + r, count * sizeof(float));
      acc[t] = _mm256_loadu_ps(lanes);
    }
    for (size_t p = 0; p < blocks; p += kStepBlocks) {
      const size_t step = (block_begin + p) / kStepBlocks;
      const size_t valid = blocks - p < kStepBlocks ? blocks - p : kStepBlocks;
      UnpackedStep<T> unpacked;
      if constexpr (T::kInterleaved) {
        const size_t half = r % kInterleavedRows / kTileRows;
        load_step<T>(w + (r - half * kTileRows) * row_bytes, half, step, valid, &unpacked);
      } else {
        unpack_step<T>(row, step, valid, &unpacked);
      }
      for (size_t b = 0; b < valid; ++b) {
        const size_t block = block_begin + p + b;
        const BlockScales<T> scales(unpacked.scales, b);
        for (size_t t = 0; t < n_tokens; ++t) {
          const __m256i sums =
              block_sums<T>(unpacked.quad[b], unpacked.half_scale[b], x[t].q + block * kBlock, start[p + b][t]);
          acc[t] = scales.finish(sums, x[t].d[block], x[t].sum[block], acc[t]);
        }
      }
    }
    for (size_t t = 0; t < n_tokens; ++t) store_rows(y + t * y_stride + r, count, acc[t]);
  }
}

// times_one(activation, y) is the product with a token that is left over.
template <class T, class TimesOne>
void rows_times_batches(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x,
                        size_t n_tokens, const TimesOne& times_one, float* y, size_t y_stride) {
  for (size_t t = 0; t < n_tokens; t += kTokens) {
    const size_t tokens = n_tokens - t < kTokens ? n_tokens - t : kTokens;
    if (tokens == 1) {
      times_one(x[t], y + t * y_stride);
      continue;
    }
    for (size_t block = 0; block < n / kBlock; block += kPanelBlocks) {
      const size_t left = n / kBlock - block;
      rows_times_panel<T>(w, row_bytes, n_rows, x + t, tokens, block, left < kPanelBlocks ? left : kPanelBlocks,
                          y + t * y_stride, y_stride);
    }
  }
}

template <class T>
void rows_times_tokens(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x,
                       size_t n_tokens, float* y, size_t y_stride) {
  const auto times_one = [=](const Activation& one, float* out) {
    rows_times_vector<T>(w, row_bytes, nullptr, n_rows, n, one, out);
  };
  rows_times_batches<T>(w, row_bytes, n_rows, n, x, n_tokens, times_one, y, y_stride);
}

}  // namespace
}  // namespace sbr
