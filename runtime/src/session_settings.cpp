#include "session_settings.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <string>

#include "base/error.h"
#include "base/thread_pool.h"
#include "base/timeline.h"

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

void check_sparse_ffn(const sbr_session_options& options) {
  if (options.sparse_ffn > SBR_SPARSE_FFN_AUTO) {
    bad_option("sparse_ffn", "is " + std::to_string(options.sparse_ffn) + ", expected 0 (off), 1 (on) or 2 (auto)");
  }
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

// One of the numbers that sbr.h names.
uint32_t choose(const char* option, uint32_t value, std::initializer_list<uint32_t> known) {
  if (std::find(known.begin(), known.end(), value) != known.end()) return value;
  std::string list;
  for (uint32_t each : known) list += (list.empty() ? "" : ", ") + std::to_string(each);
  bad_option(option, "is " + std::to_string(value) + ", expected one of " + list);
}

void require_no_cache(const sbr_session_options& options) {
  const struct {
    const char* name;
    uint64_t value;
  } given[] = {{"cache_bytes", options.cache_bytes},
               {"cache_policy", options.cache_policy},
               {"io", options.io},
               {"io_threads", options.io_threads},
               {"io_direct", options.io_direct},
               {"prefetch", options.prefetch},
               {"verify", options.verify}};
  for (const auto& option : given) {
    if (option.value == 0) continue;
    bad_option(option.name, "is for models whose weights stay on storage; load the model with options->bundle");
  }
}

void choose_cache(const Bundle& bundle, const sbr_session_options& options, SessionSettings* settings) {
  const uint64_t all = bundle.n_units() * bundle.unit_bytes();
  CacheOptions& cache = settings->cache;
  cache.bytes = std::min(options.cache_bytes, all);
  cache.policy =
      choose("cache_policy", options.cache_policy, {SBR_CACHE_AUTO, SBR_CACHE_LRU, SBR_CACHE_LFU, SBR_CACHE_REUSE});
  // What make_policy() makes of AUTO.
  if (cache.policy == SBR_CACHE_AUTO && bundle.kind() == SBR_BUNDLE_EXPERTS) cache.policy = SBR_CACHE_REUSE;
  if (cache.policy != SBR_CACHE_AUTO && bundle.kind() == SBR_BUNDLE_LAYERS)
    bad_option("cache_policy", "is for experts; the layers of a model without them are used in turn");
  cache.verify = choose("verify", options.verify, {SBR_VERIFY_FIRST, SBR_VERIFY_EVERY, SBR_VERIFY_NEVER});
  cache.reader.kind = choose("io", options.io, {SBR_IO_AUTO, SBR_IO_PREAD, SBR_IO_URING});
  cache.reader.direct = choose("io_direct", options.io_direct, {SBR_DIRECT_AUTO, SBR_DIRECT_ON, SBR_DIRECT_OFF});
  if (options.io_threads > kMaxThreads)
    bad_option("io_threads", "is " + std::to_string(options.io_threads) + ", more than " + std::to_string(kMaxThreads));
  cache.reader.threads = options.io_threads;
  settings->cache_bytes_min = bundle.unit_bytes();
  settings->prefetch = choose("prefetch", options.prefetch,
                              {SBR_PREFETCH_AUTO, SBR_PREFETCH_EXACT, SBR_PREFETCH_NEXT_LAYER,
                               SBR_PREFETCH_NEXT_2_LAYERS, SBR_PREFETCH_NEXT_4_LAYERS});
  if (layers_ahead(settings->prefetch) != 0 && bundle.kind() != SBR_BUNDLE_EXPERTS)
    bad_option("prefetch", "asks for later layers' likely experts, and the model has none: its next layer is known");
  if (settings->prefetch != SBR_PREFETCH_AUTO) return;
  settings->careful_prefetch = bundle.kind() == SBR_BUNDLE_EXPERTS;
  settings->prefetch = settings->careful_prefetch ? SBR_PREFETCH_NEXT_2_LAYERS : SBR_PREFETCH_EXACT;
}

}  // namespace

uint32_t layers_ahead(uint32_t prefetch) {
  switch (prefetch) {
    case SBR_PREFETCH_NEXT_LAYER:
      return 1;
    case SBR_PREFETCH_NEXT_2_LAYERS:
      return 2;
    case SBR_PREFETCH_NEXT_4_LAYERS:
      return 4;
    default:
      return 0;
  }
}

SessionSettings choose_settings(const Model& model, const sbr_session_options& options) {
  SessionSettings settings;
  settings.kernels = &choose_kernels(options.isa);
  settings.switches = choose_switches(model, options);
  check_sparse_ffn(options);
  settings.sparse_ffn = options.sparse_ffn != 0;
  settings.sparse_ffn_auto = options.sparse_ffn == SBR_SPARSE_FFN_AUTO;
  settings.measured_split = choose_measured_split(options);
  settings.n_threads = choose_threads(options);
  settings.cpus = choose_cpus(options);
  settings.n_ctx = choose_context(options);
  settings.n_batch = choose_batch(options);
  settings.kv_type = choose_kv_type(options);
  settings.kv_touch = options.kv_touch != 0;
  settings.record_routing = options.record_routing != 0;
  if (settings.record_routing && model.config().n_expert == 0)
    bad_option("record_routing", "is set, but the model has no experts to record");
  if (options.timeline_events > Timeline::kMaxEvents)
    bad_option("timeline_events",
               "is " + std::to_string(options.timeline_events) + ", more than " + std::to_string(Timeline::kMaxEvents));
  settings.timeline_events = options.timeline_events;
  if (model.bundle() == nullptr) {
    require_no_cache(options);
  } else {
    choose_cache(*model.bundle(), options, &settings);
  }
  return settings;
}

}  // namespace sbr
