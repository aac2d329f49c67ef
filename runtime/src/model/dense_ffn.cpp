#include "model/dense_ffn.h"

namespace sbr {

void activate_dense(Worker& worker, uint32_t l) {
  Step& step = worker.step;
  Workspace& ws = step.ws;
  const LayerWeights& layer = worker.layer(l);
  const size_t F = step.config.n_ff;
  const Activation* input = worker.normed().views.data();
  const Range mine = worker.part(F, kRowGranule);
  multiply(step.kernels, layer.gate, mine, input, step.n_tokens, ws.gate.data(), F);
  multiply(step.kernels, layer.up, mine, input, step.n_tokens, ws.up.data(), F);
  for (uint32_t t = 0; t < step.n_tokens; ++t) {
    const size_t at = t * F + mine.begin;
    step.kernels.silu_mul(ws.gate.data() + at, ws.up.data() + at, mine.size(), ws.hidden.f(t) + mine.begin);
    worker.expect_finite(ws.hidden.f(t) + mine.begin, mine.size());
    if (reads_quantised(layer.down)) ws.hidden.quantise(step.kernels, t, mine.begin, mine.end);
  }
  worker.tally.neurons_examined[l] += mine.size() * step.n_tokens;
  worker.tally.neurons_active[l] += mine.size() * step.n_tokens;
  worker.fetch_ahead(layer.down, row_share(worker, layer.down.rows));
  if (worker.first()) worker.tally.ffn_bytes += layer.gate.bytes() + layer.up.bytes();
}

void project_dense(Worker& worker, uint32_t l) {
  Step& step = worker.step;
  const Matrix& down = worker.layer(l).down;
  const size_t D = step.config.n_embd;
  const Range mine = worker.part(D, kRowGranule);
  multiply(step.kernels, down, mine, step.ws.hidden.views.data(), step.n_tokens, step.ws.residual.data(), D);
  if (worker.first()) worker.tally.ffn_bytes += down.bytes();
}

}  // namespace sbr
