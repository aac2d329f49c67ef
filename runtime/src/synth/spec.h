// A checked sbr_synth_spec.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sbr/sbr.h"

namespace sbr {

// What llama.cpp takes for granted in every gemma3n file.
struct Gemma3n {
  static constexpr uint32_t kPerLayerWidth = 256;  // of a layer's own input
  static constexpr uint32_t kStreams = 4;          // hidden states side by side (AltUp)
  static constexpr uint32_t kLaurelRank = 64;
  static constexpr uint32_t kSparseLayers = 10;    // the first ones keep about 5 % of the gate's outputs
  static constexpr uint32_t kOwnKvLayers = 20;     // the layers after them read the cache of these
  static constexpr uint32_t kGlobalEvery = 5;      // layers 4, 9, ... attend without a window
  static constexpr uint32_t kFirstByteToken = 4;   // after <pad>, <eos>, <bos>, <unk>
  static constexpr uint32_t kSmallestVocab = 261;  // those, 256 bytes and one more
};

struct SynthSpec {
  explicit SynthSpec(const sbr_synth_spec& spec);  // Errors: ARGUMENT, UNSUPPORTED, naming the member

  sbr_synth_spec raw;
  std::string architecture;
  std::string name;
  bool smallthinker;  // ReLU experts, a router before attention, a bias channel
  bool qk_norm;       // qwen3, qwen3moe
  bool experts;       // smallthinker, qwen3moe
  bool gemma3n;
  std::vector<uint32_t> zero_share;  // [n_layer] of smallthinker, in 1/1000
};

}  // namespace sbr
