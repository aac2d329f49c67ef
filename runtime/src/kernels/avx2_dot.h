// Exact sums of products with vpmaddubsw and vpmaddwd: what AVX2 has for bytes. Sums of 16 bits must not saturate,
// which the types' largest values (|x| <= 127) are counted against below.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/avx2_types.h"

namespace sbr {
namespace {

// What the bytes of a type exceed the weights by, once prepared() for block_sums().
template <class T>
constexpr int kBias = T::kOffset;

template <class T>
__m256i prepared(__m256i quad) {
  return quad;
}

struct StepInput {
  __m256i first, second;
  __m256i correction, correction_second;  // kOffset * pairs of quants, as 16-bit sums
};

template <class T>
StepInput load_input(const int8_t* q, size_t valid) {
  StepInput in;
  split_halves(load256(q), valid > 1 ? load256(q + kBlock) : _mm256_setzero_si256(), &in.first, &in.second);
  const __m256i offset = _mm256_set1_epi8(T::kOffset);
  in.correction = _mm256_maddubs_epi16(offset, in.first);
  in.correction_second = _mm256_maddubs_epi16(offset, in.second);
  if (!T::kHalfBlockScales) in.correction = _mm256_add_epi16(in.correction, in.correction_second);
  return in;
}

// Sums of four signed products each. |w| <= 128 and |x| <= 127, so two products fit 16 bits.
__m256i signed_dot(__m256i w, __m256i x) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)), _mm256_set1_epi16(1));
}

// Four partial sums of each of the step's two blocks. 16-bit sums hold: 15 * 127 * 4 and 63 * 127 * 2 are below 2^15.
template <class T>
__m256i partial_sums(const uint8_t* row, size_t step, __m256i first, __m256i second, const StepInput& in) {
  if constexpr (T::kSigned) {
    return _mm256_add_epi32(signed_dot(first, in.first), signed_dot(second, in.second));
  } else if constexpr (T::kHalfBlockScales) {
    const __m256i sum = _mm256_sub_epi16(_mm256_maddubs_epi16(first, in.first), in.correction);
    const __m256i sum2 = _mm256_sub_epi16(_mm256_maddubs_epi16(second, in.second), in.correction_second);
    return scale_halves<false>(T::half_scales(row, step), sum, sum2);
  } else {
    __m256i sum = _mm256_add_epi16(_mm256_maddubs_epi16(first, in.first), _mm256_maddubs_epi16(second, in.second));
    if (T::kOffset) sum = _mm256_sub_epi16(sum, in.correction);
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
  }
}

// The exact sums of one block of 8 rows in quads; start = -kBias * the sum of q (of each half for kHalfBlockScales).
template <class T>
__m256i block_sums(const __m256i* quad, const __m256i* half_scale, const int8_t* q, const int32_t* start) {
  const __m256i ones = _mm256_set1_epi16(1);
  if constexpr (T::kSigned) {
    __m256i sum = _mm256_setzero_si256();
    for (size_t k = 0; k < 8; ++k) sum = _mm256_add_epi32(sum, signed_dot(quad[k], broadcast_quad(q + 4 * k)));
    return sum;
  } else if constexpr (T::kHalfBlockScales) {
    __m256i total = _mm256_setzero_si256();
    for (size_t h = 0; h < 2; ++h) {
      __m256i sum = _mm256_set1_epi32(start[h]);
      for (size_t k = 4 * h; k < 4 * h + 4; k += 2) {  // 63 * 127 * 4 is below 2^15
        const __m256i pair = _mm256_add_epi16(_mm256_maddubs_epi16(quad[k], broadcast_quad(q + 4 * k)),
                                              _mm256_maddubs_epi16(quad[k + 1], broadcast_quad(q + 4 * k + 4)));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pair, ones));
      }
      total = _mm256_add_epi32(total, _mm256_mullo_epi32(sum, half_scale[h]));
    }
    return total;
  } else {
    __m256i sum = _mm256_maddubs_epi16(quad[0], broadcast_quad(q));  // 15 * 127 * 16 is below 2^15
    for (size_t k = 1; k < 8; ++k)
      sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(quad[k], broadcast_quad(q + 4 * k)));
    const __m256i wide = _mm256_madd_epi16(sum, ones);
    return T::kOffset ? _mm256_add_epi32(wide, _mm256_set1_epi32(start[0])) : wide;
  }
}

}  // namespace
}  // namespace sbr
