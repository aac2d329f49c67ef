// How a block of 16 interleaved rows (kernels/interleaved.h) becomes unsigned bytes, each weight plus kOffset, and
// scales in AVX-512 registers with rows in lanes: quads() yields 8 registers, of which k holds elements 4 k .. 4 k + 3.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/interleaved.h"

namespace sbr {
namespace {

inline __m512 load_halves(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// Elements 0..15 in the low nibbles of 4 registers, 16..31 in the high ones.
inline void nibble_quads(const uint8_t* dwords, __m512i* quad) {
  const __m512i mask = _mm512_set1_epi8(15);
  for (size_t k = 0; k < 4; ++k) {
    const __m512i bytes = _mm512_loadu_si512(dwords + 64 * k);
    quad[k] = _mm512_and_si512(bytes, mask);
    quad[4 + k] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), mask);
  }
}

struct TileQ4_0 {
  typedef InterleavedQ4_0 Layout;
  static constexpr int kOffset = 8;
  static constexpr bool kInterleaved = true, kHasMin = false, kHalfBlockScales = false;
  static constexpr size_t kTileBlockBytes = Layout::kBlockBytes;

  static void quads(const uint8_t* tile, size_t b, __m512i* quad) {
    nibble_quads(tile + b * Layout::kBlockBytes + Layout::kDwords, quad);
  }
  static __m512 scale(const uint8_t* tile, size_t b) { return load_halves(tile + b * Layout::kBlockBytes); }
};

struct TileQ4_1 {
  typedef InterleavedQ4_1 Layout;
  static constexpr int kOffset = 0;
  static constexpr bool kInterleaved = true, kHasMin = true, kHalfBlockScales = false;
  static constexpr size_t kTileBlockBytes = Layout::kBlockBytes;

  static void quads(const uint8_t* tile, size_t b, __m512i* quad) {
    nibble_quads(tile + b * Layout::kBlockBytes + Layout::kDwords, quad);
  }
  static __m512 scale(const uint8_t* tile, size_t b) { return load_halves(tile + b * Layout::kBlockBytes); }
  static __m512 min(const uint8_t* tile, size_t b) {
    return load_halves(tile + b * Layout::kBlockBytes + Layout::kMins);
  }
};

struct TileQ8_0 {
  typedef InterleavedQ8_0 Layout;
  static constexpr int kOffset = 128;
  static constexpr bool kInterleaved = true, kHasMin = false, kHalfBlockScales = false;
  static constexpr size_t kTileBlockBytes = Layout::kBlockBytes;

  static void quads(const uint8_t* tile, size_t b, __m512i* quad) {
    const uint8_t* dwords = tile + b * Layout::kBlockBytes + Layout::kDwords;
    for (size_t k = 0; k < 8; ++k) {
      quad[k] = _mm512_xor_si512(_mm512_loadu_si512(dwords + 64 * k), _mm512_set1_epi8(-128));  // q + 128
    }
  }
  static __m512 scale(const uint8_t* tile, size_t b) { return load_halves(tile + b * Layout::kBlockBytes); }
};

// b counts sub-blocks of 32, of which a block has 8.
struct TileQ4_K {
  typedef InterleavedQ4_K Layout;
  static constexpr int kOffset = 0;
  static constexpr bool kInterleaved = true, kHasMin = true, kHalfBlockScales = false;
  static constexpr size_t kTileBlockBytes = Layout::kBlockBytes / 8;  // on average

  static const uint8_t* block(const uint8_t* tile, size_t b) { return tile + b / 8 * Layout::kBlockBytes; }

  static void quads(const uint8_t* tile, size_t b, __m512i* quad) {
    const uint8_t* nibbles = block(tile, b) + Layout::kNibbles + b % 8 / 2 * 8 * 64;
    const __m128i shift = _mm_cvtsi32_si128(b % 2 ? 4 : 0);
    for (size_t k = 0; k < 8; ++k) {
      quad[k] = _mm512_and_si512(_mm512_srl_epi16(_mm512_loadu_si512(nibbles + 64 * k), shift), _mm512_set1_epi8(15));
    }
  }

  // q4_k_scale_min() for 16 rows: `from` is 0 for scales, 1 for minima.
  static __m512 six_bits(const uint8_t* tile, size_t b, size_t from) {
    const uint8_t* packed = block(tile, b) + Layout::kDwords;
    const __m128i at = _mm_cvtsi32_si128(static_cast<int>(8 * (b % 4)));
    const __m512i first = _mm512_srl_epi32(_mm512_loadu_si512(packed + 64 * from), at);
    __m512i value = _mm512_and_si512(first, _mm512_set1_epi32(63));
    if (b % 8 >= 4) {
      const __m128i low = _mm_cvtsi32_si128(static_cast<int>(8 * (b % 4) + 4 * from));
      const __m512i last = _mm512_srl_epi32(_mm512_loadu_si512(packed + 128), low);
      value = _mm512_or_si512(_mm512_and_si512(last, _mm512_set1_epi32(15)),
                              _mm512_and_si512(_mm512_srli_epi32(first, 2), _mm512_set1_epi32(0x30)));
    }
    return _mm512_cvtepi32_ps(value);
  }
  static __m512 scale(const uint8_t* tile, size_t b) {
    return _mm512_mul_ps(load_halves(block(tile, b)), six_bits(tile, b, 0));
  }
  static __m512 min(const uint8_t* tile, size_t b) {
    const __m512 dmin = load_halves(block(tile, b) + Layout::kMins);
    return _mm512_mul_ps(_mm512_xor_ps(dmin, _mm512_set1_ps(-0.0f)), six_bits(tile, b, 1));
  }
};

}  // namespace
}  // namespace sbr
