#include "model/step.h"

#include <algorithm>

namespace sbr {

Activations::Activations(size_t n_tokens, size_t width_, bool allocate)
    : width(width_),
      values(n_tokens * width_, allocate),
      q(n_tokens * width_, allocate),
      d(n_tokens * (width_ / 32), allocate),
      sum(n_tokens * (width_ / 32), allocate),
      views(n_tokens, allocate) {
  if (!allocate) return;
  for (size_t t = 0; t < n_tokens; ++t) {
    views[t] = {f(t), q.data() + t * width, d.data() + t * (width / 32), sum.data() + t * (width / 32)};
  }
}

void Activations::quantise(const Kernels& kernels, size_t token, size_t begin, size_t end) {
  const size_t at = token * width + begin, block = token * (width / 32) + begin / 32;
  kernels.quantise(values.data() + at, end - begin, q.data() + at, d.data() + block, sum.data() + block);
}

namespace {

ExpertPlan make_plan(const Config& c, size_t n_batch, uint32_t n_threads) {
  const size_t positions = n_batch * c.n_expert_used;
  const size_t groups = std::min<size_t>(c.n_expert, positions);
  ExpertPlan plan;
  plan.expert = Buffer<uint32_t>(positions);
  plan.weight = Buffer<float>(positions);
  plan.position = Buffer<uint32_t>(positions);
  plan.input = Buffer<Activation>(positions);
  plan.token = Buffer<uint32_t>(positions);
  plan.groups.reserve(groups);
  plan.segments.reserve(groups * (c.n_ff / kRowGranule + 1) + n_threads);  // every cut is at a row granule
  plan.segment_begin.resize(n_threads + 1);
  plan.split_begin.reserve(groups * n_threads + 1);
  plan.cursor.resize(c.n_expert);
  return plan;
}

}  // namespace

Workspace make_workspace(const Config& c, const Weights& weights, uint32_t n_batch, uint32_t n_ctx, uint32_t n_threads,
                         bool allocate) {
  const size_t T = n_batch, D = c.n_embd, F = c.n_ff, V = c.n_vocab;
  const size_t P = c.n_expert == 0 ? T : T * c.n_expert_used;
  const size_t r = weights.predictor_rank;
  Workspace ws;
  ws.x = Buffer<float>(T * D, allocate);
  ws.normed = Activations(T, D, allocate);
  ws.rope = Buffer<float>(T * c.head_dim, allocate);
  ws.q = Buffer<float>(T * c.q_dim(), allocate);
  ws.k = Buffer<float>(T * c.kv_dim(), allocate);
  ws.v = Buffer<float>(T * c.kv_dim(), allocate);
  ws.attended = Activations(T, c.q_dim(), allocate);
  ws.residual = Buffer<float>(T * D, allocate);
  ws.ffn_ns = Buffer<uint64_t>(c.n_layer, allocate);
  ws.gate = Buffer<float>(P * F, allocate);
  ws.up = Buffer<float>(P * F, allocate);
  if (c.n_expert == 0) {
    ws.hidden = Activations(T, F, allocate);
  } else {
    ws.router = Buffer<float>(T * c.n_expert, allocate);
    ws.next_router = Buffer<float>(size_t{kMostLayersAhead} * c.n_expert, allocate);
    if (allocate) ws.plan = make_plan(c, T, n_threads);
    ws.hidden = Activations(P, F, allocate);
    ws.active_rows = Buffer<uint32_t>(P * F, allocate);
    ws.active_values = Buffer<float>(P * F, allocate);
    ws.active_count = Buffer<uint32_t>(P * (F / 32 + 1), allocate);
    ws.every_row = Buffer<uint32_t>(F, allocate);
    for (size_t j = 0; allocate && j < F; ++j) ws.every_row[j] = static_cast<uint32_t>(j);
    ws.expert_out = Buffer<float>(P * D, allocate);
  }
  ws.logits = Buffer<float>(V, allocate);
  if (r != 0) {
    ws.predictor_inner = Buffer<float>(r, allocate);
    ws.predictor_scores = Buffer<float>(V, allocate);
    ws.kept_rows = Buffer<uint32_t>(V + size_t{n_threads} * 32, allocate);
    ws.kept_logits = Buffer<float>(V + size_t{n_threads} * 32, allocate);
  }
  ws.scratch.resize(n_threads);
  for (Scratch& scratch : ws.scratch) {
    scratch.scores = Buffer<float>(std::max<size_t>(size_t{n_ctx} * (c.n_head / c.n_head_kv), c.head_dim), allocate);
    scratch.mixed = Buffer<float>(D, allocate);
    scratch.embedding = Buffer<uint8_t>(weights.token_embd.row_bytes, allocate);
    scratch.x = Buffer<float>(D, allocate);
    scratch.normed = Activations(1, D, allocate);
    if (c.n_expert != 0) {
      scratch.rows = Buffer<uint32_t>(c.n_expert_used * F + 16, allocate);
      scratch.products = Buffer<float>(c.n_expert_used * F, allocate);
      scratch.touched = Buffer<uint8_t>(F, allocate);
      scratch.up_at = Buffer<const uint8_t*>(c.n_expert_used * F, allocate);
      scratch.down_at = Buffer<const uint8_t*>(c.n_expert_used * F, allocate);
      scratch.gates = Buffer<float>(c.n_expert_used * F, allocate);
      if (allocate) scratch.pass_end.reserve(c.n_expert_used);
    }
    if (r != 0) scratch.predictor = Activations(1, r, allocate);
  }
  return ws;
}

uint64_t Workspace::bytes() const {
  uint64_t total = x.bytes() + normed.bytes() + rope.bytes() + q.bytes() + k.bytes() + v.bytes() + attended.bytes() +
                   residual.bytes() + ffn_ns.bytes() + router.bytes() + next_router.bytes() + gate.bytes() +
                   up.bytes() + hidden.bytes() + active_rows.bytes() + active_values.bytes() + active_count.bytes() +
                   every_row.bytes() + expert_out.bytes() + logits.bytes() + predictor_inner.bytes() +
                   predictor_scores.bytes() + kept_rows.bytes() + kept_logits.bytes();
  for (const Scratch& s : scratch) {
    total += s.scores.bytes() + s.rows.bytes() + s.products.bytes() + s.touched.bytes() + s.mixed.bytes() +
             s.up_at.bytes() + s.down_at.bytes() + s.gates.bytes() + s.embedding.bytes() + s.x.bytes() +
             s.normed.bytes() + s.predictor.bytes();
  }
  return total;
}

}  // namespace sbr
