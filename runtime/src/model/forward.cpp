// The forward pass, as every thread runs it. Between two barriers each thread writes what no other reads.
#include "model/forward.h"

#include <algorithm>

#include "model/attention.h"
#include "model/cached_experts.h"
#include "model/dense_ffn.h"
#include "model/lm_head.h"
#include "model/router.h"
#include "model/sparse_ffn.h"
#include "quant/interleave.h"
#include "quant/reference.h"

namespace sbr {
namespace {

// x [T][D] = rows of token_embd.
void embed(Worker& worker) {
  Step& step = worker.step;
  const Matrix& embedding = step.weights.token_embd;
  const Range mine = worker.tokens();
  for (size_t t = mine.begin; t < mine.end; ++t) {
    const auto token = static_cast<uint32_t>(step.tokens[t]);
    if (embedding.type < kInterleaved) {
      dequantise_row(embedding.type, embedding.row(token), embedding.cols, worker.x(t));
    } else {
      uint8_t* row = worker.scratch.embedding.data();
      extract_row(embedding.type - kInterleaved, embedding.data, embedding.row_bytes, token, row);
      dequantise_row(embedding.type - kInterleaved, row, embedding.cols, worker.x(t));
    }
  }
  if (worker.first()) worker.tally.embedding_bytes += step.n_tokens * embedding.row_bytes;
}

// normed [T][D] = rms_norm(x) of one token, quantised if one of the matrices that read it needs that.
void normalise(Worker& worker, size_t token, const float* norm, bool quantise) {
  Step& step = worker.step;
  const size_t D = step.config.n_embd;
  Activations& normed = worker.normed();
  if (worker.first() || !worker.alone()) worker.expect_finite(worker.x(token), D);
  step.kernels.rms_norm(worker.x(token), norm, step.config.rms_eps, D, normed.f(token));
  if (quantise) normed.quantise(step.kernels, token, 0, D);
}

// x [T][D] += what attention or a dense FFN left, for one token.
void add_residual(Worker& worker, size_t token) {
  const size_t D = worker.step.config.n_embd;
  worker.step.kernels.add(worker.step.ws.residual.data() + token * D, D, worker.x(token));
}

// The end of layer l - 1 and the beginning of layer l, or of the lm_head, for this thread's tokens.
void finish_layer_and_normalise(Worker& worker, uint32_t l) {
  Step& step = worker.step;
  const bool last = l == step.config.n_layer;
  const LayerWeights* layer = last ? nullptr : &worker.layer(l);
  const float* norm = last ? step.weights.output_norm : layer->attn_norm;
  const bool quantise =
      last ? reads_quantised(step.weights.output) || step.weights.predictor_rank != 0
           : reads_quantised(layer->attn_q) || reads_quantised(layer->attn_k) || reads_quantised(layer->attn_v);
  const Range mine = worker.tokens();
  for (size_t t = mine.begin; t < mine.end; ++t) {
    if (l > 0) step.config.n_expert != 0 ? mix_experts(worker, t) : add_residual(worker, t);
    normalise(worker, t, norm, quantise);
  }
  if (worker.first()) worker.tally.attention_bytes += step.config.n_embd * sizeof(float);
}

// The weights that are needed next, for idle moments.
void fetch_attention_ahead(Worker& worker, uint32_t l) {
  if (l == worker.step.config.n_layer) {
    const Matrix& output = worker.step.weights.output;
    if (worker.step.logits_of != LogitsOf::kNone) worker.fetch_ahead(output, row_share(worker, output.rows));
    return;
  }
  if (worker.step.stream != nullptr && !worker.step.stream->arrived(l)) return;
  const LayerWeights& layer = worker.layer(l);
  const Range mine = row_share(worker, layer.attn_q.rows + layer.attn_k.rows + layer.attn_v.rows);
  if (mine.begin < layer.attn_q.rows)
    worker.fetch_ahead(layer.attn_q, {mine.begin, std::min(mine.end, layer.attn_q.rows)});
}

void fetch_gate_ahead(Worker& worker, uint32_t l) {
  const Matrix& gate = worker.layer(l).gate;
  if (worker.step.config.n_expert == 0) {
    worker.fetch_ahead(gate, row_share(worker, gate.rows));
  } else if (!worker.step.config.router_after_attention && worker.step.cached == nullptr) {
    const ExpertPlan& plan = worker.step.ws.plan;
    const uint32_t s = plan.segment_begin[worker.tid];
    if (s == plan.segment_begin[worker.tid + 1]) return;
    const Segment& segment = plan.segments[s];
    const size_t first = size_t{plan.groups[segment.group].expert} * worker.step.config.n_ff;
    worker.fetch_ahead(gate, {first + segment.row_begin, first + segment.row_end});
  }
}

// Thread 0, when nothing is left to do but the experts: which of them have arrived.
void settle_experts(Worker& worker) {
  Step& step = worker.step;
  if (worker.first() && step.cached != nullptr) step.cached->settle(step.ws.plan);
}

// residual [T][D] = attention(norm(x)). Also chooses the experts if their router reads the stream before attention.
void attention_block(Worker& worker, uint32_t l) {
  Step& step = worker.step;
  const bool experts = step.config.n_expert != 0 && !step.config.router_after_attention;
  // One more barrier, for reads that begin before q, k and v are computed.
  const bool early = experts && step.cached != nullptr && worker.alone();
  if (early) {
    worker.enter(Event::kRouter, l);
    score_experts(worker, l);  // router [E]
    worker.barrier();
    if (step.stopped) return;  // thread 0's word, passed on by the barrier
    if (worker.first()) select_experts(worker, l, {0, 1});
    plan_experts(worker, l);
    score_later_experts(worker, l);
    worker.lap(&Tally::ns_router);
  }
  worker.enter(Event::kAttention, l);
  project_qkv(worker, l);  // q [T][H * d], k and v [T][KV * d]
  worker.lap(&Tally::ns_attention);
  if (experts && !early) {
    worker.enter(Event::kRouter, l);
    score_experts(worker, l);  // router [T][E]
    worker.lap(&Tally::ns_router);
  }
  worker.barrier();
  if (step.stopped) return;  // thread 0's word, passed on by the barrier

  if (experts && !early) {
    const Range mine = share(step.n_tokens, 1, worker.tid, worker.n_threads);
    select_experts(worker, l, mine);  // plan: K experts and weights per token
    worker.lap(&Tally::ns_router);
  }
  worker.enter(Event::kAttention, l);
  position_and_store(worker, l);  // RoPE; the cache grows by T positions
  worker.lap(&Tally::ns_attention);
  worker.barrier();

  if (experts) {
    worker.enter(Event::kRouter, l);
    // plan: tokens by expert, neurons by thread; asks for what is on storage
    early ? guess_experts(worker, l) : plan_experts(worker, l);
    worker.lap(&Tally::ns_router);
  }
  worker.enter(Event::kAttention, l);
  attend(worker, l);  // attended [T][H * d]
  worker.barrier();

  project_output(worker, l);  // residual [T][D]
  fetch_gate_ahead(worker, l);
  if (experts) settle_experts(worker);
  worker.lap(&Tally::ns_attention);
  worker.barrier();
}

// Chooses the experts by normed, which is ready.
void route_after_attention(Worker& worker, uint32_t l) {
  worker.lap(&Tally::ns_ffn);
  worker.enter(Event::kRouter, l);
  score_experts(worker, l);  // router [T][E]
  score_later_experts(worker, l);
  worker.barrier();
  // All by one thread: a token's top 8 of 128 take less than the barrier after sharing the tokens out would.
  if (worker.first()) {
    select_experts(worker, l, {0, worker.step.n_tokens});
    plan_experts(worker, l);
    guess_experts(worker, l);
    settle_experts(worker);
  }
  worker.lap(&Tally::ns_router);
  worker.barrier();
}

// x [T][D] -> x + attention's residual, and FFN(norm(x)) for finish_layer_and_normalise to add: residual [T][D], or
// with experts expert_out [T * K][D]. False, on every thread: weights could not be read.
bool ffn_block(Worker& worker, uint32_t l) {
  Step& step = worker.step;
  const LayerWeights& layer = worker.layer(l);
  const bool quantise = reads_quantised(layer.gate) || reads_quantised(layer.up);
  const Range mine = worker.tokens();
  worker.enter(Event::kNorm, l);
  for (size_t t = mine.begin; t < mine.end; ++t) {
    add_residual(worker, t);
    normalise(worker, t, layer.ffn_norm, quantise);  // normed [T][D]
  }
  if (worker.first()) worker.tally.ffn_bytes += step.config.n_embd * sizeof(float);
  worker.token_barrier();

  if (step.config.router_after_attention) route_after_attention(worker, l);
  const bool clocked = worker.first() && step.sparsity.automatic();
  const uint64_t begin = clocked ? Worker::now() : 0;
  const uint64_t waited = clocked && step.cached != nullptr ? step.cached->ns_wait() : 0;
  if (step.config.n_expert == 0) {
    worker.enter(Event::kGateUp, l);
    activate_dense(worker, l);  // hidden [T][F]
    worker.barrier();
    worker.enter(Event::kDown, l);
    project_dense(worker, l);  // residual [T][D]
    worker.release_layer(l);
    fetch_attention_ahead(worker, l + 1);
  } else {
    if (!compute_experts(worker, l)) return false;  // expert_out [T * K][D]
    fetch_attention_ahead(worker, l + 1);
  }
  worker.lap(&Tally::ns_ffn);
  worker.barrier();
  if (clocked) {
    const uint64_t idle = step.cached == nullptr ? 0 : step.cached->ns_wait() - waited;
    step.ws.ffn_ns[l] = Worker::now() - begin - idle;
  }
  return true;
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
  const auto fail = [&] {
    if (worker.first()) step.failed = true;
  };
  embed(worker);
  prepare_rope(worker);
  // No barrier: the first norm reads only tokens that this thread embedded.
  for (uint32_t l = 0; l < step.config.n_layer; ++l) {
    if (worker.first()) step.stopped = step.cancel.load(std::memory_order_relaxed);
    worker.enter(Event::kNorm, l);
    finish_layer_and_normalise(worker, l);  // normed [T][D]
    worker.lap(&Tally::ns_attention);
    worker.token_barrier();
    if (!worker.await_layer(l)) return fail();
    attention_block(worker, l);
    if (step.stopped) return;
    if (!ffn_block(worker, l)) return fail();
  }
  if (step.logits_of == LogitsOf::kNone) return worker.finish();
  worker.enter(Event::kLmHead, kNoneOfTimeline);
  finish_layer_and_normalise(worker, step.config.n_layer);
  worker.lap(&Tally::ns_lm_head);
  worker.token_barrier();
  lm_head(worker);
  worker.finish();
}

}  // namespace

bool forward(Step& step) {
  const bool timed = step.switches.timing;
  uint64_t ended = 0;  // thread 0's work; the rest of run() is its wait for the other threads
  step.pool.run([&](uint32_t tid) {
    run_thread(step, tid);
    if ((timed || step.timeline != nullptr) && tid == 0) ended = Worker::now();
  });
  if (timed) step.tallies[0].ns_barrier += Worker::now() - ended;
  const uint64_t met = step.timeline == nullptr ? 0 : Worker::now();
  if (step.cached != nullptr) step.failed ? step.cached->abandon() : step.cached->release();
  if (step.timeline != nullptr) {
    step.timeline->span(0, Event::kBarrier, kNoneOfTimeline, ended, met);
    step.timeline->span(0, Event::kStep, kNoneOfTimeline, met, Worker::now());
  }
  return !step.stopped && !step.failed;
}

}  // namespace sbr
