// Interleaved matrices (kernels/interleaved.h) times one vector or several, with NEON. Included after
//   template <bool kNarrow> class QuadSums   the sums of 32 products of a group of 4 rows; kNarrow: |w| <= 15
//     QuadSums(), and QuadSums(int32_t start) of narrow weights
//     add<kLane>(w0, w1, x)                  adds quads kLane and kLane + 1 of x times w0 and w1; 4 times per block
//     int32x4_t fold()                       the 4 rows' sums
// has been defined for the instruction set at hand.
//
// Rows stay in lanes: against rows one after another there is nothing to fold (neon: less), scales come 8 to a load,
// and weights of q4_0 are multiplied as nibbles 0..15, -8 * sum(x) being where a block's sums start.
#pragma once

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/interleaved.h"
#include "kernels/kernels.h"
#include "kernels/neon_interleaved_types.h"

namespace sbr {
namespace {

// ---- scales

// Rule 4 for a tile's sums of one block.
template <class T>
void add_scaled(QuadSums<T::kNarrow>* sums, const TileFloats& scale, const TileFloats& min, float d, float sum,
                float32x4_t* acc) {
  for (size_t g = 0; g < kGroups; ++g) {
    acc[g] = vfmaq_f32(acc[g], vcvtq_f32_s32(sums[g].fold()), vmulq_n_f32(scale.group[g], d));
    if constexpr (T::kHasMin) acc[g] = vfmaq_n_f32(acc[g], min.group[g], sum);
  }
}

template <class T>
TileFloats min_of(const typename T::Scales& scales, size_t part) {
  if constexpr (T::kHasMin) {
    return scales.min(part);
  } else {
    const float32x4_t none = vdupq_n_f32(0);
    return {{none, none, none, none}};
  }
}

// ---- one token

constexpr size_t kStarts = 128;  // blocks whose starts are computed at a time

template <int kOffset>
void block_starts(const int8_t* q, size_t blocks, int32_t* start) {
  for (size_t b = 0; b < blocks; ++b, q += kBlock)
    start[b] = -kOffset * (vaddlvq_s8(vld1q_s8(q)) + vaddlvq_s8(vld1q_s8(q + 16)));
}

// From dword k on, those of a step: kParts blocks, of which x has the halves of 16 elements in order.
template <class T, int k = 0>
void add_dwords(const uint8_t* dwords, const int8x16_t* x, QuadSums<T::kNarrow> (*sums)[kGroups]) {
  for (size_t g = 0; g < kGroups; ++g) {
    const uint8x16_t a = vld1q_u8(dwords + 64 * k + 16 * g), b = vld1q_u8(dwords + 64 * (k + 1) + 16 * g);
    if constexpr (T::kNibbles) {
      sums[0][g].template add<k % 4>(low_nibbles(a), low_nibbles(b), x[k / 4]);
      sums[T::kParts - 1][g].template add<k % 4>(high_nibbles(a), high_nibbles(b), x[k / 4 + T::kParts]);
    } else {
      sums[0][g].template add<k % 4>(vreinterpretq_s8_u8(a), vreinterpretq_s8_u8(b), x[k / 4]);
    }
  }
  if constexpr (k + 2 < T::kDwords) add_dwords<T, k + 2>(dwords, x, sums);
}

// Blocks b .. b + kParts - 1 of x, of which `start` is the first's.
template <class T>
void step_times_vector(const uint8_t* block, const typename T::Scales& scales, size_t part, const Activation& x,
                       size_t b, const int32_t* start, float32x4_t* acc) {
  typedef QuadSums<T::kNarrow> Sums;
  int8x16_t half[2 * T::kParts];
  Sums sums[T::kParts][kGroups];
  for (size_t i = 0; i < 2 * T::kParts; ++i) half[i] = vld1q_s8(x.q + b * kBlock + 16 * i);
  if constexpr (T::kOffset != 0) {
    for (size_t p = 0; p < T::kParts; ++p)
      for (size_t g = 0; g < kGroups; ++g) sums[p][g] = Sums(start[p]);
  }
  add_dwords<T>(T::dwords(block, part), half, sums);
  for (size_t p = 0; p < T::kParts; ++p)
    add_scaled<T>(sums[p], scales.scale(part + p), min_of<T>(scales, part + p), x.d[b + p], x.sum[b + p], acc);
}

template <class T>
void tiles_times_vector(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation& x, float* y) {
  const size_t blocks = n / kBlock;
  int32_t start[kStarts];
  for (size_t first = 0; first < blocks; first += kStarts) {
    const size_t end = blocks - first < kStarts ? blocks : first + kStarts;
    if constexpr (T::kOffset != 0) block_starts<T::kOffset>(x.q + first * kBlock, end - first, start);
    const size_t skipped = first / T::kBlocks * T::Layout::kBlockBytes;
    for (size_t r = 0; r < n_rows; r += kInterleavedRows) {
      const uint8_t* block = w + r * row_bytes + skipped;
      float32x4_t acc[kGroups];
      for (size_t g = 0; g < kGroups; ++g) acc[g] = first ? vld1q_f32(y + r + 4 * g) : vdupq_n_f32(0);
      for (size_t b = first; b < end; b += T::kBlocks, block += T::Layout::kBlockBytes) {
        const typename T::Scales scales(block);
        for (size_t part = 0; part < T::kBlocks; part += T::kParts)
          step_times_vector<T>(block, scales, part, x, b + part, start + (b - first) + part, acc);
      }
      for (size_t g = 0; g < kGroups; ++g) vst1q_f32(y + r + 4 * g, acc[g]);
    }
  }
}

// ---- several tokens

// A block of 32 elements of a tile, unpacked once for all tokens.
template <class T>
struct UnpackedTile {
  int8x16_t quad[kGroups][kQuads];
  TileFloats scale, min;

  UnpackedTile(const uint8_t* block, const typename T::Scales& scales, size_t part)
      : scale(scales.scale(part)), min(min_of<T>(scales, part)) {
    for (size_t g = 0; g < kGroups; ++g) T::unpack(block, part, g, quad[g]);
  }

  // Every register of weights is loaded once for kTokens tokens. 4 tokens fit the registers with dot products, on
  // paper: clang spills, and estimates for Cortex-A55 and A76 are no better than with 2.
  template <size_t kTokens>
  void times(size_t b, const Activation* x, float32x4_t (*acc)[kGroups]) const {
    int8x16_t half[kTokens][2];
    QuadSums<T::kNarrow> sums[kTokens][kGroups];
    for (size_t t = 0; t < kTokens; ++t) {
      half[t][0] = vld1q_s8(x[t].q + b * kBlock);
      half[t][1] = vld1q_s8(x[t].q + b * kBlock + 16);
    }
    add_quads<kTokens>(half, sums);
    for (size_t t = 0; t < kTokens; ++t) add_scaled<T>(sums[t], scale, min, x[t].d[b], x[t].sum[b], acc[t]);
  }

 private:
  template <size_t kTokens, int k = 0>
  void add_quads(const int8x16_t (*half)[2], QuadSums<T::kNarrow> (*sums)[kGroups]) const {
    for (size_t g = 0; g < kGroups; ++g) {
      for (size_t t = 0; t < kTokens; ++t) sums[t][g].template add<k % 4>(quad[g][k], quad[g][k + 1], half[t][k / 4]);
    }
    if constexpr (k + 2 < int(kQuads)) add_quads<kTokens, k + 2>(half, sums);
  }
};

// At most kBatch tokens.
constexpr size_t kBatch = 16;

template <class T>
void tile_times_batch(const uint8_t* block, size_t n, const Activation* x, size_t n_tokens, float* y, size_t y_stride) {
  float32x4_t acc[kBatch][kGroups];
  for (size_t t = 0; t < n_tokens; ++t)
    for (float32x4_t& a : acc[t]) a = vdupq_n_f32(0);
  for (size_t b = 0; b < n / kBlock; b += T::kBlocks, block += T::Layout::kBlockBytes) {
    const typename T::Scales scales(block);
    for (size_t part = 0; part < T::kBlocks; ++part) {
      const UnpackedTile<T> tile(block, scales, part);
      size_t t = 0;
      for (; t + 2 <= n_tokens; t += 2) tile.template times<2>(b + part, x + t, acc + t);
      if (t < n_tokens) tile.template times<1>(b + part, x + t, acc + t);
    }
  }
  for (size_t t = 0; t < n_tokens; ++t)
    for (size_t g = 0; g < kGroups; ++g) vst1q_f32(y + t * y_stride + 4 * g, acc[t][g]);
}

template <class T>
void tiles_times_tokens(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x,
                        size_t n_tokens, float* y, size_t y_stride) {
  for (size_t t = 0; t < n_tokens; t += kBatch) {
    const size_t tokens = n_tokens - t < kBatch ? n_tokens - t : kBatch;
    if (tokens == 1) {
      tiles_times_vector<T>(w, row_bytes, n_rows, n, x[t], y + t * y_stride);
    } else {
      for (size_t r = 0; r < n_rows; r += kInterleavedRows)
        tile_times_batch<T>(w + r * row_bytes, n, x + t, tokens, y + t * y_stride + r, y_stride);
    }
  }
}

}  // namespace
}  // namespace sbr
