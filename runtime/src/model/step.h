// What the phases of a forward pass share: the batch being computed (Step), its buffers (Workspace), and each
// thread's view of it (Worker). T tokens in the batch, D embedding, E experts, K of them used, F neurons per expert, V
// vocabulary.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/balance.h"
#include "base/buffer.h"
#include "base/thread_pool.h"
#include "base/timeline.h"
#include "experts/layer_stream.h"
#include "kernels/kernels.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/sparsity_choice.h"
#include "model/weights.h"

namespace sbr {

class CachedExperts;

// The inputs of a matrix for several tokens: floats, and quantised beside them (rule 3) when a matrix reads those.
struct Activations {
  Activations() = default;
  Activations(size_t n_tokens, size_t width, bool allocate = true);

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
  uint64_t nonfinite = 0;                  // vectors with an infinity or a NaN, where they are looked for
  uint64_t ns_work = 0;                    // of the present or last step, without waiting
  std::vector<uint64_t> neurons_examined;  // [n_layer]
  std::vector<uint64_t> neurons_active;
};

// Tokens of one expert in this batch, and where the expert's matrices lie.
struct ExpertGroup {
  uint32_t expert;
  uint32_t first, count;  // its positions in expert order
  uint32_t segment_begin, segment_end;
  const uint8_t* gate;
  const uint8_t* down;
  // Rows of up are numbered from `rows_of_up` on, and the expert's first one is `up_row`: one gather can then reach the
  // rows of several experts.
  const uint8_t* rows_of_up;
  uint32_t up_row;
};

// Neurons [row_begin, row_end) of a group's expert, computed by one thread.
struct Segment {
  uint32_t group;
  uint32_t row_begin, row_end;
  uint64_t active;  // non-zero neurons, summed over the group's tokens; set by the thread that computed it
};

// Layers at whose experts a session guesses at most. Before guesses were judged by their precision 8 read 44 MB of a 4B
// token where 4 read 35 (737 units, medians of 3 rounds), and tokens took 31.7 and 30.6 ms.
constexpr uint32_t kMostLayersAhead = 4;

// Which experts the batch's tokens use. A (token, expert) pair is a position; positions are in ascending order of
// expert, then token, so that an expert's tokens are neighbours and each expert's weights are walked once.
struct ExpertPlan {
  Buffer<uint32_t> expert;              // [T][K] selected experts, ascending
  Buffer<float> weight;                 // [T][K] their weights
  Buffer<uint32_t> position;            // [T][K] -> position
  Buffer<Activation> input;             // [T * K] by position: the token's FFN input
  Buffer<uint32_t> token;               // [T * K] by position
  std::vector<ExpertGroup> groups;      // capacity reserved; no allocation while running
  bool one_gather;                      // rows_of_up is the same for all groups
  std::vector<Segment> segments;        // a group's are neighbours and ascend in rows
  std::vector<uint32_t> segment_begin;  // [n_threads + 1] into segments, which are by thread ...
  std::vector<uint32_t> split_begin;    // ... or, of experts that are on their way, [groups * n_threads + 1]
  std::vector<uint32_t> cursor;         // [E] scratch of grouping
};

// Scratch of one thread.
struct Scratch {
  Buffer<float> scores;     // attention: [heads of a group][n_ctx]; also one head
  Buffer<uint32_t> rows;    // rows of up of active neurons: one token's [K * F + 16]
  Buffer<float> products;   // their products [K * F]
  Buffer<uint8_t> touched;  // [F] neurons that any token of a group used
  // Of the same neurons, where one pass computes up and down.
  Buffer<const uint8_t*> up_at, down_at;  // [K * F]
  Buffer<float> gates;                    // [K * F]
  std::vector<size_t> pass_end;           // [groups] where each expert's end
  Buffer<float> mixed;                    // [D]
  Buffer<uint8_t> embedding;              // a row of interleaved embeddings
  // A step of one token: every thread keeps the stream and its norm itself, which takes less than waiting for one
  // thread to do so (3 us against a barrier and 3 us).
  Buffer<float> x;        // [D]
  Activations normed;     // [1][D]
  Activations predictor;  // [1][r] the lm_head predictor's inner vector
};

struct Workspace {
  Buffer<float> x;            // [T][D] the residual stream; T = 1: Scratch has it
  Activations normed;         // [T][D] input of attention, FFN and lm_head, in turn; likewise
  Buffer<float> rope;         // [T][head_dim] cosines, then sines
  Buffer<float> q, k, v;      // [T][heads * head_dim]
  Activations attended;       // [T][heads * head_dim]
  Buffer<uint64_t> ffn_ns;    // [n_layer] wall time of each layer's FFN in this step, by thread 0
  Buffer<float> residual;     // [T][D] output of attention or dense FFN, before it is added
  Buffer<float> router;       // [T][E] logits, then probabilities
  Buffer<float> next_router;  // [kMostLayersAhead][E] of one token: what later layers' routers make of its stream
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

// Which experts tokens use, apart from what their routers say: [n_tokens][n_layer][K], as sbr_session_get_routing.
struct Routing {
  const uint16_t* forced = nullptr;  // position p uses forced[p % n_forced]
  uint64_t n_forced = 0;
  uint16_t* record = nullptr;  // [T][n_layer][K] of this batch, by thread 0
};

enum class LogitsOf : uint8_t { kNone, kLast, kAll };

struct Switches {
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
  const Balance& balance;          // of steps of this kind (one token, or several)
  const SparsityChoice& sparsity;  // likewise
  KvCache& kv;
  Workspace& ws;
  std::vector<Tally>& tallies;
  uint64_t* expert_counts;  // [n_layer][E]
  const Routing& routing;
  CachedExperts* cached;  // nullptr: all experts are in memory
  std::atomic<bool>& cancel;

  const int32_t* tokens;
  uint32_t n_tokens;
  uint32_t position;  // of the first token
  LogitsOf logits_of;
  bool decode;                    // the lm_head may be sparse
  float* logits;                  // [V] or [T][V]
  bool stopped = false;           // thread 0 saw the cancel flag; written between barriers
  bool failed = false;            // weights could not be read; likewise
  LayerStream* stream = nullptr;  // nullptr: all layers are in memory
  Timeline* timeline = nullptr;   // nullptr: nobody asks for one
};

// No infinity and no NaN: exponents below the largest. (A sign bit survives the conjunction only if all had it.)
inline bool all_finite(const float* values, size_t n) {
  int32_t below = -1;
  for (size_t i = 0; i < n; ++i) {
    int32_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    below &= (bits & 0x7fffffff) - 0x7f800000;
  }
  return below < 0;
}

// One thread's part in a step.
class Worker {
 public:
  Worker(Step& step_, uint32_t tid_)
      : step(step_),
        tid(tid_),
        n_threads(step_.pool.size()),
        tally(step_.tallies[tid_]),
        scratch(step_.ws.scratch[tid_]),
        timed_(tid_ == 0 && step_.switches.timing),
        clocked_(timed_ || step_.balance.measured() || step_.timeline != nullptr),
        timeline_(step_.timeline) {
    tally.ns_work = 0;
    if (clocked_) last_ = resumed_ = now();
    if (timeline_ == nullptr) return;
    timeline_->span(tid, Event::kStep, kNoneOfTimeline, timeline_->step_began(), resumed_);
    since_ = resumed_;
  }

  void barrier() {
    if (!clocked_) return step.pool.barrier(&ahead_);
    const uint64_t begin = now();
    step.pool.barrier(&ahead_);
    const uint64_t end = now();
    tally.ns_work += begin - resumed_;
    resumed_ = end;
    if (timeline_ != nullptr) {
      close(begin);
      timeline_->span(tid, Event::kBarrier, layer_, begin, end);
      since_ = end;
    }
    if (!timed_) return;
    tally.ns_barrier += end - begin;
    last_ += end - begin;
  }
  // The end of this thread's part in the step.
  void finish() {
    if (!clocked_) return;
    const uint64_t end = now();
    tally.ns_work += end - resumed_;
    if (timeline_ != nullptr) close(end);
  }
  // Adds the time since the last lap, barriers left out, to a phase.
  void lap(uint64_t Tally::* phase) {
    if (!timed_) return;
    const uint64_t at = now();
    tally.*phase += at - last_;
    last_ = at;
  }
  bool first() const { return tid == 0; }
  // What this thread does from now on, for the timeline.
  void enter(Event event, uint32_t layer) {
    if (timeline_ == nullptr || (event == event_ && layer == layer_)) return;
    close(now());
    event_ = event;
    layer_ = layer;
  }
  // Time spent waiting for storage, until now, is no work.
  void waited(uint64_t ns) {
    resumed_ += ns;
    constexpr uint64_t kLook = 1000;  // looking whether something is there takes tens of nanoseconds
    if (timeline_ == nullptr || ns < kLook) return;
    const uint64_t end = now(), begin = end - ns;
    close(begin < since_ ? since_ : begin);
    timeline_->span(tid, Event::kIoWait, layer_, since_, end);
    since_ = end;
  }

  // One token: what is cheap every thread computes for itself. Otherwise each has its share of the tokens.
  bool alone() const { return step.n_tokens == 1; }
  Range tokens() const { return alone() ? Range{0, 1} : share(step.n_tokens, 1, tid, n_threads); }
  void token_barrier() {
    if (!alone()) barrier();
  }
  float* x(size_t token) { return alone() ? scratch.x.data() : step.ws.x.data() + token * step.config.n_embd; }
  Activations& normed() { return alone() ? scratch.normed : step.ws.normed; }

  // Counts values that are no numbers before they are lost: quantising makes a NaN 0, and a ReLU drops it. By an
  // estimate, not a measurement, all checks together take 0.3 % of a token.
  void expect_finite(const float* values, size_t n) { tally.nonfinite += all_finite(values, n) ? 0 : 1; }

  // Rows of `w` that this thread will need next: it fetches the first of them while it waits at a barrier.
  void fetch_ahead(const Matrix& w, Range rows) {
    // 64 KB and 256 KB of a 1 MB second-level cache gave the same speed.
    constexpr size_t kBytes = 128 << 10;
    const size_t bytes = rows.size() * w.row_bytes;
    ahead_ = {w.row(rows.begin), w.row(rows.begin) + (bytes < kBytes ? bytes : kBytes)};
  }

  // This thread's part of n items, cut at multiples of `granule`, by the speed of the threads.
  Range part(size_t n, size_t granule) const { return step.balance.share(n, granule, tid); }

  const LayerWeights& layer(uint32_t l) const {
    return step.stream == nullptr ? step.weights.layers[l] : step.stream->layer(l);
  }
  // Around the use of a layer's matrices. False: they could not be read, on every thread.
  bool await_layer(uint32_t l) {
    if (step.stream == nullptr) return true;
    const uint64_t begin = clocked_ ? now() : 0;
    const bool there = step.stream->wait(l, tid);
    if (clocked_) waited(now() - begin);
    return there;
  }
  void release_layer(uint32_t l) {
    if (step.stream != nullptr) step.stream->release(l);
  }

  static uint64_t now() { return now_ns(); }

  Step& step;
  const uint32_t tid;
  const uint32_t n_threads;
  Tally& tally;
  Scratch& scratch;

 private:
  // Ends the present span.
  void close(uint64_t at) {
    if (at != since_) timeline_->span(tid, event_, layer_, since_, at);
    since_ = at;
  }

  const bool timed_;
  const bool clocked_;
  Timeline* const timeline_;
  Event event_ = Event::kEmbed;
  uint32_t layer_ = kNoneOfTimeline;
  uint64_t since_ = 0;    // when the present span began
  uint64_t resumed_ = 0;  // when the last barrier let this thread go
  uint64_t last_ = 0;
  Ahead ahead_;
};

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

inline Range row_share(const Worker& worker, size_t rows) { return worker.part(rows, kRowGranule); }

// y[t * stride + r] = dot(row r, x[t]) for rows of `range`.
inline void multiply(const Kernels& kernels, const Matrix& w, Range range, const Activation* x, size_t n_tokens,
                     float* y, size_t stride) {
  if (range.size() == 0) return;
  const WeightKernels& of = kernels.weights[w.type];
  if (n_tokens == 1) {
    of.gemv(w.row(range.begin), w.stride(), range.size(), w.cols, x, y + range.begin);
  } else {
    of.gemm(w.row(range.begin), w.stride(), range.size(), w.cols, x, n_tokens, y + range.begin, stride);
  }
}

// `allocate` false: buffers without memory, which know their sizes.
Workspace make_workspace(const Config& config, const Weights& weights, uint32_t n_batch, uint32_t n_ctx,
                         uint32_t n_threads, bool allocate = true);

}  // namespace sbr
