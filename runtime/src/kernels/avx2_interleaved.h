// Interleaved matrices (kernels/interleaved.h) times one vector or several, in 256-bit registers: a register is a dword
// of 8 rows, so that a tile of 16 is two halves and products need neither folding nor transposing. Included after
// avx2_dot.h or avxvnni_dot.h, which say how bytes are multiplied.
//
// Of a type's block in a tile, of kBlocks times 32 elements: quads() yields sub-block s in 8 registers of unsigned
// bytes, each weight plus kOffset, or of signed ones (q8_0), of which k holds elements 4 k .. 4 k + 3; scales() yields
// what BlockScales asks for the scales of the sub-blocks from s on, be they in this block or, where kBlocks is 1, in
// the next.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/avx2_matrix.h"
#include "kernels/avx2_types.h"
#include "kernels/interleaved.h"
#include "kernels/kernels.h"

namespace sbr {
namespace {

// Bytes from the first half's rows to the second's, of 16-bit header words and of dwords.
constexpr size_t kHalfWords = 2 * kTileRows, kHalfDwords = 4 * kTileRows;

__m256 load_halves(const uint8_t* p) { return _mm256_cvtph_ps(load128(p)); }

// Of the types whose scales are halves.
template <class Layout>
struct HeaderScales {
  const uint8_t* words;
  __m256 scale(size_t b) const { return load_halves(words + b * Layout::kBlockBytes); }
  __m256 min(size_t b) const { return load_halves(words + b * Layout::kBlockBytes + Layout::kMins); }
};

// Elements 0..15 in the low nibbles of 4 registers, 16..31 in the high ones.
template <class InterleavedBlock, int kAdded, bool kMinima>
struct NibbleTile {
  typedef InterleavedBlock Layout;
  typedef HeaderScales<Layout> Scales;
  static constexpr int kOffset = kAdded;
  static constexpr bool kInterleaved = true, kSigned = false, kHasMin = kMinima, kHalfBlockScales = false;
  static constexpr size_t kBlocks = 1;

  static void quads(const uint8_t* block, size_t half, size_t, __m256i* quad) {
    const uint8_t* dwords = block + Layout::kDwords + half * kHalfDwords;
    for (size_t k = 0; k < 4; ++k) split_nibbles(load256(dwords + 64 * k), &quad[k], &quad[4 + k]);
  }
  static Scales scales(const uint8_t* block, size_t half, size_t) { return {block + half * kHalfWords}; }
};
typedef NibbleTile<InterleavedQ4_0, 8, false> TileQ4_0;
typedef NibbleTile<InterleavedQ4_1, 0, true> TileQ4_1;

struct TileQ8_0 {
  typedef InterleavedQ8_0 Layout;
  typedef HeaderScales<Layout> Scales;
  static constexpr int kOffset = 0;
  static constexpr bool kInterleaved = true, kSigned = true, kHasMin = false, kHalfBlockScales = false;
  static constexpr size_t kBlocks = 1;

  static void quads(const uint8_t* block, size_t half, size_t, __m256i* quad) {
    const uint8_t* dwords = block + Layout::kDwords + half * kHalfDwords;
    for (size_t k = 0; k < 8; ++k) quad[k] = load256(dwords + 64 * k);
  }
  static Scales scales(const uint8_t* block, size_t half, size_t) { return {block + half * kHalfWords}; }
};

struct TileQ4_K {
  typedef InterleavedQ4_K Layout;
  static constexpr int kOffset = 0;
  static constexpr bool kInterleaved = true, kSigned = false, kHasMin = true, kHalfBlockScales = false;
  static constexpr size_t kBlocks = 8;

  // q4_k_scale_min() of all sub-blocks at once, with the bytes of four in a row's dword.
  struct Scales {
    size_t first;
    __m256 d, minus_dmin;
    __m256i scales[2], mins[2];  // of sub-blocks 0..3 and 4..7

    static __m256 byte(__m256i bytes, size_t i) {
      const __m256i shifted = _mm256_srl_epi32(bytes, _mm_cvtsi32_si128(static_cast<int>(8 * i)));
      return _mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(63)));
    }
    __m256 scale(size_t b) const { return _mm256_mul_ps(d, byte(scales[(first + b) / 4], (first + b) % 4)); }
    __m256 min(size_t b) const { return _mm256_mul_ps(minus_dmin, byte(mins[(first + b) / 4], (first + b) % 4)); }
  };

  static void quads(const uint8_t* block, size_t half, size_t s, __m256i* quad) {
    const uint8_t* nibbles = block + Layout::kNibbles + s / 2 * 8 * 64 + half * kHalfDwords;
    for (size_t k = 0; k < 8; ++k) {
      const __m256i bytes = load256(nibbles + 64 * k);
      quad[k] = _mm256_and_si256(s % 2 ? _mm256_srli_epi16(bytes, 4) : bytes, _mm256_set1_epi8(15));
    }
  }
  // A step's two sub-blocks are of one block.
  static Scales scales(const uint8_t* block, size_t half, size_t s) {
    const uint8_t* packed = block + Layout::kDwords + half * kHalfDwords;
    const __m256i scales = load256(packed), mins = load256(packed + 64), high = load256(packed + 128);
    const __m256i six = _mm256_set1_epi8(63), four = _mm256_set1_epi8(15), two = _mm256_set1_epi8(0x30);
    Scales out;
    out.first = s;
    out.d = load_halves(block + half * kHalfWords);
    out.minus_dmin = _mm256_xor_ps(load_halves(block + Layout::kMins + half * kHalfWords), _mm256_set1_ps(-0.0f));
    out.scales[0] = _mm256_and_si256(scales, six);
    out.mins[0] = _mm256_and_si256(mins, six);
    out.scales[1] = _mm256_or_si256(_mm256_and_si256(high, four), _mm256_and_si256(_mm256_srli_epi16(scales, 2), two));
    out.mins[1] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(high, 4), four),
                                  _mm256_and_si256(_mm256_srli_epi16(mins, 2), two));
    return out;
  }
};

constexpr size_t kStarts = 128;  // blocks of x that the stack holds starts for, a multiple of every kBlocks

// -kAdded * the sum of each block of x. Pairs of 16 bits hold: 128 * 127 * 2 is below 2^15.
template <int kAdded>
void block_starts(const int8_t* q, size_t blocks, int32_t* start) {
  const __m256i bias = _mm256_set1_epi8(static_cast<char>(kAdded)), ones = _mm256_set1_epi16(1);
  for (size_t b = 0; b < blocks; ++b) {
    const __m256i eight = _mm256_madd_epi16(_mm256_maddubs_epi16(bias, load256(q + b * kBlock)), ones);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1));
    start[b] = -_mm_cvtsi128_si32(four);
  }
}

template <class T>
__m256 half_block(const uint8_t* block, size_t half, size_t s, const typename T::Scales& scales, const Activation& x,
                  size_t b, int32_t start, __m256 acc) {
  __m256i quad[8];
  T::quads(block, half, s, quad);
  for (__m256i& bytes : quad) bytes = prepared<T>(bytes);
  const __m256i sums = block_sums<T>(quad, nullptr, x.q + b * kBlock, &start);
  return BlockScales<T>(scales, s).finish(sums, x.d[b], x.sum[b], acc);
}

// Block after block with both halves of a tile in registers, so that memory is one stream.
template <class T>
void tiles_times_vector(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation& x, float* y) {
  const size_t blocks = n / kBlock;
  int32_t start[kStarts] = {};
  for (size_t first = 0; first < blocks; first += kStarts) {
    const size_t end = blocks - first < kStarts ? blocks : first + kStarts;
    if (kBias<T> != 0) block_starts<kBias<T>>(x.q + first * kBlock, end - first, start);
    const uint8_t* tile = w;
    for (size_t r = 0; r < n_rows; r += kInterleavedRows, tile += kInterleavedRows * row_bytes) {
      __m256 acc = first ? _mm256_loadu_ps(y + r) : _mm256_setzero_ps();
      __m256 acc2 = first ? _mm256_loadu_ps(y + r + kTileRows) : _mm256_setzero_ps();
      for (size_t b = first; b < end; b += T::kBlocks) {
        const uint8_t* block = tile + b / T::kBlocks * T::Layout::kBlockBytes;
        const typename T::Scales scales = T::scales(block, 0, 0), scales2 = T::scales(block, 1, 0);
#pragma GCC unroll 8
        for (size_t s = 0; s < T::kBlocks; ++s) {
          acc = half_block<T>(block, 0, s, scales, x, b + s, start[b + s - first], acc);
          acc2 = half_block<T>(block, 1, s, scales2, x, b + s, start[b + s - first], acc2);
        }
      }
      _mm256_storeu_ps(y + r, acc);
      _mm256_storeu_ps(y + r + kTileRows, acc2);
    }
  }
}

template <class T>
void tiles_times_tokens(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x,
                        size_t n_tokens, float* y, size_t y_stride) {
  const auto times_one = [=](const Activation& one, float* out) {
    tiles_times_vector<T>(w, row_bytes, n_rows, n, one, out);
  };
  rows_times_batches<T>(w, row_bytes, n_rows, n, x, n_tokens, times_one, y, y_stride);
}

}  // namespace
}  // namespace sbr
