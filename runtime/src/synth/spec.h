// A checked sbr_synth_spec.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sbr/sbr.h"

namespace sbr {

struct SynthSpec {
  explicit SynthSpec(const sbr_synth_spec& spec);  // Errors: ARGUMENT, UNSUPPORTED, naming the member

  sbr_synth_spec raw;
  std::string architecture;
  std::string name;
  bool smallthinker;                 // ReLU experts, a router before attention, a bias channel
  bool qk_norm;                      // qwen3
  std::vector<uint32_t> zero_share;  // [n_layer] of smallthinker, in 1/1000
};

}  // namespace sbr
