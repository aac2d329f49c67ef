#include "session.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "base/error.h"
#include "model/forward.h"

namespace sbr {
namespace {

constexpr uint32_t kMaxThreads = 256;
constexpr uint32_t kMaxBatch = 4096;

[[noreturn]] void bad_option(const std::string& option, const std::string& problem) {
  throw Error(SBR_ERR_ARGUMENT, "options." + option + " " + problem);
}

const Kernels& choose_kernels(uint32_t isa) {
  const Kernels* kernels = kernels_for(isa);
  if (kernels == nullptr) {
    std::string known;
    for (size_t i = 0; i < kernels_count(); ++i) {
      known += (i == 0 ? "" : ", ") + std::to_string(kernels_at(i)->isa) + " " + kernels_at(i)->name;
    }
    throw Error(SBR_ERR_UNSUPPORTED, "options.isa is " + std::to_string(isa) +
                                         ", which this library does not contain (it has: " + known + ")");
  }
  if (!kernels_supported(kernels)) {
    throw Error(SBR_ERR_UNSUPPORTED, std::string("options.isa asks for ") + kernels->name +
                                         ", which this CPU cannot run (it needs " + kernels_requires(kernels) + ")");
  }
  return *kernels;
}

Switches choose_switches(const Model& model, const sbr_session_options& options) {
  if (options.sparse_ffn != 0 && !model.config().relu_experts()) {
    throw Error(SBR_ERR_UNSUPPORTED, "options.sparse_ffn needs ReLU experts, which architecture " +
                                         model.config().architecture + " does not have");
  }
  if (options.sparse_lm_head != 0 && model.weights().predictor_rank == 0) {
    throw Error(SBR_ERR_UNSUPPORTED,
                "options.sparse_lm_head needs a predictor, and the file has no tensor lm_head_profiler.weight");
  }
  if (options.sparse_ffn != 0 && !model.gathers_up())
    throw Error(SBR_ERR_ARGUMENT,
                "options.sparse_ffn: the model was repacked without SBR_GATHER_UP; load it with that");
  if (options.sparse_lm_head != 0 && !model.gathers_output())
    throw Error(SBR_ERR_ARGUMENT,
                "options.sparse_lm_head: the model was repacked without SBR_GATHER_OUTPUT; load it with that");
  if (std::isnan(options.lm_head_threshold)) bad_option("lm_head_threshold", "is not a number");
  if (options.lm_head_skipped > SBR_SKIPPED_ZERO)
    bad_option("lm_head_skipped", "is " + std::to_string(options.lm_head_skipped) + ", expected 0 or 1");
  Switches switches;
  switches.sparse_lm_head = options.sparse_lm_head != 0;
  switches.lm_head_threshold = options.lm_head_threshold;
  switches.lm_head_skipped =
      options.lm_head_skipped == SBR_SKIPPED_ZERO ? 0.0f : -std::numeric_limits<float>::infinity();
  switches.timing = options.phase_timing != 0;
  return switches;
}

SparsityChoice choose_sparsity(const Model& model, const sbr_session_options& options) {
  if (options.sparse_ffn > SBR_SPARSE_FFN_AUTO) {
    bad_option("sparse_ffn", "is " + std::to_string(options.sparse_ffn) + ", expected 0 (off), 1 (on) or 2 (auto)");
  }
  return {model.config().n_layer, options.sparse_ffn == SBR_SPARSE_FFN_AUTO, options.sparse_ffn == 1};
}

bool choose_measured_split(const sbr_session_options& options) {
  if (options.row_split > SBR_SPLIT_EQUAL)
    bad_option("row_split", "is " + std::to_string(options.row_split) + ", expected 0 (measured) or 1 (equal)");
  return options.row_split == SBR_SPLIT_MEASURED;
}

uint32_t choose_threads(const sbr_session_options& options) {
  if (options.n_threads == 0) return static_cast<uint32_t>(allowed_cpus().size());  // however many there are
  if (options.n_threads > kMaxThreads)
    bad_option("n_threads", "is " + std::to_string(options.n_threads) + ", more than " + std::to_string(kMaxThreads));
  return options.n_threads;
}

std::vector<uint32_t> choose_cpus(const sbr_session_options& options) {
  if (options.cpus == nullptr && options.n_cpus != 0)
    bad_option("cpus", "is NULL, but options.n_cpus is " + std::to_string(options.n_cpus));
  if (options.cpus == nullptr) return {};
  if (options.n_cpus == 0) bad_option("n_cpus", "is 0, but options.cpus is set");
  return std::vector<uint32_t>(options.cpus, options.cpus + options.n_cpus);
}

uint32_t choose_context(const sbr_session_options& options) {
  if (options.n_ctx == 0 || options.n_ctx > (1u << 24))
    bad_option("n_ctx", "is " + std::to_string(options.n_ctx) + ", expected 1 to 16777216");
  return options.n_ctx;
}

uint32_t choose_batch(const sbr_session_options& options) {
  if (options.n_batch == 0) bad_option("n_batch", "is 0");
  if (options.n_batch > kMaxBatch)
    bad_option("n_batch", "is " + std::to_string(options.n_batch) + ", more than " + std::to_string(kMaxBatch));
  return std::min(options.n_batch, options.n_ctx);
}

uint32_t choose_kv_type(const sbr_session_options& options) {
  if (options.kv_type != SBR_TYPE_F16 && options.kv_type != SBR_TYPE_F32) {
    bad_option("kv_type", "is " + std::to_string(options.kv_type) + ", expected 1 (f16) or 0 (f32)");
  }
  return options.kv_type;
}

}  // namespace

Session::Session(const Model& model, const sbr_session_options& options)
    : model_(model),
      kernels_(choose_kernels(options.isa)),
      switches_(choose_switches(model, options)),
      sparsity_{choose_sparsity(model, options), choose_sparsity(model, options)},
      sparse_ffn_(options.sparse_ffn != 0),
      n_batch_(choose_batch(options)),
      pool_(choose_threads(options), choose_cpus(options)),
      kv_(model.config(), choose_context(options), choose_kv_type(options), options.kv_touch != 0),
      workspace_(make_workspace(model.config(), model.weights(), n_batch_, kv_.n_ctx(), pool_.size())),
      tallies_(pool_.size()),
      balance_{{pool_.size(), choose_measured_split(options)}, {pool_.size(), choose_measured_split(options)}},
      work_ns_(pool_.size()),
      expert_counts_(size_t{model.config().n_layer} * model.config().n_expert) {
  reset_counters();
}

sbr_session_info Session::info() const {
  sbr_session_info info = {};
  info.struct_size = sizeof info;
  info.n_threads = pool_.size();
  info.isa = kernels_.isa;
  info.n_ctx = kv_.n_ctx();
  info.n_batch = n_batch_;
  info.kv_type = kv_.type();
  info.sparse_ffn = !sparse_ffn_ ? SBR_SPARSE_OFF : model_.neuron_major_down() ? SBR_SPARSE_FULL : SBR_SPARSE_GATE_UP;
  info.sparse_ffn_auto = sparsity_[0].automatic();
  info.row_split = balance_[0].measured() ? SBR_SPLIT_MEASURED : SBR_SPLIT_EQUAL;
  info.sparse_lm_head = switches_.sparse_lm_head;
  info.lm_head_threshold = switches_.lm_head_threshold;
  info.n_past = n_past_;
  info.kv_bytes = kv_.bytes();
  info.scratch_bytes = workspace_.bytes();
  return info;
}

void Session::require_tokens(const int32_t* tokens, uint32_t n_tokens) const {
  const uint32_t V = model_.config().n_vocab;
  for (uint32_t i = 0; i < n_tokens; ++i) {
    if (tokens[i] >= 0 && static_cast<uint32_t>(tokens[i]) < V) continue;
    throw Error(SBR_ERR_ARGUMENT, "tokens[" + std::to_string(i) + "] is " + std::to_string(tokens[i]) +
                                      ", outside the vocabulary (0 to " + std::to_string(V - 1) + ")");
  }
  if (n_tokens > kv_.n_ctx() - n_past_) {
    throw Error(SBR_ERR_STATE, "The context is full: " + std::to_string(n_past_) + " of " +
                                   std::to_string(kv_.n_ctx()) + " positions are used, and " +
                                   std::to_string(n_tokens) + " tokens do not fit");
  }
}

sbr_interval Session::evaluate(const int32_t* tokens, uint32_t n_tokens, LogitsOf logits_of, bool decode, float* logits,
                               uint32_t restart) {
  const size_t kind = n_tokens > 1;
  Step step = {model_.config(),
               model_.weights(),
               kernels_,
               switches_,
               model_.neuron_major_down(),
               pool_,
               balance_[kind],
               sparsity_[kind],
               kv_,
               workspace_,
               tallies_,
               expert_counts_.data(),
               cancel_,
               tokens,
               n_tokens,
               n_past_,
               logits_of,
               decode,
               logits};
  sbr_interval interval;
  interval.begin_ns = Worker::now();
  const bool done = forward(step);
  interval.end_ns = Worker::now();
  ns_total_ += interval.end_ns - interval.begin_ns;
  if (!done) {
    n_past_ = restart;
    cancel_.store(false, std::memory_order_relaxed);
    throw Error(SBR_ERR_CANCELLED, "The evaluation was cancelled");
  }
  learn(kind);
  n_past_ += n_tokens;
  n_evaluated_ += n_tokens;
  return interval;
}

// What the step that has just ended says about the next ones like it.
void Session::learn(size_t kind) {
  sparsity_[kind].observe(workspace_.ffn_ns.data());
  if (!balance_[kind].measured()) return;
  for (size_t i = 0; i < tallies_.size(); ++i) work_ns_[i] = tallies_[i].ns_work;
  balance_[kind].observe(work_ns_.data());
}

void Session::prefill(const int32_t* tokens, uint32_t n_tokens, uint32_t logits_mode, float* logits,
                      sbr_interval* batches) {
  require_tokens(tokens, n_tokens);
  const uint32_t restart = n_past_;
  for (uint32_t done = 0, batch = 0; done < n_tokens; ++batch) {
    const uint32_t n = std::min(n_batch_, n_tokens - done);
    const bool last = done + n == n_tokens;
    LogitsOf logits_of = LogitsOf::kNone;
    float* to = logits;
    if (logits_mode == SBR_LOGITS_ALL) {
      logits_of = LogitsOf::kAll;
      to += size_t{done} * model_.config().n_vocab;
    } else if (logits_mode == SBR_LOGITS_LAST && last) {
      logits_of = LogitsOf::kLast;
    }
    const sbr_interval interval = evaluate(tokens + done, n, logits_of, false, to, restart);
    if (batches != nullptr) batches[batch] = interval;
    done += n;
  }
}

void Session::decode(const int32_t* tokens, uint32_t n_tokens, sbr_interval* times, const sbr_capture* capture) {
  require_tokens(tokens, n_tokens);
  const uint32_t restart = n_past_;
  const size_t V = model_.config().n_vocab;
  uint32_t captured = 0;
  for (uint32_t i = 0; i < n_tokens; ++i) {
    const sbr_interval interval = evaluate(tokens + i, 1, LogitsOf::kLast, true, workspace_.logits.data(), restart);
    if (times != nullptr) times[i] = interval;
    if (capture == nullptr || captured == capture->n_steps || capture->steps[captured] != i) continue;
    if (capture->logits != nullptr)
      std::memcpy(capture->logits + captured * V, workspace_.logits.data(), V * sizeof(float));
    if (capture->scores != nullptr && switches_.sparse_lm_head) {
      std::memcpy(capture->scores + captured * V, workspace_.predictor_scores.data(), V * sizeof(float));
    }
    ++captured;
  }
}

void Session::rewind(uint32_t n_past) {
  if (n_past > n_past_) {
    throw Error(SBR_ERR_ARGUMENT, "n_past is " + std::to_string(n_past) + ", beyond the session's position (" +
                                      std::to_string(n_past_) + ")");
  }
  n_past_ = n_past;
}

sbr_counters Session::counters() const {
  sbr_counters sum = {};
  sum.struct_size = sizeof sum;
  sum.n_layer = model_.config().n_layer;
  sum.tokens = n_evaluated_;
  for (const Tally& tally : tallies_) {
    sum.embedding_bytes += tally.embedding_bytes;
    sum.attention_bytes += tally.attention_bytes;
    sum.router_bytes += tally.router_bytes;
    sum.ffn_bytes += tally.ffn_bytes;
    sum.lm_head_bytes += tally.lm_head_bytes;
    sum.kv_bytes_read += tally.kv_bytes_read;
    sum.kv_bytes_written += tally.kv_bytes_written;
    sum.lm_head_rows += tally.lm_head_rows;
    sum.nonfinite += tally.nonfinite;
    for (uint64_t n : tally.neurons_examined) sum.neurons_examined += n;
    for (uint64_t n : tally.neurons_active) sum.neurons_active += n;
  }
  sum.weight_bytes = sum.embedding_bytes + sum.attention_bytes + sum.router_bytes + sum.ffn_bytes + sum.lm_head_bytes;
  sum.ns_total = ns_total_;
  sum.ns_attention = tallies_[0].ns_attention;
  sum.ns_router = tallies_[0].ns_router;
  sum.ns_ffn = tallies_[0].ns_ffn;
  sum.ns_lm_head = tallies_[0].ns_lm_head;
  sum.ns_barrier = tallies_[0].ns_barrier;
  return sum;
}

void Session::require_layer(uint32_t layer) const {
  if (layer < model_.config().n_layer) return;
  throw Error(SBR_ERR_ARGUMENT,
              "layer is " + std::to_string(layer) + ", but the model has " + std::to_string(model_.config().n_layer));
}

sbr_layer_counters Session::layer_counters(uint32_t layer) const {
  require_layer(layer);
  sbr_layer_counters sum = {};
  sum.struct_size = sizeof sum;
  sum.layer = layer;
  for (const Tally& tally : tallies_) {
    sum.neurons_examined += tally.neurons_examined[layer];
    sum.neurons_active += tally.neurons_active[layer];
  }
  sum.sparse_ffn = sparsity_[0].chosen(layer);
  sum.sparse_ffn_batch = sparsity_[1].chosen(layer);
  return sum;
}

const uint64_t* Session::expert_counts(uint32_t layer) const {
  require_layer(layer);
  return expert_counts_.data() + size_t{layer} * model_.config().n_expert;
}

void Session::reset_counters() {
  for (Tally& tally : tallies_) {
    tally = Tally();
    tally.neurons_examined.assign(model_.config().n_layer, 0);
    tally.neurons_active.assign(model_.config().n_layer, 0);
  }
  std::fill(expert_counts_.begin(), expert_counts_.end(), uint64_t{0});
  n_evaluated_ = 0;
  ns_total_ = 0;
}

}  // namespace sbr
