#include "model/attention.h"

#include <algorithm>
#include <cmath>

#include "base/det_math.h"

namespace sbr {
namespace {

// Files with interleaved RoPE rotate the pairs (0,1), (2,3), ...; the kernel rotates (i, i + head_dim/2). Moving the
// even elements of q and k to the first half makes them the same rotation, and leaves every q . k unchanged but for the
// order of its sum.
void deinterleave(float* head, uint32_t head_dim, float* scratch) {
  std::copy(head, head + head_dim, scratch);
  for (uint32_t i = 0; i < head_dim / 2; ++i) {
    head[i] = scratch[2 * i];
    head[head_dim / 2 + i] = scratch[2 * i + 1];
  }
}

// Rule 12, with the optional norm of q and k before it.
void prepare_head(Worker& worker, uint32_t l, uint32_t token, const float* norm, float* head) {
  const Step& step = worker.step;
  const Config& c = step.config;
  if (norm != nullptr) step.kernels.rms_norm(head, norm, c.rms_eps, c.head_dim, head);
  if (!c.layers[l].rope) return;
  if (c.rope_style == RopeStyle::kInterleaved) deinterleave(head, c.head_dim, worker.scratch.scores.data());
  step.kernels.rope_neox(head, c.head_dim, step.ws.rope.data() + size_t{token} * c.head_dim);
}

}  // namespace

void prepare_rope(Worker& worker) {
  Step& step = worker.step;
  const uint32_t half = step.config.head_dim / 2;
  const double log_base = det_log(step.config.rope_freq_base);
  const Range tokens = worker.alone() ? Range{0, 1} : share(step.n_tokens, 1, worker.tid, worker.n_threads);
  const Range pairs = worker.alone() ? share(half, 1, worker.tid, worker.n_threads) : Range{0, half};
  for (size_t i = pairs.begin; i < pairs.end; ++i) {
    const double frequency = det_exp(-log_base * (2.0 * static_cast<double>(i) / step.config.head_dim));
    for (size_t t = tokens.begin; t < tokens.end; ++t) {
      double sine, cosine;
      det_sincos(static_cast<double>(step.position + t) * frequency, &sine, &cosine);
      float* table = step.ws.rope.data() + t * step.config.head_dim;
      table[i] = static_cast<float>(cosine);
      table[half + i] = static_cast<float>(sine);
    }
  }
}

void project_qkv(Worker& worker, uint32_t l) {
  Step& step = worker.step;
  const LayerWeights& layer = worker.layer(l);
  const Matrix* matrices[3] = {&layer.attn_q, &layer.attn_k, &layer.attn_v};
  float* outputs[3] = {step.ws.q.data(), step.ws.k.data(), step.ws.v.data()};

  // The rows of all three, end to end.
  size_t total = 0;
  for (const Matrix* w : matrices) {
    total += w->rows;
    if (worker.first()) worker.tally.attention_bytes += w->bytes();
  }
  const Range mine = worker.part(total, kRowGranule);
  size_t first = 0;
  for (int i = 0; i < 3; ++i) {
    const size_t rows = matrices[i]->rows;
    const Range part = {std::clamp(mine.begin, first, first + rows) - first,
                        std::clamp(mine.end, first, first + rows) - first};
    multiply(step.kernels, *matrices[i], part, worker.normed().views.data(), step.n_tokens, outputs[i], rows);
    first += rows;
  }
  worker.fetch_ahead(layer.attn_output, row_share(worker, layer.attn_output.rows));
}

void position_and_store(Worker& worker, uint32_t l) {
  Step& step = worker.step;
  const Config& c = step.config;
  const LayerWeights& layer = worker.layer(l);
  // Units: the q heads, then the k heads, then the v heads of a token.
  const uint32_t units = c.n_head + 2 * c.n_head_kv;
  const Range mine = share(size_t{step.n_tokens} * units, 1, worker.tid, worker.n_threads);
  for (size_t u = mine.begin; u < mine.end; ++u) {
    const uint32_t t = static_cast<uint32_t>(u / units);
    uint32_t head = static_cast<uint32_t>(u % units);
    const uint32_t position = step.position + t;
    if (head < c.n_head) {
      prepare_head(worker, l, t, layer.attn_q_norm, step.ws.q.data() + (size_t{t} * c.n_head + head) * c.head_dim);
      continue;
    }
    head -= c.n_head;
    if (head < c.n_head_kv) {
      float* key = step.ws.k.data() + (size_t{t} * c.n_head_kv + head) * c.head_dim;
      prepare_head(worker, l, t, layer.attn_k_norm, key);
      step.kv.store_key(step.kernels, l, head, position, key);
    } else {
      head -= c.n_head_kv;
      step.kv.store_value(step.kernels, l, head, position,
                          step.ws.v.data() + (size_t{t} * c.n_head_kv + head) * c.head_dim);
    }
    worker.tally.kv_bytes_written += step.kv.vector_bytes();
  }
}

namespace {

// Rule 11 for `n_heads` q heads of one token, from `head` on, that share a key/value head.
void attend_heads(Worker& worker, uint32_t l, uint32_t t, uint32_t head, uint32_t n_heads) {
  Step& step = worker.step;
  const Config& c = step.config;
  const uint32_t window = c.layers[l].window, end = step.position + t + 1;
  const uint32_t first = window != 0 && end > window ? end - window : 0, n = end - first;
  const uint32_t head_kv = head / (c.n_head / c.n_head_kv);
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  const float* q = step.ws.q.data() + (size_t{t} * c.n_head + head) * c.head_dim;
  float* scores = worker.scratch.scores.data();  // [n_heads][n]
  float* out = step.ws.attended.f(t) + size_t{head} * c.head_dim;

  step.kv.scores(step.kernels, l, head_kv, first, n, q, n_heads, scale, scores, n);
  for (uint32_t h = 0; h < n_heads; ++h) step.kernels.softmax(scores + size_t{h} * n, n);
  std::fill_n(out, size_t{n_heads} * c.head_dim, 0.0f);
  step.kv.mix(step.kernels, l, head_kv, first, n, scores, n, n_heads, out);
  worker.expect_finite(out, size_t{n_heads} * c.head_dim);
  if (reads_quantised(worker.layer(l).attn_output)) {
    step.ws.attended.quantise(step.kernels, t, size_t{head} * c.head_dim, size_t{head + n_heads} * c.head_dim);
  }
  // Counted once per group: the first head's thread reads them for all, as far as caches go.
  if (head % (c.n_head / c.n_head_kv) == 0) worker.tally.kv_bytes_read += 2 * n * step.kv.vector_bytes();
}

}  // namespace

void attend(Worker& worker, uint32_t l) {
  const Config& c = worker.step.config;
  const uint32_t group = c.n_head / c.n_head_kv;
  const Range mine = worker.part(size_t{worker.step.n_tokens} * c.n_head, 1);
  for (size_t u = mine.begin; u < mine.end;) {
    const size_t next = std::min(mine.end, (u / group + 1) * group);
    attend_heads(worker, l, static_cast<uint32_t>(u / c.n_head), static_cast<uint32_t>(u % c.n_head),
                 static_cast<uint32_t>(next - u));
    u = next;
  }
}

void project_output(Worker& worker, uint32_t l) {
  Step& step = worker.step;
  const Matrix& w = worker.layer(l).attn_output;
  const size_t D = step.config.n_embd;
  const Range mine = worker.part(D, kRowGranule);
  multiply(step.kernels, w, mine, step.ws.attended.views.data(), step.n_tokens, step.ws.residual.data(), D);
  if (worker.first()) worker.tally.attention_bytes += w.bytes();
}

}  // namespace sbr
