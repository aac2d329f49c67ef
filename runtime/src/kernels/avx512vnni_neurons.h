// Neuron-major down in q4_0 with AVX-512 (rule 8), and up and down of gathered neurons in one pass.
//
// Four blocks of a row, 128 columns, are one register of nibbles: nibble k of its 16 dwords are the weights of 16
// columns, so that nibbles need not change lanes to become floats. y is brought into that order before the first row
// and back after the last; every column's sum stays the same. What makes floats is chosen so that no pipe of Zen 4 has
// more to do than the others: permutations look at the bits 0 to 3 of a dword, or 0 to 4 of its upper word; between
// them, where nibbles lie within a mantissa, an and-or with an exponent and a subtraction do.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels/avx512_panel.h"
#include "kernels/avx512vnni_matrix.h"
#include "kernels/avx512vnni_types.h"
#include "kernels/kernels.h"
#include "quant/blocks.h"

namespace sbr {
namespace {

constexpr size_t kStepColumns = kStepBlocks * kBlock;

// ---- the order of nibbles: lane 4 b + j of vector 2 i + h is column 32 b + 16 h + 4 j + i

// The transpose of four by four floats in each 128-bit lane; its own inverse, as transpose_lanes is.
void transpose_fours(const __m512i* v, __m512i* out) {
  const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
  const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  out[0] = _mm512_unpacklo_epi64(a, c);
  out[1] = _mm512_unpackhi_epi64(a, c);
  out[2] = _mm512_unpacklo_epi64(b, d);
  out[3] = _mm512_unpackhi_epi64(b, d);
}

void to_nibble_order(float* y) {
  __m512i in[2][4], turned[4], out[4];
  for (int b = 0; b < 4; ++b) {
    for (int h = 0; h < 2; ++h) in[h][b] = _mm512_loadu_si512(y + 32 * b + 16 * h);
  }
  for (int h = 0; h < 2; ++h) {
    transpose_lanes(in[h], turned);
    transpose_fours(turned, out);
    for (int i = 0; i < 4; ++i) _mm512_storeu_si512(y + 16 * (2 * i + h), out[i]);
  }
}

void from_nibble_order(float* y) {
  __m512i in[2][4], turned[4], out[4];
  for (int i = 0; i < 4; ++i) {
    for (int h = 0; h < 2; ++h) in[h][i] = _mm512_loadu_si512(y + 16 * (2 * i + h));
  }
  for (int h = 0; h < 2; ++h) {
    transpose_fours(in[h], turned);
    transpose_lanes(turned, out);
    for (int b = 0; b < 4; ++b) _mm512_storeu_si512(y + 32 * b + 16 * h, out[b]);
  }
}

// n columns of sums in the order of nibbles, n a multiple of 32, while it lives. What is no whole step is kept apart.
class NibbleOrder {
 public:
  NibbleOrder(float* y, size_t n) : y_(y), whole_(n / kStepColumns), rest_(n % kStepColumns) {
    for (size_t s = 0; s < whole_; ++s) to_nibble_order(y + s * kStepColumns);
    if (rest_ == 0) return;
    memset(last_, 0, sizeof last_);
    memcpy(last_, y + whole_ * kStepColumns, rest_ * sizeof(float));
    to_nibble_order(last_);
  }
  ~NibbleOrder() {
    for (size_t s = 0; s < whole_; ++s) from_nibble_order(y_ + s * kStepColumns);
    if (rest_ == 0) return;
    from_nibble_order(last_);
    memcpy(y_ + whole_ * kStepColumns, last_, rest_ * sizeof(float));
  }
  NibbleOrder(const NibbleOrder&) = delete;
  NibbleOrder& operator=(const NibbleOrder&) = delete;

  size_t whole_steps() const { return whole_; }
  size_t blocks_after() const { return rest_ / kBlock; }
  float* step(size_t s) { return s < whole_ ? y_ + s * kStepColumns : last_; }

 private:
  float* y_;
  size_t whole_, rest_;
  alignas(64) float last_[kStepColumns];
};

// ---- rule 8

// Nibble k of every dword, 1 <= k <= 4, minus 8: it is the lowest bits of a mantissa with the exponent 23 - 4 k.
template <int k>
__m512 middle_nibbles(__m512i dwords) {
  const __m512i exponent = _mm512_set1_epi32((127 + 23 - 4 * k) << 23);
  const __m512i bits = _mm512_ternarylogic_epi32(dwords, _mm512_set1_epi32(15 << 4 * k), exponent, 0xea);  // a & b | c
  return _mm512_sub_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(float((1 << (23 - 4 * k)) + 8)));
}

struct HalfLevels {
  alignas(64) uint16_t level[32];
  __m512i load() const { return _mm512_load_si512(level); }
};
constexpr HalfLevels half_levels() {
  const uint16_t levels[16] = {0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
                               0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
  HalfLevels halves = {};
  for (int i = 0; i < 32; ++i) halves.level[i] = levels[i % 16];
  return halves;
}

__m512 lowest_nibbles(__m512i dwords) {
  const __m512 levels = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  return _mm512_permutexvar_ps(dwords, levels);  // looks at the low four bits only
}

// The nibbles of bits 16 to 19, minus 8: upper halves of floats, which the low five bits of a word choose.
__m512 fourth_nibbles(__m512i dwords) {
  static constexpr HalfLevels kLevels = half_levels();
  return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, dwords, kLevels.load()));
}

// Float r of each 128-bit lane, in all of the lane.
__m512 spread(__m512 scales, int r) {
  switch (r) {
    case 0:
      return _mm512_permute_ps(scales, 0x00);
    case 1:
      return _mm512_permute_ps(scales, 0x55);
    case 2:
      return _mm512_permute_ps(scales, 0xaa);
    default:
      return _mm512_permute_ps(scales, 0xff);
  }
}

// The words of nibbles out of the first 64 bytes of a step and its last 16.
constexpr WordIndex kNibbles = nibble_words(1, 9, 28);

template <bool kFull>
__m512i last_eight(const uint8_t* step) {
  if (!kFull) return _mm512_setzero_si512();
  return _mm512_zextsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(step + 56)));
}

// Word 4 b + r of the register is the scale of block b, for place() with row r.
constexpr WordIndex scale_lanes() {
  WordIndex index = {};
  for (int i = 0; i < 32; ++i) index.word[i] = int16_t(i / 4 % 4 * 9);
  return index;
}
constexpr WordIndex kScaleLanes = scale_lanes();

// Lane 4 b + r = coefficient[r] * the scale of block b of the row that head[r] is the begin of, of kCount <= 4 rows.
template <int kCount>
__m512 scales_of(const __m512i* head, const float* coefficient) {
  __m512i halves = _mm512_setzero_si512();
#pragma GCC unroll 4
  for (int r = 0; r < kCount; ++r) {
    halves = _mm512_mask_permutexvar_epi16(halves, __mmask32(0x1111u << r), kScaleLanes.load(), head[r]);
  }
  const __m512 factors =
      kCount == 4 ? _mm512_broadcast_f32x4(_mm_loadu_ps(coefficient)) : _mm512_set1_ps(coefficient[0]);
  return _mm512_mul_ps(factors, _mm512_cvtph_ps(_mm512_castsi512_si256(halves)));
}

// Lines of rows to come, row after row, a few at a time.
class RowsAhead {
 public:
  RowsAhead(const uint8_t* const* row, size_t n_rows, size_t bytes) : row_(row), end_(row + n_rows), bytes_(bytes) {}

  void few() {
    for (int i = 0; i < kLines && row_ != end_; ++i) {
      __builtin_prefetch(*row_ + at_, 0, 2);
      at_ += 64;
      if (at_ >= bytes_) {
        at_ = 0;
        ++row_;
      }
    }
  }

 private:
  // For every 4 rows of a step: 288 lines per tile of 1536 columns, of which the next tile has 224.
  static constexpr int kLines = 6;

  const uint8_t* const* row_;
  const uint8_t* const* end_;
  size_t bytes_;
  size_t at_ = 0;
};

// One step, of which `valid` blocks exist, of kRows rows: 1 or a multiple of 4.
template <int kRows, bool kFull>
void add_rows(const uint8_t* const* row, size_t at, size_t valid, const float* coefficient, RowsAhead* ahead,
              float* y) {
  static_assert(kRows == 1 || kRows % 4 == 0, "scales are taken four rows at a time");
  constexpr int kGroup = kRows < 4 ? kRows : 4;
  const size_t available = valid * sizeof(BlockQ4_0);
  __m512 acc[8];
#pragma GCC unroll 8
  for (int k = 0; k < 8; ++k) acc[k] = _mm512_loadu_ps(y + 16 * k);
  for (int g = 0; g < kRows; g += kGroup) {
    ahead->few();
    __m512i head[kGroup];
#pragma GCC unroll 4
    for (int r = 0; r < kGroup; ++r) head[r] = load_bytes<kFull>(row[g + r] + at, available);
    const __m512 scales = scales_of<kGroup>(head, coefficient + g);
#pragma GCC unroll 4
    for (int r = 0; r < kGroup; ++r) {
      const __m512i nibbles = _mm512_permutex2var_epi16(head[r], kNibbles.load(), last_eight<kFull>(row[g + r] + at));
      const __m512i upper = _mm512_srli_epi32(nibbles, 12);
      const __m512 scale = spread(scales, r);
      acc[0] = _mm512_fmadd_ps(scale, lowest_nibbles(nibbles), acc[0]);
      acc[1] = _mm512_fmadd_ps(scale, middle_nibbles<1>(nibbles), acc[1]);
      acc[2] = _mm512_fmadd_ps(scale, middle_nibbles<2>(nibbles), acc[2]);
      acc[3] = _mm512_fmadd_ps(scale, lowest_nibbles(upper), acc[3]);
      acc[4] = _mm512_fmadd_ps(scale, fourth_nibbles(nibbles), acc[4]);
      acc[5] = _mm512_fmadd_ps(scale, middle_nibbles<2>(upper), acc[5]);
      acc[6] = _mm512_fmadd_ps(scale, middle_nibbles<3>(upper), acc[6]);
      acc[7] = _mm512_fmadd_ps(scale, fourth_nibbles(upper), acc[7]);
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < 8; ++k) _mm512_storeu_ps(y + 16 * k, acc[k]);
}

template <int kRows>
void add_all_columns(const uint8_t* const* row, const float* coefficient, RowsAhead* ahead, NibbleOrder* y) {
  size_t at = 0;
  for (size_t s = 0; s < y->whole_steps(); ++s, at += Q4_0::kStepBytes) {
    add_rows<kRows, true>(row, at, kStepBlocks, coefficient, ahead, y->step(s));
  }
  if (y->blocks_after() == 0) return;
  add_rows<kRows, false>(row, at, y->blocks_after(), coefficient, ahead, y->step(y->whole_steps()));
}

constexpr size_t kNeuronTile = 16;
// Rows that may be asked for while a tile is computed.
constexpr size_t kRowsAhead = 2 * kNeuronTile;

// Up to kNeuronTile rows.
void add_tile(const uint8_t* const* row, const float* coefficient, size_t count, RowsAhead* ahead, NibbleOrder* y) {
  if (count == kNeuronTile) return add_all_columns<kNeuronTile>(row, coefficient, ahead, y);
  size_t i = 0;
  for (; i + 4 <= count; i += 4) add_all_columns<4>(row + i, coefficient + i, ahead, y);
  for (; i < count; ++i) add_all_columns<1>(row + i, coefficient + i, ahead, y);
}

size_t at_most(size_t n, size_t most) { return n < most ? n : most; }

void axpy_rows_q4_0_avx512vnni(const uint8_t* w, size_t row_bytes, const uint32_t* rows, const float* coefficient,
                               size_t n_rows, size_t col_begin, size_t col_end, float* y) {
  if (n_rows == 0) return;
  const size_t begin = col_begin / kBlock * sizeof(BlockQ4_0),
               bytes = (col_end - col_begin) / kBlock * sizeof(BlockQ4_0);
  NibbleOrder sums(y, col_end - col_begin);
  const uint8_t* row[kNeuronTile + kRowsAhead];
  for (size_t i = 0; i < n_rows; i += kNeuronTile) {
    const size_t known = at_most(n_rows - i, kNeuronTile + kRowsAhead), count = at_most(known, kNeuronTile);
    for (size_t r = 0; r < known; ++r) row[r] = w + rows[i + r] * row_bytes + begin;
    RowsAhead ahead(row + count, known - count, bytes);
    add_tile(row, coefficient + i, count, &ahead, &sums);
  }
}

// ---- up and down in one pass

template <int kGroups>
__m512 up_tile(const uint8_t* const* row, size_t n, const Activation& x, RowsAhead* ahead) {
  const size_t blocks = n / kBlock, whole = blocks / kStepBlocks;
  __m512 acc = _mm512_setzero_ps();
  for (size_t step = 0; step < whole; ++step) {
    acc = step_rows<Q4_0, kGroups, true>(row, step, kStepBlocks, x, acc, [&] { ahead->few(); });
  }
  if (blocks % kStepBlocks) acc = step_rows<Q4_0, kGroups, false>(row, whole, blocks % kStepBlocks, x, acc, [] {});
  return acc;
}

// While up's products leave most instructions unused, down's sums leave most of the memory's speed: together both are
// used, but only where a neuron's two rows lie side by side (repack.h): elsewhere one pass took 4.2 ms of what two took
// 3.9 (SmallThinker-4B's token), and side by side 3.3. Both rows of a neuron are asked for together, by up's tiles and
// by down's: up's rows by the one and down's by the other took 8 % longer.
void up_down_q4_0_avx512vnni(const uint8_t* const* up, const uint8_t* const* down, const float* gate, size_t n_rows,
                             size_t n_after, size_t n, const Activation* x, float* y) {
  if (n_rows == 0) return;
  const size_t bytes = n / kBlock * sizeof(BlockQ4_0);
  NibbleOrder sums(y, n);
  for (size_t i = 0; i < n_rows; i += kNeuronTile) {
    const size_t count = at_most(n_rows - i, kNeuronTile), next = i + count;
    const size_t later = at_most(n_rows + n_after - next, kRowsAhead);
    const uint8_t* padded[kNeuronTile];
    const uint8_t* const* row = up + i;
    if (count < kNeuronTile) {
      for (size_t r = 0; r < kNeuronTile; ++r) padded[r] = row[at_most(r, count - 1)];
      row = padded;
    }
    const uint8_t* both[2 * kRowsAhead];
    for (size_t r = 0; r < later; ++r) {
      both[2 * r] = up[next + r];
      both[2 * r + 1] = down[next + r];
    }
    RowsAhead ahead(both, 2 * later, bytes);
    const __m512 products = count > 8   ? up_tile<4>(row, n, *x, &ahead)
                            : count > 4 ? up_tile<2>(row, n, *x, &ahead)
                                        : up_tile<1>(row, n, *x, &ahead);
    const __mmask16 real = __mmask16((1u << count) - 1);
    alignas(64) float coefficient[kNeuronTile];
    _mm512_store_ps(coefficient, _mm512_mul_ps(_mm512_maskz_loadu_ps(real, gate + i), products));
    add_tile(down + i, coefficient, count, &ahead, &sums);
  }
}

}  // namespace
}  // namespace sbr
