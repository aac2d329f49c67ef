// AVX2 with FMA and F16C: the table, the vector primitives of float_kernels.h, and sums of scaled rows (rule 8).
#if defined(__x86_64__)

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/avx2_dot.h"
#include "kernels/avx2_interleaved.h"
#include "kernels/avx2_matrix.h"
#include "kernels/kernels.h"
#include "kernels/matrix_table.h"
#include "kernels/tables.h"
#include "kernels/x86_fold.h"
#include "quant/blocks.h"
#include "sbr/sbr.h"

namespace sbr {
namespace {

// ---- V16 for float_kernels.h

struct V16 {
  __m256 a, b;  // lanes 0..7 and 8..15
};
constexpr int kGemmRows = 2;
constexpr int kGemmTokens = 2;
constexpr int kMixVectors = 4;

V16 zero16() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
V16 splat16(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
V16 load16(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
void store16(float* p, V16 v) {
  _mm256_storeu_ps(p, v.a);
  _mm256_storeu_ps(p + 8, v.b);
}
V16 load16_f16(const uint8_t* p) { return {_mm256_cvtph_ps(load128(p)), _mm256_cvtph_ps(load128(p + 16))}; }
__m256 widen_bf16(const uint8_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(p)), 16));
}
V16 load16_bf16(const uint8_t* p) { return {widen_bf16(p), widen_bf16(p + 16)}; }
void store16_f16(uint16_t* p, V16 v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8),
                   _mm256_cvtps_ph(v.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
V16 add16(V16 x, V16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
V16 sub16(V16 x, V16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
V16 mul16(V16 x, V16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
V16 div16(V16 x, V16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
V16 max16(V16 x, V16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
V16 min16(V16 x, V16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
V16 abs16(V16 v) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, v.a), _mm256_andnot_ps(sign, v.b)};
}
V16 fma16(V16 x, V16 y, V16 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }

__m128 fold16to4(V16 v) {
  const __m256 eight = _mm256_add_ps(v.a, v.b);
  return _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
}
float fold16(V16 v) { return fold4(fold16to4(v)); }
void fold16x4(V16 a, V16 b, V16 c, V16 d, float* p) {
  _mm_storeu_ps(p, fold4x4(fold16to4(a), fold16to4(b), fold16to4(c), fold16to4(d)));
}
float fold16_max(V16 v) {
  const __m256 eight = _mm256_max_ps(v.a, v.b);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
}
__m256 ldexp8(__m256 p, __m256 shifted) {
  const __m256i n = _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(0x4b400000));
  const __m256i half = _mm256_srai_epi32(n, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i scale1 = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i scale2 = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias), 23);
  return _mm256_mul_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(scale1)), _mm256_castsi256_ps(scale2));
}
V16 ldexp16(V16 p, V16 shifted) { return {ldexp8(p.a, shifted.a), ldexp8(p.b, shifted.b)}; }

int32_t round_store16(V16 v, int8_t* q) {
  const __m256i a = _mm256_cvtps_epi32(v.a), b = _mm256_cvtps_epi32(v.b);
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q), bytes);
  const __m256i eight = _mm256_add_epi32(a, b);
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

}  // namespace
}  // namespace sbr

#include "kernels/float_attention.h"

namespace sbr {
namespace {

// ---- rule 8, quantised weights

__m256 widen_bytes(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)); }

// The 32 weights of a block as floats, 8 at a time.
void widen_halves(__m128i first, __m128i second, __m256* out) {
  out[0] = widen_bytes(first);
  out[1] = widen_bytes(_mm_srli_si128(first, 8));
  out[2] = widen_bytes(second);
  out[3] = widen_bytes(_mm_srli_si128(second, 8));
}

void widen(const BlockQ4_0& block, __m256* out) {
  const __m128i bytes = load128(block.nibbles);
  const __m128i mask = _mm_set1_epi8(15), offset = _mm_set1_epi8(8);
  widen_halves(_mm_sub_epi8(_mm_and_si128(bytes, mask), offset),
               _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(bytes, 4), mask), offset), out);
}

void widen(const BlockQ8_0& block, __m256* out) { widen_halves(load128(block.q), load128(block.q + 16), out); }

// kRows rows at a time pass over all columns, so that every row is read from end to end.
template <class Block, int kRows>
struct Axpy {
  static void run(const uint8_t* const* row, const float* coefficient, size_t block_begin, size_t block_end,
                  Prefetch prefetch, float* y) {
    for (size_t b = block_begin; b < block_end; ++b, y += kBlock) {
      prefetch.lines(kRows / 2 + 1);
      __m256 acc[4];
      for (int j = 0; j < 4; ++j) acc[j] = _mm256_loadu_ps(y + 8 * j);
      for (int r = 0; r < kRows; ++r) {
        const Block& block = reinterpret_cast<const Block*>(row[r])[b];
        const __m128 d = _mm_cvtph_ps(_mm_cvtsi32_si128(block.d));
        const __m256 scale = _mm256_broadcastss_ps(_mm_mul_ss(d, _mm_load_ss(coefficient + r)));
        __m256 weights[4];
        widen(block, weights);
        for (int j = 0; j < 4; ++j) acc[j] = _mm256_fmadd_ps(scale, weights[j], acc[j]);
      }
      for (int j = 0; j < 4; ++j) _mm256_storeu_ps(y + 8 * j, acc[j]);
    }
  }
};

template <class Block>
void axpy_rows_blocks(const uint8_t* w, size_t row_bytes, const uint32_t* rows, const float* coefficient, size_t n_rows,
                      size_t col_begin, size_t col_end, float* y) {
  axpy_tiles<Block, Axpy>(w, row_bytes, rows, coefficient, n_rows, col_begin / kBlock, col_end / kBlock, y);
}

// ---- the table

SBR_QUANTISED_KERNELS(avx2)
SBR_INTERLEAVED_KERNELS(avx2)

constexpr Kernels make_table() {
  Kernels k = quantised_table(SBR_ISA_AVX2, "avx2", axpy_rows_blocks<BlockQ4_0>, axpy_rows_blocks<BlockQ8_0>);
  set_interleaved_kernels(&k);
  set_float_kernels(&k, SBR_TYPE_F32, SBR_TYPE_F16, SBR_TYPE_BF16);
  set_attention_kernels(&k);
  return k;
}

}  // namespace

constexpr Kernels kAvx2Kernels = make_table();

}  // namespace sbr

#endif
