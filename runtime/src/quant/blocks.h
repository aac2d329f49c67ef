// Block layouts of GGUF's weight types, and half-precision conversions. Plain data and static functions only:
// kernel files include this too.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace sbr {

// Elements of a quantised activation's block, and of every block type below except the two "K" types.
enum { kBlock = 32, kSuperBlock = 256 };

// Rows of these types may start at any even address: blocks are accessed as bytes and uint16_t only.

// w = d * (nibble - 8). Byte j holds element j in its low and element j + 16 in its high nibble.
struct BlockQ4_0 {
  uint16_t d;  // f16
  uint8_t nibbles[16];
};
static_assert(sizeof(BlockQ4_0) == 18 && alignof(BlockQ4_0) == 2, "layout of q4_0");

// w = d * nibble + m.
struct BlockQ4_1 {
  uint16_t d;
  uint16_t m;
  uint8_t nibbles[16];
};
static_assert(sizeof(BlockQ4_1) == 20 && alignof(BlockQ4_1) == 2, "layout of q4_1");

// w = d * q.
struct BlockQ8_0 {
  uint16_t d;
  int8_t q[32];
};
static_assert(sizeof(BlockQ8_0) == 34 && alignof(BlockQ8_0) == 2, "layout of q8_0");

// 8 sub-blocks of 32: w = d * sc * nibble - dmin * m, with 6-bit sc and m packed into 12 bytes.
// 32 bytes of nibbles hold two sub-blocks: the even one in the low nibbles, the odd one in the high.
struct BlockQ4_K {
  uint16_t d;
  uint16_t dmin;
  uint8_t scales[12];
  uint8_t nibbles[128];
};
static_assert(sizeof(BlockQ4_K) == 144 && alignof(BlockQ4_K) == 2, "layout of q4_k");

// 16 halves of 16: w = d * sc * (q - 32), q of 6 bits. Each 128 elements take 64 bytes of low[] and 32 of high[]:
// for i in 0..31 and k in 0..3, element 32 k + i is (low[i + 32 (k & 1)] >> 4 (k / 2)) & 15 | (high[i] >> 2 k & 3)
// << 4.
struct BlockQ6_K {
  uint8_t low[128];
  uint8_t high[64];
  int8_t scales[16];
  uint16_t d;
};
static_assert(sizeof(BlockQ6_K) == 210 && alignof(BlockQ6_K) == 2, "layout of q6_k");

// Unpacks the two 6-bit numbers of sub-block i (0..7) of a q4_k block.
static inline void q4_k_scale_min(const uint8_t* scales, size_t i, uint8_t* scale, uint8_t* min) {
  if (i < 4) {
    *scale = scales[i] & 63;
    *min = scales[i + 4] & 63;
  } else {
    *scale = (uint8_t)((scales[i + 4] & 15) | ((scales[i - 4] >> 6) << 4));
    *min = (uint8_t)((scales[i + 4] >> 4) | ((scales[i] >> 6) << 4));
  }
}

// Exact. Signalling NaNs become quiet, as hardware conversions make them.
static inline float f16_to_f32(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  uint32_t bits;
  float value;
  if (magnitude >= 0x7c00u) {  // infinity, NaN
    bits = 0x7f800000u | (magnitude & 0x3ffu) << 13 | (magnitude > 0x7c00u ? 0x400000u : 0);
  } else if (magnitude >= 0x400u) {
    bits = (magnitude << 13) + 0x38000000u;
  } else {  // zero and denormals: magnitude * 2^-24
    value = (float)magnitude * 0x1p-24f;
    memcpy(&bits, &value, sizeof bits);
  }
  bits |= sign;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Rounds to nearest even; too large becomes infinity; NaNs keep their upper payload and become quiet.
static inline uint16_t f32_to_f16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);  // >= 65520
  if (magnitude < 0x38800000u) {  // below 2^-14: the addition rounds to a multiple of 2^-24
    float shifted;
    memcpy(&shifted, &magnitude, sizeof shifted);
    shifted += 0.5f;
    uint32_t shifted_bits;
    memcpy(&shifted_bits, &shifted, sizeof shifted_bits);
    return (uint16_t)(sign | (shifted_bits - 0x3f000000u));
  }
  const uint32_t odd = (magnitude >> 13) & 1;
  return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

static inline float bf16_to_f32(uint16_t half) {
  const uint32_t bits = (uint32_t)half << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Rounds to nearest even; NaNs become quiet.
static inline uint16_t f32_to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40u);
  return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

}  // namespace sbr
