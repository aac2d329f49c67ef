#include "quant/interleave.h"

#include <cstring>

#include "kernels/kernels.h"
#include "quant/blocks.h"
#include "quant/reference.h"
#include "sbr/sbr.h"

namespace sbr {
namespace {

constexpr size_t kWord = 2, kDword = 4;

// 16-bit words before a block's quants; all else are dwords. SIZE_MAX: the type has no interleaved layout.
size_t header_words(uint32_t type) {
  switch (type) {
    case SBR_TYPE_Q4_0:
    case SBR_TYPE_Q8_0:
      return 1;
    case SBR_TYPE_Q4_1:
    case SBR_TYPE_Q4_K:
      return 2;
    default:
      return SIZE_MAX;
  }
}

// Where a row's header words and dwords lie in a block of the tile.
struct Places {
  Places(uint32_t type, size_t row)
      : block_bytes(weight_block_bytes(type)),
        words(header_words(type)),
        dwords((block_bytes - words * kWord) / kDword),
        first_word(row * kWord),
        first_dword(words * kWord * kInterleavedRows + row * kDword) {}
  size_t tile_block_bytes() const { return block_bytes * kInterleavedRows; }
  size_t word(size_t i) const { return first_word + i * kWord * kInterleavedRows; }
  size_t dword(size_t i) const { return first_dword + i * kDword * kInterleavedRows; }

  const size_t block_bytes, words, dwords;

 private:
  const size_t first_word, first_dword;
};

}  // namespace

bool can_interleave(uint32_t type) { return type < kInterleaved && header_words(type) != SIZE_MAX; }

void interleave_rows(uint32_t type, const uint8_t* in, size_t row_bytes, size_t n_rows, uint8_t* out) {
  for (size_t r = 0; r < n_rows; ++r) {
    const Places at(type, r % kInterleavedRows);
    const uint8_t* from = in + r * row_bytes;
    uint8_t* to = out + r / kInterleavedRows * kInterleavedRows * row_bytes;
    for (size_t b = 0; b < row_bytes / at.block_bytes; ++b, to += at.tile_block_bytes()) {
      for (size_t i = 0; i < at.words; ++i, from += kWord) std::memcpy(to + at.word(i), from, kWord);
      for (size_t i = 0; i < at.dwords; ++i, from += kDword) std::memcpy(to + at.dword(i), from, kDword);
    }
  }
}

void extract_row(uint32_t type, const uint8_t* matrix, size_t row_bytes, size_t r, uint8_t* out) {
  const Places at(type, r % kInterleavedRows);
  const uint8_t* from = matrix + r / kInterleavedRows * kInterleavedRows * row_bytes;
  for (size_t b = 0; b < row_bytes / at.block_bytes; ++b, from += at.tile_block_bytes()) {
    for (size_t i = 0; i < at.words; ++i, out += kWord) std::memcpy(out, from + at.word(i), kWord);
    for (size_t i = 0; i < at.dwords; ++i, out += kDword) std::memcpy(out, from + at.dword(i), kDword);
  }
}

}  // namespace sbr
