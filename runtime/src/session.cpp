#include "session.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/error.h"
#include "model/forward.h"

namespace sbr {
namespace {

std::unique_ptr<Timeline> make_timeline(const SessionSettings& settings) {
  if (settings.timeline_events == 0) return nullptr;
  return std::make_unique<Timeline>(settings.n_threads, settings.timeline_events);
}

// With the session's timeline in its options.
SessionSettings with_timeline(SessionSettings settings, Timeline* timeline) {
  settings.cache.timeline = timeline;
  return settings;
}

std::unique_ptr<CachedExperts> make_cached_experts(const Model& model, const SessionSettings& settings) {
  const Bundle* bundle = model.bundle();
  if (bundle == nullptr || bundle->kind() != SBR_BUNDLE_EXPERTS) return nullptr;
  ThreadPool::unpin_caller();
  return std::make_unique<CachedExperts>(*bundle, model.config(), settings.cache, layers_ahead(settings.prefetch),
                                         settings.careful_prefetch);
}

std::unique_ptr<LayerStream> make_layer_stream(const Model& model, const SessionSettings& settings) {
  const Bundle* bundle = model.bundle();
  if (bundle == nullptr || bundle->kind() != SBR_BUNDLE_LAYERS) return nullptr;
  ThreadPool::unpin_caller();
  const StreamOptions options = {settings.cache.bytes, settings.cache.verify, settings.cache.reader,
                                 settings.cache.timeline};
  return std::make_unique<LayerStream>(*bundle, model.weights(), options);
}

SessionSettings require_cache(const Model& model, SessionSettings settings) {
  if (settings.cache.bytes < settings.cache_bytes_min) {
    throw Error(SBR_ERR_ARGUMENT, "options.cache_bytes is " + std::to_string(settings.cache.bytes) + ", but at least " +
                                      std::to_string(settings.cache_bytes_min) + " are needed: what one unit of " +
                                      model.bundle()->path() + " takes");
  }
  return settings;
}

}  // namespace

Session::Session(const Model& model, const sbr_session_options& options)
    : Session(model, require_cache(model, choose_settings(model, options))) {}

Session::Session(const Model& model, const SessionSettings& settings)
    : model_(model),
      kernels_(*settings.kernels),
      switches_(settings.switches),
      sparsity_{{model.config().n_layer, settings.sparse_ffn_auto, settings.sparse_ffn},
                {model.config().n_layer, settings.sparse_ffn_auto, settings.sparse_ffn}},
      sparse_ffn_(settings.sparse_ffn),
      n_batch_(settings.n_batch),
      cache_bytes_min_(settings.cache_bytes_min),
      cache_policy_(settings.cache.policy),
      prefetch_(settings.prefetch),
      record_routing_(settings.record_routing),
      timeline_(make_timeline(settings)),
      cached_(make_cached_experts(model, with_timeline(settings, timeline_.get()))),
      stream_(make_layer_stream(model, with_timeline(settings, timeline_.get()))),
      pool_(settings.n_threads, settings.cpus),
      kv_(model.config(), settings.n_ctx, settings.kv_type, settings.kv_touch),
      workspace_(make_workspace(model.config(), model.weights(), n_batch_, kv_.n_ctx(), pool_.size())),
      tallies_(pool_.size()),
      balance_{{pool_.size(), settings.measured_split}, {pool_.size(), settings.measured_split}},
      work_ns_(pool_.size()),
      expert_counts_(size_t{model.config().n_layer} * model.config().n_expert) {
  reset_counters();
}

sbr_session_info Session::plan(const Model& model, const sbr_session_options& options) {
  const SessionSettings settings = choose_settings(model, options);
  sbr_session_info info = {};
  info.struct_size = sizeof info;
  info.n_threads = settings.n_threads;
  info.n_ctx = settings.n_ctx;
  info.n_batch = settings.n_batch;
  info.kv_bytes = KvCache::bytes_for(model.config(), settings.n_ctx, settings.kv_type);
  info.scratch_bytes =
      make_workspace(model.config(), model.weights(), settings.n_batch, settings.n_ctx, settings.n_threads, false)
          .bytes() +
      Timeline::bytes_for(settings.n_threads, settings.timeline_events);
  if (const Bundle* bundle = model.bundle(); bundle != nullptr) {
    info.cache_bytes = settings.cache.bytes / bundle->unit_bytes() * bundle->unit_bytes();
    info.cache_bytes_min = settings.cache_bytes_min;
  }
  return info;
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
  info.scratch_bytes = workspace_.bytes() + (timeline_ == nullptr ? 0 : timeline_->bytes());
  if (model_.bundle() == nullptr) return info;
  const ReaderInfo reader = cached_ != nullptr ? cached_->cache().reader() : stream_->reader();
  info.cache_bytes = cached_ != nullptr ? cached_->cache().bytes() : stream_->bytes();
  info.cache_units = static_cast<uint32_t>(info.cache_bytes / model_.bundle()->unit_bytes());
  info.cache_bytes_min = cache_bytes_min_;
  info.cache_policy = cache_policy_;
  info.io = reader.kind;
  info.io_direct = reader.direct ? SBR_DIRECT_ON : SBR_DIRECT_OFF;
  info.prefetch = prefetch_;
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
  const uint64_t recorded = recorded_.size();
  Routing routing;
  try {
    routing = routing_of(n_tokens);
  } catch (...) {  // no memory for what would be recorded, maybe after other batches
    n_past_ = restart;
    throw;
  }
  if (stream_ != nullptr) stream_->begin_step(pool_.size());
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
               routing,
               cached_.get(),
               cancel_,
               tokens,
               n_tokens,
               n_past_,
               logits_of,
               decode,
               logits,
               false,
               false,
               stream_.get(),
               timeline_.get()};
  sbr_interval interval;
  interval.begin_ns = Worker::now();
  if (timeline_ != nullptr) timeline_->begin_step(interval.begin_ns);
  const bool done = forward(step);
  interval.end_ns = Worker::now();
  if (timeline_ != nullptr)
    timeline_->span(0, Event::kToken, kNoneOfTimeline, interval.begin_ns, interval.end_ns, n_tokens);
  ns_total_ += interval.end_ns - interval.begin_ns;
  if (stream_ != nullptr) stream_->end_step(done);
  if (!done) {
    n_past_ = restart;
    recorded_.resize(recorded);
    if (step.failed) throw_failure();
    cancel_.store(false, std::memory_order_relaxed);
    throw Error(SBR_ERR_CANCELLED, "The evaluation was cancelled");
  }
  learn(kind);
  n_past_ += n_tokens;
  n_evaluated_ += n_tokens;
  return interval;
}

// A unit could not be read, or is not what was written.
void Session::throw_failure() {
  if (stream_ != nullptr) stream_->throw_failure();
  UnitCache& cache = cached_->cache();
  const Error error(cache.failure_status(), cache.failure());
  cache.clear_failure();
  throw error;
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

sbr_cache_counters Session::cache_counters() const {
  if (cached_ != nullptr) return cached_->counters();
  if (stream_ != nullptr) return stream_->counters();
  return {};
}

void Session::require_experts() const {
  if (model_.config().n_expert == 0) throw Error(SBR_ERR_ARGUMENT, "The model has no experts, so there is no routing");
}

uint64_t Session::n_recorded() const {
  require_experts();
  if (!record_routing_)
    throw Error(SBR_ERR_STATE, "The session records no routing; create it with options.record_routing");
  return recorded_.size() / experts_per_token();
}

void Session::replay_routing(const uint16_t* experts, uint64_t n_tokens) {
  require_experts();
  if (experts == nullptr) {
    forced_.clear();
    return;
  }
  const Config& c = model_.config();
  if (n_tokens == 0) throw Error(SBR_ERR_ARGUMENT, "n_tokens is 0");
  if (n_tokens > SIZE_MAX / sizeof(uint16_t) / experts_per_token()) throw std::bad_alloc();
  const size_t n = n_tokens * experts_per_token();
  for (size_t i = 0; i < n; ++i) {
    if (experts[i] < c.n_expert && (i % c.n_expert_used == 0 || experts[i - 1] < experts[i])) continue;
    throw Error(SBR_ERR_ARGUMENT, "experts: token " + std::to_string(i / experts_per_token()) + ", layer " +
                                      std::to_string(i / c.n_expert_used % c.n_layer) + " names expert " +
                                      std::to_string(experts[i]) + "; each set must ascend and be below " +
                                      std::to_string(c.n_expert));
  }
  forced_.assign(experts, experts + n);
}

const Timeline& Session::timeline() const {
  if (timeline_ == nullptr)
    throw Error(SBR_ERR_STATE, "The session records no timeline; create it with options.timeline_events");
  return *timeline_;
}

// For a step of n_tokens; makes room for what it will record.
Routing Session::routing_of(uint32_t n_tokens) {
  Routing routing;
  if (!forced_.empty()) {
    routing.forced = forced_.data();
    routing.n_forced = forced_.size() / experts_per_token();
  }
  if (record_routing_) {
    const size_t before = recorded_.size();
    recorded_.resize(before + n_tokens * experts_per_token());
    routing.record = recorded_.data() + before;
  }
  return routing;
}

void Session::reset_counters() {
  for (Tally& tally : tallies_) {
    tally = Tally();
    tally.neurons_examined.assign(model_.config().n_layer, 0);
    tally.neurons_active.assign(model_.config().n_layer, 0);
  }
  std::fill(expert_counts_.begin(), expert_counts_.end(), uint64_t{0});
  if (cached_ != nullptr) cached_->reset_counters();
  if (stream_ != nullptr) stream_->reset_counters();
  if (timeline_ != nullptr) timeline_->clear();
  recorded_.clear();
  n_evaluated_ = 0;
  ns_total_ = 0;
}

}  // namespace sbr
