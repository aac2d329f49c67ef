// How a block of 16 interleaved rows (kernels/interleaved.h) becomes signed bytes and scales in NEON registers.
// A quad is 4 consecutive elements of a row; a register holds the same quad of a group of 4 rows.
#pragma once

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/interleaved.h"
#include "kernels/kernels.h"

namespace sbr {
namespace {

constexpr size_t kGroups = kInterleavedRows / 4;
constexpr size_t kQuads = 8;  // of a row's 32 elements

struct TileFloats {
  float32x4_t group[kGroups];
};

TileFloats tile_halves(const uint8_t* p) {
  const float16x8_t a = vreinterpretq_f16_u8(vld1q_u8(p)), b = vreinterpretq_f16_u8(vld1q_u8(p + 16));
  return {{vcvt_f32_f16(vget_low_f16(a)), vcvt_high_f32_f16(a), vcvt_f32_f16(vget_low_f16(b)), vcvt_high_f32_f16(b)}};
}

int8x16_t low_nibbles(uint8x16_t v) { return vreinterpretq_s8_u8(vandq_u8(v, vdupq_n_u8(15))); }
int8x16_t high_nibbles(uint8x16_t v) { return vreinterpretq_s8_u8(vshrq_n_u8(v, 4)); }

// ---- types
//
// kBlocks blocks of 32 elements are one of the file's, and `part` is one of them; kParts of them share kDwords dwords,
// from dwords(), as low and high nibbles. A weight is what the file holds minus kOffset. unpack(): a group's weights.

template <class L>
struct HalfScaledTile {
  typedef L Layout;
  static constexpr size_t kBlocks = 1, kParts = 1;
  static constexpr bool kHalfBlockScales = false;

  struct Scales {
    const uint8_t* block;
    explicit Scales(const uint8_t* b) : block(b) {}
    TileFloats scale(size_t) const { return tile_halves(block); }
  };
  static const uint8_t* dwords(const uint8_t* block, size_t) { return block + Layout::kDwords; }
};

template <int kOffset>
void unpack_nibble_quads(const uint8_t* dwords, size_t group, int8x16_t* quad) {
  for (size_t k = 0; k < 4; ++k) {
    const uint8x16_t bytes = vld1q_u8(dwords + 64 * k + 16 * group);
    quad[k] = vsubq_s8(low_nibbles(bytes), vdupq_n_s8(kOffset));
    quad[4 + k] = vsubq_s8(high_nibbles(bytes), vdupq_n_s8(kOffset));
  }
}

struct TileQ4_0 : HalfScaledTile<InterleavedQ4_0> {
  static constexpr bool kNarrow = true, kNibbles = true, kHasMin = false;
  static constexpr int kOffset = 8, kDwords = 4;
  static void unpack(const uint8_t* block, size_t part, size_t group, int8x16_t* quad) {
    unpack_nibble_quads<kOffset>(dwords(block, part), group, quad);
  }
};

struct TileQ4_1 : HalfScaledTile<InterleavedQ4_1> {
  static constexpr bool kNarrow = true, kNibbles = true, kHasMin = true;
  static constexpr int kOffset = 0, kDwords = 4;
  struct Scales : HalfScaledTile::Scales {
    using HalfScaledTile::Scales::Scales;
    TileFloats min(size_t) const { return tile_halves(block + Layout::kMins); }
  };
  static void unpack(const uint8_t* block, size_t part, size_t group, int8x16_t* quad) {
    unpack_nibble_quads<kOffset>(dwords(block, part), group, quad);
  }
};

struct TileQ8_0 : HalfScaledTile<InterleavedQ8_0> {
  static constexpr bool kNarrow = false, kNibbles = false, kHasMin = false;
  static constexpr int kOffset = 0, kDwords = 8;
  static void unpack(const uint8_t* block, size_t part, size_t group, int8x16_t* quad) {
    for (size_t k = 0; k < kQuads; ++k)
      quad[k] = vreinterpretq_s8_u8(vld1q_u8(dwords(block, part) + 64 * k + 16 * group));
  }
};

struct TileQ4_K {
  typedef InterleavedQ4_K Layout;
  static constexpr size_t kBlocks = 8, kParts = 2;
  static constexpr bool kNarrow = true, kNibbles = true, kHasMin = true, kHalfBlockScales = false;
  static constexpr int kOffset = 0, kDwords = 8;

  // q4_k_scale_min() for 16 rows: byte j of every row's packed dword is one register, which ld4 loads.
  class Scales {
   public:
    explicit Scales(const uint8_t* block) : d_(tile_halves(block)), neg_dmin_(tile_halves(block + Layout::kMins)) {
      for (float32x4_t& m : neg_dmin_.group) m = vnegq_f32(m);
      const uint8x16x4_t first = vld4q_u8(block + Layout::kDwords), second = vld4q_u8(block + Layout::kDwords + 64);
      const uint8x16x4_t third = vld4q_u8(block + Layout::kDwords + 128);
      const uint8x16_t six = vdupq_n_u8(63), four = vdupq_n_u8(15), two = vdupq_n_u8(0x30);
      for (size_t j = 0; j < 4; ++j) {
        scales_[j] = vandq_u8(first.val[j], six);
        mins_[j] = vandq_u8(second.val[j], six);
        scales_[4 + j] = vorrq_u8(vandq_u8(third.val[j], four), vandq_u8(vshrq_n_u8(first.val[j], 2), two));
        mins_[4 + j] = vorrq_u8(vshrq_n_u8(third.val[j], 4), vandq_u8(vshrq_n_u8(second.val[j], 2), two));
      }
    }
    TileFloats scale(size_t part) const { return product(d_, scales_[part]); }
    TileFloats min(size_t part) const { return product(neg_dmin_, mins_[part]); }

   private:
    static TileFloats product(const TileFloats& factor, uint8x16_t bytes) {
      const uint16x8_t a = vmovl_u8(vget_low_u8(bytes)), b = vmovl_high_u8(bytes);
      return {{vmulq_f32(factor.group[0], vcvtq_f32_u32(vmovl_u16(vget_low_u16(a)))),
               vmulq_f32(factor.group[1], vcvtq_f32_u32(vmovl_high_u16(a))),
               vmulq_f32(factor.group[2], vcvtq_f32_u32(vmovl_u16(vget_low_u16(b)))),
               vmulq_f32(factor.group[3], vcvtq_f32_u32(vmovl_high_u16(b)))}};
    }

    TileFloats d_, neg_dmin_;
    uint8x16_t scales_[kBlocks], mins_[kBlocks];
  };

  static const uint8_t* dwords(const uint8_t* block, size_t part) {
    return block + Layout::kNibbles + part / kParts * kDwords * 64;
  }
  static void unpack(const uint8_t* block, size_t part, size_t group, int8x16_t* quad) {
    const int8x16_t shift = vdupq_n_s8(part % kParts ? -4 : 0);
    for (size_t k = 0; k < kQuads; ++k)
      quad[k] = low_nibbles(vshlq_u8(vld1q_u8(dwords(block, part) + 64 * k + 16 * group), shift));
  }
};

}  // namespace
}  // namespace sbr
