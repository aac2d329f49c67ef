#include "bench/kernel_bench.h"

#include <time.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "base/error.h"
#include "quant/blocks.h"
#include "quant/reference.h"

namespace sbr {
namespace {

constexpr uint64_t kMostBytes = uint64_t{4} << 30;

uint64_t now_ns() {
  timespec time = {};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<uint64_t>(time.tv_sec) * 1000000000u + static_cast<uint64_t>(time.tv_nsec);
}

[[noreturn]] void refuse(const std::string& problem) { throw Error(SBR_ERR_ARGUMENT, "kernel bench: " + problem); }

void check_range(const char* option, uint64_t value, uint64_t least, uint64_t most) {
  if (value >= least && value <= most) return;
  refuse(std::string(option) + " is " + std::to_string(value) + ", expected " + std::to_string(least) + " to " +
         std::to_string(most));
}

bool interleaved(uint32_t weight_type) { return weight_type >= kInterleaved && weight_type < kWeightTypeSlots; }

// The type that says how many bytes a row takes.
uint32_t file_type(uint32_t weight_type) { return interleaved(weight_type) ? weight_type - kInterleaved : weight_type; }

void check(const sbr_kernel_bench_options& options) {
  check_range("kernel", options.kernel, SBR_KERNEL_GEMV, SBR_KERNEL_UP_DOWN);
  check_range("n_rows", options.n_rows, 1, 1u << 24);
  check_range("n_cols", options.n_cols, 1, 1u << 20);
  check_range("n_tokens", options.n_tokens, 1, 4096);
  check_range("keep", options.keep, 1, 1000);
  const size_t elements = weight_block_elements(file_type(options.weight_type));
  if (elements == 0) refuse("weight_type is " + std::to_string(options.weight_type) + ", which has no kernels");
  const size_t step = std::max<size_t>(elements, kBlock);
  if (options.n_cols % step != 0) {
    refuse("n_cols is " + std::to_string(options.n_cols) + ", expected a multiple of " + std::to_string(step));
  }
  if (interleaved(options.weight_type) && options.n_rows % kInterleavedRows != 0) {
    refuse("n_rows is " + std::to_string(options.n_rows) + ", expected a multiple of " +
           std::to_string(int(kInterleavedRows)) + ", the rows of a tile, for an interleaved weight_type");
  }
}

const Kernels* find_kernels(const sbr_kernel_bench_options& options) {
  const Kernels* kernels = kernels_for(options.isa);
  if (kernels == nullptr || !kernels_supported(kernels)) {
    throw Error(SBR_ERR_UNSUPPORTED,
                "kernel bench: instruction set " + std::to_string(options.isa) + " is not available here");
  }
  const WeightKernels& weights = kernels->weights[options.weight_type];
  const bool found = options.kernel == SBR_KERNEL_QUANTISE ||
                     (options.kernel == SBR_KERNEL_GEMV && weights.gemv != nullptr) ||
                     (options.kernel == SBR_KERNEL_GATHER_GEMV && weights.gather_gemv != nullptr) ||
                     (options.kernel == SBR_KERNEL_GEMM && weights.gemm != nullptr) ||
                     (options.kernel == SBR_KERNEL_AXPY_ROWS && weights.axpy_rows != nullptr) ||
                     (options.kernel == SBR_KERNEL_UP_DOWN && weights.up_down != nullptr);
  if (!found) {
    throw Error(SBR_ERR_UNSUPPORTED, "kernel bench: weight_type " + std::to_string(options.weight_type) +
                                         " has no kernel " + std::to_string(options.kernel));
  }
  return kernels;
}

// Rows of any quants with finite scales: bytes below 0x40 make every half and every float that they form finite.
void fill(uint8_t* weights, uint64_t bytes) {
  uint32_t state = 1;
  for (uint64_t i = 0; i < bytes; ++i) {
    state = state * 1664525 + 1013904223;
    weights[i] = static_cast<uint8_t>((state >> 24) & 0x3f);
  }
}

// As many of every 1000 rows as `keep` says, scattered as a sparse FFN's active neurons are.
std::vector<uint32_t> kept_rows(uint32_t n_rows, uint32_t keep) {
  std::vector<uint32_t> rows;
  for (uint32_t r = 0; r < n_rows; ++r) {
    if (r * 2654435761u % 1000 < keep) rows.push_back(r);
  }
  if (rows.empty()) rows.push_back(0);
  return rows;
}

}  // namespace

KernelBench::KernelBench(const sbr_kernel_bench_options& options) : options_(options) {
  check(options);
  kernels_ = find_kernels(options);
  const size_t n_cols = options.n_cols;
  const size_t n_tokens = options.kernel == SBR_KERNEL_GEMM ? options.n_tokens : 1;
  options_.n_tokens = static_cast<uint32_t>(n_tokens);
  const uint32_t type = file_type(options.weight_type);
  row_bytes_ = n_cols / weight_block_elements(type) * weight_block_bytes(type);
  const uint64_t rows_of_each = options.kernel == SBR_KERNEL_UP_DOWN ? 2 : 1;
  const uint64_t all = options.n_rows * rows_of_each * row_bytes_;
  if (all > kMostBytes) refuse("the weights would take " + std::to_string(all) + " bytes, more than 4 GiB");
  if (options.kernel != SBR_KERNEL_QUANTISE) {
    weights_ = Pages(all, true);
    fill(weights_.data(), all);
  }
  if (options.kernel == SBR_KERNEL_GATHER_GEMV || options.kernel == SBR_KERNEL_AXPY_ROWS ||
      options.kernel == SBR_KERNEL_UP_DOWN) {
    rows_ = kept_rows(options.n_rows, options.keep);
  }
  if (options.kernel == SBR_KERNEL_UP_DOWN) {
    for (const uint32_t r : rows_) {
      up_.push_back(weights_.data() + size_t{r} * 2 * row_bytes_);
      down_.push_back(up_.back() + row_bytes_);
    }
  }
  const uint64_t n_rows = (rows_.empty() ? options.n_rows : rows_.size()) * rows_of_each;
  bytes_ = n_rows * row_bytes_;
  operations_ = n_rows * n_cols * n_tokens;
  if (options.kernel == SBR_KERNEL_QUANTISE) {
    bytes_ = n_cols * sizeof(float);
    operations_ = n_cols;
  }

  values_ = Buffer<float>(n_cols * n_tokens);
  quants_ = Buffer<int8_t>(n_cols * n_tokens);
  scales_ = Buffer<float>(n_cols / kBlock * n_tokens);
  sums_ = Buffer<float>(n_cols / kBlock * n_tokens);
  for (size_t i = 0; i < values_.size(); ++i) {
    values_[i] = static_cast<float>(static_cast<uint32_t>(i) * 2654435761u % 1000) / 500 - 1;
  }
  for (size_t t = 0; t < n_tokens; ++t) {
    const size_t value = t * n_cols, block = value / kBlock;
    kernels_->quantise(&values_[value], n_cols, &quants_[value], &scales_[block], &sums_[block]);
    activations_.push_back({&values_[value], &quants_[value], &scales_[block], &sums_[block]});
  }
  coefficients_ = Buffer<float>(rows_.size());
  for (size_t i = 0; i < coefficients_.size(); ++i) coefficients_[i] = 0.01f;
  out_ = Buffer<float>(std::max(n_cols, options.n_rows * n_tokens));
}

void KernelBench::call() {
  const size_t n_rows = options_.n_rows, n_cols = options_.n_cols;
  const WeightKernels& weights = kernels_->weights[options_.weight_type];
  switch (options_.kernel) {
    case SBR_KERNEL_GEMV:
      weights.gemv(weights_.data(), row_bytes_, n_rows, n_cols, activations_.data(), out_.data());
      break;
    case SBR_KERNEL_GATHER_GEMV:
      weights.gather_gemv(weights_.data(), row_bytes_, rows_.data(), rows_.size(), n_cols, activations_.data(),
                          out_.data());
      break;
    case SBR_KERNEL_GEMM:
      weights.gemm(weights_.data(), row_bytes_, n_rows, n_cols, activations_.data(), options_.n_tokens, out_.data(),
                   n_rows);
      break;
    case SBR_KERNEL_AXPY_ROWS:
      // From zero each time: sums that grew from call to call would end as infinities.
      std::memset(out_.data(), 0, n_cols * sizeof(float));
      weights.axpy_rows(weights_.data(), row_bytes_, rows_.data(), coefficients_.data(), rows_.size(), 0, n_cols,
                        out_.data());
      break;
    case SBR_KERNEL_UP_DOWN:
      std::memset(out_.data(), 0, n_cols * sizeof(float));
      weights.up_down(up_.data(), down_.data(), coefficients_.data(), rows_.size(), 0, n_cols, activations_.data(),
                      out_.data());
      break;
    default:
      kernels_->quantise(values_.data(), n_cols, quants_.data(), scales_.data(), sums_.data());
  }
}

sbr_probe_result KernelBench::run(uint32_t calls) {
  check_range("calls", calls, 1, 1u << 30);
  sbr_probe_result result = {};
  result.struct_size = sizeof result;
  result.n_threads = 1;
  result.bytes = bytes_ * calls;
  result.operations = operations_ * calls;
  const uint64_t begin = now_ns();
  for (uint32_t i = 0; i < calls; ++i) call();
  result.ns = now_ns() - begin;
  return result;
}

}  // namespace sbr
