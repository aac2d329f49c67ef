// Products of interleaved matrices against the scalar products of the same rows in the file's layout, bit by bit.
#pragma once

#include <string>
#include <vector>

#include "kernel_inputs.h"
#include "quant/interleave.h"

namespace {

void check_interleaved(const Kernels& k, const TypeCase& type, size_t n, size_t n_rows, size_t n_tokens, Fill fill) {
  Random random(n * 37 + n_rows * 11 + type.type + uint64_t(fill) * 1000003);
  const size_t row_bytes = n / weight_block_elements(type.type) * weight_block_bytes(type.type);
  std::vector<uint8_t> rows(row_bytes * n_rows), row(row_bytes);
  for (size_t r = 0; r < n_rows; ++r) fill_row(type.type, n, fill, &random, rows.data() + r * row_bytes);
  Guarded<uint8_t> tiles(rows.size());
  interleave_rows(type.type, rows.data(), row_bytes, n_rows, tiles.data());
  for (size_t r = 0; r < n_rows; ++r) {
    extract_row(type.type, tiles.data(), row_bytes, r, row.data());
    CHECK_MSG(std::memcmp(row.data(), rows.data() + r * row_bytes, row_bytes) == 0, "%s row %zu", type.name, r);
  }

  const Inputs in(n, n_tokens, fill, &random);
  const WeightKernels& slow = kernels_for(SBR_ISA_SCALAR)->weights[type.type];
  const WeightKernels& fast = k.weights[kInterleaved + type.type];
  const std::string what = std::string(k.name) + " " + type.name + " n=" + std::to_string(n) +
                           " rows=" + std::to_string(n_rows) + " fill=" + std::to_string(int(fill));
  Output<float> expected(n_rows), got(n_rows);
  slow.gemv(rows.data(), row_bytes, n_rows, n, in.x.data(), expected.data());
  fast.gemv(tiles.data(), row_bytes, n_rows, n, in.x.data(), got.data());
  CHECK_MSG(expected == got, "interleaved gemv %s", what.c_str());
  for (size_t tokens : {size_t(1), size_t(2), n_tokens}) {
    const size_t y_stride = n_rows + 3;
    Output<float> all(y_stride * tokens), all_got(y_stride * tokens);
    slow.gemm(rows.data(), row_bytes, n_rows, n, in.x.data(), tokens, all.data(), y_stride);
    fast.gemm(tiles.data(), row_bytes, n_rows, n, in.x.data(), tokens, all_got.data(), y_stride);
    CHECK_MSG(all == all_got, "interleaved gemm %s tokens=%zu", what.c_str(), tokens);
  }
  Output<float> untouched(4);
  fast.gemv(tiles.data(), row_bytes, 0, n, in.x.data(), untouched.data());
  fast.gemm(tiles.data(), row_bytes, 0, n, in.x.data(), n_tokens, untouched.data(), 4);
  CHECK_MSG(untouched == Output<float>(4), "empty interleaved %s", what.c_str());
}

void check_interleaved(const Kernels& k, bool all) {
  for (const TypeCase& type : kTypes) {
    if (!can_interleave(type.type)) continue;
    const bool super = weight_block_elements(type.type) == kSuperBlock;
    std::vector<size_t> lengths = {256, 512};
    if (!super) lengths.insert(lengths.end(), {32, 64, 96, 160});
    for (size_t n : lengths) {
      check_interleaved(k, type, n, 16, 5, Fill::kRandom);
      if (!all) continue;
      for (Fill fill : kFills) check_interleaved(k, type, n, 32, 7, fill);
    }
    if (!all) continue;
    check_interleaved(k, type, 1536, 48, 70, Fill::kRandom);
    check_interleaved(k, type, 4608, 16, 2, Fill::kRandom);  // more blocks than a kernel's stack holds
  }
}

}  // namespace
