// What the phases of a forward pass share: the batch being computed (Step), its buffers (Workspace), and each
// thread's view of it (Worker). T tokens in the batch, D embedding, E experts, K of them used, F neurons per expert, V
// vocabulary.
#pragma once

#include <time.h>

#include <atomic>
#include <cstdint>
#include <vector>

#include "base/buffer.h"
#include "base/thread_pool.h"
#include "kernels/kernels.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/weights.h"

namespace sbr {

// The inputs of a matrix for several tokens: floats, and quantised beside them (rule 3) when a matrix reads those.
struct Activations {
  Activations() = default;
  Activations(size_t n_tokens, size_t width);

  float* f(size_t token) { return values.data() + token * width; }
  // Elements [begin, end) of one token; begin is a multiple of 32, and so is end.
  void quantise(const Kernels& kernels, size_t token, size_t begin, size_t end);
  size_t bytes() const { return values.bytes() + q.bytes() + d.bytes() + sum.bytes() + views.bytes(); }

  size_t width = 0;
  Buffer<float> values;      // [T][width]
  Buffer<int8_t> q;          // [T][width]
  Buffer<float> d, sum;      // [T][width / 32]
  Buffer<Activation> views;  // [T]: the above, as kernels take it
};

// Counts of one thread, on cache lines of its own. Dense matrices are counted by thread 0 alone.
struct alignas(64) Tally {
  uint64_t embedding_bytes = 0;
  uint64_t attention_bytes = 0;
  uint64_t router_bytes = 0;
  uint64_t ffn_bytes = 0;
  uint64_t lm_head_bytes = 0;
  uint64_t kv_bytes_read = 0;
  uint64_t kv_bytes_written = 0;
  uint64_t lm_head_rows = 0;
  uint64_t ns_attention = 0;
  uint64_t ns_router = 0;
  uint64_t ns_ffn = 0;
  uint64_t ns_lm_head = 0;
  uint64_t ns_barrier = 0;
  std::vector<uint64_t> neurons_examined;  // [n_layer]
  std::vector<uint64_t> neurons_active;
};

// Tokens of one expert in this batch.
struct ExpertGroup {
  uint32_t expert;
  uint32_t first, count;  // its positions in expert order
  uint32_t segment_begin, segment_end;
};

// Neurons [row_begin, row_end) of a group's expert, computed by one thread.
struct Segment {
  uint32_t group;
  uint32_t row_begin, row_end;
  uint64_t active;  // non-zero neurons, summed over the group's tokens; set by the thread that computed it
};

// Which experts the batch's tokens use. A (token, expert) pair is a position; positions are in ascending order of
// expert, then token, so that an expert's tokens are neighbours and each expert's weights are walked once.
struct ExpertPlan {
  Buffer<uint32_t> expert;              // [T][K] selected experts, ascending
  Buffer<float> weight;                 // [T][K] their weights
  Buffer<uint32_t> position;            // [T][K] -> position
  Buffer<Activation> input;             // [T * K] by position: the token's FFN input
  Buffer<uint32_t> token;               // [T * K] by position
  std::vector<ExpertGroup> groups;      // capacity reserved; no allocation while running
  std::vector<Segment> segments;        // by thread, so that a group's are neighbours and ascend in rows
  std::vector<uint32_t> segment_begin;  // [n_threads + 1] into segments
  std::vector<uint32_t> cursor;         // [E] scratch of grouping
};

// Scratch of one thread.
struct Scratch {
  Buffer<float> scores;     // attention: [n_ctx]; also one head
  Buffer<uint32_t> rows;    // compacted neuron numbers [F + 16]
  Buffer<float> products;   // their up products [F]
  Buffer<uint8_t> touched;  // [F] neurons that any token of a group used
  Buffer<float> mixed;      // [D]
  Activations predictor;    // [1][r] the lm_head predictor's inner vector
};

struct Workspace {
  Buffer<float> x;         // [T][D] the residual stream
  Activations normed;      // [T][D] input of attention, FFN and lm_head, in turn
  Buffer<float> rope;      // [T][head_dim] cosines, then sines
  Buffer<float> q, k, v;   // [T][heads * head_dim]
  Activations attended;    // [T][heads * head_dim]
  Buffer<float> residual;  // [T][D] output of attention or dense FFN, before it is added
  Buffer<float> router;    // [T][E] logits, then probabilities
  ExpertPlan plan;
  Buffer<float> gate, up;          // [P][F]: P = T * K positions, or T tokens of a dense FFN
  Activations hidden;              // [P][F] input of a standard-layout down
  Buffer<uint32_t> active_rows;    // [P][F] neuron-major down: non-zero neurons of each segment, from its first row on
  Buffer<float> active_values;     // [P][F] their coefficients
  Buffer<uint32_t> active_count;   // [P][F / 32 + 1] how many, at segment's first row / 32
  Buffer<uint32_t> every_row;      // [F] 0, 1, 2, ...
  Buffer<float> expert_out;        // [P][D]
  Buffer<float> logits;            // [V] of decode
  Buffer<float> predictor_inner;   // [r]
  Buffer<float> predictor_scores;  // [V]
  Buffer<uint32_t> kept_rows;      // [V + slack per thread]
  Buffer<float> kept_logits;       // likewise
  std::vector<Scratch> scratch;    // per thread

  uint64_t bytes() const;
};

enum class LogitsOf : uint8_t { kNone, kLast, kAll };

struct Switches {
  bool sparse_ffn = false;
  bool sparse_lm_head = false;
  float lm_head_threshold = 0;
  float lm_head_skipped = 0;  // logit of a skipped row
  bool timing = false;
};

// One batch. Threads only read it, except where noted.
struct Step {
  const Config& config;
  const Weights& weights;
  const Kernels& kernels;
  const Switches& switches;
  bool neuron_major_down;
  ThreadPool& pool;
  KvCache& kv;
  Workspace& ws;
  std::vector<Tally>& tallies;
  uint64_t* expert_counts;  // [n_layer][E]
  std::atomic<bool>& cancel;

  const int32_t* tokens;
  uint32_t n_tokens;
  uint32_t position;  // of the first token
  LogitsOf logits_of;
  bool decode;           // the lm_head may be sparse
  float* logits;         // [V] or [T][V]
  bool stopped = false;  // thread 0 saw the cancel flag; written between barriers
};

// One thread's part in a step.
class Worker {
 public:
  Worker(Step& step_, uint32_t tid_)
      : step(step_),
        tid(tid_),
        n_threads(step_.pool.size()),
        tally(step_.tallies[tid_]),
        scratch(step_.ws.scratch[tid_]),
        timed_(tid_ == 0 && step_.switches.timing) {
    if (timed_) last_ = now();
  }

  void barrier() {
    if (!timed_) return step.pool.barrier();
    const uint64_t begin = now();
    step.pool.barrier();
    const uint64_t end = now();
    tally.ns_barrier += end - begin;
    last_ += end - begin;
  }
  // Adds the time since the last lap, barriers left out, to a phase.
  void lap(uint64_t Tally::* phase) {
    if (!timed_) return;
    const uint64_t at = now();
    tally.*phase += at - last_;
    last_ = at;
  }
  bool first() const { return tid == 0; }

  static uint64_t now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<uint64_t>(t.tv_sec) * 1000000000u + static_cast<uint64_t>(t.tv_nsec);
  }

  Step& step;
  const uint32_t tid;
  const uint32_t n_threads;
  Tally& tally;
  Scratch& scratch;

 private:
  const bool timed_;
  uint64_t last_ = 0;
};

struct Range {
  size_t begin, end;
  size_t size() const { return end - begin; }
};

// The contiguous share of thread `tid` of n items, cut at multiples of `granule`.
inline Range share(size_t n, size_t granule, uint32_t tid, uint32_t n_threads) {
  const size_t granules = (n + granule - 1) / granule;
  const size_t begin = granules * tid / n_threads * granule;
  const size_t end = granules * (tid + 1) / n_threads * granule;
  return {begin < n ? begin : n, end < n ? end : n};
}

// Work laid out end to end: units of equal cost begin at `before`. How many of a run's n units lie before `target`.
// Neighbouring threads cut at the same target, so shares neither overlap nor leave a gap.
inline uint64_t cut(uint64_t target, uint64_t before, uint64_t unit_cost, uint64_t n) {
  if (target <= before) return 0;
  const uint64_t units = (target - before + unit_cost - 1) / unit_cost;
  return units < n ? units : n;
}

// What reading a row costs in units of computing it for one token: a 864-byte row takes about 55 ns from memory and 20
// ns to multiply. Only a balance between threads, never a result, depends on it.
constexpr uint64_t kReadCost = 3;

// Rows of a matrix are dealt out in multiples of 32: a thread can then quantise what it computed.
constexpr size_t kRowGranule = 32;

inline Range row_share(const Worker& worker, size_t rows) {
  return share(rows, kRowGranule, worker.tid, worker.n_threads);
}
inline Range token_share(const Worker& worker) { return share(worker.step.n_tokens, 1, worker.tid, worker.n_threads); }

// y[t * stride + r] = dot(row r, x[t]) for rows of `range`.
inline void multiply(const Kernels& kernels, const Matrix& w, Range range, const Activation* x, size_t n_tokens,
                     float* y, size_t stride) {
  if (range.size() == 0) return;
  const WeightKernels& of = kernels.weights[w.type];
  if (n_tokens == 1) {
    of.gemv(w.row(range.begin), w.row_bytes, range.size(), w.cols, x, y + range.begin);
  } else {
    of.gemm(w.row(range.begin), w.row_bytes, range.size(), w.cols, x, n_tokens, y + range.begin, stride);
  }
}

Workspace make_workspace(const Config& config, const Weights& weights, uint32_t n_batch, uint32_t n_ctx,
                         uint32_t n_threads);

}  // namespace sbr
