// One kernel, one instruction set, one shape, ready to be called again and again. See sbr.h.
#pragma once

#include <cstdint>
#include <vector>

#include "base/buffer.h"
#include "kernels/kernels.h"
#include "sbr/sbr.h"

namespace sbr {

class KernelBench {
 public:
  // Errors: ARGUMENT naming the option, UNSUPPORTED (instruction set, or a type without that kernel), MEMORY.
  explicit KernelBench(const sbr_kernel_bench_options& options);

  // Calls the kernel `calls` times on this thread.
  sbr_probe_result run(uint32_t calls);

 private:
  void call();

  sbr_kernel_bench_options options_;
  const Kernels* kernels_;
  size_t row_bytes_ = 0;
  uint64_t bytes_ = 0;          // of weights, per call (quantise: of floats)
  uint64_t operations_ = 0;     // multiply-adds per call (quantise: values)
  Pages weights_;               // [n_rows][row_bytes]; up_down: of pairs
  std::vector<uint32_t> rows_;  // gather, axpy, up_down: ascending
  std::vector<const uint8_t*> up_, down_;
  Buffer<float> values_;         // [n_tokens][n_cols]
  Buffer<int8_t> quants_;        // [n_tokens][n_cols]
  Buffer<float> scales_, sums_;  // [n_tokens][n_cols / 32]
  Buffer<float> coefficients_;   // [n_rows]
  Buffer<float> out_;            // gemv, gather [n_rows]; gemm [n_tokens][n_rows]; axpy, up_down [n_cols]
  std::vector<Activation> activations_;
};

}  // namespace sbr
