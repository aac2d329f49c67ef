// The C interface: with the other capi_*.cpp the only extern "C" and, by capi_calls.h, the only place where an
// exception ends. Below here an error is one.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#include "base/error.h"
#include "base/json.h"
#include "bench/kernel_bench.h"
#include "build_info.h"
#include "capi_calls.h"
#include "gguf/gguf.h"
#include "kernels/kernels.h"
#include "model/model.h"
#include "probe/probe.h"
#include "sbr/sbr.h"
#include "session.h"
#include "synth/synth.h"

struct sbr_model {
  sbr::Model impl;
};

struct sbr_session {
  sbr::Session impl;
};

struct sbr_kernel_bench {
  sbr::KernelBench impl;
};

namespace {

using sbr::Error;
using sbr::capi::guarded;
using sbr::capi::read_struct;
using sbr::capi::require;
using sbr::capi::require_struct;
using sbr::capi::require_terminated;
using sbr::capi::write_struct;

sbr_model_options default_model_options() {
  sbr_model_options options = {};
  options.struct_size = sizeof options;
  options.load_mode = SBR_LOAD_MMAP;
  return options;
}

sbr_session_options default_session_options() {
  sbr_session_options options = {};
  options.struct_size = sizeof options;
  options.n_threads = 1;
  options.isa = SBR_ISA_AUTO;
  options.n_ctx = 4096;
  options.n_batch = 64;
  options.kv_type = SBR_TYPE_F16;
  options.lm_head_skipped = SBR_SKIPPED_EXCLUDED;
  options.phase_timing = 1;
  return options;
}

// ---- the library ----

std::string make_build_info() {
  sbr::JsonWriter json;
  json.begin_object();
  json.key("version").string(SBR_BUILD_VERSION);
  json.key("abi").uint(SBR_ABI_VERSION);
  json.key("compiler").string(SBR_BUILD_COMPILER);
  json.key("flags").string(SBR_BUILD_FLAGS);
  json.key("build_type").string(SBR_BUILD_TYPE);
  json.key("sanitize").string(SBR_BUILD_SANITIZE);
  json.key("target").string(SBR_BUILD_TARGET);
  json.end_object();
  return json.take();
}

sbr_synth_spec read_spec(const sbr_synth_spec* given) {
  const sbr_synth_spec spec = read_struct(given, sbr_synth_spec{}, "spec");
  require_terminated(spec.architecture, "spec->architecture");
  require_terminated(spec.name, "spec->name");
  return spec;
}

template <typename Probe>
sbr_status run_probe(const sbr_probe_options* options, sbr_probe_result* out, sbr_error* error, Probe probe) {
  return guarded(error, [&] {
    require_struct(out, "out");
    write_struct(probe(read_struct(options, sbr_probe_options{}, "options")), out);
  });
}

}  // namespace

extern "C" {

uint32_t sbr_abi_version(void) { return SBR_ABI_VERSION; }

const char* sbr_build_info(void) {
  static const std::string text = make_build_info();
  return text.c_str();
}

uint32_t sbr_isa_count(void) { return static_cast<uint32_t>(sbr::kernels_count()); }

sbr_status sbr_isa_get(uint32_t index, sbr_isa_info* out, sbr_error* error) {
  return guarded(error, [&] {
    require_struct(out, "out");
    if (index >= sbr::kernels_count()) {
      throw Error(SBR_ERR_ARGUMENT, "index is " + std::to_string(index) + ", but sbr_isa_count() is " +
                                        std::to_string(sbr::kernels_count()));
    }
    const sbr::Kernels* kernels = sbr::kernels_at(index);
    sbr_isa_info info = {};
    info.isa = kernels->isa;
    info.supported = sbr::kernels_supported(kernels);
    info.is_auto = kernels == sbr::kernels_best();
    std::strncpy(info.name, kernels->name, sizeof info.name - 1);
    std::strncpy(info.requires_, sbr::kernels_requires(kernels), sizeof info.requires_ - 1);
    write_struct(info, out);
  });
}

// ---- GGUF files ----

sbr_status sbr_gguf_describe(const char* path, uint64_t max_array_items, char** json, sbr_error* error) {
  return guarded(error, [&] {
    require(path, "path");
    require(json, "json");
    const std::string text = sbr::GgufFile::open(path).describe(max_array_items);
    char* copy = static_cast<char*>(std::malloc(text.size() + 1));
    if (copy == nullptr) throw std::bad_alloc();
    std::memcpy(copy, text.c_str(), text.size() + 1);
    *json = copy;
  });
}

void sbr_string_free(char* string) { std::free(string); }

// ---- models ----

void sbr_model_options_init(sbr_model_options* options) {
  if (options != nullptr) *options = default_model_options();
}

sbr_status sbr_model_load(const char* path, const sbr_model_options* options, sbr_model** model, sbr_error* error) {
  return guarded(error, [&] {
    require(path, "path");
    require(model, "model");
    sbr_model_options chosen = default_model_options();
    if (options != nullptr) chosen = read_struct(options, chosen, "options");
    if (chosen.load_mode > SBR_LOAD_REPACK) {
      throw Error(SBR_ERR_ARGUMENT, "options->load_mode is " + std::to_string(chosen.load_mode) +
                                        ", expected 0 (mmap), 1 (read) or 2 (repack)");
    }
    *model = new sbr_model{sbr::Model(path, chosen)};
  });
}

void sbr_model_free(sbr_model* model) { delete model; }

sbr_status sbr_model_get_info(const sbr_model* model, sbr_model_info* out, sbr_error* error) {
  return guarded(error, [&] {
    require(model, "model");
    require_struct(out, "out");
    write_struct(model->impl.info(), out);
  });
}

const char* sbr_model_warnings(const sbr_model* model) {
  return model == nullptr ? "" : model->impl.warnings().c_str();
}

// ---- sessions ----

void sbr_session_options_init(sbr_session_options* options) {
  if (options != nullptr) *options = default_session_options();
}

sbr_status sbr_session_create(const sbr_model* model, const sbr_session_options* options, sbr_session** session,
                              sbr_error* error) {
  return guarded(error, [&] {
    require(model, "model");
    require(session, "session");
    sbr_session_options chosen = default_session_options();
    if (options != nullptr) chosen = read_struct(options, chosen, "options");
    *session = new sbr_session{sbr::Session(model->impl, chosen)};
  });
}

sbr_status sbr_session_plan(const sbr_model* model, const sbr_session_options* options, sbr_session_info* out,
                            sbr_error* error) {
  return guarded(error, [&] {
    require(model, "model");
    require_struct(out, "out");
    sbr_session_options chosen = default_session_options();
    if (options != nullptr) chosen = read_struct(options, chosen, "options");
    write_struct(sbr::Session::plan(model->impl, chosen), out);
  });
}

void sbr_session_free(sbr_session* session) { delete session; }

sbr_status sbr_session_get_info(const sbr_session* session, sbr_session_info* out, sbr_error* error) {
  return guarded(error, [&] {
    require(session, "session");
    require_struct(out, "out");
    write_struct(session->impl.info(), out);
  });
}

sbr_status sbr_session_thread_ids(const sbr_session* session, int32_t* ids, uint32_t capacity, uint32_t* n_threads,
                                  sbr_error* error) {
  return guarded(error, [&] {
    require(session, "session");
    require(n_threads, "n_threads");
    if (capacity != 0) require(ids, "ids");
    const std::vector<int32_t>& all = session->impl.thread_ids();
    std::copy_n(all.begin(), std::min<size_t>(capacity, all.size()), ids);
    *n_threads = static_cast<uint32_t>(all.size());
  });
}

sbr_status sbr_session_rewind(sbr_session* session, uint32_t n_past, sbr_error* error) {
  return guarded(error, [&] {
    require(session, "session");
    session->impl.rewind(n_past);
  });
}

void sbr_session_cancel(sbr_session* session) {
  if (session != nullptr) session->impl.cancel();
}

sbr_status sbr_prefill(sbr_session* session, const int32_t* tokens, uint32_t n_tokens, uint32_t logits_mode,
                       float* logits, sbr_interval* batches, sbr_error* error) {
  return guarded(error, [&] {
    require(session, "session");
    require(tokens, "tokens");
    if (n_tokens == 0) throw Error(SBR_ERR_ARGUMENT, "n_tokens is 0");
    if (logits_mode > SBR_LOGITS_ALL) {
      throw Error(SBR_ERR_ARGUMENT,
                  "logits_mode is " + std::to_string(logits_mode) + ", expected 0 (none), 1 (last) or 2 (all)");
    }
    if (logits_mode != SBR_LOGITS_NONE) require(logits, "logits");
    session->impl.prefill(tokens, n_tokens, logits_mode, logits, batches);
  });
}

sbr_status sbr_decode(sbr_session* session, const int32_t* tokens, uint32_t n_tokens, sbr_interval* times,
                      const sbr_capture* capture, sbr_error* error) {
  return guarded(error, [&] {
    require(session, "session");
    require(tokens, "tokens");
    if (n_tokens == 0) throw Error(SBR_ERR_ARGUMENT, "n_tokens is 0");
    sbr_capture wanted = {};
    if (capture != nullptr) {
      wanted = read_struct(capture, wanted, "capture");
      if (wanted.n_steps != 0) require(wanted.steps, "capture->steps");
      for (uint32_t i = 0; i < wanted.n_steps; ++i) {
        if (wanted.steps[i] < n_tokens && (i == 0 || wanted.steps[i - 1] < wanted.steps[i])) continue;
        throw Error(SBR_ERR_ARGUMENT,
                    "capture->steps[" + std::to_string(i) + "] is " + std::to_string(wanted.steps[i]) +
                        "; steps must ascend and be below n_tokens (" + std::to_string(n_tokens) + ")");
      }
    }
    session->impl.decode(tokens, n_tokens, times, &wanted);
  });
}

// ---- counters ----

sbr_status sbr_session_get_counters(const sbr_session* session, sbr_counters* out, sbr_error* error) {
  return guarded(error, [&] {
    require(session, "session");
    require_struct(out, "out");
    write_struct(session->impl.counters(), out);
  });
}

sbr_status sbr_session_get_layer_counters(const sbr_session* session, uint32_t layer, sbr_layer_counters* out,
                                          sbr_error* error) {
  return guarded(error, [&] {
    require(session, "session");
    require_struct(out, "out");
    write_struct(session->impl.layer_counters(layer), out);
  });
}

sbr_status sbr_session_get_expert_counts(const sbr_session* session, uint32_t layer, uint64_t* counts,
                                         uint32_t n_expert, sbr_error* error) {
  return guarded(error, [&] {
    require(session, "session");
    require(counts, "counts");
    if (n_expert != session->impl.n_expert()) {
      throw Error(SBR_ERR_ARGUMENT, "n_expert is " + std::to_string(n_expert) + ", but the model has " +
                                        std::to_string(session->impl.n_expert()));
    }
    std::copy_n(session->impl.expert_counts(layer), n_expert, counts);
  });
}

sbr_status sbr_session_get_cache_counters(const sbr_session* session, sbr_cache_counters* out, sbr_error* error) {
  return guarded(error, [&] {
    require(session, "session");
    require_struct(out, "out");
    write_struct(session->impl.cache_counters(), out);
  });
}

sbr_status sbr_session_reset_counters(sbr_session* session, sbr_error* error) {
  return guarded(error, [&] {
    require(session, "session");
    session->impl.reset_counters();
  });
}

// ---- routing ----

sbr_status sbr_session_get_routing(const sbr_session* session, uint16_t* experts, uint64_t capacity, uint64_t* n_tokens,
                                   sbr_error* error) {
  return guarded(error, [&] {
    require(session, "session");
    if (capacity != 0) require(experts, "experts");
    const uint64_t n = session->impl.n_recorded();
    const uint64_t written = std::min(capacity, n) * session->impl.experts_per_token();
    std::copy_n(session->impl.recorded().begin(), written, experts);
    if (n_tokens != nullptr) *n_tokens = n;
  });
}

sbr_status sbr_session_replay_routing(sbr_session* session, const uint16_t* experts, uint64_t n_tokens,
                                      sbr_error* error) {
  return guarded(error, [&] {
    require(session, "session");
    session->impl.replay_routing(experts, n_tokens);
  });
}

// ---- timeline ----

sbr_status sbr_session_get_timeline(const sbr_session* session, sbr_timeline_event* events, uint32_t event_bytes,
                                    uint64_t capacity, sbr_timeline_info* info, sbr_error* error) {
  return guarded(error, [&] {
    require(session, "session");
    require_struct(info, "info");
    if (capacity != 0) require(events, "events");
    if (capacity != 0 && event_bytes == 0) throw Error(SBR_ERR_ARGUMENT, "event_bytes is 0");
    sbr_timeline_info found = {};
    session->impl.timeline().copy(reinterpret_cast<uint8_t*>(events), event_bytes, capacity, &found);
    write_struct(found, info);
  });
}

// ---- synthetic models ----

sbr_status sbr_synth_size(const sbr_synth_spec* spec, uint64_t* bytes, sbr_error* error) {
  return guarded(error, [&] {
    require(bytes, "bytes");
    *bytes = sbr::synth_size(read_spec(spec));
  });
}

sbr_status sbr_synth_write(const sbr_synth_spec* spec, const char* path, sbr_progress progress, void* user,
                           sbr_error* error) {
  return guarded(error, [&] {
    require(path, "path");
    sbr::synth_write(read_spec(spec), path, progress, user);
  });
}

// ---- probes ----

sbr_status sbr_probe_read(const sbr_probe_options* options, sbr_probe_result* out, sbr_error* error) {
  return run_probe(options, out, error, [](const sbr_probe_options& o) { return sbr::probe_read(o); });
}

sbr_status sbr_probe_gather(const sbr_probe_options* options, sbr_probe_result* out, sbr_error* error) {
  return run_probe(options, out, error, [](const sbr_probe_options& o) { return sbr::probe_gather(o); });
}

sbr_status sbr_probe_storage(const char* path, const sbr_probe_options* options, sbr_probe_result* out,
                             sbr_error* error) {
  return run_probe(options, out, error, [path](const sbr_probe_options& o) {
    require(path, "path");
    return sbr::probe_storage(path, o);
  });
}

sbr_status sbr_probe_reads(const char* path, const sbr_probe_options* options, sbr_probe_result* out,
                           sbr_error* error) {
  return run_probe(options, out, error, [path](const sbr_probe_options& o) {
    require(path, "path");
    return sbr::probe_reads(path, o);
  });
}

// ---- one kernel at a time ----

sbr_status sbr_kernel_bench_create(const sbr_kernel_bench_options* options, sbr_kernel_bench** bench,
                                   sbr_error* error) {
  return guarded(error, [&] {
    require(bench, "bench");
    *bench = new sbr_kernel_bench{sbr::KernelBench(read_struct(options, sbr_kernel_bench_options{}, "options"))};
  });
}

sbr_status sbr_kernel_bench_run(sbr_kernel_bench* bench, uint32_t calls, sbr_probe_result* out, sbr_error* error) {
  return guarded(error, [&] {
    require(bench, "bench");
    require_struct(out, "out");
    write_struct(bench->impl.run(calls), out);
  });
}

void sbr_kernel_bench_free(sbr_kernel_bench* bench) { delete bench; }

}  // extern "C"
