// One conversation with a model: KV cache, threads, buffers, counters. The model outlives it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/thread_pool.h"
#include "base/timeline.h"
#include "experts/layer_stream.h"
#include "model/cached_experts.h"
#include "model/kv_cache.h"
#include "model/model.h"
#include "model/step.h"
#include "sbr/sbr.h"
#include "session_settings.h"

namespace sbr {

// The padding is the thread pool's, whose members keep to cache lines of their own.
// NOLINTNEXTLINE(clang-analyzer-optin.performance.Padding)
class Session {
 public:
  // Errors: ARGUMENT, UNSUPPORTED; both name the option.
  Session(const Model& model, const sbr_session_options& options);
  Session(const Model& model, const SessionSettings& settings);
  // What that would allocate; it allocates nothing.
  static sbr_session_info plan(const Model& model, const sbr_session_options& options);

  sbr_session_info info() const;
  const std::vector<int32_t>& thread_ids() const { return pool_.thread_ids(); }

  void prefill(const int32_t* tokens, uint32_t n_tokens, uint32_t logits_mode, float* logits, sbr_interval* batches);
  void decode(const int32_t* tokens, uint32_t n_tokens, sbr_interval* times, const sbr_capture* capture);
  void rewind(uint32_t n_past);
  void cancel() { cancel_.store(true, std::memory_order_relaxed); }

  sbr_counters counters() const;
  sbr_layer_counters layer_counters(uint32_t layer) const;
  const uint64_t* expert_counts(uint32_t layer) const;  // [n_expert]
  uint32_t n_expert() const { return model_.config().n_expert; }
  sbr_cache_counters cache_counters() const;
  void reset_counters();

  // Routings are [n_tokens][n_layer][n_expert_used]. Errors: STATE, ARGUMENT.
  uint64_t n_recorded() const;  // tokens
  const std::vector<uint16_t>& recorded() const { return recorded_; }
  uint64_t experts_per_token() const { return uint64_t{model_.config().n_layer} * model_.config().n_expert_used; }
  void replay_routing(const uint16_t* experts, uint64_t n_tokens);

  const Timeline& timeline() const;  // Errors: STATE

 private:
  [[noreturn]] void throw_failure();
  void require_experts() const;
  Routing routing_of(uint32_t n_tokens);
  void learn(size_t kind);
  void require_layer(uint32_t layer) const;
  void require_tokens(const int32_t* tokens, uint32_t n_tokens) const;
  // Appends tokens to the cache; restores n_past_ to `restart` when it fails.
  sbr_interval evaluate(const int32_t* tokens, uint32_t n_tokens, LogitsOf logits_of, bool decode, float* logits,
                        uint32_t restart);

  const Model& model_;
  const Kernels& kernels_;
  const Switches switches_;
  SparsityChoice sparsity_[2];  // single tokens, batches
  const bool sparse_ffn_;       // in some layer at least
  const uint32_t n_batch_;
  const uint64_t cache_bytes_min_;
  const uint32_t cache_policy_;
  const uint32_t prefetch_;
  const bool record_routing_;
  const std::unique_ptr<Timeline> timeline_;  // outlives what writes to it; nullptr: none
  // Before the pool, which pins the thread that makes it: their readers' threads would inherit its one CPU. (That of
  // another session's pool is left for the moment.)
  const std::unique_ptr<CachedExperts> cached_;  // a bundle of experts
  const std::unique_ptr<LayerStream> stream_;    // a bundle of layers
  ThreadPool pool_;
  KvCache kv_;
  Workspace workspace_;
  std::vector<Tally> tallies_;  // per thread
  Balance balance_[2];          // single tokens, batches
  std::vector<uint64_t> work_ns_;
  std::vector<uint64_t> expert_counts_;
  std::vector<uint16_t> forced_;    // routing to be replayed; empty: none
  std::vector<uint16_t> recorded_;  // routing since the last reset
  uint64_t n_evaluated_ = 0;
  uint64_t ns_total_ = 0;
  uint32_t n_past_ = 0;
  std::atomic<bool> cancel_{false};
  static_assert(std::atomic<bool>::is_always_lock_free, "cancel() may run in a signal handler");
};

}  // namespace sbr
