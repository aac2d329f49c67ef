#include "model/lm_head.h"

#include <algorithm>

namespace sbr {

void lm_head_dense(Worker& worker, uint32_t first, uint32_t n) {
  Step& step = worker.step;
  const Matrix& output = step.weights.output;
  const Activation* input = worker.normed().views.data() + first;
  const Range mine = worker.part(output.rows, kRowGranule);
  multiply(step.kernels, output, mine, input, n, step.logits, output.rows);
  for (uint32_t t = 0; t < n; ++t) worker.expect_finite(step.logits + t * output.rows + mine.begin, mine.size());
  if (!worker.first()) return;
  worker.tally.lm_head_bytes += output.bytes();
  worker.tally.lm_head_rows += output.rows * n;
}

void lm_head_sparse(Worker& worker) {
  Step& step = worker.step;
  Workspace& ws = step.ws;
  const Matrix& fc1 = step.weights.predictor_fc1;
  const Matrix& fc2 = step.weights.predictor_fc2;
  const Matrix& output = step.weights.output;

  multiply(step.kernels, fc1, row_share(worker, fc1.rows), worker.normed().views.data(), 1, ws.predictor_inner.data(),
           0);
  worker.barrier();

  // Every thread quantises the r inner values for itself: cheaper than waiting for one that does.
  Activations& inner = worker.scratch.predictor;
  std::copy(ws.predictor_inner.data(), ws.predictor_inner.data() + fc1.rows, inner.f(0));
  inner.quantise(step.kernels, 0, 0, fc1.rows);

  const Range mine = row_share(worker, fc2.rows);
  if (mine.size() == 0) return;
  multiply(step.kernels, fc2, mine, inner.views.data(), 1, ws.predictor_scores.data(), 0);
  const size_t slack = mine.begin + size_t{worker.tid} * 32;  // compaction writes up to 16 numbers too many
  uint32_t* kept = ws.kept_rows.data() + slack;
  float* logits = ws.kept_logits.data() + slack;
  const size_t n =
      step.kernels.compact_greater(ws.predictor_scores.data() + mine.begin, mine.size(),
                                   step.switches.lm_head_threshold, static_cast<uint32_t>(mine.begin), kept);
  step.kernels.weights[output.type].gather_gemv(output.data, output.row_bytes, kept, n, output.cols,
                                                worker.normed().views.data(), logits);
  worker.expect_finite(ws.predictor_scores.data() + mine.begin, mine.size());
  worker.expect_finite(logits, n);
  std::fill(step.logits + mine.begin, step.logits + mine.end, step.switches.lm_head_skipped);
  for (size_t i = 0; i < n; ++i) step.logits[kept[i]] = logits[i];

  worker.tally.lm_head_rows += n;
  worker.tally.lm_head_bytes += n * output.row_bytes;
  if (worker.first()) worker.tally.lm_head_bytes += fc1.bytes() + fc2.bytes();
}

}  // namespace sbr
