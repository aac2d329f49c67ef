// Quantised matrices times one vector or several, with AVX2 (rule 4 of docs/arithmetic.md).
//
// A step is two blocks (64 weights) of a row: one register holds elements 0..15 of both blocks, another 16..31, as
// unsigned bytes for vpmaddubsw, or as signed ones (q8_0). A tile is 8 rows; each row and step leaves four partial sums
// per block, which are folded for four rows at once, until a register holds a block's exact sums of 8 rows.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels/kernels.h"
#include "kernels/tiles.h"
#include "quant/blocks.h"

namespace sbr {
namespace {

constexpr size_t kStepBlocks = 2;
constexpr size_t kTileRows = 8;
constexpr size_t kTilesAhead = 4;

// Block scales of a tile's rows: as halves where they are stored so, else as floats.
struct HalfScales {
  uint16_t half[kStepBlocks][kTileRows];

  void put(size_t b, size_t r, const uint8_t* p) { memcpy(&half[b][r], p, sizeof half[b][r]); }
  __m256 get(size_t b) const {
    const uint16_t* h = half[b];
    return _mm256_cvtph_ps(_mm_setr_epi16(int16_t(h[0]), int16_t(h[1]), int16_t(h[2]), int16_t(h[3]), int16_t(h[4]),
                                          int16_t(h[5]), int16_t(h[6]), int16_t(h[7])));
  }
};

struct FloatScales {
  float value[kStepBlocks][kTileRows];
  __m256 get(size_t b) const { return _mm256_loadu_ps(value[b]); }
};

float f16_at(const uint8_t* p) {
  uint16_t half;
  memcpy(&half, p, sizeof half);
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
}

__m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
__m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

void split_nibbles(__m256i bytes, __m256i* low, __m256i* high) {
  const __m256i mask = _mm256_set1_epi8(15);
  *low = _mm256_and_si256(bytes, mask);
  *high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
}

// {a low, b low} and {a high, b high}: from two whole blocks to their first and second halves.
void split_halves(__m256i a, __m256i b, __m256i* first, __m256i* second) {
  *first = _mm256_permute2x128_si256(a, b, 0x20);
  *second = _mm256_permute2x128_si256(a, b, 0x31);
}

// ---- types: unpack() gives the bytes of `valid` (1 or 2) blocks and stores their scales

template <class Block, size_t kNibblesAt>
void unpack_nibbles(const uint8_t* p, size_t valid, __m256i* first, __m256i* second) {
  const __m128i second_block = valid > 1 ? load128(p + sizeof(Block) + kNibblesAt) : _mm_setzero_si128();
  split_nibbles(_mm256_set_m128i(second_block, load128(p + kNibblesAt)), first, second);
}

struct Q4_0 {
  static constexpr int kOffset = 8;
  static constexpr bool kSigned = false, kHasMin = false, kHalfBlockScales = false;
  static constexpr size_t kStepBytes = 2 * sizeof(BlockQ4_0);
  struct Scales {
    HalfScales scale;
  };
  static void unpack(const uint8_t* row, size_t step, size_t valid, size_t r, Scales* s, __m256i* first,
                     __m256i* second) {
    const uint8_t* p = row + step * kStepBytes;
    for (size_t b = 0; b < 2; ++b) s->scale.put(b, r, p + (b < valid ? b : 0) * sizeof(BlockQ4_0));
    unpack_nibbles<BlockQ4_0, 2>(p, valid, first, second);
  }
};

struct Q4_1 {
  static constexpr int kOffset = 0;
  static constexpr bool kSigned = false, kHasMin = true, kHalfBlockScales = false;
  static constexpr size_t kStepBytes = 2 * sizeof(BlockQ4_1);
  struct Scales {
    HalfScales scale, min;
  };
  static void unpack(const uint8_t* row, size_t step, size_t valid, size_t r, Scales* s, __m256i* first,
                     __m256i* second) {
    const uint8_t* p = row + step * kStepBytes;
    for (size_t b = 0; b < 2; ++b) {
      const uint8_t* block = p + (b < valid ? b : 0) * sizeof(BlockQ4_1);
      s->scale.put(b, r, block);
      s->min.put(b, r, block + 2);
    }
    unpack_nibbles<BlockQ4_1, 4>(p, valid, first, second);
  }
};

struct Q8_0 {
  static constexpr int kOffset = 0;
  static constexpr bool kSigned = true, kHasMin = false, kHalfBlockScales = false;
  static constexpr size_t kStepBytes = 2 * sizeof(BlockQ8_0);
  struct Scales {
    HalfScales scale;
  };
  static void unpack(const uint8_t* row, size_t step, size_t valid, size_t r, Scales* s, __m256i* first,
                     __m256i* second) {
    const uint8_t* p = row + step * kStepBytes;
    for (size_t b = 0; b < 2; ++b) s->scale.put(b, r, p + (b < valid ? b : 0) * sizeof(BlockQ8_0));
    const __m256i other = valid > 1 ? load256(p + sizeof(BlockQ8_0) + 2) : _mm256_setzero_si256();
    split_halves(load256(p + 2), other, first, second);
  }
};

struct Q4_K {
  static constexpr int kOffset = 0;
  static constexpr bool kSigned = false, kHasMin = true, kHalfBlockScales = false;
  static constexpr size_t kStepBytes = sizeof(BlockQ4_K) / 4;  // on average
  struct Scales {
    FloatScales scale, min;
  };
  static void unpack(const uint8_t* row, size_t step, size_t, size_t r, Scales* s, __m256i* first, __m256i* second) {
    const uint8_t* block = row + step / 4 * sizeof(BlockQ4_K);
    const size_t pair = step % 4;
    const float d = f16_at(block);
    const float dmin = f16_at(block + 2);
    for (size_t b = 0; b < 2; ++b) {
      uint8_t scale, min;
      q4_k_scale_min(block + offsetof(BlockQ4_K, scales), 2 * pair + b, &scale, &min);
      s->scale.value[b][r] = d * float(scale);
      s->min.value[b][r] = -(dmin * float(min));
    }
    __m256i even, odd;
    split_nibbles(load256(block + offsetof(BlockQ4_K, nibbles) + 32 * pair), &even, &odd);
    split_halves(even, odd, first, second);
  }
};

struct Q6_K {
  static constexpr int kOffset = 32;
  static constexpr bool kSigned = false, kHasMin = false, kHalfBlockScales = true;
  static constexpr size_t kStepBytes = sizeof(BlockQ6_K) / 4;
  struct Scales {
    FloatScales scale;
  };
  static void unpack(const uint8_t* row, size_t step, size_t, size_t r, Scales* s, __m256i* first, __m256i* second) {
    const uint8_t* block = row + step / 4 * sizeof(BlockQ6_K);
    const size_t half = step % 4 / 2, pair = step % 2;  // blocks 0 and 1, or 2 and 3, of 128 elements
    const float d = f16_at(block + offsetof(BlockQ6_K, d));
    for (size_t b = 0; b < 2; ++b) s->scale.value[b][r] = d;
    const __m256i low = load256(block + 64 * half);
    const __m256i low2 = load256(block + 64 * half + 32);
    const __m256i high = load256(block + offsetof(BlockQ6_K, high) + 32 * half);
    const __m256i nibble_mask = _mm256_set1_epi8(15), bit_mask = _mm256_set1_epi8(0x30);
    const __m128i nibble_shift = _mm_cvtsi32_si128(pair ? 4 : 0);
    const __m256i nibbles = _mm256_and_si256(_mm256_srl_epi16(low, nibble_shift), nibble_mask);
    const __m256i nibbles2 = _mm256_and_si256(_mm256_srl_epi16(low2, nibble_shift), nibble_mask);
    // Bits 0..1, 2..3, 4..5 and 6..7 of each high byte, moved to bits 4 and 5.
    const __m256i bits = pair ? high : _mm256_slli_epi16(high, 4);
    const __m256i bits2 = pair ? _mm256_srli_epi16(high, 2) : _mm256_slli_epi16(high, 2);
    split_halves(_mm256_or_si256(nibbles, _mm256_and_si256(bits, bit_mask)),
                 _mm256_or_si256(nibbles2, _mm256_and_si256(bits2, bit_mask)), first, second);
  }
  // The scales of the halves of the step's two blocks.
  static const int8_t* half_scales(const uint8_t* row, size_t step) {
    return reinterpret_cast<const int8_t*>(row + step / 4 * sizeof(BlockQ6_K) + offsetof(BlockQ6_K, scales)) +
           4 * (step % 4);
  }
};

// ---- rows times one vector

struct StepInput {
  __m256i first, second;
  __m256i correction, correction_second;  // kOffset * pairs of quants, as 16-bit sums
};

template <class T>
StepInput load_input(const int8_t* q, size_t valid) {
  StepInput in;
  split_halves(load256(q), valid > 1 ? load256(q + kBlock) : _mm256_setzero_si256(), &in.first, &in.second);
  const __m256i offset = _mm256_set1_epi8(T::kOffset);
  in.correction = _mm256_maddubs_epi16(offset, in.first);
  in.correction_second = _mm256_maddubs_epi16(offset, in.second);
  if (!T::kHalfBlockScales) in.correction = _mm256_add_epi16(in.correction, in.correction_second);
  return in;
}

// Sums of four signed products each. |w| <= 128 and |x| <= 127, so two products fit 16 bits.
__m256i signed_dot(__m256i w, __m256i x) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)), _mm256_set1_epi16(1));
}

// Four partial sums of each of the step's two blocks. 16-bit sums hold: 15 * 127 * 4 and 63 * 127 * 2 are below 2^15.
template <class T>
__m256i partial_sums(const uint8_t* row, size_t step, __m256i first, __m256i second, const StepInput& in) {
  if constexpr (T::kSigned) {
    return _mm256_add_epi32(signed_dot(first, in.first), signed_dot(second, in.second));
  } else if constexpr (T::kHalfBlockScales) {
    const int8_t* s = T::half_scales(row, step);
    const __m256i scale = _mm256_set_m128i(_mm_set1_epi16(s[2]), _mm_set1_epi16(s[0]));
    const __m256i scale2 = _mm256_set_m128i(_mm_set1_epi16(s[3]), _mm_set1_epi16(s[1]));
    const __m256i sum = _mm256_sub_epi16(_mm256_maddubs_epi16(first, in.first), in.correction);
    const __m256i sum2 = _mm256_sub_epi16(_mm256_maddubs_epi16(second, in.second), in.correction_second);
    return _mm256_add_epi32(_mm256_madd_epi16(sum, scale), _mm256_madd_epi16(sum2, scale2));
  } else {
    __m256i sum = _mm256_add_epi16(_mm256_maddubs_epi16(first, in.first), _mm256_maddubs_epi16(second, in.second));
    if (T::kOffset) sum = _mm256_sub_epi16(sum, in.correction);
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
  }
}

// Adds up each aligned group of 4 lanes of four registers: lane 4 b + i of the result is group b of register i.
__m256i fold_partials(const __m256i* s) {
  const __m256i s01 = _mm256_add_epi32(_mm256_unpacklo_epi32(s[0], s[1]), _mm256_unpackhi_epi32(s[0], s[1]));
  const __m256i s23 = _mm256_add_epi32(_mm256_unpacklo_epi32(s[2], s[3]), _mm256_unpackhi_epi32(s[2], s[3]));
  return _mm256_add_epi32(_mm256_unpacklo_epi64(s01, s23), _mm256_unpackhi_epi64(s01, s23));
}

template <class T>
__m256 finish_block(__m256i sum, const typename T::Scales& scales, size_t b, float d, float sum_x, __m256 acc) {
  acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(scales.scale.get(b), _mm256_set1_ps(d)), acc);
  if constexpr (T::kHasMin) acc = _mm256_fmadd_ps(scales.min.get(b), _mm256_set1_ps(sum_x), acc);
  return acc;
}

template <class T>
__m256 step_rows(const uint8_t* const* row, size_t step, size_t valid, const Activation& x, __m256 acc) {
  const size_t block = step * kStepBlocks;
  const StepInput in = load_input<T>(x.q + block * kBlock, valid);
  typename T::Scales scales;
  __m256i folded[2];
#pragma GCC unroll 2
  for (size_t g = 0; g < 2; ++g) {
    __m256i partial[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) {
      __m256i first, second;
      T::unpack(row[4 * g + i], step, valid, 4 * g + i, &scales, &first, &second);
      partial[i] = partial_sums<T>(row[4 * g + i], step, first, second, in);
    }
    folded[g] = fold_partials(partial);
  }
  __m256i sums[2];
  split_halves(folded[0], folded[1], &sums[0], &sums[1]);
  acc = finish_block<T>(sums[0], scales, 0, x.d[block], x.sum[block], acc);
  if (valid > 1) acc = finish_block<T>(sums[1], scales, 1, x.d[block + 1], x.sum[block + 1], acc);
  return acc;
}

void store_rows(float* y, size_t count, __m256 v) {
  if (count == kTileRows) return _mm256_storeu_ps(y, v);
  float lanes[kTileRows];
  _mm256_storeu_ps(lanes, v);
  memcpy(y, lanes, count * sizeof(float));
}

template <class T>
void rows_times_vector(const uint8_t* w, size_t row_bytes, const uint32_t* rows, size_t n_rows, size_t n,
                       const Activation& x, float* y) {
  constexpr size_t kLinesPerStep = (kTileRows * T::kStepBytes + 63) / 64;
  const size_t blocks = n / kBlock;
  for_each_tile<kTileRows, kTilesAhead>(w, row_bytes, rows, n_rows,
                                        [=, &x](const uint8_t* const* row, size_t count, Prefetch prefetch, size_t r) {
                                          __m256 acc = _mm256_setzero_ps();
                                          for (size_t step = 0; step < blocks / kStepBlocks; ++step) {
                                            prefetch.lines(kLinesPerStep);
                                            acc = step_rows<T>(row, step, kStepBlocks, x, acc);
                                          }
                                          if (blocks % kStepBlocks)
                                            acc = step_rows<T>(row, blocks / kStepBlocks, 1, x, acc);
                                          store_rows(y + r, count, acc);
                                        });
}

// ---- rows times several vectors

// A step of 8 rows with rows in lanes: quad k of block b holds elements 4 k .. 4 k + 3 of each row.
template <class T>
struct UnpackedStep {
  __m256i quad[kStepBlocks][8];
  typename T::Scales scales;
  __m256i half_scale[kStepBlocks][2];
};

template <class T>
void unpack_step(const uint8_t* const* row, size_t step, size_t valid, UnpackedStep<T>* out) {
  __m256i half[2][kTileRows];
  for (size_t r = 0; r < kTileRows; ++r) T::unpack(row[r], step, valid, r, &out->scales, &half[0][r], &half[1][r]);
  for (size_t h = 0; h < 2; ++h) {
    __m256i four[2][4];  // [rows 0..3 or 4..7][quad]: low 128 bits of block 0, high of block 1
    for (size_t g = 0; g < 2; ++g) {
      const __m256i* v = &half[h][4 * g];
      const __m256i a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
      const __m256i c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
      four[g][0] = _mm256_unpacklo_epi64(a, c);
      four[g][1] = _mm256_unpackhi_epi64(a, c);
      four[g][2] = _mm256_unpacklo_epi64(b, d);
      four[g][3] = _mm256_unpackhi_epi64(b, d);
    }
    for (size_t k = 0; k < 4; ++k) {
      split_halves(four[0][k], four[1][k], &out->quad[0][4 * h + k], &out->quad[1][4 * h + k]);
    }
  }
  if constexpr (T::kHalfBlockScales) {
    for (size_t b = 0; b < kStepBlocks; ++b) {
      for (size_t h = 0; h < 2; ++h) {
        int32_t scale[kTileRows];
        for (size_t r = 0; r < kTileRows; ++r) scale[r] = T::half_scales(row[r], step)[2 * b + h];
        out->half_scale[b][h] = load256(scale);
      }
    }
  }
}

__m256i broadcast_quad(const int8_t* q) {
  int32_t four;
  memcpy(&four, q, sizeof four);
  return _mm256_set1_epi32(four);
}

// The exact sums of one block of 8 rows; start = -kOffset * the sum of q (of each half for kHalfBlockScales).
template <class T>
__m256i block_sums(const UnpackedStep<T>& w, size_t b, const int8_t* q, const int32_t* start) {
  const __m256i ones = _mm256_set1_epi16(1);
  const __m256i* quad = w.quad[b];
  if constexpr (T::kSigned) {
    __m256i sum = _mm256_setzero_si256();
    for (size_t k = 0; k < 8; ++k) sum = _mm256_add_epi32(sum, signed_dot(quad[k], broadcast_quad(q + 4 * k)));
    return sum;
  } else if constexpr (T::kHalfBlockScales) {
    __m256i total = _mm256_setzero_si256();
    for (size_t h = 0; h < 2; ++h) {
      __m256i sum = _mm256_set1_epi32(start[h]);
      for (size_t k = 4 * h; k < 4 * h + 4; k += 2) {  // 63 * 127 * 4 is below 2^15
        const __m256i pair = _mm256_add_epi16(_mm256_maddubs_epi16(quad[k], broadcast_quad(q + 4 * k)),
                                              _mm256_maddubs_epi16(quad[k + 1], broadcast_quad(q + 4 * k + 4)));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pair, ones));
      }
      total = _mm256_add_epi32(total, _mm256_mullo_epi32(sum, w.half_scale[b][h]));
    }
    return total;
  } else {
    __m256i sum = _mm256_maddubs_epi16(quad[0], broadcast_quad(q));  // 15 * 127 * 16 is below 2^15
    for (size_t k = 1; k < 8; ++k)
      sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(quad[k], broadcast_quad(q + 4 * k)));
    const __m256i wide = _mm256_madd_epi16(sum, ones);
    return T::kOffset ? _mm256_add_epi32(wide, _mm256_set1_epi32(start[0])) : wide;
  }
}

int32_t sum_quants(const int8_t* q, size_t n) {
  int32_t sum = 0;
  for (size_t i = 0; i < n; ++i) sum += q[i];
  return sum;
}

constexpr size_t kTokens = 16;  // that pass over an unpacked tile together
constexpr size_t kPanelBlocks = 64;

template <class T>
void rows_times_panel(const uint8_t* w, size_t row_bytes, size_t n_rows, const Activation* x, size_t n_tokens,
                      size_t block_begin, size_t blocks, float* y, size_t y_stride) {
  int32_t start[kPanelBlocks][kTokens][2];
  if (T::kOffset) {
    for (size_t p = 0; p < blocks; ++p) {
      for (size_t t = 0; t < n_tokens; ++t) {
        const int8_t* q = x[t].q + (block_begin + p) * kBlock;
        const int32_t first = sum_quants(q, kBlock / 2), second = sum_quants(q + kBlock / 2, kBlock / 2);
        start[p][t][0] = -T::kOffset * (T::kHalfBlockScales ? first : first + second);
        start[p][t][1] = -T::kOffset * second;
      }
    }
  }
  for (size_t r = 0; r < n_rows; r += kTileRows) {
    const uint8_t* row[kTileRows];
    const size_t count = tile_rows<kTileRows>(w, row_bytes, nullptr, r, n_rows, row);
    __m256 acc[kTokens];
    for (size_t t = 0; t < n_tokens; ++t) {
      float lanes[kTileRows] = {};
      if (block_begin) memcpy(lanes, y + t * y_stride + r, count * sizeof(float));
      acc[t] = _mm256_loadu_ps(lanes);
    }
    for (size_t p = 0; p < blocks; p += kStepBlocks) {
      const size_t valid = blocks - p < kStepBlocks ? blocks - p : kStepBlocks;
      UnpackedStep<T> unpacked;
      unpack_step<T>(row, (block_begin + p) / kStepBlocks, valid, &unpacked);
      for (size_t b = 0; b < valid; ++b) {
        const size_t block = block_begin + p + b;
        for (size_t t = 0; t < n_tokens; ++t) {
          const __m256i sums = block_sums<T>(unpacked, b, x[t].q + block * kBlock, start[p + b][t]);
          acc[t] = finish_block<T>(sums, unpacked.scales, b, x[t].d[block], x[t].sum[block], acc[t]);
        }
      }
    }
    for (size_t t = 0; t < n_tokens; ++t) store_rows(y + t * y_stride + r, count, acc[t]);
  }
}

template <class T>
void rows_times_tokens(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x,
                       size_t n_tokens, float* y, size_t y_stride) {
  for (size_t t = 0; t < n_tokens; t += kTokens) {
    const size_t tokens = n_tokens - t < kTokens ? n_tokens - t : kTokens;
    if (tokens == 1) {
      rows_times_vector<T>(w, row_bytes, nullptr, n_rows, n, x[t], y + t * y_stride);
      continue;
    }
    for (size_t block = 0; block < n / kBlock; block += kPanelBlocks) {
      const size_t left = n / kBlock - block;
      rows_times_panel<T>(w, row_bytes, n_rows, x + t, tokens, block, left < kPanelBlocks ? left : kPanelBlocks,
                          y + t * y_stride, y_stride);
    }
  }
}

}  // namespace
}  // namespace sbr
