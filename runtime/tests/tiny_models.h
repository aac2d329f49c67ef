// Synthetic models of a few hundred kilobytes, written to the working directory and removed again; and sessions on them
// through the C++ classes.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "model/model.h"
#include "sbr/sbr.h"
#include "session.h"
#include "synth/synth.h"

namespace sbr_test {

constexpr uint32_t kVocab = 403;  // no multiple of any vector width

inline sbr_synth_spec tiny_spec(const char* architecture, uint32_t weight_type) {
  sbr_synth_spec spec = {};
  spec.struct_size = sizeof spec;
  spec.n_layer = 2;
  spec.n_embd = 160;
  spec.n_head = 6;
  spec.n_head_kv = 2;
  spec.head_dim = 32;
  spec.n_ff = 96;
  spec.n_vocab = kVocab;
  spec.n_ctx_train = 256;
  spec.tied_output = 1;
  spec.weight_type = weight_type;
  spec.seed = 7;
  spec.rope_freq_base = 10000.0f;
  spec.rms_eps = 1e-6f;
  std::strncpy(spec.architecture, architecture, sizeof spec.architecture - 1);
  std::strncpy(spec.name, "tiny", sizeof spec.name - 1);
  return spec;
}

inline sbr_synth_spec tiny_smallthinker(uint32_t weight_type, bool transposed) {
  sbr_synth_spec spec = tiny_spec("smallthinker", weight_type);
  spec.n_expert = 8;
  spec.n_expert_used = 3;
  spec.transposed_down = transposed;
  spec.predictor_rank = 64;
  spec.lm_head_keep = 300;
  return spec;
}

inline sbr_synth_spec tiny_qwen3moe(uint32_t weight_type) {
  sbr_synth_spec spec = tiny_spec("qwen3moe", weight_type);
  spec.n_expert = 20;  // no multiple of a vector's width
  spec.n_expert_used = 4;
  spec.tied_output = 0;
  return spec;
}

class TinyModel {
 public:
  explicit TinyModel(const sbr_synth_spec& spec, uint32_t load_mode = SBR_LOAD_MMAP, bool requantise_down = false)
      : path_("tiny-" + std::to_string(getpid()) + "-" + std::to_string(++counter()) + ".gguf") {
    sbr::synth_write(spec, path_, nullptr, nullptr);
    sbr_model_options options = {};
    options.struct_size = sizeof options;
    options.load_mode = load_mode;
    options.requantise_down = requantise_down;
    model_ = std::make_unique<sbr::Model>(path_, options);
  }
  ~TinyModel() { std::remove(path_.c_str()); }
  const sbr::Model& get() const { return *model_; }
  const std::string& path() const { return path_; }

 private:
  static int& counter() {
    static int count = 0;
    return count;
  }
  std::string path_;
  std::unique_ptr<sbr::Model> model_;
};

inline sbr_session_options session_options() {
  sbr_session_options options = {};
  options.struct_size = sizeof options;
  options.n_threads = 1;
  options.isa = SBR_ISA_SCALAR;
  options.n_ctx = 128;
  options.n_batch = 1;
  options.kv_type = SBR_TYPE_F16;
  return options;
}

// A fixed, varied stream.
inline std::vector<int32_t> token_stream(size_t n) {
  std::vector<int32_t> tokens(n);
  uint32_t state = 12345;
  for (int32_t& token : tokens) {
    state = state * 1664525u + 1013904223u;
    token = static_cast<int32_t>((state >> 8) % kVocab);
  }
  return tokens;
}

// Logits of every token, [n][V], by prefill in batches of options.n_batch.
inline std::vector<float> prefill_all(const sbr::Model& model, const sbr_session_options& options,
                                      const std::vector<int32_t>& tokens) {
  sbr::Session session(model, options);
  std::vector<float> logits(tokens.size() * kVocab);
  session.prefill(tokens.data(), static_cast<uint32_t>(tokens.size()), SBR_LOGITS_ALL, logits.data(), nullptr);
  return logits;
}

// The same by decoding token by token.
inline std::vector<float> decode_all(sbr::Session& session, const std::vector<int32_t>& tokens,
                                     std::vector<float>* scores = nullptr) {
  std::vector<uint32_t> steps(tokens.size());
  for (size_t i = 0; i < steps.size(); ++i) steps[i] = static_cast<uint32_t>(i);
  std::vector<float> logits(tokens.size() * kVocab);
  sbr_capture capture = {};
  capture.struct_size = sizeof capture;
  capture.n_steps = static_cast<uint32_t>(steps.size());
  capture.steps = steps.data();
  capture.logits = logits.data();
  if (scores != nullptr) {
    scores->resize(logits.size());
    capture.scores = scores->data();
  }
  session.decode(tokens.data(), static_cast<uint32_t>(tokens.size()), nullptr, &capture);
  return logits;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace sbr_test
