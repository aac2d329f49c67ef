#include "model/dense_ffn.h"

namespace sbr {

void activate_dense(Worker& worker, uint32_t l) {
  Step& step = worker.step;
  Workspace& ws = step.ws;
  const LayerWeights& layer = step.weights.layers[l];
  const size_t F = step.config.n_ff;
  const Range mine = row_share(worker, F);
  multiply(step.kernels, layer.gate, mine, ws.normed.views.data(), step.n_tokens, ws.gate.data(), F);
  multiply(step.kernels, layer.up, mine, ws.normed.views.data(), step.n_tokens, ws.up.data(), F);
  for (uint32_t t = 0; t < step.n_tokens; ++t) {
    const size_t at = t * F + mine.begin;
    step.kernels.silu_mul(ws.gate.data() + at, ws.up.data() + at, mine.size(), ws.hidden.f(t) + mine.begin);
    if (reads_quantised(layer.down)) ws.hidden.quantise(step.kernels, t, mine.begin, mine.end);
  }
  worker.tally.neurons_examined[l] += mine.size() * step.n_tokens;
  worker.tally.neurons_active[l] += mine.size() * step.n_tokens;
  if (worker.first()) worker.tally.ffn_bytes += layer.gate.bytes() + layer.up.bytes();
}

void project_dense(Worker& worker, uint32_t l) {
  Step& step = worker.step;
  const Matrix& down = step.weights.layers[l].down;
  const size_t D = step.config.n_embd;
  const Range mine = row_share(worker, D);
  multiply(step.kernels, down, mine, step.ws.hidden.views.data(), step.n_tokens, step.ws.residual.data(), D);
  for (uint32_t t = 0; t < step.n_tokens; ++t) {
    step.kernels.add(step.ws.residual.data() + t * D + mine.begin, mine.size(), step.ws.x.data() + t * D + mine.begin);
  }
  if (worker.first()) worker.tally.ffn_bytes += down.bytes();
}

}  // namespace sbr
