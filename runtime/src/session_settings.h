// What sbr_session_options ask for, checked against a model and completed.
#pragma once

#include <cstdint>
#include <vector>

#include "experts/cache.h"
#include "kernels/kernels.h"
#include "model/model.h"
#include "model/step.h"
#include "sbr/sbr.h"

namespace sbr {

struct SessionSettings {
  const Kernels* kernels = nullptr;
  Switches switches;
  bool sparse_ffn = false;  // in some layer at least
  bool sparse_ffn_auto = false;
  bool measured_split = false;
  uint32_t n_threads = 0;
  std::vector<uint32_t> cpus;
  uint32_t n_ctx = 0;
  uint32_t n_batch = 0;
  uint32_t kv_type = 0;
  bool kv_touch = false;
  bool record_routing = false;
  uint64_t timeline_events = 0;
  // Of a model with a bundle.
  CacheOptions cache;             // bytes: at most what all units take
  uint64_t cache_bytes_min = 0;   // with less nothing works
  uint32_t prefetch = 0;          // SBR_PREFETCH_*, as effective
  bool careful_prefetch = false;  // as far as it pays
};

// How many layers ahead SBR_PREFETCH_* guesses.
uint32_t layers_ahead(uint32_t prefetch);

// Errors: ARGUMENT, UNSUPPORTED; both name the option. cache.bytes may be below cache_bytes_min.
SessionSettings choose_settings(const Model& model, const sbr_session_options& options);

}  // namespace sbr
