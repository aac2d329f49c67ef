#include "synth/spec.h"

#include <cstring>

#include "base/error.h"
#include "gguf/gguf.h"

namespace sbr {
namespace {

const char kSupportedTypes[] = "f32, f16, q8_0, q4_0";

[[noreturn]] void refuse(const std::string& member, const std::string& problem, int32_t status = SBR_ERR_ARGUMENT) {
  throw Error(status, "synthetic model: " + member + " " + problem);
}

void require_range(const char* member, uint64_t value, uint64_t low, uint64_t high) {
  if (value >= low && value <= high) return;
  refuse(member, "is " + std::to_string(value) + ", expected " + std::to_string(low) + " to " + std::to_string(high));
}

void require_multiple_of_32(const char* member, uint64_t value) {
  if (value % 32 != 0) refuse(member, "is " + std::to_string(value) + ", expected a multiple of 32");
}

void require_zero(const char* member, uint64_t value, const std::string& architecture) {
  if (value != 0) refuse(member, "is " + std::to_string(value) + ", but " + architecture + " models have none");
}

template <size_t N>
std::string text_of(const char (&text)[N]) {
  return {text, strnlen(text, N)};
}

void check_shapes(const sbr_synth_spec& s) {
  require_range("n_layer", s.n_layer, 1, 1024);
  require_range("n_embd", s.n_embd, 32, 65536);
  require_multiple_of_32("n_embd", s.n_embd);
  require_range("n_head", s.n_head, 1, 1024);
  require_range("n_head_kv", s.n_head_kv, 1, s.n_head);
  if (s.n_head % s.n_head_kv != 0) {
    refuse("n_head_kv",
           "is " + std::to_string(s.n_head_kv) + ", which does not divide n_head " + std::to_string(s.n_head));
  }
  require_range("head_dim", s.head_dim, 32, 1024);
  require_multiple_of_32("head_dim", s.head_dim);
  require_range("n_ff", s.n_ff, 32, 1u << 20);
  require_multiple_of_32("n_ff", s.n_ff);
  require_range("n_vocab", s.n_vocab, 1, 1u << 22);
  require_range("n_ctx_train", s.n_ctx_train, 1, 1u << 30);
  if (!(s.rope_freq_base > 1 && s.rope_freq_base < 1e12F)) refuse("rope_freq_base", "is not between 1 and 1e12");
  if (!(s.rms_eps >= 0 && s.rms_eps <= 1e-3F)) refuse("rms_eps", "is not between 0 and 0.001");
}

void check_experts(const sbr_synth_spec& s) {
  require_range("n_expert", s.n_expert, 1, 4096);
  require_range("n_expert_used", s.n_expert_used, 1, s.n_expert);
  if (text_of(s.architecture) == "smallthinker" && s.n_ff == s.n_embd) {
    refuse("n_ff", "equals n_embd (" + std::to_string(s.n_ff) +
                       "): the two layouts of the expert down matrices, which " +
                       "differ by their shape only, could not be told apart");
  }
  require_range("hot_experts", s.hot_experts, 0, s.n_expert - 1);
  if (s.hot_experts == 0 || s.hot_share == 0) return;
  // Selections per token that the hot and the other experts must take between them.
  const uint64_t hot = uint64_t{s.hot_share} * s.n_expert_used;
  const uint64_t cold = (1000 - uint64_t{s.hot_share}) * s.n_expert_used;
  if (s.hot_share >= 1000 || hot >= 1000 * uint64_t{s.hot_experts} ||
      cold >= 1000 * (uint64_t{s.n_expert} - s.hot_experts)) {
    refuse("hot_share", "is " + std::to_string(s.hot_share) + " of 1000, which " + std::to_string(s.hot_experts) +
                            " of " + std::to_string(s.n_expert) + " experts cannot take when each token selects " +
                            std::to_string(s.n_expert_used));
  }
}

void check_gemma3n(const sbr_synth_spec& s) {
  require_range("sliding_window", s.sliding_window, 1, 1u << 20);
  require_range("n_vocab", s.n_vocab, Gemma3n::kSmallestVocab, 1u << 22);
  if (s.tied_output == 0) refuse("tied_output", "is 0, but gemma3n models have a tied output");
}

}  // namespace

SynthSpec::SynthSpec(const sbr_synth_spec& spec)
    : raw(spec), architecture(text_of(spec.architecture)), name(text_of(spec.name)) {
  smallthinker = architecture == "smallthinker";
  experts = smallthinker || architecture == "qwen3moe";
  qk_norm = architecture == "qwen3" || architecture == "qwen3moe";
  gemma3n = architecture == "gemma3n";
  if (!smallthinker && !qk_norm && !gemma3n && architecture != "llama") {
    refuse("architecture",
           "\"" + architecture + "\" is not supported (supported: smallthinker, qwen3, qwen3moe, llama, gemma3n)",
           SBR_ERR_UNSUPPORTED);
  }
  if (raw.weight_type != SBR_TYPE_F32 && raw.weight_type != SBR_TYPE_F16 && raw.weight_type != SBR_TYPE_Q8_0 &&
      raw.weight_type != SBR_TYPE_Q4_0) {
    const char* known = type_name(raw.weight_type);
    refuse("weight_type",
           (known != nullptr ? known : std::to_string(raw.weight_type)) +
               std::string(" is not supported (supported: ") + kSupportedTypes + ")",
           SBR_ERR_UNSUPPORTED);
  }
  check_shapes(raw);
  if (!smallthinker) {
    if (experts) {
      check_experts(raw);
    } else {
      require_zero("n_expert", raw.n_expert, architecture);
      require_zero("n_expert_used", raw.n_expert_used, architecture);
    }
    if (gemma3n) {
      check_gemma3n(raw);
    } else {
      require_zero("sliding_window", raw.sliding_window, architecture);
    }
    require_zero("transposed_down", raw.transposed_down, architecture);
    require_zero("predictor_rank", raw.predictor_rank, architecture);
    require_zero("hot_experts", raw.hot_experts, architecture);
    require_zero("hot_share", raw.hot_share, architecture);
    require_zero("lm_head_keep", raw.lm_head_keep, architecture);
    if (raw.zero_share != nullptr) refuse("zero_share", "is given, but " + architecture + " models have no ReLU");
    return;
  }
  check_experts(raw);
  for (uint32_t layer = 0; layer < raw.n_layer; ++layer) {
    // Without a wish: what random weights give.
    zero_share.push_back(raw.zero_share == nullptr ? 500 : raw.zero_share[layer]);
    require_range(("zero_share[" + std::to_string(layer) + "]").c_str(), zero_share.back(), 1, 999);
  }
  raw.zero_share = nullptr;  // the caller's array need not outlive this
  if (raw.predictor_rank != 0) {
    require_range("predictor_rank", raw.predictor_rank, 64, 8192);
    require_multiple_of_32("predictor_rank", raw.predictor_rank);
    require_range("lm_head_keep", raw.lm_head_keep, 1, 1000);
  }
}

}  // namespace sbr
