// Quantised matrices times one vector or several, with NEON (rule 4 of docs/arithmetic.md). Included after
//   int32x4_t dot_halves(first, second, x_first, x_second)   four partial sums of 32 products; kNarrow: |w| <= 32
// has been defined for the instruction set at hand.
//
// A tile is 4 rows and a step one block: four rows' partial sums fold into the 4 lanes of a register by pairwise adds.
#pragma once

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels/kernels.h"
#include "kernels/tiles.h"
#include "quant/blocks.h"

namespace sbr {
namespace {

constexpr size_t kTileRows = 4;
constexpr size_t kTilesAhead = 4;

struct Bytes {
  int8x16_t first, second;  // elements 0..15 and 16..31 of a block
};

Bytes split_nibbles(uint8x16_t v, int8_t offset) {
  const int8x16_t shift = vdupq_n_s8(offset);
  return {vsubq_s8(vreinterpretq_s8_u8(vandq_u8(v, vdupq_n_u8(15))), shift),
          vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(v, 4)), shift)};
}

uint16_t half_at(const uint8_t* p) {
  uint16_t half;
  memcpy(&half, p, sizeof half);
  return half;
}

// Four halves, kStride bytes into each of four rows, as floats.
float32x4_t halves_at(const uint8_t* const* row, size_t at) {
  const uint16x4_t halves = {half_at(row[0] + at), half_at(row[1] + at), half_at(row[2] + at), half_at(row[3] + at)};
  return vcvt_f32_f16(vreinterpret_f16_u16(halves));
}

// ---- types: the bytes of block b of a row, and the scales of block b of four rows

template <class BlockType>
struct HalfScaled {
  static float32x4_t scale(const uint8_t* const* row, size_t b) { return halves_at(row, b * sizeof(BlockType)); }
};

struct Q4_0 : HalfScaled<BlockQ4_0> {
  static constexpr bool kNarrow = true, kHasMin = false, kHalfBlockScales = false;
  static constexpr size_t kBlockBytes = sizeof(BlockQ4_0);
  static Bytes unpack(const uint8_t* row, size_t b) { return split_nibbles(vld1q_u8(row + b * kBlockBytes + 2), 8); }
};

struct Q4_1 : HalfScaled<BlockQ4_1> {
  static constexpr bool kNarrow = true, kHasMin = true, kHalfBlockScales = false;
  static constexpr size_t kBlockBytes = sizeof(BlockQ4_1);
  static Bytes unpack(const uint8_t* row, size_t b) { return split_nibbles(vld1q_u8(row + b * kBlockBytes + 4), 0); }
  static float32x4_t min(const uint8_t* const* row, size_t b) { return halves_at(row, b * kBlockBytes + 2); }
};

struct Q8_0 : HalfScaled<BlockQ8_0> {
  static constexpr bool kNarrow = false, kHasMin = false, kHalfBlockScales = false;
  static constexpr size_t kBlockBytes = sizeof(BlockQ8_0);
  static Bytes unpack(const uint8_t* row, size_t b) {
    const int8_t* q = reinterpret_cast<const int8_t*>(row + b * kBlockBytes + 2);
    return {vld1q_s8(q), vld1q_s8(q + 16)};
  }
};

struct Q4_K {
  static constexpr bool kNarrow = true, kHasMin = true, kHalfBlockScales = false;
  static constexpr size_t kBlockBytes = sizeof(BlockQ4_K) / 8;  // on average
  static Bytes unpack(const uint8_t* row, size_t b) {
    const uint8_t* nibbles = row + b / 8 * sizeof(BlockQ4_K) + offsetof(BlockQ4_K, nibbles) + 32 * (b % 8 / 2);
    const int8x16_t shift = vdupq_n_s8(b % 2 ? -4 : 0);
    const uint8x16_t mask = vdupq_n_u8(15);
    return {vreinterpretq_s8_u8(vandq_u8(vshlq_u8(vld1q_u8(nibbles), shift), mask)),
            vreinterpretq_s8_u8(vandq_u8(vshlq_u8(vld1q_u8(nibbles + 16), shift), mask))};
  }
  static float32x4_t scale(const uint8_t* const* row, size_t b) {
    uint32_t scales[kTileRows];
    for (size_t r = 0; r < kTileRows; ++r) scales[r] = packed(row[r], b).scale;
    return vmulq_f32(halves_at(row, b / 8 * sizeof(BlockQ4_K)), vcvtq_f32_u32(vld1q_u32(scales)));
  }
  static float32x4_t min(const uint8_t* const* row, size_t b) {
    uint32_t mins[kTileRows];
    for (size_t r = 0; r < kTileRows; ++r) mins[r] = packed(row[r], b).min;
    return vnegq_f32(vmulq_f32(halves_at(row, b / 8 * sizeof(BlockQ4_K) + 2), vcvtq_f32_u32(vld1q_u32(mins))));
  }

 private:
  struct Packed {
    uint8_t scale, min;
  };
  static Packed packed(const uint8_t* row, size_t b) {
    Packed p;
    q4_k_scale_min(row + b / 8 * sizeof(BlockQ4_K) + offsetof(BlockQ4_K, scales), b % 8, &p.scale, &p.min);
    return p;
  }
};

struct Q6_K {
  static constexpr bool kNarrow = true, kHasMin = false, kHalfBlockScales = true;
  static constexpr size_t kBlockBytes = sizeof(BlockQ6_K) / 8;
  static Bytes unpack(const uint8_t* row, size_t b) {
    const uint8_t* block = row + b / 8 * sizeof(BlockQ6_K);
    const size_t half = b % 8 / 4, k = b % 4;
    const uint8_t* low = block + 64 * half + 32 * (k & 1);
    const uint8_t* high = block + offsetof(BlockQ6_K, high) + 32 * half;
    return {join(vld1q_u8(low), vld1q_u8(high), k), join(vld1q_u8(low + 16), vld1q_u8(high + 16), k)};
  }
  static float32x4_t scale(const uint8_t* const* row, size_t b) {
    return halves_at(row, b / 8 * sizeof(BlockQ6_K) + offsetof(BlockQ6_K, d));
  }
  static const int8_t* half_scales(const uint8_t* row, size_t b) {
    return reinterpret_cast<const int8_t*>(row + b / 8 * sizeof(BlockQ6_K) + offsetof(BlockQ6_K, scales)) + 2 * (b % 8);
  }

 private:
  static int8x16_t join(uint8x16_t low, uint8x16_t high, size_t k) {
    const uint8x16_t nibble = vandq_u8(vshlq_u8(low, vdupq_n_s8(k < 2 ? 0 : -4)), vdupq_n_u8(15));
    const uint8x16_t bits = vandq_u8(vshlq_u8(high, vdupq_n_s8(int8_t(4 - 2 * int(k)))), vdupq_n_u8(0x30));
    return vsubq_s8(vreinterpretq_s8_u8(vorrq_u8(nibble, bits)), vdupq_n_s8(32));
  }
};

// ---- products

// Four partial sums of block b of one row.
template <class T>
int32x4_t partial_sums(const uint8_t* row, size_t b, Bytes w, Bytes x) {
  if constexpr (T::kHalfBlockScales) {
    const int8_t* scale = T::half_scales(row, b);
    const int8x16_t none = vdupq_n_s8(0);
    const int32x4_t first = dot_halves<T::kNarrow>(w.first, none, x.first, none);
    const int32x4_t second = dot_halves<T::kNarrow>(w.second, none, x.second, none);
    return vmlaq_n_s32(vmulq_n_s32(first, scale[0]), second, scale[1]);
  } else {
    return dot_halves<T::kNarrow>(w.first, w.second, x.first, x.second);
  }
}

// Block b of four rows, unpacked once for all tokens.
template <class T>
struct UnpackedBlock {
  Bytes bytes[kTileRows];
  float32x4_t scale, min;

  UnpackedBlock(const uint8_t* const* row, size_t b) {
    for (size_t r = 0; r < kTileRows; ++r) bytes[r] = T::unpack(row[r], b);
    scale = T::scale(row, b);
    if constexpr (T::kHasMin) {
      min = T::min(row, b);
    } else {
      min = vdupq_n_f32(0);
    }
  }

  float32x4_t times(const uint8_t* const* row, size_t b, const Activation& x, float32x4_t acc) const {
    const Bytes q = {vld1q_s8(x.q + b * kBlock), vld1q_s8(x.q + b * kBlock + 16)};
    const int32x4_t s0 = partial_sums<T>(row[0], b, bytes[0], q), s1 = partial_sums<T>(row[1], b, bytes[1], q);
    const int32x4_t s2 = partial_sums<T>(row[2], b, bytes[2], q), s3 = partial_sums<T>(row[3], b, bytes[3], q);
    const int32x4_t sums = vpaddq_s32(vpaddq_s32(s0, s1), vpaddq_s32(s2, s3));
    acc = vfmaq_f32(acc, vcvtq_f32_s32(sums), vmulq_n_f32(scale, x.d[b]));
    if constexpr (T::kHasMin) acc = vfmaq_f32(acc, min, vdupq_n_f32(x.sum[b]));
    return acc;
  }
};

void store_rows(float* y, size_t count, float32x4_t v) {
  if (count == kTileRows) return vst1q_f32(y, v);
  float lanes[kTileRows];
  vst1q_f32(lanes, v);
  memcpy(y, lanes, count * sizeof(float));
}

template <class T>
void rows_times_vector(const uint8_t* w, size_t row_bytes, const uint32_t* rows, size_t n_rows, size_t n,
                       const Activation& x, float* y) {
  constexpr size_t kLinesPerStep = (kTileRows * T::kBlockBytes + 63) / 64;
  for_each_tile<kTileRows, kTilesAhead>(w, row_bytes, rows, n_rows,
                                        [=, &x](const uint8_t* const* row, size_t count, Prefetch prefetch, size_t r) {
                                          float32x4_t acc = vdupq_n_f32(0);
                                          for (size_t b = 0; b < n / kBlock; ++b) {
                                            prefetch.lines(kLinesPerStep);
                                            acc = UnpackedBlock<T>(row, b).times(row, b, x, acc);
                                          }
                                          store_rows(y + r, count, acc);
                                        });
}

template <class T>
void rows_times_tokens(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x,
                       size_t n_tokens, float* y, size_t y_stride) {
  constexpr size_t kTokens = 16;
  for (size_t t = 0; t < n_tokens; t += kTokens) {
    const size_t tokens = n_tokens - t < kTokens ? n_tokens - t : kTokens;
    for_each_tile<kTileRows, kTilesAhead>(w, row_bytes, nullptr, n_rows,
                                          [=](const uint8_t* const* row, size_t count, Prefetch prefetch, size_t r) {
                                            float32x4_t acc[kTokens];
                                            for (size_t i = 0; i < tokens; ++i) acc[i] = vdupq_n_f32(0);
                                            for (size_t b = 0; b < n / kBlock; ++b) {
                                              prefetch.lines((kTileRows * T::kBlockBytes + 63) / 64);
                                              const UnpackedBlock<T> block(row, b);
                                              for (size_t i = 0; i < tokens; ++i)
                                                acc[i] = block.times(row, b, x[t + i], acc[i]);
                                            }
                                            for (size_t i = 0; i < tokens; ++i)
                                              store_rows(y + (t + i) * y_stride + r, count, acc[i]);
                                          });
  }
}

}  // namespace
}  // namespace sbr
