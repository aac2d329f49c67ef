// Quantised matrices times one vector or several, with AVX-512 VNNI (rule 4 of docs/arithmetic.md).
//
// A matrix-vector product takes tiles of 16 rows and steps of 4 blocks. Per row and step two vpdpbusd leave four
// partial sums per block; two rounds of unpack and add fold them for four rows at once, so that a block's exact sums of
// 16 rows end up in the 16 lanes of a register, and one conversion, one multiplication and one fma per block finish
// the rule. That is about 2.8 instructions per block of 32 weights. A product with several vectors unpacks and
// transposes a step once and needs 0.7 instructions per block and vector.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels/avx512_panel.h"
#include "kernels/avx512vnni_types.h"
#include "kernels/kernels.h"
#include "kernels/tiles.h"
#include "quant/blocks.h"

namespace sbr {
namespace {

// ---- rule 4: rows times one vector

// Adds up each aligned group of 4 lanes of four registers: lane 4 b + i of the result is group b of register i.
__m512i fold_partials(__m512i s0, __m512i s1, __m512i s2, __m512i s3) {
  const __m512i s01 = _mm512_add_epi32(_mm512_unpacklo_epi32(s0, s1), _mm512_unpackhi_epi32(s0, s1));
  const __m512i s23 = _mm512_add_epi32(_mm512_unpacklo_epi32(s2, s3), _mm512_unpackhi_epi32(s2, s3));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(s01, s23), _mm512_unpackhi_epi64(s01, s23));
}

// The activation's quants of one step in the lanes of T::unpack, and what makes up for kOffset.
struct StepInput {
  __m512i first, second;
  __m512i start, start_second;
};

template <class T, bool kFull>
StepInput load_input(const int8_t* q, size_t valid) {
  const uint8_t* p = reinterpret_cast<const uint8_t*>(q);
  StepInput in;
  split_halves(load_bytes<kFull>(p, 32 * valid),
               kFull || valid > 2 ? load_bytes<kFull>(p + 64, 32 * valid - 64) : _mm512_setzero_si512(), &in.first,
               &in.second);
  const __m512i zero = _mm512_setzero_si512();
  in.start = in.start_second = zero;
  if (T::kOffset != 0) {
    const __m512i offset = _mm512_set1_epi8(static_cast<char>(T::kOffset));
    const __m512i first = _mm512_dpbusd_epi32(zero, offset, in.first);
    const __m512i second = _mm512_dpbusd_epi32(zero, offset, in.second);
    if (T::kHalfBlockScales) {
      in.start = _mm512_sub_epi32(zero, first);
      in.start_second = _mm512_sub_epi32(zero, second);
    } else {
      in.start = _mm512_sub_epi32(zero, _mm512_add_epi32(first, second));
    }
  }
  return in;
}

// One step of kGroups * 4 rows: acc[lane r] goes through rule 4 for the step's blocks.
template <class T, int kGroups, bool kFull, class Meanwhile>
__m512 step_rows(const uint8_t* const* row, size_t step, size_t valid, const Activation& x, __m512 acc,
                 const Meanwhile& meanwhile) {
  const StepInput in = load_input<T, kFull>(x.q + step * kStepBlocks * kBlock, valid);
  typename T::Scales scales;
  __m512i folded[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
#pragma GCC unroll 4
  for (int g = 0; g < kGroups; ++g) {
    meanwhile();
    __m512i partial[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const int r = 4 * g + i;
      __m512i first, second;
      T::template unpack<kFull>(row[r], step, valid, r, &scales, &first, &second);
      if constexpr (T::kHalfBlockScales) {
        partial[i] = T::scaled(row[r], step, _mm512_dpbusd_epi32(in.start, first, in.first),
                               _mm512_dpbusd_epi32(in.start_second, second, in.second));
      } else {
        partial[i] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(in.start, first, in.first), second, in.second);
      }
    }
    folded[g] = fold_partials(partial[0], partial[1], partial[2], partial[3]);
  }
  __m512i sums[4];
  __m512 scale[4];
  transpose_lanes(folded, sums);
  scales.finish(scale);
  const size_t block = step * kStepBlocks;
  if constexpr (T::kHasMin) {
    __m512 min[4];
    scales.finish_min(min);
    for (size_t b = 0; b < (kFull ? kStepBlocks : valid); ++b) {
      const __m512 d = _mm512_mul_ps(scale[b], _mm512_set1_ps(x.d[block + b]));
      acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[b]), d, acc);
      acc = _mm512_fmadd_ps(min[b], _mm512_set1_ps(x.sum[block + b]), acc);
    }
  } else {
    for (size_t b = 0; b < (kFull ? kStepBlocks : valid); ++b) {
      const __m512 d = _mm512_mul_ps(scale[b], _mm512_set1_ps(x.d[block + b]));
      acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[b]), d, acc);
    }
  }
  return acc;
}

// How many tiles ahead memory is prefetched, each line once per tile (tiles.h has the reason). Of 2.36 ms per token for
// the up rows of SmallThinker-4B, two or three requests per line left 1.7, one gather for all experts 1.6.
constexpr size_t kTilesAhead = 2;

typedef TileRing<16, kTilesAhead> Tiles;

template <class T, int kGroups>
__m512 tile_times_vector(const Tiles& tiles, size_t row_bytes, size_t n, const Activation& x) {
  const size_t blocks = n / kBlock;
  const size_t whole = blocks / kStepBlocks;
  const uint8_t* const* row = tiles.row[tiles.now];
  RepeatedPrefetch<16, kTilesAhead> prefetch(tiles, row_bytes);
  __m512 acc = _mm512_setzero_ps();
  for (size_t step = 0; step < whole; ++step) {
    prefetch.until((step + 1) * T::kStepBytes);
    acc = step_rows<T, kGroups, true>(row, step, kStepBlocks, x, acc, [] {});
  }
  prefetch.until(row_bytes);
  if (blocks % kStepBlocks) acc = step_rows<T, kGroups, false>(row, whole, blocks % kStepBlocks, x, acc, [] {});
  return acc;
}

template <class T>
void rows_times_vector(const uint8_t* w, size_t row_bytes, const uint32_t* rows, size_t n_rows, size_t n,
                       const Activation& x, float* y) {
  for_each_ring<16, kTilesAhead>(w, row_bytes, rows, n_rows, [=, &x](const Tiles& tiles, size_t r) {
    const size_t count = tiles.count[tiles.now];
    const __m512 acc = count > 8   ? tile_times_vector<T, 4>(tiles, row_bytes, n, x)
                       : count > 4 ? tile_times_vector<T, 2>(tiles, row_bytes, n, x)
                                   : tile_times_vector<T, 1>(tiles, row_bytes, n, x);
    _mm512_mask_storeu_ps(y + r, __mmask16((1u << count) - 1), acc);
  });
}

// ---- rule 4: rows times several vectors

__m512i quad_dot(__m512i sum, __m512i weights, const int8_t* q) {
  int32_t four;
  memcpy(&four, q, sizeof four);
  return _mm512_dpbusd_epi32(sum, weights, _mm512_set1_epi32(four));
}

// One block of 16 rows (b of the unpacked step, p of the panel) times all tokens of the panel.
template <class T>
void block_times_panel(const UnpackedStep& w, size_t b, const Panel& x, size_t p, size_t n_tokens, __m512* acc) {
  __m512i first[4], second[4];
  for (int k = 0; k < 4; ++k) {
    first[k] = w.quad[b][k];
    second[k] = w.quad[b][4 + k];
  }
  const __m512 scale = w.scale[b];
  for (size_t t = 0; t < n_tokens; ++t) {
    const int8_t* q = x.q[p][t];
    __m512i sum = T::kOffset ? _mm512_set1_epi32(x.start[p][0][t]) : _mm512_setzero_si512();
    for (int k = 0; k < 4; ++k) sum = quad_dot(sum, first[k], q + 4 * k);
    if constexpr (T::kHalfBlockScales) {
      __m512i sum2 = _mm512_set1_epi32(x.start[p][1][t]);
      for (int k = 0; k < 4; ++k) sum2 = quad_dot(sum2, second[k], q + 16 + 4 * k);
      sum = _mm512_add_epi32(_mm512_mullo_epi32(sum, w.half_scale[b][0]), _mm512_mullo_epi32(sum2, w.half_scale[b][1]));
    } else {
      // Two chains of four: one of eight is too long for the scheduler (9 % slower).
      __m512i sum2 = _mm512_setzero_si512();
      for (int k = 0; k < 4; ++k) sum2 = quad_dot(sum2, second[k], q + 16 + 4 * k);
      sum = _mm512_add_epi32(sum, sum2);
    }
    const __m512 d = _mm512_mul_ps(scale, _mm512_set1_ps(x.d[p][t]));
    acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), d, acc[t]);
    if constexpr (T::kHasMin) acc[t] = _mm512_fmadd_ps(w.min[b], _mm512_set1_ps(x.sum[p][t]), acc[t]);
  }
}

// Of rows and of interleaved tiles.
template <class T>
void matrix_times_tokens(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x,
                         size_t n_tokens, float* y, size_t y_stride) {
  const auto step_times_panel = [](const UnpackedStep* unpacked, size_t valid, const Panel& panel, size_t p,
                                   size_t tokens, __m512* acc) {
    for (size_t b = 0; b < valid; ++b) block_times_panel<T>(*unpacked, b, panel, p + b, tokens, acc);
  };
  panels_times_rows<T>(w, row_bytes, n_rows, n, x, n_tokens, step_times_panel, y, y_stride);
}

template <class T>
void rows_times_tokens(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x,
                       size_t n_tokens, float* y, size_t y_stride) {
  if (n_tokens == 1) return rows_times_vector<T>(w, row_bytes, nullptr, n_rows, n, *x, y);
  matrix_times_tokens<T>(w, row_bytes, n_rows, n, x, n_tokens, y, y_stride);
}

}  // namespace
}  // namespace sbr
