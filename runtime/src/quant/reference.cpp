#include "quant/reference.h"

#include <cmath>
#include <cstring>
#include <string>

#include "base/error.h"
#include "quant/blocks.h"
#include "sbr/sbr.h"

namespace sbr {
namespace {

void dequantise(const BlockQ4_0& b, float* out) {
  const float d = f16_to_f32(b.d);
  for (int j = 0; j < 16; ++j) {
    out[j] = d * float((b.nibbles[j] & 15) - 8);
    out[j + 16] = d * float((b.nibbles[j] >> 4) - 8);
  }
}

void dequantise(const BlockQ4_1& b, float* out) {
  const float d = f16_to_f32(b.d);
  const float m = f16_to_f32(b.m);
  for (int j = 0; j < 16; ++j) {
    out[j] = d * float(b.nibbles[j] & 15) + m;
    out[j + 16] = d * float(b.nibbles[j] >> 4) + m;
  }
}

void dequantise(const BlockQ8_0& b, float* out) {
  const float d = f16_to_f32(b.d);
  for (int j = 0; j < 32; ++j) out[j] = d * float(b.q[j]);
}

void dequantise(const BlockQ4_K& b, float* out) {
  const float d = f16_to_f32(b.d);
  const float dmin = f16_to_f32(b.dmin);
  for (int sub = 0; sub < 8; ++sub) {
    uint8_t scale, min;
    q4_k_scale_min(b.scales, size_t(sub), &scale, &min);
    const float dw = d * float(scale);
    const float mw = dmin * float(min);
    const uint8_t* nibbles = b.nibbles + 32 * (sub / 2);
    for (int i = 0; i < 32; ++i) out[32 * sub + i] = dw * float((nibbles[i] >> 4 * (sub & 1)) & 15) - mw;
  }
}

void dequantise(const BlockQ6_K& b, float* out) {
  const float d = f16_to_f32(b.d);
  for (int e = 0; e < 256; ++e) {
    const int half = e / 128, k = e / 32 % 4, i = e % 32;
    const int low = (b.low[64 * half + 32 * (k & 1) + i] >> 4 * (k / 2)) & 15;
    const int high = (b.high[32 * half + i] >> 2 * k) & 3;
    const int8_t scale = b.scales[e / 16];
    out[e] = d * float(scale) * float((low | high << 4) - 32);
  }
}

// Scales below 2^-100 (all of them 0 in half precision) have no finite reciprocal that is worth having.
float reciprocal(float d) { return std::fabs(d) > 0x1p-100f ? 1 / d : 0; }

void quantise(const float* x, BlockQ4_0* b) {
  // The element of the largest magnitude becomes exactly -8.
  float extreme = 0;
  for (int j = 0; j < 32; ++j) {
    if (std::fabs(x[j]) > std::fabs(extreme)) extreme = x[j];
  }
  const float d = extreme / -8;
  const float inverse = reciprocal(d);
  b->d = f32_to_f16(d);
  const auto level = [inverse](float v) {
    const int q = int(v * inverse + 8.5f);
    return uint8_t(q > 15 ? 15 : q);
  };
  for (int j = 0; j < 16; ++j) b->nibbles[j] = uint8_t(level(x[j]) | level(x[j + 16]) << 4);
}

void quantise(const float* x, BlockQ4_1* b) {
  float low = x[0], high = x[0];
  for (int j = 1; j < 32; ++j) {
    low = x[j] < low ? x[j] : low;
    high = x[j] > high ? x[j] : high;
  }
  const float d = (high - low) / 15;
  const float inverse = reciprocal(d);
  b->d = f32_to_f16(d);
  b->m = f32_to_f16(low);
  const auto level = [inverse, low](float v) {
    const int q = int(std::floor((v - low) * inverse + 0.5f));
    return uint8_t(q > 15 ? 15 : q);
  };
  for (int j = 0; j < 16; ++j) b->nibbles[j] = uint8_t(level(x[j]) | level(x[j + 16]) << 4);
}

void quantise(const float* x, BlockQ8_0* b) {
  float amax = 0;
  for (int j = 0; j < 32; ++j) amax = std::fabs(x[j]) > amax ? std::fabs(x[j]) : amax;
  const float d = amax / 127;
  const float inverse = reciprocal(d);
  b->d = f32_to_f16(d);
  for (int j = 0; j < 32; ++j) {
    const float q = std::rint(x[j] * inverse);
    b->q[j] = int8_t(q > 127 ? 127 : q < -127 ? -127 : q);
  }
}

template <class Block, size_t kElements>
void dequantise_blocks(const uint8_t* in, size_t n, float* out) {
  for (size_t i = 0; i < n / kElements; ++i) {
    Block block;
    std::memcpy(&block, in + i * sizeof block, sizeof block);
    dequantise(block, out + i * kElements);
  }
}

template <class Block>
void quantise_blocks(const float* x, size_t n, uint8_t* out) {
  for (size_t i = 0; i < n / kBlock; ++i) {
    Block block;
    quantise(x + i * kBlock, &block);
    std::memcpy(out + i * sizeof block, &block, sizeof block);
  }
}

uint16_t read16(const uint8_t* in, size_t i) {
  uint16_t value;
  std::memcpy(&value, in + 2 * i, sizeof value);
  return value;
}

void write16(uint8_t* out, size_t i, uint16_t value) { std::memcpy(out + 2 * i, &value, sizeof value); }

}  // namespace

size_t weight_block_elements(uint32_t type) {
  switch (type) {
    case SBR_TYPE_F32:
    case SBR_TYPE_F16:
    case SBR_TYPE_BF16:
      return 1;
    case SBR_TYPE_Q4_0:
    case SBR_TYPE_Q4_1:
    case SBR_TYPE_Q8_0:
      return kBlock;
    case SBR_TYPE_Q4_K:
    case SBR_TYPE_Q6_K:
      return kSuperBlock;
    default:
      return 0;
  }
}

size_t weight_block_bytes(uint32_t type) {
  switch (type) {
    case SBR_TYPE_F32:
      return sizeof(float);
    case SBR_TYPE_F16:
    case SBR_TYPE_BF16:
      return sizeof(uint16_t);
    case SBR_TYPE_Q4_0:
      return sizeof(BlockQ4_0);
    case SBR_TYPE_Q4_1:
      return sizeof(BlockQ4_1);
    case SBR_TYPE_Q8_0:
      return sizeof(BlockQ8_0);
    case SBR_TYPE_Q4_K:
      return sizeof(BlockQ4_K);
    case SBR_TYPE_Q6_K:
      return sizeof(BlockQ6_K);
    default:
      return 0;
  }
}

void dequantise_row(uint32_t type, const uint8_t* in, size_t n, float* out) {
  switch (type) {
    case SBR_TYPE_F32:
      std::memcpy(out, in, n * sizeof(float));
      return;
    case SBR_TYPE_F16:
      for (size_t i = 0; i < n; ++i) out[i] = f16_to_f32(read16(in, i));
      return;
    case SBR_TYPE_BF16:
      for (size_t i = 0; i < n; ++i) out[i] = bf16_to_f32(read16(in, i));
      return;
    case SBR_TYPE_Q4_0:
      return dequantise_blocks<BlockQ4_0, kBlock>(in, n, out);
    case SBR_TYPE_Q4_1:
      return dequantise_blocks<BlockQ4_1, kBlock>(in, n, out);
    case SBR_TYPE_Q8_0:
      return dequantise_blocks<BlockQ8_0, kBlock>(in, n, out);
    case SBR_TYPE_Q4_K:
      return dequantise_blocks<BlockQ4_K, kSuperBlock>(in, n, out);
    case SBR_TYPE_Q6_K:
      return dequantise_blocks<BlockQ6_K, kSuperBlock>(in, n, out);
    default:
      throw Error(SBR_ERR_UNSUPPORTED, "rows of type " + std::to_string(type) + " cannot be dequantised");
  }
}

void quantise_row(uint32_t type, const float* x, size_t n, uint8_t* out) {
  switch (type) {
    case SBR_TYPE_F32:
      std::memcpy(out, x, n * sizeof(float));
      return;
    case SBR_TYPE_F16:
      for (size_t i = 0; i < n; ++i) write16(out, i, f32_to_f16(x[i]));
      return;
    case SBR_TYPE_BF16:
      for (size_t i = 0; i < n; ++i) write16(out, i, f32_to_bf16(x[i]));
      return;
    case SBR_TYPE_Q4_0:
      return quantise_blocks<BlockQ4_0>(x, n, out);
    case SBR_TYPE_Q4_1:
      return quantise_blocks<BlockQ4_1>(x, n, out);
    case SBR_TYPE_Q8_0:
      return quantise_blocks<BlockQ8_0>(x, n, out);
    default:
      throw Error(SBR_ERR_UNSUPPORTED, "rows cannot be quantised to type " + std::to_string(type));
  }
}

}  // namespace sbr
