#include "model/sparse_ffn.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "model/cached_experts.h"

namespace sbr {
namespace {

// How much threads' speeds may differ for them to get equal work.
constexpr double kEqual = 0.1;

// scratch.products[i] = row i of `rows` times x, where w's rows are numbered from `from` on.
void gather(Worker& worker, const Matrix& w, const uint8_t* from, const uint32_t* rows, size_t n, const Activation* x) {
  worker.step.kernels.weights[w.type].gather_gemv(from, w.stride(), rows, n, w.cols, x, worker.scratch.products.data());
}

// One segment of one layer: neurons [row_begin, row_end) of an expert, for all of the expert's tokens.
class SegmentTask {
 public:
  SegmentTask(Worker& worker, uint32_t l, Segment& segment)
      : worker_(worker),
        l_(l),
        ws_(worker.step.ws),
        kernels_(worker.step.kernels),
        layer_(worker.layer(l)),
        segment_(segment),
        group_(ws_.plan.groups[segment.group]),
        F_(worker.step.config.n_ff),
        n_(segment.row_end - segment.row_begin),
        relu_(worker.step.config.relu_experts()),
        sparse_(worker.step.sparsity.sparse(l)) {}

  void run() {
    multiply_group(layer_.gate, group_.gate, ws_.gate.data());
    if (!sparse_) multiply_group(layer_.up, group_.rows_of_up + group_.up_row * layer_.up.stride(), ws_.up.data());

    const uint32_t* rows = worker_.scratch.rows.data();
    uint64_t up_rows = sparse_ ? 0 : n_;
    if (sparse_ && group_.count > 1) std::memset(worker_.scratch.touched.data(), 0, n_);
    segment_.active = 0;
    for (uint32_t p = group_.first; p < group_.first + group_.count; ++p) {
      const size_t active = compact(p, worker_.scratch.rows.data());
      segment_.active += active;
      if (sparse_) {
        gather(worker_, layer_.up, group_.rows_of_up, rows, active, input(p));
        up_rows += group_.count == 1 ? active : touch(rows, active);
        deliver_sparse(p, rows, worker_.scratch.products.data(), active);
      } else {
        deliver_dense(p);
      }
    }
    count(up_rows);
  }

  // The same for one token and a sparse layer, in two parts: the up rows of all segments are gathered in between, at
  // once, because a gather's first rows come slowly. Appends the active rows of up to `rows`; returns how many.
  size_t select(uint32_t* rows) {
    multiply_group(layer_.gate, group_.gate, ws_.gate.data());
    segment_.active = compact(group_.first, rows);
    return segment_.active;
  }

  void deliver(const uint32_t* rows, const float* products) {
    deliver_sparse(group_.first, rows, products, segment_.active);
    count(segment_.active);
  }

  // Or, where one pass computes up and down: the selected neurons and what their gates say, for the thread that passes.
  void publish(const uint32_t* rows) {
    const float* gates = ws_.gate.data() + size_t{group_.first} * F_;
    uint32_t* neurons = ws_.active_rows.data() + at(group_.first);
    float* values = ws_.active_values.data() + at(group_.first);
    for (uint64_t i = 0; i < segment_.active; ++i) {
      neurons[i] = rows[i] - group_.up_row;
      values[i] = gates[neurons[i]];
    }
    count(segment_.active);
  }

 private:
  size_t at(uint32_t p) const { return size_t{p} * F_ + segment_.row_begin; }
  float* gate(uint32_t p) { return ws_.gate.data() + at(p); }
  float* up(uint32_t p) { return ws_.up.data() + at(p); }
  const Activation* input(uint32_t p) {
    return worker_.alone() ? worker_.normed().views.data() : ws_.plan.input.data() + p;
  }

  // out[p][rows of the segment] for every token of the group; the expert's rows of w begin at `expert`.
  void multiply_group(const Matrix& w, const uint8_t* expert, float* out) {
    const Activation* x = input(group_.first);
    const uint8_t* rows = expert + segment_.row_begin * w.stride();
    const WeightKernels& of = kernels_.weights[w.type];
    if (group_.count == 1) {
      of.gemv(rows, w.stride(), n_, w.cols, x, out + at(group_.first));
    } else {
      of.gemm(rows, w.stride(), n_, w.cols, x, group_.count, out + at(group_.first), F_);
    }
  }

  // The rows of up that belong to active neurons, ascending. SiLU is nowhere zero: all neurons count as active.
  size_t compact(uint32_t p, uint32_t* rows) {
    worker_.expect_finite(gate(p), n_);
    if (!relu_) return n_;
    return kernels_.compact_greater(gate(p), n_, 0.0f, group_.up_row + segment_.row_begin, rows);
  }

  // Returns how many of the rows no earlier token of the group read.
  uint64_t touch(const uint32_t* rows, size_t active) {
    uint64_t fresh = 0;
    for (size_t i = 0; i < active; ++i) {
      uint8_t& touched = worker_.scratch.touched[rows[i] - group_.up_row - segment_.row_begin];
      fresh += touched == 0;
      touched = 1;
    }
    return fresh;
  }

  void count(uint64_t up_rows) {
    Tally& tally = worker_.tally;
    tally.neurons_examined[l_] += uint64_t{n_} * group_.count;
    tally.neurons_active[l_] += segment_.active;
    tally.ffn_bytes += n_ * layer_.gate.row_bytes + up_rows * layer_.up.row_bytes;
    // Down is read once per neuron that any of the tokens uses (the same ones as up).
    if (worker_.step.neuron_major_down) tally.ffn_bytes += up_rows * layer_.down.row_bytes;
  }

  void deliver_sparse(uint32_t p, const uint32_t* up_rows, const float* products, size_t active) {
    const float* gates = ws_.gate.data() + size_t{p} * F_;
    if (worker_.step.neuron_major_down) {
      uint32_t* rows = ws_.active_rows.data() + at(p);
      float* values = ws_.active_values.data() + at(p);
      for (size_t i = 0; i < active; ++i) {
        rows[i] = up_rows[i] - group_.up_row;
        values[i] = gates[rows[i]] * products[i];
      }
      ws_.active_count[size_t{p} * (F_ / 32 + 1) + segment_.row_begin / 32] = static_cast<uint32_t>(active);
      return;
    }
    float* hidden = ws_.hidden.f(p);
    std::fill(hidden + segment_.row_begin, hidden + segment_.row_end, 0.0f);
    for (size_t i = 0; i < active; ++i) {
      const uint32_t row = up_rows[i] - group_.up_row;
      hidden[row] = gates[row] * products[i];
    }
    quantise_hidden(p);
  }

  void deliver_dense(uint32_t p) {
    const auto activate = relu_ ? kernels_.relu_mul : kernels_.silu_mul;
    if (worker_.step.neuron_major_down) {
      activate(gate(p), up(p), n_, ws_.active_values.data() + at(p));
      ws_.active_count[size_t{p} * (F_ / 32 + 1) + segment_.row_begin / 32] = n_;
      return;
    }
    activate(gate(p), up(p), n_, ws_.hidden.f(p) + segment_.row_begin);
    quantise_hidden(p);
  }

  void quantise_hidden(uint32_t p) {
    worker_.expect_finite(ws_.hidden.f(p) + segment_.row_begin, n_);
    if (reads_quantised(layer_.down)) ws_.hidden.quantise(kernels_, p, segment_.row_begin, segment_.row_end);
  }

  Worker& worker_;
  const uint32_t l_;
  Workspace& ws_;
  const Kernels& kernels_;
  const LayerWeights& layer_;
  Segment& segment_;
  const ExpertGroup& group_;
  const uint32_t F_;
  const uint32_t n_;  // neurons of the segment
  const bool relu_;
  const bool sparse_;
};

// Rule 8: y[p][c] += value_j * down[j][c] over the neurons of the group's segments, ascending; columns [begin, end).
void accumulate_columns(Worker& worker, const Matrix& down, const ExpertGroup& group, bool sparse, size_t begin,
                        size_t end) {
  Workspace& ws = worker.step.ws;
  const size_t F = worker.step.config.n_ff, D = worker.step.config.n_embd;
  const AxpyRowsFn axpy = worker.step.kernels.weights[down.type].axpy_rows;
  for (uint32_t p = group.first; p < group.first + group.count; ++p) {
    std::fill(ws.expert_out.data() + p * D + begin, ws.expert_out.data() + p * D + end, 0.0f);
  }
  for (uint32_t s = group.segment_begin; s < group.segment_end; ++s) {
    const size_t row = ws.plan.segments[s].row_begin;
    for (uint32_t p = group.first; p < group.first + group.count; ++p) {
      const size_t n = ws.active_count[p * (F / 32 + 1) + row / 32];
      const uint32_t* rows = sparse ? ws.active_rows.data() + p * F + row : ws.every_row.data() + row;
      axpy(group.down, down.stride(), rows, ws.active_values.data() + p * F + row, n, begin, end,
           ws.expert_out.data() + p * D + begin);
    }
  }
}

// Deals out (expert, columns) by the number of neurons that were active.
void project_down_by_neuron(Worker& worker, const Matrix& down, bool sparse, Range round) {
  const ExpertPlan& plan = worker.step.ws.plan;
  const size_t D = worker.step.config.n_embd;
  const uint64_t blocks = D / kRowGranule;
  const auto cost_of = [&](const ExpertGroup& group) {
    uint64_t cost = 1;  // even with no active neuron the accumulators must be cleared
    for (uint32_t s = group.segment_begin; s < group.segment_end; ++s) {
      const Segment& segment = plan.segments[s];
      cost += sparse ? segment.active : uint64_t{segment.row_end - segment.row_begin} * group.count;
    }
    return cost;
  };
  uint64_t total = 0;
  for (size_t g = round.begin; g < round.end; ++g) total += blocks * cost_of(plan.groups[g]);
  const Range mine = worker.part(total, 1);
  uint64_t before = 0;
  for (size_t g = round.begin; g < round.end; ++g) {
    const ExpertGroup& group = plan.groups[g];
    const uint64_t cost = cost_of(group);
    const size_t begin = cut(mine.begin, before, cost, blocks) * kRowGranule,
                 end = cut(mine.end, before, cost, blocks) * kRowGranule;
    if (begin < end) accumulate_columns(worker, down, group, sparse, begin, end);
    before += blocks * cost;
  }
}

// Rule 9: rows of down times the (quantised) hidden vectors; (expert, rows) are dealt out by the number of tokens.
void project_down_by_column(Worker& worker, const Matrix& down, Range round) {
  Workspace& ws = worker.step.ws;
  const size_t D = worker.step.config.n_embd;
  const uint64_t granules = (D + kRowGranule - 1) / kRowGranule;
  uint64_t total = 0;
  for (size_t g = round.begin; g < round.end; ++g) total += granules * (kReadCost + ws.plan.groups[g].count);
  const Range mine = worker.part(total, 1);
  uint64_t before = 0;
  for (size_t g = round.begin; g < round.end; ++g) {
    const ExpertGroup& group = ws.plan.groups[g];
    const uint64_t cost = kReadCost + group.count;
    const size_t begin = cut(mine.begin, before, cost, granules) * kRowGranule;
    const size_t end = std::min<size_t>(D, cut(mine.end, before, cost, granules) * kRowGranule);
    before += granules * cost;
    if (begin >= end) continue;
    Matrix expert = down;
    expert.data = group.down;
    multiply(worker.step.kernels, expert, {begin, end}, ws.hidden.views.data() + group.first, group.count,
             ws.expert_out.data() + group.first * D, D);
    worker.tally.ffn_bytes += (end - begin) * down.row_bytes;
  }
}

// Whether up and down of an expert are computed by one pass over its active neurons. Only where a neuron's rows lie
// side by side (elsewhere it is 7 % slower than two passes, there 15 % faster) and for one token; by one thread,
// because an accumulator takes neurons in ascending order, so that every thread needs as many experts and as much time
// for them; and not while experts arrive, whose up is computed while others are waited for.
bool in_one_pass(const Worker& worker, uint32_t l) {
  const Step& step = worker.step;
  const LayerWeights& layer = worker.layer(l);
  if (!worker.alone() || step.cached != nullptr || !step.sparsity.sparse(l) || !step.neuron_major_down) return false;
  if (layer.up.gap == 0 || layer.up.type != layer.down.type) return false;
  if (step.kernels.weights[layer.up.type].up_down == nullptr) return false;
  if (worker.n_threads == 1) return true;
  if (step.config.n_expert_used % worker.n_threads != 0) return false;
  for (uint32_t tid = 0; tid < worker.n_threads; ++tid) {
    if (std::abs(step.balance.weight(tid) * worker.n_threads - 1) > kEqual) return false;
  }
  return true;
}

// Experts by descending number of active neurons go to threads 0, 1, 2, 2, 1, 0, 0, ...: 2 of 4 experts each are then
// within some percent of each other.
bool passes(const Worker& worker, const ExpertPlan& plan, size_t g) {
  const auto active = [&](size_t of) {
    uint64_t n = 0;
    for (uint32_t s = plan.groups[of].segment_begin; s < plan.groups[of].segment_end; ++s) n += plan.segments[s].active;
    return n;
  };
  const uint64_t mine = active(g);
  size_t rank = 0;
  for (size_t other = 0; other < plan.groups.size(); ++other) {
    const uint64_t n = active(other);
    rank += n > mine || (n == mine && other < g);
  }
  const size_t turn = rank / worker.n_threads, at = rank % worker.n_threads;
  return worker.tid == (turn % 2 == 0 ? at : worker.n_threads - 1 - at);
}

// Up and down of this thread's experts, whose active neurons are known -> ws.expert_out.
void pass_over_neurons(Worker& worker, uint32_t l) {
  Workspace& ws = worker.step.ws;
  Scratch& scratch = worker.scratch;
  const ExpertPlan& plan = ws.plan;
  const LayerWeights& layer = worker.layer(l);
  const size_t F = worker.step.config.n_ff, D = worker.step.config.n_embd;
  size_t total = 0;
  scratch.pass_end.clear();
  for (size_t g = 0; g < plan.groups.size(); ++g) {
    const ExpertGroup& group = plan.groups[g];
    const uint8_t* up = group.rows_of_up + group.up_row * layer.up.stride();
    for (uint32_t s = group.segment_begin; s < group.segment_end && passes(worker, plan, g); ++s) {
      const size_t first = group.first * F + plan.segments[s].row_begin;
      for (size_t i = first; i < first + plan.segments[s].active; ++i, ++total) {
        scratch.up_at[total] = up + ws.active_rows[i] * layer.up.stride();
        scratch.down_at[total] = group.down + ws.active_rows[i] * layer.down.stride();
        scratch.gates[total] = ws.active_values[i];
      }
    }
    scratch.pass_end.push_back(total);
  }
  size_t begin = 0;
  for (size_t g = 0; g < plan.groups.size(); ++g) {
    const size_t end = scratch.pass_end[g];
    if (!passes(worker, plan, g)) continue;
    float* out = ws.expert_out.data() + plan.groups[g].first * D;
    std::fill(out, out + D, 0.0f);
    worker.step.kernels.weights[layer.up.type].up_down(scratch.up_at.data() + begin, scratch.down_at.data() + begin,
                                                       scratch.gates.data() + begin, end - begin, total - end, D,
                                                       worker.normed().views.data(), out);
    begin = end;
  }
}

// Gate and up of some of this thread's segments, which `for_each` goes over. Leaves the neurons' outputs as the layer's
// down needs them.
template <typename ForEach>
void activate(Worker& worker, uint32_t l, const ForEach& for_each) {
  const ExpertPlan& plan = worker.step.ws.plan;
  if (in_one_pass(worker, l)) {
    worker.enter(Event::kGate, l);
    for_each([&](Segment& segment) {
      SegmentTask task(worker, l, segment);
      task.select(worker.scratch.rows.data());
      task.publish(worker.scratch.rows.data());
    });
    return;
  }
  if (!worker.alone() || !worker.step.sparsity.sparse(l) || !plan.one_gather) {
    worker.enter(Event::kGateUp, l);
    for_each([&](Segment& segment) { SegmentTask(worker, l, segment).run(); });
    return;
  }
  uint32_t* rows = worker.scratch.rows.data();
  size_t active = 0;
  const uint8_t* from = nullptr;
  worker.enter(Event::kGate, l);
  for_each([&](Segment& segment) {
    active += SegmentTask(worker, l, segment).select(rows + active);
    from = plan.groups[segment.group].rows_of_up;
  });
  if (from == nullptr) return;  // no segment
  worker.enter(Event::kUp, l);
  gather(worker, worker.layer(l).up, from, rows, active, worker.normed().views.data());
  const float* products = worker.scratch.products.data();
  for_each([&](Segment& segment) {
    SegmentTask(worker, l, segment).deliver(rows, products);
    rows += segment.active;
    products += segment.active;
  });
}

// This thread's segments of all experts, which are in memory.
void activate_resident(Worker& worker, uint32_t l) {
  ExpertPlan& plan = worker.step.ws.plan;
  const uint32_t begin = plan.segment_begin[worker.tid], end = plan.segment_begin[worker.tid + 1];
  activate(worker, l, [&](const auto& visit) {
    for (uint32_t s = begin; s < end; ++s) visit(plan.segments[s]);
  });
}

// The same of one round's experts, as they arrive: those that are there together, then those that are there when these
// are done, waiting for the next one if there is none.
bool activate_arriving(Worker& worker, uint32_t l, Range round) {
  ExpertPlan& plan = worker.step.ws.plan;
  CachedExperts& cached = *worker.step.cached;
  for (size_t g = round.begin, end = g; g < round.end; g = end) {
    uint64_t waited = 0;
    bool there = cached.wait(g, &waited);
    if (waited != 0) {
      worker.waited(waited);
      if (worker.first()) cached.count_wait(waited);
    }
    // What failed is ready, too. What one thread is told of a unit, all are, whether or not they had to wait for it.
    for (end = g + 1; there && end < round.end && cached.ready(end); ++end) there = cached.wait(end, &waited);
    if (!there) return false;
    activate(worker, l, [&](const auto& visit) {
      for (size_t i = g; i < end; ++i) {
        const size_t part = i * worker.n_threads + worker.tid;
        for (uint32_t s = plan.split_begin[part]; s < plan.split_begin[part + 1]; ++s) visit(plan.segments[s]);
      }
    });
  }
  return true;
}

// Down of a round's experts, whose neurons are ready -> ws.expert_out.
void project_down(Worker& worker, uint32_t l, Range round) {
  if (in_one_pass(worker, l)) {
    worker.enter(Event::kUpDown, l);
    return pass_over_neurons(worker, l);
  }
  worker.enter(Event::kDown, l);
  const Matrix& down = worker.layer(l).down;
  if (worker.step.neuron_major_down) {
    project_down_by_neuron(worker, down, worker.step.sparsity.sparse(l), round);
  } else {
    project_down_by_column(worker, down, round);
  }
}

bool compute_cached(Worker& worker, uint32_t l) {
  CachedExperts& cached = *worker.step.cached;
  // Nobody changes the rounds before every thread has passed the last one's barrier.
  const size_t n_rounds = cached.n_rounds();
  for (size_t r = 0; r < n_rounds; ++r) {
    if (r > 0 && cached.in_waves()) {
      worker.barrier();  // all are done with the wave before
      if (worker.first()) cached.advance(r, &worker.step.ws.plan);
      worker.barrier();
    }
    const Range round = cached.round(r);
    const bool there = activate_arriving(worker, l, round);
    worker.barrier();
    if (!there) return false;
    project_down(worker, l, round);
  }
  return true;
}

}  // namespace

bool compute_experts(Worker& worker, uint32_t l) {
  if (worker.step.cached != nullptr) return compute_cached(worker, l);
  activate_resident(worker, l);
  worker.barrier();
  project_down(worker, l, {0, worker.step.ws.plan.groups.size()});
  return true;
}

void mix_experts(Worker& worker, size_t token) {
  Step& step = worker.step;
  const size_t D = step.config.n_embd, K = step.config.n_expert_used;
  float* mixed = worker.scratch.mixed.data();
  std::fill(mixed, mixed + D, 0.0f);
  for (size_t i = token * K; i < (token + 1) * K; ++i) {
    step.kernels.scaled_add(step.ws.plan.weight[i], step.ws.expert_out.data() + step.ws.plan.position[i] * D, D, mixed);
  }
  step.kernels.add(mixed, D, worker.x(token));
}

}  // namespace sbr
