// Interleaved matrices (kernels/interleaved.h) times one vector or several, with AVX-512 VNNI: a register is a dword of
// 16 rows, so that products need neither folding nor transposing. About 1.8 instructions per block of 32 weights.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/avx512_interleaved_types.h"
#include "kernels/avx512_panel.h"
#include "kernels/avx512vnni_matrix.h"
#include "kernels/interleaved.h"
#include "kernels/kernels.h"

namespace sbr {
namespace {

// -offset * the sum of each block of x, which makes up for unsigned weights.
constexpr size_t kStarts = 128;  // blocks that a caller asks for at a time

template <int kOffset>
void block_starts(const int8_t* q, size_t blocks, int32_t* start) {
  const __m256i offset = _mm256_set1_epi8(static_cast<char>(kOffset));
  for (size_t b = 0; b < blocks; ++b) {
    const __m256i eight = _mm256_dpbusd_epi32(_mm256_setzero_si256(), offset,
                                              _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q + b * kBlock)));
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1));
    start[b] = -_mm_cvtsi128_si32(four);
  }
}

template <class T>
void tiles_times_vector(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation& x, float* y) {
  const size_t blocks = n / kBlock;
  int32_t start[kStarts];
  for (size_t first = 0; first < blocks; first += kStarts) {
    const size_t end = blocks - first < kStarts ? blocks : first + kStarts;
    if (T::kOffset != 0) block_starts<T::kOffset>(x.q + first * kBlock, end - first, start);
    const uint8_t* tile = w;
    for (size_t r = 0; r < n_rows; r += kInterleavedRows, tile += kInterleavedRows * row_bytes) {
      __m512 acc = first ? _mm512_loadu_ps(y + r) : _mm512_setzero_ps();
      for (size_t b = first; b < end; ++b) {
        __m512i quad[8];
        T::quads(tile, b, quad);
        const int8_t* q = x.q + b * kBlock;
        // Two chains of four.
        __m512i sum = T::kOffset ? _mm512_set1_epi32(start[b - first]) : _mm512_setzero_si512();
        __m512i sum2 = _mm512_setzero_si512();
        for (int k = 0; k < 4; ++k) {
          sum = quad_dot(sum, quad[k], q + 4 * k);
          sum2 = quad_dot(sum2, quad[4 + k], q + 16 + 4 * k);
        }
        const __m512 d = _mm512_mul_ps(T::scale(tile, b), _mm512_set1_ps(x.d[b]));
        acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(sum, sum2)), d, acc);
        if constexpr (T::kHasMin) acc = _mm512_fmadd_ps(T::min(tile, b), _mm512_set1_ps(x.sum[b]), acc);
      }
      _mm512_storeu_ps(y + r, acc);
    }
  }
}

template <class T>
void tiles_times_tokens(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x,
                        size_t n_tokens, float* y, size_t y_stride) {
  if (n_tokens == 1) return tiles_times_vector<T>(w, row_bytes, n_rows, n, *x, y);
  matrix_times_tokens<T>(w, row_bytes, n_rows, n, x, n_tokens, y, y_stride);
}

}  // namespace
}  // namespace sbr
