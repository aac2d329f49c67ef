// One line per kernel and instruction set: speed on one thread, on data that does not fit in the caches.
// Not a test. Every measurement is bracketed by plain streaming reads of the same buffer, because memory bandwidth of a
// shared machine wanders; the share printed is the median of the paired ratios.
//
//   bench_kernels [MiB of weights, 256] [only lines that contain this word]

#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "quant/blocks.h"
#include "quant/reference.h"
#include "sbr/sbr.h"

namespace {

using namespace sbr;

constexpr size_t kColumns = 1536;
constexpr size_t kTokens = 64;
constexpr int kRepetitions = 7;

// Processor time: other load then takes no share of a measurement, though still of the memory bandwidth.
double now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return double(t.tv_sec) + double(t.tv_nsec) * 1e-9;
}

volatile uint64_t sink;

// Sixteen accumulators: vectorised by the compiler even for the baseline CPU, and bound by memory there too.
double read_seconds(const std::vector<uint8_t>& buffer) {
  const uint64_t* p = reinterpret_cast<const uint64_t*>(buffer.data());
  const size_t words = buffer.size() / 8;
  const double start = now();
  uint64_t sum[16] = {};
  for (size_t i = 0; i + 16 <= words; i += 16) {
    for (size_t j = 0; j < 16; ++j) sum[j] ^= p[i + j];
  }
  uint64_t all = 0;
  for (uint64_t s : sum) all ^= s;
  sink = all;
  return now() - start;
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

struct Bench {
  std::vector<uint8_t> weights;
  std::string filter;

  // `bytes` of weights and `operations` multiply-adds per call.
  template <class Call>
  void line(const std::string& name, double bytes, double operations, const Call& call) {
    if (name.find(filter) == std::string::npos) return;
    call();
    std::vector<double> speed, share;
    double before = read_seconds(weights);
    for (int i = 0; i < kRepetitions; ++i) {
      const double start = now();
      call();
      const double seconds = now() - start;
      const double after = read_seconds(weights);
      const double read_speed = 2 * double(weights.size()) / (before + after);
      speed.push_back(bytes / seconds);
      share.push_back(bytes / seconds / read_speed);
      before = after;
    }
    const double best = median(speed);
    std::printf("%-34s %7.2f GB/s %6.1f %% of read %8.1f GMAC/s\n", name.c_str(), best * 1e-9, 100 * median(share),
                operations / bytes * best * 1e-9);
    std::fflush(stdout);
  }
};

}  // namespace

int main(int argc, char** argv) {
  Bench bench;
  bench.weights.resize(size_t(argc > 1 ? std::atoi(argv[1]) : 256) << 20);
  bench.filter = argc > 2 ? argv[2] : "";
  // Bytes whose every half is a finite number, as scales must be.
  uint32_t state = 1;
  for (uint8_t& byte : bench.weights) {
    state = state * 1664525 + 1013904223;
    byte = uint8_t(state >> 24) & 0x3f;
  }
  std::printf("read %.2f GB/s\n", double(bench.weights.size()) / read_seconds(bench.weights) * 1e-9);

  std::vector<float> f(kColumns * kTokens), d(kColumns / kBlock * kTokens), sum(d.size());
  std::vector<int8_t> q(f.size());
  for (size_t i = 0; i < f.size(); ++i) f[i] = float(i * 2654435761u % 1000) / 500 - 1;
  std::vector<Activation> x;
  for (size_t t = 0; t < kTokens; ++t) {
    const size_t block = t * kColumns / kBlock;
    kernels_for(SBR_ISA_SCALAR)->quantise(&f[t * kColumns], kColumns, &q[t * kColumns], &d[block], &sum[block]);
    x.push_back({&f[t * kColumns], &q[t * kColumns], &d[block], &sum[block]});
  }

  const struct {
    uint32_t type;
    const char* name;
  } types[] = {{SBR_TYPE_Q4_0, "q4_0"},
               {SBR_TYPE_Q8_0, "q8_0"},
               {SBR_TYPE_F16, "f16"},
               {SBR_TYPE_F32, "f32"},
               {SBR_TYPE_BF16, "bf16"},
               {SBR_TYPE_Q4_1, "q4_1"},
               {SBR_TYPE_Q4_K, "q4_k"},
               {SBR_TYPE_Q6_K, "q6_k"},
               {kInterleaved + SBR_TYPE_Q4_0, "q4_0_x16"},
               {kInterleaved + SBR_TYPE_Q4_1, "q4_1_x16"},
               {kInterleaved + SBR_TYPE_Q8_0, "q8_0_x16"},
               {kInterleaved + SBR_TYPE_Q4_K, "q4_k_x16"}};
  for (const auto& type : types) {
    const uint32_t rows_type = type.type % kInterleaved;
    const size_t row_bytes = kColumns / weight_block_elements(rows_type) * weight_block_bytes(rows_type);
    const size_t n_rows = bench.weights.size() / row_bytes / kInterleavedRows * kInterleavedRows;
    // 3 of 10 rows in ascending order: the gather of a sparse FFN.
    std::vector<uint32_t> some;
    for (uint32_t r = 0; r < n_rows; ++r) {
      if (r * 2654435761u % 1000 < 300) some.push_back(r);
    }
    std::vector<float> coefficient(some.size(), 0.01f), y(std::max(n_rows, kColumns)), ys(n_rows * kTokens);
    const double bytes = double(n_rows * row_bytes);
    const double macs = double(n_rows * kColumns);
    const double share = double(some.size()) / double(n_rows);
    const size_t gemm_rows = std::min<size_t>(n_rows, 3008);
    const double gemm_share = double(gemm_rows) / double(n_rows);
    for (size_t i = 0; i < kernels_count(); ++i) {
      const Kernels& k = *kernels_at(i);
      if (!kernels_supported(&k)) continue;
      const WeightKernels& kernels = k.weights[type.type];
      const uint8_t* w = bench.weights.data();
      const std::string input = weight_block_elements(rows_type) == 1 ? "_f32_" : "_q8_0_";
      const std::string tail = std::string(type.name) + input + k.name;
      bench.line("gemv_" + tail, bytes, macs,
                 [&] { kernels.gemv(w, row_bytes, n_rows, kColumns, x.data(), y.data()); });
      if (kernels.gather_gemv) {
        bench.line("gather_gemv_" + tail, bytes * share, macs * share,
                   [&] { kernels.gather_gemv(w, row_bytes, some.data(), some.size(), kColumns, x.data(), y.data()); });
      }
      if (kernels.axpy_rows) {
        bench.line("axpy_rows_" + std::string(type.name) + "_" + k.name, bytes * share, macs * share, [&] {
          kernels.axpy_rows(w, row_bytes, some.data(), coefficient.data(), some.size(), 0, kColumns, y.data());
        });
      }
      bench.line("gemm_" + tail, bytes * gemm_share, macs * gemm_share * kTokens,
                 [&] { kernels.gemm(w, row_bytes, gemm_rows, kColumns, x.data(), kTokens, ys.data(), gemm_rows); });
    }
  }
}
