// Tiles of rows, and prefetching of the tiles to come, for the quantised matrix kernels of every instruction set.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace sbr {
namespace {

// Walks over the cache lines of a later tile's rows while this tile is computed. Hardware prefetchers follow neither
// gathered rows nor many rows of one page. Into the second level: into the first it is limited by that level's few
// miss buffers (on Zen 4 gemv reached 9.6 GB/s instead of 18, 25 being a plain read).
struct Prefetch {
  const uint8_t* const* row;
  size_t n_rows;
  size_t row_bytes;
  size_t at = 0;

  void lines(size_t count) {
    for (size_t i = 0; i < count && n_rows; ++i) {
      __builtin_prefetch(*row + at, 0, 2);
      at += 64;
      if (at >= row_bytes) {
        at = 0;
        ++row;
        --n_rows;
      }
    }
  }
};

// Pointers to the kTile rows from row r on, filled up with the last one; returns how many are real.
template <size_t kTile>
size_t tile_rows(const uint8_t* w, size_t row_bytes, const uint32_t* rows, size_t r, size_t n_rows,
                 const uint8_t** row) {
  if (r >= n_rows) return 0;
  const size_t count = n_rows - r < kTile ? n_rows - r : kTile;
  for (size_t i = 0; i < kTile; ++i) {
    const size_t index = r + (i < count ? i : count - 1);
    row[i] = w + (rows ? rows[index] : index) * row_bytes;
  }
  return count;
}

// The present tile and the kAhead tiles after it.
template <size_t kTile, size_t kAhead>
struct TileRing {
  const uint8_t* row[kAhead + 1][kTile];
  size_t count[kAhead + 1];
  size_t now = 0;

  size_t slot(size_t later) const { return (now + later) % (kAhead + 1); }
};

// Calls tile(ring, first row's number) for tiles of kTile rows.
template <size_t kTile, size_t kAhead, class Tile>
void for_each_ring(const uint8_t* w, size_t row_bytes, const uint32_t* rows, size_t n_rows, const Tile& tile) {
  TileRing<kTile, kAhead> ring;
  for (size_t i = 0; i < kAhead; ++i) {
    ring.count[i] = tile_rows<kTile>(w, row_bytes, rows, kTile * i, n_rows, ring.row[i]);
  }
  for (size_t r = 0; r < n_rows; r += kTile, ring.now = ring.slot(1)) {
    const size_t last = ring.slot(kAhead);
    ring.count[last] = tile_rows<kTile>(w, row_bytes, rows, r + kTile * kAhead, n_rows, ring.row[last]);
    tile(ring, r);
  }
}

// Calls tile(row pointers, count, prefetch, first row's number) for tiles of kTile rows, with the tile kAhead tiles
// further on being prefetched.
template <size_t kTile, size_t kAhead, class Tile>
void for_each_tile(const uint8_t* w, size_t row_bytes, const uint32_t* rows, size_t n_rows, const Tile& tile) {
  for_each_ring<kTile, kAhead>(w, row_bytes, rows, n_rows, [=, &tile](const TileRing<kTile, kAhead>& ring, size_t r) {
    const size_t last = ring.slot(kAhead);
    tile(ring.row[ring.now], ring.count[ring.now], Prefetch{ring.row[last], ring.count[last], row_bytes}, r);
  });
}

// Asks for the lines of all tiles that follow, so that every line is asked for kAhead times. Zen 4 drops prefetches
// while it waits for other lines, and a line that was dropped is loaded by a stalled pipeline: plain loads of gathered
// rows of 864 bytes, 16 rows ahead, ran at 12 GB/s with one request per line, at 16 with two and at 20 with three.
// Line after line of all rows of a tile, which was faster than row after row.
template <size_t kTile, size_t kAhead>
class RepeatedPrefetch {
 public:
  RepeatedPrefetch(const TileRing<kTile, kAhead>& ring, size_t row_bytes) : row_bytes_(row_bytes) {
    for (size_t later = kAhead; later > 0; --later) {
      const size_t slot = ring.slot(later);
      if (ring.count[slot]) row_[n_++] = ring.row[slot];
    }
  }

  // The lines up to byte `end` of each row.
  void until(size_t end) {
    const size_t last = end < row_bytes_ ? end : row_bytes_;
    for (; at_ < last; at_ += 64) {
      for (size_t t = 0; t < n_; ++t) {
        for (size_t i = 0; i < kTile; ++i) __builtin_prefetch(row_[t][i] + at_, 0, 2);
      }
    }
  }

 private:
  const uint8_t* const* row_[kAhead];  // tiles, the furthest first
  size_t n_ = 0;
  size_t row_bytes_;
  size_t at_ = 0;
};

// Rule 8 over gathered rows, kTile at a time: Axpy<8>::run or Axpy<1>::run(row pointers, coefficients, first block,
// end block, prefetch, y).
template <class Block, template <class, int> class Axpy>
void axpy_tiles(const uint8_t* w, size_t row_bytes, const uint32_t* rows, const float* coefficient, size_t n_rows,
                size_t begin, size_t end, float* y) {
  constexpr int kTile = 8;
  size_t i = 0;
  while (i < n_rows) {
    const size_t count = n_rows - i >= kTile ? kTile : 1;
    const uint8_t* row[kTile];
    const uint8_t* next[kTile];
    size_t n_next = 0;
    for (size_t k = 0; k < count; ++k) row[k] = w + rows[i + k] * row_bytes;
    for (; n_next < kTile && i + count + n_next < n_rows; ++n_next) {
      next[n_next] = w + rows[i + count + n_next] * row_bytes + begin * sizeof(Block);
    }
    const Prefetch prefetch = {next, n_next, (end - begin) * sizeof(Block)};
    if (count == kTile) {
      Axpy<Block, kTile>::run(row, coefficient + i, begin, end, prefetch, y);
    } else {
      Axpy<Block, 1>::run(row, coefficient + i, begin, end, prefetch, y);
    }
    i += count;
  }
}

}  // namespace
}  // namespace sbr
