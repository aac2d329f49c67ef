// Exact sums of products with vpdpbusd on 256-bit registers: four products of an unsigned and a signed byte, added to
// 32 bits without saturation. Included after
//   __m256i dot_bytes(sum, unsigned_bytes, signed_bytes)
// has been defined as vpdpbusd. It has two encodings, VEX (AVX-VNNI) and EVEX (AVX-512 VNNI with VL), and the tests run
// these kernels with the second one on CPUs that lack the first.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/avx2_types.h"

namespace sbr {
namespace {

// Signed bytes become unsigned ones by adding 128.
template <class T>
constexpr int kBias = T::kSigned ? 128 : T::kOffset;

template <class T>
__m256i prepared(__m256i bytes) {
  return T::kSigned ? _mm256_xor_si256(bytes, _mm256_set1_epi8(-128)) : bytes;
}

struct StepInput {
  __m256i first, second;
  __m256i start, start_second;  // -kBias * sums of four quants
};

template <class T>
StepInput load_input(const int8_t* q, size_t valid) {
  StepInput in;
  split_halves(load256(q), valid > 1 ? load256(q + kBlock) : _mm256_setzero_si256(), &in.first, &in.second);
  const __m256i zero = _mm256_setzero_si256();
  in.start = in.start_second = zero;
  if (kBias<T> != 0) {
    const __m256i bias = _mm256_set1_epi8(static_cast<char>(kBias<T>));
    const __m256i first = dot_bytes(zero, bias, in.first), second = dot_bytes(zero, bias, in.second);
    if (T::kHalfBlockScales) {
      in.start = _mm256_sub_epi32(zero, first);
      in.start_second = _mm256_sub_epi32(zero, second);
    } else {
      in.start = _mm256_sub_epi32(zero, _mm256_add_epi32(first, second));
    }
  }
  return in;
}

// Four partial sums of each of the step's two blocks.
template <class T>
__m256i partial_sums(const uint8_t* row, size_t step, __m256i first, __m256i second, const StepInput& in) {
  if constexpr (T::kHalfBlockScales) {
    // A sum of four fits 16 bits: 32 * 127 * 4.
    const __m256i sum = dot_bytes(in.start, first, in.first), sum2 = dot_bytes(in.start_second, second, in.second);
    return scale_halves<true>(T::half_scales(row, step), sum, sum2);
  } else {
    const __m256i sum = dot_bytes(in.start, prepared<T>(first), in.first);
    return dot_bytes(sum, prepared<T>(second), in.second);
  }
}

// The exact sums of one block of 8 rows in quads; start = -kBias * the sum of q (of each half for kHalfBlockScales).
template <class T>
__m256i block_sums(const __m256i* quad, const __m256i* half_scale, const int8_t* q, const int32_t* start) {
  __m256i sum = kBias<T> != 0 ? _mm256_set1_epi32(start[0]) : _mm256_setzero_si256();
  __m256i sum2 = T::kHalfBlockScales ? _mm256_set1_epi32(start[1]) : _mm256_setzero_si256();
  for (size_t k = 0; k < 4; ++k) {
    sum = dot_bytes(sum, quad[k], broadcast_quad(q + 4 * k));
    sum2 = dot_bytes(sum2, quad[4 + k], broadcast_quad(q + 16 + 4 * k));
  }
  if constexpr (T::kHalfBlockScales) {
    sum = _mm256_mullo_epi32(sum, half_scale[0]);
    sum2 = _mm256_mullo_epi32(sum2, half_scale[1]);
  }
  return _mm256_add_epi32(sum, sum2);
}

}  // namespace
}  // namespace sbr
