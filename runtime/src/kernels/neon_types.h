// How blocks of 32 weights of each quantised type become signed bytes and scales in NEON registers. A tile is 4 rows.
#pragma once

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "quant/blocks.h"

namespace sbr {
namespace {

constexpr size_t kTileRows = 4;

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

}  // namespace
}  // namespace sbr
