// Up and down of gathered neurons in one pass, against the scalar kernels of which it is the composition: the products
// of gathered rows (rule 4), their gates, and the sums of scaled rows (rule 8).
#pragma once

#include <string>
#include <vector>

#include "kernel_inputs.h"

namespace {

void check_neurons(const Kernels& k, uint32_t type, size_t n, size_t n_rows, size_t n_after, Fill fill, size_t gap) {
  const WeightKernels& slow = kernels_for(SBR_ISA_SCALAR)->weights[type];
  Random random(n * 131 + n_rows * 7 + n_after + uint64_t(fill) * 1000003);
  // As many neurons as half of those that are taken, so that some come twice. The last row ends at the page's end.
  const size_t neurons = (n_rows + n_after) / 2 + 1;
  const size_t row_bytes = n / weight_block_elements(type) * weight_block_bytes(type) + gap;
  Guarded<uint8_t> up(neurons * row_bytes), down(neurons * row_bytes);
  const auto row_of = [&](Guarded<uint8_t>& w, size_t r) { return w.data() + gap + r * row_bytes; };
  for (size_t r = 0; r < neurons; ++r) {
    fill_row(type, n, fill, &random, row_of(up, r));
    fill_row(type, n, fill, &random, row_of(down, r));
  }
  const Inputs in(n, 1, fill, &random);

  std::vector<uint32_t> rows(n_rows + n_after);
  Guarded<const uint8_t*> up_at(rows.size()), down_at(rows.size());
  Guarded<float> gate(n_rows);
  std::vector<float> coefficient(n_rows);
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i] = i + 1 == rows.size() ? uint32_t(neurons - 1) : random.below(uint32_t(neurons));
    up_at[i] = row_of(up, rows[i]);
    down_at[i] = row_of(down, rows[i]);
  }
  slow.gather_gemv(row_of(up, 0), row_bytes, rows.data(), n_rows, n, in.x.data(), coefficient.data());
  for (size_t i = 0; i < n_rows; ++i) {
    gate[i] = i % 5 == 3 ? 0x1p-149f : random.unit();
    coefficient[i] = gate[i] * coefficient[i];
  }
  Output<float> expected(n), got(n);
  for (size_t c = 0; c < n; ++c) expected.data()[c] = got.data()[c] = c % 3 ? 0 : random.unit();
  slow.axpy_rows(row_of(down, 0), row_bytes, rows.data(), coefficient.data(), n_rows, 0, n, expected.data());
  k.weights[type].up_down(up_at.data(), down_at.data(), gate.data(), n_rows, n_after, n, in.x.data(), got.data());
  CHECK_MSG(expected == got, "up_down %s type %u n=%zu rows=%zu after=%zu fill=%d", k.name, type, n, n_rows, n_after,
            int(fill));
}

void check_up_down(const Kernels& k) {
  for (const TypeCase& type : kTypes) {
    if (!k.weights[type.type].up_down) continue;
    for (size_t n : {32, 64, 96, 128, 160, 256, 1536}) {
      for (size_t n_rows : {0, 1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 23, 33}) {
        for (size_t n_after : {0, 1, 40}) {
          check_neurons(k, type.type, n, n_rows, n_after, Fill::kRandom, n_rows % 3 * type.alignment);
        }
        if (n > 160 || n_rows % 8 != 1) continue;
        for (Fill fill : kFills) check_neurons(k, type.type, n, n_rows, 3, fill, 0);
      }
    }
  }
}

}  // namespace
