// AVX-512 with VNNI: the table, the vector primitives of float_kernels.h, and sums of scaled rows (rule 8).
#if defined(__x86_64__)

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/avx512vnni_interleaved.h"
#include "kernels/avx512vnni_matrix.h"
#include "kernels/avx512vnni_neurons.h"
#include "kernels/kernels.h"
#include "kernels/matrix_table.h"
#include "kernels/tables.h"
#include "kernels/x86_fold.h"
#include "quant/blocks.h"
#include "sbr/sbr.h"

namespace sbr {
namespace {

// ---- V16 for float_kernels.h

typedef __m512 V16;
constexpr int kGemmRows = 4;
constexpr int kGemmTokens = 4;
constexpr int kMixVectors = 8;

V16 zero16() { return _mm512_setzero_ps(); }
V16 splat16(float x) { return _mm512_set1_ps(x); }
V16 load16(const float* p) { return _mm512_loadu_ps(p); }
void store16(float* p, V16 v) { _mm512_storeu_ps(p, v); }
__m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
V16 load16_f16(const uint8_t* p) { return _mm512_cvtph_ps(load256(p)); }
V16 load16_bf16(const uint8_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load256(p)), 16));
}
void store16_f16(uint16_t* p, V16 v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
V16 add16(V16 a, V16 b) { return _mm512_add_ps(a, b); }
V16 sub16(V16 a, V16 b) { return _mm512_sub_ps(a, b); }
V16 mul16(V16 a, V16 b) { return _mm512_mul_ps(a, b); }
V16 div16(V16 a, V16 b) { return _mm512_div_ps(a, b); }
V16 max16(V16 a, V16 b) { return _mm512_max_ps(a, b); }
V16 min16(V16 a, V16 b) { return _mm512_min_ps(a, b); }
V16 abs16(V16 v) { return _mm512_abs_ps(v); }
V16 fma16(V16 a, V16 b, V16 c) { return _mm512_fmadd_ps(a, b, c); }

__m128 fold16to4(V16 v) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  return _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
}
float fold16(V16 v) { return fold4(fold16to4(v)); }
float fold16_max(V16 v) { return _mm512_reduce_max_ps(v); }
void fold16x4(V16 a, V16 b, V16 c, V16 d, float* p) {
  _mm_storeu_ps(p, fold4x4(fold16to4(a), fold16to4(b), fold16to4(c), fold16to4(d)));
}
V16 ldexp16(V16 p, V16 shifted) {
  const __m512i n = _mm512_sub_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(0x4b400000));
  const __m512i half = _mm512_srai_epi32(n, 1);
  const __m512i bias = _mm512_set1_epi32(127);
  const __m512i scale1 = _mm512_slli_epi32(_mm512_add_epi32(half, bias), 23);
  const __m512i scale2 = _mm512_slli_epi32(_mm512_add_epi32(_mm512_sub_epi32(n, half), bias), 23);
  return _mm512_mul_ps(_mm512_mul_ps(p, _mm512_castsi512_ps(scale1)), _mm512_castsi512_ps(scale2));
}
int32_t round_store16(V16 v, int8_t* q) {
  const __m512i rounded = _mm512_cvtps_epi32(v);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm512_cvtepi32_epi8(rounded));
  return _mm512_reduce_add_epi32(rounded);
}

}  // namespace
}  // namespace sbr

#include "kernels/float_attention.h"

namespace sbr {
namespace {

// ---- rule 8, q8_0

// The 16 weights of each half of a block as floats.
void widen(const BlockQ8_0& block, __m512* first, __m512* second) {
  const __m128i* q = reinterpret_cast<const __m128i*>(block.q);
  *first = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(q)));
  *second = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(q + 1)));
}

// kRows rows at a time pass over all columns, so that every row is read from end to end.
template <class Block, int kRows>
struct Axpy {
  static void run(const uint8_t* const* row, const float* coefficient, size_t block_begin, size_t block_end,
                  Prefetch prefetch, float* y) {
    for (size_t b = block_begin; b < block_end; ++b, y += kBlock) {
      prefetch.lines(kRows / 2 + 1);
      __m512 low = _mm512_loadu_ps(y);
      __m512 high = _mm512_loadu_ps(y + 16);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Block& block = reinterpret_cast<const Block*>(row[r])[b];
        __m512 first, second;
        widen(block, &first, &second);
        const __m128 d = _mm_cvtph_ps(_mm_cvtsi32_si128(block.d));
        const __m512 scale = _mm512_broadcastss_ps(_mm_mul_ss(d, _mm_load_ss(coefficient + r)));
        low = _mm512_fmadd_ps(scale, first, low);
        high = _mm512_fmadd_ps(scale, second, high);
      }
      _mm512_storeu_ps(y, low);
      _mm512_storeu_ps(y + 16, high);
    }
  }
};

template <class Block>
void axpy_rows_blocks(const uint8_t* w, size_t row_bytes, const uint32_t* rows, const float* coefficient, size_t n_rows,
                      size_t col_begin, size_t col_end, float* y) {
  axpy_tiles<Block, Axpy>(w, row_bytes, rows, coefficient, n_rows, col_begin / kBlock, col_end / kBlock, y);
}

size_t compact_greater_avx512vnni(const float* x, size_t n, float threshold, uint32_t base, uint32_t* out) {
  const __m512 limit = _mm512_set1_ps(threshold);
  __m512i index = _mm512_add_epi32(_mm512_set1_epi32(int32_t(base)),
                                   _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  size_t count = 0;
  for (size_t i = 0; i < n; i += 16) {
    const __mmask16 valid = n - i >= 16 ? 0xffff : __mmask16((1u << (n - i)) - 1);
    const __mmask16 greater = _mm512_mask_cmp_ps_mask(valid, _mm512_maskz_loadu_ps(valid, x + i), limit, _CMP_GT_OQ);
    // Compressing into a register: compressing stores are microcoded on Zen 4. `out` has room for 16 more.
    _mm512_storeu_si512(out + count, _mm512_maskz_compress_epi32(greater, index));
    count += size_t(__builtin_popcount(greater));
    index = _mm512_add_epi32(index, _mm512_set1_epi32(16));
  }
  return count;
}

// ---- the table

SBR_QUANTISED_KERNELS(avx512vnni)
SBR_INTERLEAVED_KERNELS(avx512vnni)

constexpr Kernels make_table() {
  Kernels k = quantised_table(SBR_ISA_AVX512VNNI, "avx512vnni", axpy_rows_q4_0_avx512vnni, axpy_rows_blocks<BlockQ8_0>);
  k.weights[SBR_TYPE_Q4_0].up_down = up_down_q4_0_avx512vnni;
  set_interleaved_kernels(&k);
  set_float_kernels(&k, SBR_TYPE_F32, SBR_TYPE_F16, SBR_TYPE_BF16);
  set_attention_kernels(&k);
  k.compact_greater = compact_greater_avx512vnni;
  return k;
}

}  // namespace

constexpr Kernels kAvx512VnniKernels = make_table();

}  // namespace sbr

#endif
