// The layout of interleaved matrices, which kernels read as one stream with rows in lanes.
//
// A tile is 16 rows. Block after block, it holds what the rows have in that block: first each 16-bit header word (d,
// then m or dmin) of rows 0..15, then each further dword of rows 0..15. For q4_0 that is 32 bytes of scales and 4 x 64
// bytes of nibbles: dword r of the k-th 64 bytes holds elements 4 k .. 4 k + 3 of row r in its low nibbles and
// elements 16 + 4 k .. 16 + 4 k + 3 in its high ones. A tile has the size of its rows, and starts where they would.
//
// Against rows one after another (Zen 4, weights from memory, GB/s): one thread 26.6 instead of 16.9, two threads 30.6
// instead of 19.7, a plain read being 28.7 and 31.9. Sums need no folding, scales no gathering, and the hardware's
// prefetcher follows the one stream: prefetching by hand cost 8 to 12 %.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "quant/blocks.h"

namespace sbr {
namespace {

// Where header words and dwords lie in a block of a tile: dword k of 16 rows is at kDwords + 64 k.
struct InterleavedQ4_0 {
  static constexpr size_t kBlockBytes = kInterleavedRows * sizeof(BlockQ4_0), kDwords = 32;
};
struct InterleavedQ4_1 {
  static constexpr size_t kBlockBytes = kInterleavedRows * sizeof(BlockQ4_1), kMins = 32, kDwords = 64;
};
struct InterleavedQ8_0 {
  static constexpr size_t kBlockBytes = kInterleavedRows * sizeof(BlockQ8_0), kDwords = 32;
};
// Of 256 elements: the first 3 dwords are the packed scales; nibbles follow, 8 dwords for every two sub-blocks of 32.
struct InterleavedQ4_K {
  static constexpr size_t kBlockBytes = kInterleavedRows * sizeof(BlockQ4_K), kMins = 32, kDwords = 64;
  static constexpr size_t kNibbles = kDwords + 3 * 64;
};

}  // namespace
}  // namespace sbr
