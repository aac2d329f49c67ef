// NEON of the aarch64 baseline: the table, the vector primitives of float_kernels.h, and sums of scaled rows (rule 8).
#if defined(__aarch64__)

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "kernels/matrix_table.h"
#include "kernels/tables.h"
#include "quant/blocks.h"
#include "sbr/sbr.h"

namespace sbr {
namespace {

// Products of bytes are 16 bits wide and their sums must stay so: four of |w| <= 32, two of |w| <= 128, |x| <= 127.
template <bool kNarrow>
int32x4_t dot_halves(int8x16_t first, int8x16_t second, int8x16_t x_first, int8x16_t x_second) {
  int16x8_t sum = vmull_s8(vget_low_s8(first), vget_low_s8(x_first));
  sum = vmlal_high_s8(sum, first, x_first);
  if (kNarrow) {
    sum = vmlal_s8(sum, vget_low_s8(second), vget_low_s8(x_second));
    return vpaddlq_s16(vmlal_high_s8(sum, second, x_second));
  }
  int16x8_t sum2 = vmull_s8(vget_low_s8(second), vget_low_s8(x_second));
  sum2 = vmlal_high_s8(sum2, second, x_second);
  return vpadalq_s16(vpaddlq_s16(sum), sum2);
}

// Lanes of a register of products are the elements of two rows' quads. Lanes must not overflow 16 bits: of narrow
// weights a lane takes one product of each of a block's 8 quads, and two lanes meet before they are widened; of others
// it takes two products.
static_assert(2 * 8 * 15 * 127 < 1 << 15 && 2 * 128 * 127 < 1 << 15, "16-bit sums of products");

template <int kLane>
int8x16_t quad_of(int8x16_t x) {
  return vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(x), kLane));
}

template <bool kNarrow>
class QuadSums {
 public:
  explicit QuadSums(int32_t start = 0) : start_(vdupq_n_s32(start)), first_(vdupq_n_s16(0)), second_(vdupq_n_s16(0)) {}
  template <int kLane>
  void add(int8x16_t w0, int8x16_t w1, int8x16_t x) {
    const int8x16_t x0 = quad_of<kLane>(x), x1 = quad_of<kLane + 1>(x);
    first_ = vmlal_s8(vmlal_s8(first_, vget_low_s8(w0), vget_low_s8(x0)), vget_low_s8(w1), vget_low_s8(x1));
    second_ = vmlal_high_s8(vmlal_high_s8(second_, w0, x0), w1, x1);
  }
  int32x4_t fold() const { return vpadalq_s16(start_, vpaddq_s16(first_, second_)); }

 private:
  int32x4_t start_;
  int16x8_t first_, second_;  // rows 0 and 1, 2 and 3
};

template <>
class QuadSums<false> {
 public:
  QuadSums() : first_(vdupq_n_s32(0)), second_(vdupq_n_s32(0)) {}
  template <int kLane>
  void add(int8x16_t w0, int8x16_t w1, int8x16_t x) {
    const int8x16_t x0 = quad_of<kLane>(x), x1 = quad_of<kLane + 1>(x);
    const int16x8_t first = vmull_s8(vget_low_s8(w0), vget_low_s8(x0));
    first_ = vpadalq_s16(first_, vmlal_s8(first, vget_low_s8(w1), vget_low_s8(x1)));
    second_ = vpadalq_s16(second_, vmlal_high_s8(vmull_high_s8(w0, x0), w1, x1));
  }
  int32x4_t fold() const { return vpaddq_s32(first_, second_); }

 private:
  int32x4_t first_, second_;  // rows 0 and 1, 2 and 3
};

}  // namespace
}  // namespace sbr

#include "kernels/neon_interleaved.h"
#include "kernels/neon_matrix.h"

namespace sbr {
namespace {

// ---- V16 for float_kernels.h

struct V16 {
  float32x4_t v[4];  // lanes 0..3, 4..7, 8..11, 12..15
};
constexpr int kGemmRows = 2;
constexpr int kGemmTokens = 2;
constexpr int kMixVectors = 4;

V16 splat16(float x) {
  const float32x4_t v = vdupq_n_f32(x);
  return {{v, v, v, v}};
}
V16 zero16() { return splat16(0); }
V16 load16(const float* p) { return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}}; }
void store16(float* p, V16 x) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, x.v[i]);
}
// Loads of bytes, because rows of weights are 2-byte aligned at best.
uint16x8_t load_halves(const uint8_t* p) { return vreinterpretq_u16_u8(vld1q_u8(p)); }
V16 load16_f16(const uint8_t* p) {
  const float16x8_t a = vreinterpretq_f16_u16(load_halves(p)), b = vreinterpretq_f16_u16(load_halves(p + 16));
  return {{vcvt_f32_f16(vget_low_f16(a)), vcvt_high_f32_f16(a), vcvt_f32_f16(vget_low_f16(b)), vcvt_high_f32_f16(b)}};
}
V16 load16_bf16(const uint8_t* p) {
  const uint16x8_t a = load_halves(p), b = load_halves(p + 16);
  return {{vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(a), 16)), vreinterpretq_f32_u32(vshll_high_n_u16(a, 16)),
           vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(b), 16)), vreinterpretq_f32_u32(vshll_high_n_u16(b, 16))}};
}
void store16_f16(uint16_t* p, V16 x) {
  for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.v[i])));
}

template <class Operation>
V16 each(V16 a, V16 b, const Operation& operation) {
  return {{operation(a.v[0], b.v[0]), operation(a.v[1], b.v[1]), operation(a.v[2], b.v[2]), operation(a.v[3], b.v[3])}};
}
V16 add16(V16 a, V16 b) {
  return each(a, b, [](float32x4_t x, float32x4_t y) { return vaddq_f32(x, y); });
}
V16 sub16(V16 a, V16 b) {
  return each(a, b, [](float32x4_t x, float32x4_t y) { return vsubq_f32(x, y); });
}
V16 mul16(V16 a, V16 b) {
  return each(a, b, [](float32x4_t x, float32x4_t y) { return vmulq_f32(x, y); });
}
V16 div16(V16 a, V16 b) {
  return each(a, b, [](float32x4_t x, float32x4_t y) { return vdivq_f32(x, y); });
}
V16 max16(V16 a, V16 b) {
  return each(a, b, [](float32x4_t x, float32x4_t y) { return vmaxq_f32(x, y); });
}
V16 min16(V16 a, V16 b) {
  return each(a, b, [](float32x4_t x, float32x4_t y) { return vminq_f32(x, y); });
}
V16 abs16(V16 a) { return {{vabsq_f32(a.v[0]), vabsq_f32(a.v[1]), vabsq_f32(a.v[2]), vabsq_f32(a.v[3])}}; }
V16 fma16(V16 a, V16 b, V16 c) {
  return {{vfmaq_f32(c.v[0], a.v[0], b.v[0]), vfmaq_f32(c.v[1], a.v[1], b.v[1]), vfmaq_f32(c.v[2], a.v[2], b.v[2]),
           vfmaq_f32(c.v[3], a.v[3], b.v[3])}};
}

float32x4_t fold16to4(V16 x) { return vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3])); }
float fold16(V16 x) {
  const float32x4_t four = fold16to4(x);
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
// Lanes 2 apart of two vectors.
float32x4_t fold4to2(float32x4_t a, float32x4_t b) {
  return vaddq_f32(vcombine_f32(vget_low_f32(a), vget_low_f32(b)), vcombine_f32(vget_high_f32(a), vget_high_f32(b)));
}
void fold16x4(V16 a, V16 b, V16 c, V16 d, float* p) {
  vst1q_f32(p, vpaddq_f32(fold4to2(fold16to4(a), fold16to4(b)), fold4to2(fold16to4(c), fold16to4(d))));
}
float fold16_max(V16 x) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.v[0], x.v[1]), vmaxq_f32(x.v[2], x.v[3]))); }

float32x4_t ldexp4(float32x4_t p, float32x4_t shifted) {
  const int32x4_t n = vsubq_s32(vreinterpretq_s32_f32(shifted), vdupq_n_s32(0x4b400000));
  const int32x4_t half = vshrq_n_s32(n, 1);
  const int32x4_t bias = vdupq_n_s32(127);
  const int32x4_t scale1 = vshlq_n_s32(vaddq_s32(half, bias), 23);
  const int32x4_t scale2 = vshlq_n_s32(vaddq_s32(vsubq_s32(n, half), bias), 23);
  return vmulq_f32(vmulq_f32(p, vreinterpretq_f32_s32(scale1)), vreinterpretq_f32_s32(scale2));
}
V16 ldexp16(V16 p, V16 shifted) {
  return each(p, shifted, [](float32x4_t x, float32x4_t y) { return ldexp4(x, y); });
}
int32_t round_store16(V16 x, int8_t* q) {
  const int32x4_t a = vcvtnq_s32_f32(x.v[0]), b = vcvtnq_s32_f32(x.v[1]);
  const int32x4_t c = vcvtnq_s32_f32(x.v[2]), d = vcvtnq_s32_f32(x.v[3]);
  const int16x8_t low = vqmovn_high_s32(vqmovn_s32(a), b), high = vqmovn_high_s32(vqmovn_s32(c), d);
  vst1q_s8(q, vqmovn_high_s16(vqmovn_s16(low), high));
  return vaddvq_s32(vaddq_s32(vaddq_s32(a, b), vaddq_s32(c, d)));
}

}  // namespace
}  // namespace sbr

#include "kernels/float_attention.h"

namespace sbr {
namespace {

// ---- rule 8, quantised weights

Bytes load_weights(const BlockQ4_0& block) { return split_nibbles(vld1q_u8(block.nibbles), 8); }
Bytes load_weights(const BlockQ8_0& block) { return {vld1q_s8(block.q), vld1q_s8(block.q + 16)}; }

V16 widen(int8x16_t bytes) {
  const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
           vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))}};
}

// One instruction; f16_to_f32() is ten.
float widen(uint16_t half) { return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half))), 0); }

// kRows rows at a time pass over all columns, so that every row is read from end to end.
template <class Block, int kRows>
struct Axpy {
  static void run(const uint8_t* const* row, const float* coefficient, size_t block_begin, size_t block_end,
                  Prefetch prefetch, float* y) {
    for (size_t b = block_begin; b < block_end; ++b, y += kBlock) {
      prefetch.lines(kRows / 2 + 1);
      V16 first = load16(y), second = load16(y + 16);
      for (int r = 0; r < kRows; ++r) {
        const Block& block = reinterpret_cast<const Block*>(row[r])[b];
        const V16 scale = splat16(coefficient[r] * widen(block.d));
        const Bytes weights = load_weights(block);
        first = fma16(scale, widen(weights.first), first);
        second = fma16(scale, widen(weights.second), second);
      }
      store16(y, first);
      store16(y + 16, second);
    }
  }
};

template <class Block>
void axpy_rows_blocks(const uint8_t* w, size_t row_bytes, const uint32_t* rows, const float* coefficient, size_t n_rows,
                      size_t col_begin, size_t col_end, float* y) {
  axpy_tiles<Block, Axpy>(w, row_bytes, rows, coefficient, n_rows, col_begin / kBlock, col_end / kBlock, y);
}

// ---- the table

SBR_QUANTISED_KERNELS(neon)
SBR_INTERLEAVED_KERNELS(neon)

constexpr Kernels make_table() {
  Kernels k = quantised_table(SBR_ISA_NEON, "neon", axpy_rows_blocks<BlockQ4_0>, axpy_rows_blocks<BlockQ8_0>);
  set_interleaved_kernels(&k);
  set_float_kernels(&k, SBR_TYPE_F32, SBR_TYPE_F16, SBR_TYPE_BF16);
  set_attention_kernels(&k);
  return k;
}

}  // namespace

constexpr Kernels kNeonKernels = make_table();

}  // namespace sbr

#endif
