// How four blocks of 32 weights of each quantised type become unsigned bytes and scales in AVX-512 registers.
//
// A "step" is four blocks (128 weights) of one row. unpack() yields two registers of weights, each plus kOffset so
// that they are unsigned as vpdpbusd wants them: 128-bit lane b of the first holds elements 0..15 of block b, of the
// second elements 16..31. A Scales object gathers, over up to 16 rows, the block scales as floats with rows in lanes.
// Only the first `valid` blocks are read (kFull: all four), so a step never reads past its row.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "quant/blocks.h"

namespace sbr {
namespace {

constexpr size_t kStepBlocks = 4;

template <bool kFull>
__m512i load_bytes(const uint8_t* p, size_t available) {
  if (kFull || available >= 64) return _mm512_loadu_si512(p);
  return _mm512_maskz_loadu_epi8((1ull << available) - 1, p);
}

size_t bytes_after(size_t total, size_t offset) { return total > offset ? total - offset : 0; }

// From {blocks 0, 2} and {blocks 1, 3}-like pairs of whole blocks to halves: lanes {a0 a2 b0 b2} and {a1 a3 b1 b3}.
void split_halves(__m512i a, __m512i b, __m512i* first, __m512i* second) {
  *first = _mm512_shuffle_i64x2(a, b, 0x88);
  *second = _mm512_shuffle_i64x2(a, b, 0xdd);
}

// Indices of a word permutation, as constants in memory.
struct WordIndex {
  alignas(64) int16_t word[32];
  __m512i load() const { return _mm512_load_si512(word); }
};

// For place(): word 8 b + k of the register is word blocks[b] of the row's bytes.
constexpr WordIndex scale_words(int b0, int b1, int b2, int b3) {
  const int blocks[4] = {b0, b1, b2, b3};
  WordIndex index = {};
  for (int i = 0; i < 32; ++i) index.word[i] = int16_t(blocks[i / 8]);
  return index;
}

// 8 consecutive words from each of four blocks, starting at `first`, `stride` words apart, out of two registers of
// which the second starts `shift` words after the first.
constexpr WordIndex nibble_words(int first, int stride, int shift) {
  WordIndex index = {};
  for (int i = 0; i < 32; ++i) {
    const int word = first + i / 8 * stride + i % 8;
    index.word[i] = int16_t(word < 32 ? word : 32 + word - shift);
  }
  return index;
}

// Scales stored as f16 at the start of each block. One word permutation per row drops the four scales of a step into
// their places: word 8 b + (row mod 8) of the register for rows 0..7 or 8..15.
struct HalfScales {
  __m512i rows[2];

  HalfScales() : rows{_mm512_setzero_si512(), _mm512_setzero_si512()} {}

  void place(int row, __mmask32 blocks, const WordIndex& index, __m512i words) {
    const __mmask32 mask = (0x01010101u << (row & 7)) & blocks;
    rows[row >> 3] = _mm512_mask_permutexvar_epi16(rows[row >> 3], mask, index.load(), words);
  }

  // scale[b] = the scales of block b, rows in lanes.
  void finish(__m512* scale) const {
    const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    const __m512i blocks01 = _mm512_permutex2var_epi64(rows[0], low, rows[1]);
    const __m512i blocks23 = _mm512_permutex2var_epi64(rows[0], high, rows[1]);
    scale[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(blocks01));
    scale[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(blocks01, 1));
    scale[2] = _mm512_cvtph_ps(_mm512_castsi512_si256(blocks23));
    scale[3] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(blocks23, 1));
  }
};

void split_nibbles(__m512i bytes, __m512i* low, __m512i* high) {
  const __m512i mask = _mm512_set1_epi8(15);
  *low = _mm512_and_si512(bytes, mask);
  *high = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), mask);
}

struct Q4_0 {
  static constexpr int kOffset = 8;
  static constexpr bool kHasMin = false;
  static constexpr bool kHalfBlockScales = false;
  static constexpr bool kInterleaved = false;
  static constexpr size_t kStepBytes = 4 * sizeof(BlockQ4_0);
  static constexpr WordIndex kScaleWords = scale_words(0, 9, 18, 27);
  static constexpr WordIndex kNibbleWords = nibble_words(1, 9, 4);

  struct Scales : HalfScales {};

  template <bool kFull>
  static void unpack(const uint8_t* row, size_t step, size_t valid, int r, Scales* scales, __m512i* first,
                     __m512i* second) {
    const uint8_t* p = row + step * kStepBytes;
    const size_t available = valid * sizeof(BlockQ4_0);
    const __m512i head = load_bytes<kFull>(p, available);
    const __m512i tail = load_bytes<kFull>(p + 8, bytes_after(available, 8));
    scales->place(r, ~0u, kScaleWords, head);
    split_nibbles(_mm512_permutex2var_epi16(head, kNibbleWords.load(), tail), first, second);
  }
};

struct Q4_1 {
  static constexpr int kOffset = 0;
  static constexpr bool kHasMin = true;
  static constexpr bool kHalfBlockScales = false;
  static constexpr bool kInterleaved = false;
  static constexpr size_t kStepBytes = 4 * sizeof(BlockQ4_1);
  static constexpr WordIndex kScaleWords = scale_words(0, 10, 20, 30);
  static constexpr WordIndex kMinWords = scale_words(1, 11, 21, 31);
  static constexpr WordIndex kNibbleWords = nibble_words(2, 10, 8);

  struct Scales : HalfScales {
    HalfScales min;
    void finish_min(__m512* out) const { min.finish(out); }
  };

  template <bool kFull>
  static void unpack(const uint8_t* row, size_t step, size_t valid, int r, Scales* scales, __m512i* first,
                     __m512i* second) {
    const uint8_t* p = row + step * kStepBytes;
    const size_t available = valid * sizeof(BlockQ4_1);
    const __m512i head = load_bytes<kFull>(p, available);
    const __m512i tail = load_bytes<kFull>(p + 16, bytes_after(available, 16));
    scales->place(r, ~0u, kScaleWords, head);
    scales->min.place(r, ~0u, kMinWords, head);
    split_nibbles(_mm512_permutex2var_epi16(head, kNibbleWords.load(), tail), first, second);
  }
};

struct Q8_0 {
  static constexpr int kOffset = 128;
  static constexpr bool kHasMin = false;
  static constexpr bool kHalfBlockScales = false;
  static constexpr bool kInterleaved = false;
  static constexpr size_t kStepBytes = 4 * sizeof(BlockQ8_0);
  static constexpr WordIndex kScaleWords = scale_words(0, 17, 0, 17);  // of two blocks, from the first one's start

  struct Scales : HalfScales {};

  template <bool kFull>
  static void unpack(const uint8_t* row, size_t step, size_t valid, int r, Scales* scales, __m512i* first,
                     __m512i* second) {
    const uint8_t* p = row + step * kStepBytes;
    const size_t available = valid * sizeof(BlockQ8_0);
    scales->place(r, 0x0000ffffu, kScaleWords, load_bytes<kFull>(p, available));
    scales->place(r, 0xffff0000u, kScaleWords, load_bytes<kFull>(p + 68, bytes_after(available, 68)));
    __m256i block[4];
    for (size_t b = 0; b < 4; ++b) {
      if (kFull || b < valid) {
        block[b] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + b * sizeof(BlockQ8_0) + 2));
      } else {
        block[b] = _mm256_setzero_si256();
      }
    }
    const __m512i pair01 = _mm512_inserti64x4(_mm512_castsi256_si512(block[0]), block[1], 1);
    const __m512i pair23 = _mm512_inserti64x4(_mm512_castsi256_si512(block[2]), block[3], 1);
    const __m512i flip = _mm512_set1_epi8(-128);  // q + 128
    split_halves(_mm512_xor_si512(pair01, flip), _mm512_xor_si512(pair23, flip), first, second);
  }
};

// Heads of 16 rows' q4_k blocks (d, dmin and the packed scales: 16 bytes) are staged and unpacked with rows in lanes.
struct HeadScales {
  alignas(64) __m128i head[16];
  size_t half;  // of the block: sub-blocks 0..3 or 4..7
  __m512i d, packed[3];

  HeadScales() : head{}, half(0) {}

  // Dwords 0..3 of every row's head, which lie 4 to a row.
  void transpose() {
    __m512i quarter[4];
    for (int i = 0; i < 4; ++i) quarter[i] = _mm512_load_si512(head + 4 * i);
    const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(2));
    const __m512i low01 = _mm512_permutex2var_epi32(quarter[0], first, quarter[1]);
    const __m512i high01 = _mm512_permutex2var_epi32(quarter[2], first, quarter[3]);
    const __m512i low23 = _mm512_permutex2var_epi32(quarter[0], second, quarter[1]);
    const __m512i high23 = _mm512_permutex2var_epi32(quarter[2], second, quarter[3]);
    d = _mm512_shuffle_i64x2(low01, high01, 0x44);
    packed[0] = _mm512_shuffle_i64x2(low01, high01, 0xee);
    packed[1] = _mm512_shuffle_i64x2(low23, high23, 0x44);
    packed[2] = _mm512_shuffle_i64x2(low23, high23, 0xee);
  }

  // q4_k_scale_min() for sub-blocks 4 half .. 4 half + 3: `from` is 0 for scales, 1 for minima.
  void unpack(int from, __m512 factor, __m512* out) const {
    const __m512i low6 = _mm512_set1_epi32(63), low4 = _mm512_set1_epi32(15), top2 = _mm512_set1_epi32(0x30);
    for (unsigned b = 0; b < 4; ++b) {
      const __m512i first = _mm512_srli_epi32(packed[from], 8 * b);
      __m512i value = _mm512_and_si512(first, low6);
      if (half) {
        value = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi32(packed[2], 8 * b + 4 * unsigned(from)), low4),
                                _mm512_and_si512(_mm512_srli_epi32(first, 2), top2));
      }
      out[b] = _mm512_mul_ps(factor, _mm512_cvtepi32_ps(value));
    }
  }

  void finish(__m512* scale) {
    transpose();
    unpack(0, _mm512_cvtph_ps(_mm512_cvtepi32_epi16(d)), scale);
  }
  void finish_min(__m512* min) const {  // after finish()
    const __m512 dmin = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(d, 16)));
    unpack(1, _mm512_xor_ps(dmin, _mm512_set1_ps(-0.0f)), min);
  }
};

struct Q4_K {
  static constexpr int kOffset = 0;
  static constexpr bool kHasMin = true;
  static constexpr bool kHalfBlockScales = false;
  static constexpr bool kInterleaved = false;
  static constexpr size_t kStepBytes = sizeof(BlockQ4_K) / 2;  // on average: two steps share one block's head

  struct Scales : HeadScales {};

  template <bool kFull>
  static void unpack(const uint8_t* row, size_t step, size_t, int r, Scales* scales, __m512i* first, __m512i* second) {
    const uint8_t* block = row + step / 2 * sizeof(BlockQ4_K);
    scales->half = step % 2;
    scales->head[r] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block));
    __m512i even, odd;  // {block 0, block 2}, {block 1, block 3}
    split_nibbles(_mm512_loadu_si512(block + offsetof(BlockQ4_K, nibbles) + 64 * (step % 2)), &even, &odd);
    *first = _mm512_permutex2var_epi64(even, _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), odd);
    *second = _mm512_permutex2var_epi64(even, _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15), odd);
  }
};

// One scale per row for all four blocks.
struct RowScales {
  alignas(32) uint16_t half[16];

  RowScales() : half{} {}
  void finish(__m512* scale) const {
    const __m512 d = _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(half)));
    for (int b = 0; b < 4; ++b) scale[b] = d;
  }
};

struct Q6_K {
  static constexpr int kOffset = 32;
  static constexpr bool kHasMin = false;
  static constexpr bool kHalfBlockScales = true;
  static constexpr bool kInterleaved = false;
  static constexpr size_t kStepBytes = sizeof(BlockQ6_K) / 2;

  struct Scales : RowScales {};

  template <bool kFull>
  static void unpack(const uint8_t* row, size_t step, size_t, int r, Scales* scales, __m512i* first, __m512i* second) {
    const uint8_t* block = row + step / 2 * sizeof(BlockQ6_K);
    const size_t half = step % 2;
    memcpy(&scales->half[r], block + offsetof(BlockQ6_K, d), sizeof scales->half[r]);
    const __m512i low = _mm512_loadu_si512(block + 64 * half);
    const __m512i high = _mm512_broadcast_i64x4(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + offsetof(BlockQ6_K, high) + 32 * half)));
    __m512i nibbles01, nibbles23;
    split_nibbles(low, &nibbles01, &nibbles23);
    // Two bits of each high byte, moved to bits 4 and 5: block 0 by 4 up, 1 by 2 up, 2 by none, 3 by 2 down.
    const __m512i mask = _mm512_set1_epi8(0x30);
    const __m512i up = _mm512_inserti64x4(_mm512_set1_epi16(4), _mm256_set1_epi16(2), 1);
    const __m512i down = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(2), 1);
    const __m512i bits01 = _mm512_and_si512(_mm512_sllv_epi16(high, up), mask);
    const __m512i bits23 = _mm512_and_si512(_mm512_srlv_epi16(high, down), mask);
    split_halves(_mm512_or_si512(nibbles01, bits01), _mm512_or_si512(nibbles23, bits23), first, second);
  }

  // The scales of the halves of a step's blocks.
  static void copy_half_scales(const uint8_t* row, size_t step, int8_t* out) {
    memcpy(out, row + step / 2 * sizeof(BlockQ6_K) + offsetof(BlockQ6_K, scales) + 8 * (step % 2), 8);
  }

  // The sums of the lanes' two products with the scales of their halves. A lane's sum of four fits 16 bits (32 * 127 *
  // 4), so vpmaddwd multiplies it, here by 256 times the scale, which saves widening the scales.
  static __m512i scaled(const uint8_t* row, size_t step, __m512i first, __m512i second) {
    int64_t scales;
    memcpy(&scales, row + step / 2 * sizeof(BlockQ6_K) + offsetof(BlockQ6_K, scales) + 8 * (step % 2), sizeof scales);
    const __m512i all = _mm512_set1_epi64(scales);
    // Byte 1 of each dword: scale 2 b, or 2 b + 1; its other bytes 0.
    const __m512i even = _mm512_inserti64x4(
        _mm512_castsi256_si512(_mm256_set_m128i(_mm_set1_epi32(int(0x80800280)), _mm_set1_epi32(int(0x80800080)))),
        _mm256_set_m128i(_mm_set1_epi32(int(0x80800680)), _mm_set1_epi32(int(0x80800480))), 1);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(0x100));
    const __m512i sum = _mm512_add_epi32(_mm512_madd_epi16(first, _mm512_shuffle_epi8(all, even)),
                                         _mm512_madd_epi16(second, _mm512_shuffle_epi8(all, odd)));
    return _mm512_srai_epi32(sum, 8);
  }
};

}  // namespace
}  // namespace sbr
