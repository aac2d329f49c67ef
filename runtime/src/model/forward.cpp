// The forward pass, as every thread runs it. Between two barriers each thread writes what no other reads.
#include "model/forward.h"

#include "model/attention.h"
#include "model/dense_ffn.h"
#include "model/lm_head.h"
#include "model/router.h"
#include "model/sparse_ffn.h"
#include "quant/reference.h"

namespace sbr {
namespace {

// x [T][D] = rows of token_embd.
void embed(Worker& worker) {
  Step& step = worker.step;
  const Matrix& embedding = step.weights.token_embd;
  const Range mine = token_share(worker);
  for (size_t t = mine.begin; t < mine.end; ++t) {
    dequantise_row(embedding.type, embedding.row(static_cast<uint32_t>(step.tokens[t])), embedding.cols,
                   step.ws.x.data() + t * embedding.cols);
    worker.tally.embedding_bytes += embedding.row_bytes;
  }
}

// normed [T][D] = rms_norm(x) of one token, quantised if one of the matrices that read it needs that.
void normalise(Worker& worker, size_t token, const float* norm, bool quantise) {
  Step& step = worker.step;
  const size_t D = step.config.n_embd;
  step.kernels.rms_norm(step.ws.x.data() + token * D, norm, step.config.rms_eps, D, step.ws.normed.f(token));
  if (quantise) step.ws.normed.quantise(step.kernels, token, 0, D);
}

// The end of layer l - 1 and the beginning of layer l, or of the lm_head, for this thread's tokens.
void finish_layer_and_normalise(Worker& worker, uint32_t l) {
  Step& step = worker.step;
  const bool last = l == step.config.n_layer;
  const LayerWeights* layer = last ? nullptr : &step.weights.layers[l];
  const float* norm = last ? step.weights.output_norm : layer->attn_norm;
  const bool quantise =
      last ? reads_quantised(step.weights.output) || step.weights.predictor_rank != 0
           : reads_quantised(layer->attn_q) || reads_quantised(layer->attn_k) || reads_quantised(layer->attn_v);
  const Range mine = token_share(worker);
  for (size_t t = mine.begin; t < mine.end; ++t) {
    if (l > 0 && step.config.n_expert != 0) mix_experts(worker, t);
    normalise(worker, t, norm, quantise);
  }
  if (worker.first()) worker.tally.attention_bytes += step.config.n_embd * sizeof(float);
}

// x [T][D] -> x + attention(norm(x)). Also chooses the experts: this family's router reads the stream before attention.
void attention_block(Worker& worker, uint32_t l) {
  Step& step = worker.step;
  const bool experts = step.config.n_expert != 0;
  project_qkv(worker, l);  // q [T][H * d], k and v [T][KV * d]
  worker.lap(&Tally::ns_attention);
  if (experts) {
    score_experts(worker, l);  // router [T][E]
    worker.lap(&Tally::ns_router);
  }
  worker.barrier();

  if (experts) {
    select_experts(worker);  // plan: K experts and weights per token
    worker.lap(&Tally::ns_router);
  }
  position_and_store(worker, l);  // RoPE; the cache grows by T positions
  worker.lap(&Tally::ns_attention);
  worker.barrier();

  if (experts) {
    plan_experts(worker, l);  // plan: tokens by expert, neurons by thread
    worker.lap(&Tally::ns_router);
  }
  attend(worker, l);  // attended [T][H * d]
  worker.barrier();

  project_output(worker, l);  // x [T][D]
  worker.lap(&Tally::ns_attention);
  worker.barrier();
}

// x [T][D] -> x + FFN(norm(x)); with experts, the addition is left to finish_layer_and_normalise.
void ffn_block(Worker& worker, uint32_t l) {
  Step& step = worker.step;
  const LayerWeights& layer = step.weights.layers[l];
  const bool quantise = reads_quantised(layer.gate) || reads_quantised(layer.up);
  const Range mine = token_share(worker);
  for (size_t t = mine.begin; t < mine.end; ++t) normalise(worker, t, layer.ffn_norm, quantise);  // normed [T][D]
  if (worker.first()) worker.tally.ffn_bytes += step.config.n_embd * sizeof(float);
  worker.barrier();

  if (step.config.n_expert == 0) {
    activate_dense(worker, l);  // hidden [T][F]
    worker.barrier();
    project_dense(worker, l);  // x [T][D]
  } else {
    activate_neurons(worker, l);  // active neurons of every (token, expert)
    worker.barrier();
    project_down(worker, l);  // expert_out [T * K][D]
  }
  worker.lap(&Tally::ns_ffn);
  worker.barrier();
}

void lm_head(Worker& worker) {
  Step& step = worker.step;
  if (step.decode && step.switches.sparse_lm_head) {
    lm_head_sparse(worker);  // logits [V], some skipped
  } else if (step.logits_of == LogitsOf::kLast) {
    lm_head_dense(worker, step.n_tokens - 1, 1);  // logits [V]
  } else {
    lm_head_dense(worker, 0, step.n_tokens);  // logits [T][V]
  }
  worker.lap(&Tally::ns_lm_head);
}

void run_thread(Step& step, uint32_t tid) {
  Worker worker(step, tid);
  embed(worker);
  prepare_rope(worker);
  // No barrier: the first norm reads only tokens that this thread embedded.
  for (uint32_t l = 0; l < step.config.n_layer; ++l) {
    if (worker.first()) step.stopped = step.cancel.load(std::memory_order_relaxed);
    finish_layer_and_normalise(worker, l);  // normed [T][D]
    worker.lap(&Tally::ns_attention);
    worker.barrier();
    if (step.stopped) return;
    attention_block(worker, l);
    ffn_block(worker, l);
  }
  if (step.logits_of == LogitsOf::kNone) return;
  finish_layer_and_normalise(worker, step.config.n_layer);
  worker.lap(&Tally::ns_lm_head);
  worker.barrier();
  lm_head(worker);
}

}  // namespace

bool forward(Step& step) {
  const bool timed = step.switches.timing;
  uint64_t ended = 0;  // thread 0's work; the rest of run() is its wait for the other threads
  step.pool.run([&](uint32_t tid) {
    run_thread(step, tid);
    if (timed && tid == 0) ended = Worker::now();
  });
  if (timed) step.tallies[0].ns_barrier += Worker::now() - ended;
  return !step.stopped;
}

}  // namespace sbr
