#include "model/router.h"

#include <algorithm>

#include "base/det_math.h"
#include "model/cached_experts.h"

namespace sbr {
namespace {

// Neurons of an expert that one thread computes at a time in a batch: gate and up rows of 64 neurons (110 KB at 4B)
// stay in L2 while the expert's tokens go over them. A single token walks its share in one piece.
constexpr uint32_t kBatchSegment = 64;

void group_by_expert(Step& step, uint32_t l) {
  ExpertPlan& plan = step.ws.plan;
  const uint32_t E = step.config.n_expert, K = step.config.n_expert_used;
  const size_t entries = size_t{step.n_tokens} * K;
  std::fill(plan.cursor.begin(), plan.cursor.end(), 0u);
  for (size_t i = 0; i < entries; ++i) ++plan.cursor[plan.expert[i]];

  plan.groups.clear();
  uint32_t first = 0;
  for (uint32_t e = 0; e < E; ++e) {
    const uint32_t count = plan.cursor[e];
    plan.cursor[e] = first;
    if (count == 0) continue;
    step.expert_counts[size_t{l} * E + e] += count;
    plan.groups.push_back({e, first, count, 0, 0, nullptr, nullptr, nullptr, 0});
    first += count;
  }
  for (size_t i = 0; i < entries; ++i) {
    const uint32_t position = plan.cursor[plan.expert[i]]++;
    const uint32_t t = static_cast<uint32_t>(i / K);
    plan.position[i] = position;
    plan.token[position] = t;
    plan.input[position] = step.ws.normed.views[t];
  }
}

// Where experts lie that are in memory.
void place_experts(Step& step, const LayerWeights& layer) {
  ExpertPlan& plan = step.ws.plan;
  const uint32_t F = step.config.n_ff;
  const uint64_t down_rows = layer.down.rows / step.config.n_expert;
  plan.one_gather = true;
  for (ExpertGroup& group : plan.groups) {
    group.gate = layer.gate.row(uint64_t{group.expert} * F);
    group.down = layer.down.row(group.expert * down_rows);
    group.rows_of_up = layer.up.data;
    group.up_row = group.expert * F;
  }
}

uint32_t piece_of(const Step& step) { return step.n_tokens == 1 ? step.config.n_ff : kBatchSegment; }

// Every thread has a part of every expert, since nobody knows when each of them arrives.
void split_neurons(Step& step, uint32_t n_threads) {
  ExpertPlan& plan = step.ws.plan;
  const uint32_t piece = piece_of(step);
  plan.segments.clear();
  plan.split_begin.clear();
  for (uint32_t g = 0; g < plan.groups.size(); ++g) {
    plan.groups[g].segment_begin = static_cast<uint32_t>(plan.segments.size());
    for (uint32_t tid = 0; tid < n_threads; ++tid) {
      plan.split_begin.push_back(static_cast<uint32_t>(plan.segments.size()));
      const Range mine = step.balance.share(step.config.n_ff, kRowGranule, tid);
      const uint32_t end = static_cast<uint32_t>(mine.end);
      for (uint32_t row = static_cast<uint32_t>(mine.begin); row < end; row += piece)
        plan.segments.push_back({g, row, std::min(end, row + piece), 0});
    }
    plan.groups[g].segment_end = static_cast<uint32_t>(plan.segments.size());
  }
  plan.split_begin.push_back(static_cast<uint32_t>(plan.segments.size()));
}

// Contiguous shares of all experts' neurons, each expert's in as few pieces as can be.
void deal_neurons(Step& step, uint32_t n_threads) {
  ExpertPlan& plan = step.ws.plan;
  const uint32_t F = step.config.n_ff;
  const uint64_t granules = (F + kRowGranule - 1) / kRowGranule;
  const uint32_t piece = piece_of(step);
  uint64_t total = 0;
  for (const ExpertGroup& group : plan.groups) total += granules * (kReadCost + group.count);

  plan.segments.clear();
  for (uint32_t tid = 0; tid < n_threads; ++tid) {
    plan.segment_begin[tid] = static_cast<uint32_t>(plan.segments.size());
    const auto [from, to] = step.balance.share(total, 1, tid);
    uint64_t before = 0;
    for (uint32_t g = 0; g < plan.groups.size(); ++g) {
      const uint64_t cost = kReadCost + plan.groups[g].count;
      const uint32_t begin = static_cast<uint32_t>(cut(from, before, cost, granules) * kRowGranule);
      const uint32_t end = std::min<uint32_t>(F, static_cast<uint32_t>(cut(to, before, cost, granules) * kRowGranule));
      for (uint32_t row = begin; row < end; row += piece) {
        plan.segments.push_back({g, row, std::min(end, row + piece), 0});
      }
      before += cost * granules;
    }
  }
  plan.segment_begin[n_threads] = static_cast<uint32_t>(plan.segments.size());

  // Segments are ordered by thread and then by group, and each thread's share is contiguous: so are a group's segments.
  for (uint32_t s = 0; s < plan.segments.size(); ++s) {
    ExpertGroup& group = plan.groups[plan.segments[s].group];
    if (group.segment_end == 0) group.segment_begin = s;
    group.segment_end = s + 1;
  }
}

// The experts that the routing forces on the token at a position.
const uint16_t* forced_experts(const Step& step, uint32_t l, uint64_t position) {
  const size_t at = (position % step.routing.n_forced) * step.config.n_layer + l;
  return step.routing.forced + at * step.config.n_expert_used;
}

void record_experts(const Step& step, uint32_t l) {
  const size_t L = step.config.n_layer, K = step.config.n_expert_used;
  for (size_t t = 0; t < step.n_tokens; ++t) {
    for (size_t k = 0; k < K; ++k)
      step.routing.record[(t * L + l) * K + k] = static_cast<uint16_t>(step.ws.plan.expert[t * K + k]);
  }
}

// At how many layers behind l its router phase guesses. Only for single tokens: a batch uses most experts anyway. Not
// where the routing is forced: a router that nobody asked says nothing about it.
uint32_t layers_ahead(const Worker& worker, uint32_t l) {
  const Step& step = worker.step;
  if (step.cached == nullptr || !worker.alone() || step.routing.forced != nullptr) return 0;
  return std::min(step.cached->depth(), step.config.n_layer - 1 - l);
}

// The present stream as layer l's router would see it if nothing happened to it before.
const float* input_of_later_router(Worker& worker, uint32_t l) {
  const Step& step = worker.step;
  if (!step.config.router_after_attention) return worker.x(0);
  float* normed = worker.scratch.mixed.data();
  step.kernels.rms_norm(worker.x(0), worker.layer(l).ffn_norm, step.config.rms_eps, step.config.n_embd, normed);
  return normed;
}

void multiply_router(Worker& worker, const Matrix& router, const float* input, float* scores) {
  // Few rows (32 to 128): shares of 4 so that every thread has some. The router is never quantised, so floats do.
  const Range mine = share(router.rows, 4, worker.tid, worker.n_threads);
  const Activation x = {input, nullptr, nullptr, nullptr};
  multiply(worker.step.kernels, router, mine, &x, 1, scores, 0);
}

}  // namespace

void score_experts(Worker& worker, uint32_t l) {
  Step& step = worker.step;
  const Matrix& router = worker.layer(l).router;
  for (uint32_t t = 0; t < step.n_tokens; ++t) {
    const float* input = step.config.router_after_attention ? worker.normed().f(t) : worker.x(t);
    multiply_router(worker, router, input, step.ws.router.data() + size_t{t} * router.rows);
  }
  if (worker.first()) worker.tally.router_bytes += router.bytes();
}

void score_later_experts(Worker& worker, uint32_t l) {
  Step& step = worker.step;
  const uint32_t ahead = layers_ahead(worker, l);
  for (uint32_t i = 0; i < ahead; ++i) {
    const Matrix& later = worker.layer(l + 1 + i).router;
    multiply_router(worker, later, input_of_later_router(worker, l + 1 + i),
                    step.ws.next_router.data() + size_t{i} * later.rows);
    if (worker.first()) worker.tally.router_bytes += later.bytes();
  }
}

void weigh(const float* p, uint32_t k, const uint32_t* indices, float* weights) {
  float sum = 0;
  for (uint32_t i = 0; i < k; ++i) sum += p[indices[i]];
  // All selected probabilities may have underflowed: then none is larger than another.
  for (uint32_t i = 0; i < k; ++i) weights[i] = sum == 0 ? 1.0f / static_cast<float>(k) : p[indices[i]] / sum;
}

void top_k(const float* p, uint32_t n, uint32_t k, uint32_t* indices, float* weights) {
  // Insertion keeps the best so far in descending order; a later equal score stays behind an earlier one.
  uint32_t found = 0;
  for (uint32_t e = 0; e < n; ++e) {
    if (found == k && !(p[e] > p[indices[k - 1]])) continue;
    uint32_t at = found < k ? found++ : k - 1;
    for (; at > 0 && p[e] > p[indices[at - 1]]; --at) indices[at] = indices[at - 1];
    indices[at] = e;
  }
  std::sort(indices, indices + k);
  weigh(p, k, indices, weights);
}

void select_experts(Worker& worker, uint32_t l, Range tokens) {
  Step& step = worker.step;
  const uint32_t E = step.config.n_expert, K = step.config.n_expert_used;
  for (size_t t = tokens.begin; t < tokens.end; ++t) {
    float* p = step.ws.router.data() + t * E;
    worker.expect_finite(p, E);
    if (step.config.gating == Gating::kSoftmax) {
      step.kernels.softmax(p, E);
    } else {
      for (uint32_t e = 0; e < E; ++e) p[e] = det_sigmoidf(p[e]);
    }
    uint32_t* experts = step.ws.plan.expert.data() + t * K;
    float* weights = step.ws.plan.weight.data() + t * K;
    if (step.routing.forced == nullptr) {
      top_k(p, E, K, experts, weights);
    } else {
      std::copy_n(forced_experts(step, l, step.position + t), K, experts);
      weigh(p, K, experts, weights);
    }
  }
}

void plan_experts(Worker& worker, uint32_t l) {
  if (!worker.first()) return;
  Step& step = worker.step;
  group_by_expert(step, l);
  if (step.routing.record != nullptr) record_experts(step, l);
  if (step.cached == nullptr) {
    place_experts(step, worker.layer(l));
    deal_neurons(step, worker.n_threads);
    return;
  }
  step.cached->request(l, &step.ws.plan);
  split_neurons(step, worker.n_threads);
}

void guess_experts(Worker& worker, uint32_t l) {
  if (!worker.first()) return;
  Step& step = worker.step;
  const uint32_t ahead = layers_ahead(worker, l);
  for (uint32_t i = 0; i < ahead; ++i)
    step.cached->guess(l + 1 + i, step.ws.next_router.data() + size_t{i} * step.config.n_expert);
}

}  // namespace sbr
