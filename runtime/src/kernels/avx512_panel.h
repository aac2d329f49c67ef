// What the matrix products of AVX-512 VNNI and AMX share: tiles of 16 rows unpacked and transposed once for a panel of
// tokens, whose products are the including file's.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels/avx512vnni_types.h"
#include "kernels/kernels.h"
#include "kernels/tiles.h"
#include "quant/blocks.h"

namespace sbr {
namespace {

// Transposes 128-bit lanes: out[i] = {v[0] lane i, v[1] lane i, ...}.
void transpose_lanes(const __m512i* v, __m512i* out) {
  const __m512i a = _mm512_shuffle_i32x4(v[0], v[1], 0x44);
  const __m512i b = _mm512_shuffle_i32x4(v[2], v[3], 0x44);
  const __m512i c = _mm512_shuffle_i32x4(v[0], v[1], 0xee);
  const __m512i d = _mm512_shuffle_i32x4(v[2], v[3], 0xee);
  out[0] = _mm512_shuffle_i32x4(a, b, 0x88);
  out[1] = _mm512_shuffle_i32x4(a, b, 0xdd);
  out[2] = _mm512_shuffle_i32x4(c, d, 0x88);
  out[3] = _mm512_shuffle_i32x4(c, d, 0xdd);
}

// A step of 16 rows, unpacked and transposed once for all tokens: quad k of block b holds elements 4 k .. 4 k + 3 of
// 16 rows, so that products with a token's quad need no folding. The 8 quads of a block are also a tile of AMX.
struct UnpackedStep {
  __m512i quad[4][8];
  __m512 scale[4];
  __m512 min[4];
  __m512i half_scale[4][2];
};

// Transposes the 16 x 16 dwords of 16 rows; dword 4 b + k goes to out[b][at + k].
void transpose_dwords(const __m512i* v, int at, __m512i (*out)[8]) {
  __m512i fours[4][4];  // [quad][row group]: 128-bit lane b holds quad of block b, 4 rows
  for (int g = 0; g < 4; ++g) {
    const __m512i a = _mm512_unpacklo_epi32(v[4 * g], v[4 * g + 1]);
    const __m512i b = _mm512_unpackhi_epi32(v[4 * g], v[4 * g + 1]);
    const __m512i c = _mm512_unpacklo_epi32(v[4 * g + 2], v[4 * g + 3]);
    const __m512i d = _mm512_unpackhi_epi32(v[4 * g + 2], v[4 * g + 3]);
    fours[0][g] = _mm512_unpacklo_epi64(a, c);
    fours[1][g] = _mm512_unpackhi_epi64(a, c);
    fours[2][g] = _mm512_unpacklo_epi64(b, d);
    fours[3][g] = _mm512_unpackhi_epi64(b, d);
  }
  for (int quad = 0; quad < 4; ++quad) {
    __m512i blocks[4];
    transpose_lanes(fours[quad], blocks);
    for (int b = 0; b < 4; ++b) out[b][at + quad] = blocks[b];
  }
}

template <class T, bool kFull>
void unpack_step(const uint8_t* const* row, size_t step, size_t valid, UnpackedStep* out) {
  typename T::Scales scales;
  __m512i first[16], second[16];
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) T::template unpack<kFull>(row[r], step, valid, r, &scales, &first[r], &second[r]);
  transpose_dwords(first, 0, out->quad);
  transpose_dwords(second, 4, out->quad);
  scales.finish(out->scale);
  if constexpr (T::kHasMin) scales.finish_min(out->min);
  if constexpr (T::kHalfBlockScales) {
    alignas(64) int32_t staged[8][16];
    for (int r = 0; r < 16; ++r) {
      int8_t half[8];
      T::copy_half_scales(row[r], step, half);
      for (int h = 0; h < 8; ++h) staged[h][r] = half[h];
    }
    for (int h = 0; h < 8; ++h) out->half_scale[h / 2][h % 2] = _mm512_load_si512(staged[h]);
  }
}

// The same of a tile of interleaved rows.
template <class T>
void load_step(const uint8_t* tile, size_t step, size_t valid, UnpackedStep* out) {
  for (size_t b = 0; b < valid; ++b) {
    const size_t block = step * kStepBlocks + b;
    T::quads(tile, block, out->quad[b]);
    out->scale[b] = T::scale(tile, block);
    if constexpr (T::kHasMin) out->min[b] = T::min(tile, block);
  }
}

// The activations of up to 64 tokens and 16 blocks, packed so that a block's are contiguous over tokens: rows of q lie
// a multiple of 8 cache lines apart and would compete for the same lines of the first-level cache.
constexpr size_t kPanelTokens = 64;
constexpr size_t kPanelBlocks = 16;

struct Panel {
  int8_t q[kPanelBlocks][kPanelTokens][kBlock];
  float d[kPanelBlocks][kPanelTokens];
  float sum[kPanelBlocks][kPanelTokens];
  int32_t start[kPanelBlocks][2][kPanelTokens];  // -kOffset * the sum of q, of the block or of its halves
};

template <class T>
void pack_panel(const Activation* x, size_t n_tokens, size_t block_begin, size_t blocks, Panel* panel) {
  for (size_t t = 0; t < n_tokens; ++t) {
    for (size_t b = 0; b < blocks; ++b) {
      const int8_t* q = x[t].q + (block_begin + b) * kBlock;
      memcpy(panel->q[b][t], q, kBlock);
      panel->d[b][t] = x[t].d[block_begin + b];
      if (T::kHasMin) panel->sum[b][t] = x[t].sum[block_begin + b];
      if (T::kOffset) {
        int32_t first = 0, second = 0;
        for (size_t i = 0; i < kBlock / 2; ++i) {
          first += q[i];
          second += q[i + kBlock / 2];
        }
        panel->start[b][0][t] = -T::kOffset * (T::kHalfBlockScales ? first : first + second);
        panel->start[b][1][t] = -T::kOffset * second;
      }
    }
  }
}

// Adds the panel's blocks to y, which holds the sums of the blocks before them (nothing when block_begin is 0).
template <class T, class StepTimesPanel>
void rows_times_panel(const uint8_t* w, size_t row_bytes, size_t n_rows, const Panel& panel, size_t n_tokens,
                      size_t block_begin, size_t blocks, const StepTimesPanel& step_times_panel, float* y,
                      size_t y_stride) {
  for (size_t r = 0; r < n_rows; r += 16) {
    const uint8_t* row[16];
    const size_t count = tile_rows<16>(w, row_bytes, nullptr, r, n_rows, row);
    const __mmask16 mask = __mmask16((1u << count) - 1);
    __m512 acc[kPanelTokens];
    for (size_t t = 0; t < n_tokens; ++t) {
      acc[t] = block_begin ? _mm512_maskz_loadu_ps(mask, y + t * y_stride + r) : _mm512_setzero_ps();
    }
    for (size_t p = 0; p < blocks; p += kStepBlocks) {
      const size_t step = (block_begin + p) / kStepBlocks;
      const size_t valid = blocks - p < kStepBlocks ? blocks - p : kStepBlocks;
      // The same step of the next tile (15 % more speed than without).
      UnpackedStep unpacked;
      if constexpr (T::kInterleaved) {
        const uint8_t* next = row[0] + 16 * row_bytes + step * kStepBlocks * T::kTileBlockBytes;
        for (size_t i = 0; i < kStepBlocks * T::kTileBlockBytes; i += 64) __builtin_prefetch(next + i, 0, 2);
        load_step<T>(row[0], step, valid, &unpacked);
      } else {
        for (size_t i = 0; i < 16; ++i) {
          const uint8_t* next = row[i] + 16 * row_bytes + step * T::kStepBytes;
          __builtin_prefetch(next, 0, 2);
          __builtin_prefetch(next + 64, 0, 2);
        }
        if (valid == kStepBlocks) {
          unpack_step<T, true>(row, step, valid, &unpacked);
        } else {
          unpack_step<T, false>(row, step, valid, &unpacked);
        }
      }
      step_times_panel(&unpacked, valid, panel, p, n_tokens, acc);
    }
    for (size_t t = 0; t < n_tokens; ++t) _mm512_mask_storeu_ps(y + t * y_stride + r, mask, acc[t]);
  }
}

// step_times_panel(unpacked step, its blocks, panel, first block's number in it, tokens, acc[tokens]) adds the
// products.
template <class T, class StepTimesPanel>
void panels_times_rows(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x,
                       size_t n_tokens, const StepTimesPanel& step_times_panel, float* y, size_t y_stride) {
  Panel panel;  // 45 KiB of stack
  for (size_t t = 0; t < n_tokens; t += kPanelTokens) {
    const size_t tokens = n_tokens - t < kPanelTokens ? n_tokens - t : kPanelTokens;
    for (size_t block = 0; block < n / kBlock; block += kPanelBlocks) {
      const size_t left = n / kBlock - block;
      const size_t blocks = left < kPanelBlocks ? left : kPanelBlocks;
      pack_panel<T>(x + t, tokens, block, blocks, &panel);
      rows_times_panel<T>(w, row_bytes, n_rows, panel, tokens, block, blocks, step_times_panel, y + t * y_stride,
                          y_stride);
    }
  }
}

}  // namespace
}  // namespace sbr
