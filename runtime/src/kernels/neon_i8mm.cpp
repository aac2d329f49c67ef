// NEON with the int8 matrix products of ARMv8.6: products with several tokens; the rest is neon_dotprod's.
//
// One smmla multiplies 8 elements of two rows with those of two tokens: 32 products, twice those of a sdot, and its
// sums need no folding. With one token half of them would be wasted, so matrix-vector products stay with sdot.
// Interleaved rows come out of their dwords by one zip per register; the products are the same.
#if defined(__aarch64__)

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels/kernels.h"
#include "kernels/neon_interleaved_types.h"
#include "kernels/neon_types.h"
#include "kernels/tables.h"
#include "kernels/tiles.h"
#include "quant/blocks.h"
#include "sbr/sbr.h"

namespace sbr {
namespace {

constexpr size_t kRows = 8;  // of a tile: four pairs
constexpr size_t kPairs = kRows / 2;
constexpr size_t kTokens = 16;  // that pass over an unpacked block together

// Elements 8 i .. 8 i + 7 of two vectors side by side.
struct Interleaved {
  int8x16_t eight[4];
};

int8x16_t low_halves(int8x16_t a, int8x16_t b) {
  return vreinterpretq_s8_s64(vzip1q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}
int8x16_t high_halves(int8x16_t a, int8x16_t b) {
  return vreinterpretq_s8_s64(vzip2q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}
Interleaved interleave(Bytes a, Bytes b) {
  return {{low_halves(a.first, b.first), high_halves(a.first, b.first), low_halves(a.second, b.second),
           high_halves(a.second, b.second)}};
}

// One block of 8 rows. A pair's lanes are {row 0 token 0, row 0 token 1, row 1 token 0, row 1 token 1}.
template <class T>
struct RowPairs {
  Interleaved bytes[kPairs];
  float32x4_t scale[kPairs], min[kPairs];
  int32x4_t half_scale[kPairs][2];

  RowPairs(const uint8_t* const* row, size_t b) {
    for (size_t i = 0; i < kPairs; ++i) {
      bytes[i] = interleave(T::unpack(row[2 * i], b), T::unpack(row[2 * i + 1], b));
      if constexpr (T::kHalfBlockScales) {
        const int8_t *s0 = T::half_scales(row[2 * i], b), *s1 = T::half_scales(row[2 * i + 1], b);
        for (size_t h = 0; h < 2; ++h) half_scale[i][h] = int32x4_t{s0[h], s0[h], s1[h], s1[h]};
      }
    }
    for (size_t i = 0; i < kPairs; i += 2) {
      set_twice(scale + i, T::scale(row + 2 * i, b));
      if constexpr (T::kHasMin) set_twice(min + i, T::min(row + 2 * i, b));
    }
  }

  // Half an interleaved tile: two quads side by side are 8 elements.
  template <class Scales>
  RowPairs(const uint8_t* block, const Scales& scales, size_t part, size_t half) {
    const TileFloats s = scales.scale(part);
    for (size_t i = 0; i < kPairs; i += 2) {
      const size_t group = (half * kPairs + i) / 2;
      int8x16_t quad[kQuads];
      T::unpack(block, part, group, quad);
      for (size_t e = 0; e < 4; ++e) {
        const int32x4_t a = vreinterpretq_s32_s8(quad[2 * e]), b = vreinterpretq_s32_s8(quad[2 * e + 1]);
        bytes[i].eight[e] = vreinterpretq_s8_s32(vzip1q_s32(a, b));
        bytes[i + 1].eight[e] = vreinterpretq_s8_s32(vzip2q_s32(a, b));
      }
      set_twice(scale + i, s.group[group]);
      if constexpr (T::kHasMin) set_twice(min + i, scales.min(part).group[group]);
    }
  }

  // Two pairs' lanes of four rows' numbers.
  static void set_twice(float32x4_t* pair, float32x4_t rows) {
    pair[0] = vzip1q_f32(rows, rows);
    pair[1] = vzip2q_f32(rows, rows);
  }

  int32x4_t sums(size_t i, const Interleaved& x) const {
    const Interleaved& w = bytes[i];
    const int32x4_t first = vmmlaq_s32(vmmlaq_s32(vdupq_n_s32(0), w.eight[0], x.eight[0]), w.eight[1], x.eight[1]);
    if constexpr (T::kHalfBlockScales) {
      const int32x4_t second = vmmlaq_s32(vmmlaq_s32(vdupq_n_s32(0), w.eight[2], x.eight[2]), w.eight[3], x.eight[3]);
      return vmlaq_s32(vmulq_s32(first, half_scale[i][0]), second, half_scale[i][1]);
    } else {
      return vmmlaq_s32(vmmlaq_s32(first, w.eight[2], x.eight[2]), w.eight[3], x.eight[3]);
    }
  }

  // Rule 4 for block b of two tokens.
  void times(size_t b, const Activation& x0, const Activation& x1, float32x4_t* acc) const {
    const int8_t *q0 = x0.q + b * kBlock, *q1 = x1.q + b * kBlock;
    const Interleaved x = interleave({vld1q_s8(q0), vld1q_s8(q0 + 16)}, {vld1q_s8(q1), vld1q_s8(q1 + 16)});
    const float32x4_t d = {x0.d[b], x1.d[b], x0.d[b], x1.d[b]};
    for (size_t i = 0; i < kPairs; ++i) {
      acc[i] = vfmaq_f32(acc[i], vcvtq_f32_s32(sums(i, x)), vmulq_f32(scale[i], d));
    }
    if constexpr (T::kHasMin) {
      const float32x4_t sum = {x0.sum[b], x1.sum[b], x0.sum[b], x1.sum[b]};
      for (size_t i = 0; i < kPairs; ++i) acc[i] = vfmaq_f32(acc[i], min[i], sum);
    }
  }
};

// The products of 8 rows with at most kTokens tokens.
struct Products {
  float32x4_t acc[kTokens / 2][kPairs];

  Products() {
    for (auto& pair : acc) {
      for (float32x4_t& v : pair) v = vdupq_n_f32(0);
    }
  }

  template <class T>
  void add(const RowPairs<T>& pairs, size_t b, const Activation* x, size_t n_tokens) {
    for (size_t t = 0; t < n_tokens; t += 2) {
      pairs.times(b, x[t], x[t + 1 < n_tokens ? t + 1 : t], acc[t / 2]);  // an odd last token twice
    }
  }

  void store(size_t n_tokens, size_t n_rows, float* y, size_t y_stride) const {
    for (size_t t = 0; t < n_tokens; ++t, y += y_stride) {
      const float32x4_t* a = acc[t / 2];
      float lanes[kRows];
      for (size_t i = 0; i < kPairs; i += 2) {
        vst1q_f32(lanes + 2 * i, t % 2 ? vuzp2q_f32(a[i], a[i + 1]) : vuzp1q_f32(a[i], a[i + 1]));
      }
      memcpy(y, lanes, n_rows * sizeof(float));
    }
  }
};

template <class T>
void rows_times_tokens(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x,
                       size_t n_tokens, float* y, size_t y_stride) {
  for (size_t r = 0; r < n_rows; r += kRows) {
    const uint8_t* row[kRows];
    const size_t count = tile_rows<kRows>(w, row_bytes, nullptr, r, n_rows, row);
    Products products;
    for (size_t b = 0; b < n / kBlock; ++b) products.add(RowPairs<T>(row, b), b, x, n_tokens);
    products.store(n_tokens, count, y + r, y_stride);
  }
}

template <class T>
void tiles_times_tokens(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x,
                        size_t n_tokens, float* y, size_t y_stride) {
  for (size_t r = 0; r < n_rows; r += kRows) {
    const size_t half = r % kInterleavedRows / kRows;
    const uint8_t* block = w + (r - half * kRows) * row_bytes;
    Products products;
    for (size_t b = 0; b < n / kBlock; b += T::kBlocks, block += T::Layout::kBlockBytes) {
      const typename T::Scales scales(block);
      for (size_t part = 0; part < T::kBlocks; ++part) {
        products.add(RowPairs<T>(block, scales, part, half), b + part, x, n_tokens);
      }
    }
    products.store(n_tokens, kRows, y + r, y_stride);
  }
}

// kTokens at a time; one alone goes to neon-dotprod's kernel for the same weights.
void batches_of_tokens(GemmFn several, GemmFn single, const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n,
                       const Activation* x, size_t n_tokens, float* y, size_t y_stride) {
  for (size_t t = 0; t < n_tokens; t += kTokens) {
    const size_t tokens = n_tokens - t < kTokens ? n_tokens - t : kTokens;
    (tokens == 1 ? single : several)(w, row_bytes, n_rows, n, x + t, tokens, y + t * y_stride, y_stride);
  }
}

#define SBR_I8MM_GEMM(name, times_tokens, number)                                                                      \
  void gemm_##name##_q8_0_neon_i8mm(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x,  \
                                    size_t n_tokens, float* y, size_t y_stride) {                                      \
    batches_of_tokens(times_tokens, kNeonDotprodKernels.weights[number].gemm, w, row_bytes, n_rows, n, x, n_tokens, y, \
                      y_stride);                                                                                       \
  }

SBR_I8MM_GEMM(q4_0, rows_times_tokens<Q4_0>, SBR_TYPE_Q4_0)
SBR_I8MM_GEMM(q4_1, rows_times_tokens<Q4_1>, SBR_TYPE_Q4_1)
SBR_I8MM_GEMM(q8_0, rows_times_tokens<Q8_0>, SBR_TYPE_Q8_0)
SBR_I8MM_GEMM(q4_k, rows_times_tokens<Q4_K>, SBR_TYPE_Q4_K)
SBR_I8MM_GEMM(q6_k, rows_times_tokens<Q6_K>, SBR_TYPE_Q6_K)
SBR_I8MM_GEMM(q4_0_x16, tiles_times_tokens<TileQ4_0>, kInterleaved + SBR_TYPE_Q4_0)
SBR_I8MM_GEMM(q4_1_x16, tiles_times_tokens<TileQ4_1>, kInterleaved + SBR_TYPE_Q4_1)
SBR_I8MM_GEMM(q8_0_x16, tiles_times_tokens<TileQ8_0>, kInterleaved + SBR_TYPE_Q8_0)
SBR_I8MM_GEMM(q4_k_x16, tiles_times_tokens<TileQ4_K>, kInterleaved + SBR_TYPE_Q4_K)

constexpr Kernels make_table() {
  Kernels k = {};
  k.isa = SBR_ISA_NEON_I8MM;
  k.name = "neon-i8mm";
  k.weights[SBR_TYPE_Q4_0].gemm = gemm_q4_0_q8_0_neon_i8mm;
  k.weights[SBR_TYPE_Q4_1].gemm = gemm_q4_1_q8_0_neon_i8mm;
  k.weights[SBR_TYPE_Q8_0].gemm = gemm_q8_0_q8_0_neon_i8mm;
  k.weights[SBR_TYPE_Q4_K].gemm = gemm_q4_k_q8_0_neon_i8mm;
  k.weights[SBR_TYPE_Q6_K].gemm = gemm_q6_k_q8_0_neon_i8mm;
  k.weights[kInterleaved + SBR_TYPE_Q4_0].gemm = gemm_q4_0_x16_q8_0_neon_i8mm;
  k.weights[kInterleaved + SBR_TYPE_Q4_1].gemm = gemm_q4_1_x16_q8_0_neon_i8mm;
  k.weights[kInterleaved + SBR_TYPE_Q8_0].gemm = gemm_q8_0_x16_q8_0_neon_i8mm;
  k.weights[kInterleaved + SBR_TYPE_Q4_K].gemm = gemm_q4_k_x16_q8_0_neon_i8mm;
  return k;
}

}  // namespace

constexpr Kernels kNeonI8mmKernels = make_table();

}  // namespace sbr

#endif
