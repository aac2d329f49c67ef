// What a model computes, read from its GGUF metadata. Everything that differs between architectures ends up here, so
// that the forward pass has no architecture names in it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gguf/gguf.h"

namespace sbr {

enum class Nonlinearity : uint8_t { kSilu, kRelu };
enum class Gating : uint8_t { kSigmoid, kSoftmax };
enum class RopeStyle : uint8_t { kNeox, kInterleaved };

struct LayerConfig {
  uint32_t window = 0;  // sliding window of the attention, in positions; 0: none
  bool rope = true;     // false: no positional encoding
};

struct Config {
  std::string architecture;
  std::string name;
  uint32_t n_layer = 0;
  uint32_t n_embd = 0;
  uint32_t n_head = 0;
  uint32_t n_head_kv = 0;
  uint32_t head_dim = 0;
  uint32_t n_ff = 0;      // of the dense FFN, or of one expert
  uint32_t n_expert = 0;  // 0: dense FFN
  uint32_t n_expert_used = 0;
  uint32_t n_vocab = 0;  // from token_embd's shape
  uint32_t n_ctx_train = 0;
  uint32_t sliding_window = 0;
  float rms_eps = 0;
  double rope_freq_base = 0;
  RopeStyle rope_style = RopeStyle::kNeox;
  Nonlinearity activation = Nonlinearity::kSilu;
  Gating gating = Gating::kSigmoid;
  bool router_after_attention = false;  // the router reads the FFN's normed input, not the layer's input
  bool qk_norm = false;                 // RMS norm per head of q and k, before RoPE
  bool lm_head_predictor = false;       // the architecture may carry one
  std::vector<LayerConfig> layers;

  uint64_t q_dim() const { return uint64_t{n_head} * head_dim; }  // at most 1 << 20
  uint64_t kv_dim() const { return uint64_t{n_head_kv} * head_dim; }
  bool relu_experts() const { return n_expert != 0 && activation == Nonlinearity::kRelu; }
};

// Errors: FORMAT for a missing or impossible key, UNSUPPORTED for an architecture or feature that this runtime lacks.
// Appends to `warnings` what had to be assumed, one sentence each.
Config read_config(const GgufFile& file, std::vector<std::string>* warnings);

}  // namespace sbr
