#include "model/router.h"

#include <algorithm>

#include "base/det_math.h"

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
    plan.groups.push_back({e, first, count, 0, 0});
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

void deal_neurons(Step& step, uint32_t n_threads) {
  ExpertPlan& plan = step.ws.plan;
  const uint32_t F = step.config.n_ff;
  const uint64_t granules = (F + kRowGranule - 1) / kRowGranule;
  const uint32_t piece = step.n_tokens == 1 ? F : kBatchSegment;
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

}  // namespace

void score_experts(Worker& worker, uint32_t l) {
  Step& step = worker.step;
  const Matrix& router = step.weights.layers[l].router;
  // Few rows (32 to 128): shares of 4 so that every thread has some. The router is never quantised, so floats do.
  const Range mine = share(router.rows, 4, worker.tid, worker.n_threads);
  for (uint32_t t = 0; t < step.n_tokens; ++t) {
    const float* input = step.config.router_after_attention ? worker.normed().f(t) : worker.x(t);
    const Activation x = {input, nullptr, nullptr, nullptr};
    multiply(step.kernels, router, mine, &x, 1, step.ws.router.data() + size_t{t} * router.rows, 0);
  }
  if (worker.first()) worker.tally.router_bytes += router.bytes();
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
  float sum = 0;
  for (uint32_t i = 0; i < k; ++i) sum += p[indices[i]];
  // All selected probabilities may have underflowed: then none is larger than another.
  for (uint32_t i = 0; i < k; ++i) weights[i] = sum == 0 ? 1.0f / static_cast<float>(k) : p[indices[i]] / sum;
}

void select_experts(Worker& worker, Range tokens) {
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
    top_k(p, E, K, step.ws.plan.expert.data() + t * K, step.ws.plan.weight.data() + t * K);
  }
}

void plan_experts(Worker& worker, uint32_t l) {
  if (!worker.first()) return;
  group_by_expert(worker.step, l);
  deal_neurons(worker.step, worker.n_threads);
}

}  // namespace sbr
