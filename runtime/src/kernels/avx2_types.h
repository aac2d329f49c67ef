// How two blocks of 32 weights of each quantised type become bytes and scales in 256-bit registers.
//
// A step is two blocks (64 weights) of a row: one register holds elements 0..15 of both blocks, another 16..31, as
// unsigned bytes (each weight plus kOffset), or as signed ones (q8_0). A tile is 8 rows.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "quant/blocks.h"

namespace sbr {
namespace {

constexpr size_t kStepBlocks = 2;
constexpr size_t kTileRows = 8;

// Block scales of a tile's rows.
struct HalfScales {
  uint16_t half[kStepBlocks][kTileRows];

  void put(size_t b, size_t r, const uint8_t* p) { memcpy(&half[b][r], p, sizeof half[b][r]); }
  __m256 get(size_t b) const {
    const uint16_t* h = half[b];
    return _mm256_cvtph_ps(_mm_setr_epi16(int16_t(h[0]), int16_t(h[1]), int16_t(h[2]), int16_t(h[3]), int16_t(h[4]),
                                          int16_t(h[5]), int16_t(h[6]), int16_t(h[7])));
  }
};

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

__m256i broadcast_quad(const int8_t* q) {
  int32_t four;
  memcpy(&four, q, sizeof four);
  return _mm256_set1_epi32(four);
}

// The 16-bit sums of two blocks' first and second halves, in the lanes of the blocks, times the scales of those halves
// (first 0, second 0, first 1, second 1), added by pairs. The scales are the high bytes of words, because that needs no
// widening; the sums are then multiples of 256 and below 2^31 (2 * 16256 * 128 * 256).
// kLowWords: sums fill dwords and fit their low words.
template <bool kLowWords>
__m256i scale_halves(const int8_t* scales, __m256i first, __m256i second) {
  int32_t four;
  memcpy(&four, scales, sizeof four);
  const __m256i all = _mm256_set1_epi32(four);
  // Bytes 0 and 2, or 1 and 3, become high bytes of words; 80 makes a zero.
  const auto choose = [](unsigned a, unsigned b) {
    const unsigned both = kLowWords ? 0x100 : 0x1000100, rest = kLowWords ? 0x80800080 : 0x00800080;
    return _mm256_set_m128i(_mm_set1_epi32(int(rest + b * both)), _mm_set1_epi32(int(rest + a * both)));
  };
  const __m256i even = choose(0, 2), odd = choose(1, 3);
  const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(first, _mm256_shuffle_epi8(all, even)),
                                       _mm256_madd_epi16(second, _mm256_shuffle_epi8(all, odd)));
  return _mm256_srai_epi32(sum, 8);
}

// ---- types: unpack() gives the bytes of `valid` (1 or 2) blocks and stores their scales; once it has done so for all
// rows, in order, scale(b) and min(b) are those of block b with rows in lanes

template <class Block, size_t kNibblesAt>
void unpack_nibbles(const uint8_t* p, size_t valid, __m256i* first, __m256i* second) {
  const __m128i second_block = valid > 1 ? load128(p + sizeof(Block) + kNibblesAt) : _mm_setzero_si128();
  split_nibbles(_mm256_set_m128i(second_block, load128(p + kNibblesAt)), first, second);
}

struct Q4_0 {
  static constexpr int kOffset = 8;
  static constexpr bool kInterleaved = false, kSigned = false, kHasMin = false, kHalfBlockScales = false;
  static constexpr size_t kStepBytes = 2 * sizeof(BlockQ4_0);
  struct Scales {
    HalfScales scales;
    __m256 scale(size_t b) const { return scales.get(b); }
  };
  static void unpack(const uint8_t* row, size_t step, size_t valid, size_t r, Scales* s, __m256i* first,
                     __m256i* second) {
    const uint8_t* p = row + step * kStepBytes;
    for (size_t b = 0; b < 2; ++b) s->scales.put(b, r, p + (b < valid ? b : 0) * sizeof(BlockQ4_0));
    unpack_nibbles<BlockQ4_0, 2>(p, valid, first, second);
  }
};

struct Q4_1 {
  static constexpr int kOffset = 0;
  static constexpr bool kInterleaved = false, kSigned = false, kHasMin = true, kHalfBlockScales = false;
  static constexpr size_t kStepBytes = 2 * sizeof(BlockQ4_1);
  struct Scales {
    HalfScales scales, mins;
    __m256 scale(size_t b) const { return scales.get(b); }
    __m256 min(size_t b) const { return mins.get(b); }
  };
  static void unpack(const uint8_t* row, size_t step, size_t valid, size_t r, Scales* s, __m256i* first,
                     __m256i* second) {
    const uint8_t* p = row + step * kStepBytes;
    for (size_t b = 0; b < 2; ++b) {
      const uint8_t* block = p + (b < valid ? b : 0) * sizeof(BlockQ4_1);
      s->scales.put(b, r, block);
      s->mins.put(b, r, block + 2);
    }
    unpack_nibbles<BlockQ4_1, 4>(p, valid, first, second);
  }
};

struct Q8_0 {
  static constexpr int kOffset = 0;
  static constexpr bool kInterleaved = false, kSigned = true, kHasMin = false, kHalfBlockScales = false;
  static constexpr size_t kStepBytes = 2 * sizeof(BlockQ8_0);
  struct Scales {
    HalfScales scales;
    __m256 scale(size_t b) const { return scales.get(b); }
  };
  static void unpack(const uint8_t* row, size_t step, size_t valid, size_t r, Scales* s, __m256i* first,
                     __m256i* second) {
    const uint8_t* p = row + step * kStepBytes;
    for (size_t b = 0; b < 2; ++b) s->scales.put(b, r, p + (b < valid ? b : 0) * sizeof(BlockQ8_0));
    const __m256i other = valid > 1 ? load256(p + sizeof(BlockQ8_0) + 2) : _mm256_setzero_si256();
    split_halves(load256(p + 2), other, first, second);
  }
};

// Heads of 8 rows' q4_k blocks (d, dmin and the packed scales: 16 bytes) are staged and unpacked with rows in lanes.
struct HeadScales {
  __m128i head[kTileRows];
  unsigned pair;
  __m256i d, packed[3];  // dwords 0, and 1 to 3, of the rows' heads

  void transpose() {
    __m256i rows[4];
    for (size_t i = 0; i < 4; ++i) rows[i] = _mm256_set_m128i(head[i + 4], head[i]);
    const __m256i low01 = _mm256_unpacklo_epi32(rows[0], rows[1]), low23 = _mm256_unpacklo_epi32(rows[2], rows[3]);
    const __m256i high01 = _mm256_unpackhi_epi32(rows[0], rows[1]), high23 = _mm256_unpackhi_epi32(rows[2], rows[3]);
    d = _mm256_unpacklo_epi64(low01, low23);
    packed[0] = _mm256_unpackhi_epi64(low01, low23);
    packed[1] = _mm256_unpacklo_epi64(high01, high23);
    packed[2] = _mm256_unpackhi_epi64(high01, high23);
  }

  // q4_k_scale_min() of sub-block 2 pair + b: `from` is 0 for scales, 1 for minima.
  __m256 unpack(unsigned from, size_t b) const {
    const unsigned byte = unsigned(2 * pair + b) % 4;
    const __m256i first = _mm256_srl_epi32(packed[from], _mm_cvtsi32_si128(int(8 * byte)));
    __m256i value = _mm256_and_si256(first, _mm256_set1_epi32(63));
    if (pair >= 2) {
      const __m256i second = _mm256_srl_epi32(packed[2], _mm_cvtsi32_si128(int(8 * byte + 4 * from)));
      value = _mm256_or_si256(_mm256_and_si256(second, _mm256_set1_epi32(15)),
                              _mm256_and_si256(_mm256_srli_epi32(first, 2), _mm256_set1_epi32(0x30)));
    }
    return _mm256_cvtepi32_ps(value);
  }

  // The halves in the dwords' low words as floats.
  static __m256 widen(__m256i low_words) {
    const __m256i words = _mm256_packus_epi32(low_words, low_words);
    return _mm256_cvtph_ps(_mm_unpacklo_epi64(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
  }
  __m256 scale(size_t b) const {
    return _mm256_mul_ps(widen(_mm256_and_si256(d, _mm256_set1_epi32(0xffff))), unpack(0, b));
  }
  __m256 min(size_t b) const {
    const __m256 dmin = _mm256_xor_ps(widen(_mm256_srli_epi32(d, 16)), _mm256_set1_ps(-0.0f));
    return _mm256_mul_ps(dmin, unpack(1, b));
  }
};

struct Q4_K {
  static constexpr int kOffset = 0;
  static constexpr bool kInterleaved = false, kSigned = false, kHasMin = true, kHalfBlockScales = false;
  static constexpr size_t kStepBytes = sizeof(BlockQ4_K) / 4;  // on average
  struct Scales : HeadScales {};
  static void unpack(const uint8_t* row, size_t step, size_t, size_t r, Scales* s, __m256i* first, __m256i* second) {
    const uint8_t* block = row + step / 4 * sizeof(BlockQ4_K);
    s->head[r] = load128(block);
    s->pair = unsigned(step % 4);
    if (r == kTileRows - 1) s->transpose();
    __m256i even, odd;
    split_nibbles(load256(block + offsetof(BlockQ4_K, nibbles) + 32 * (step % 4)), &even, &odd);
    split_halves(even, odd, first, second);
  }
};

struct Q6_K {
  static constexpr int kOffset = 32;
  static constexpr bool kInterleaved = false, kSigned = false, kHasMin = false, kHalfBlockScales = true;
  static constexpr size_t kStepBytes = sizeof(BlockQ6_K) / 4;
  struct Scales {
    HalfScales scales;
    __m256 scale(size_t) const { return scales.get(0); }
  };
  static void unpack(const uint8_t* row, size_t step, size_t, size_t r, Scales* s, __m256i* first, __m256i* second) {
    const uint8_t* block = row + step / 4 * sizeof(BlockQ6_K);
    const size_t half = step % 4 / 2, pair = step % 2;  // blocks 0 and 1, or 2 and 3, of 128 elements
    s->scales.put(0, r, block + offsetof(BlockQ6_K, d));
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

}  // namespace
}  // namespace sbr
