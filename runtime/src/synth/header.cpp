// The header of a synthetic file: what llama.cpp and the `gguf` package need to load it, and our own keys that say
// that its weights are not a trained model's.
#include <cstring>
#include <limits>
#include <string_view>

#include "base/json.h"
#include "gguf/gguf.h"
#include "gguf/reader.h"
#include "synth/plan.h"

namespace sbr {
namespace {

// Raised whenever the same spec gives other bytes.
const uint32_t kGeneratorVersion = 1;

class HeaderWriter {
 public:
  void bytes(const void* data, size_t n) {
    const auto* from = static_cast<const uint8_t*>(data);
    out_.insert(out_.end(), from, from + n);
  }
  template <typename T>
  void value(T v) {
    bytes(&v, sizeof v);
  }
  void string(std::string_view text) {
    value<uint64_t>(text.size());
    bytes(text.data(), text.size());
  }

  void add_string(const std::string& key, std::string_view text) {
    start(key, kGgufString);
    string(text);
  }
  void add_u32(const std::string& key, uint32_t number) {
    start(key, kGgufU32);
    value(number);
  }
  void add_u64(const std::string& key, uint64_t number) {
    start(key, kGgufU64);
    value(number);
  }
  void add_f32(const std::string& key, float number) {
    start(key, kGgufF32);
    value(number);
  }
  void add_bool(const std::string& key, bool flag) {
    start(key, kGgufBool);
    value<uint8_t>(flag ? 1 : 0);
  }
  // The items follow by value() or string().
  void add_array(const std::string& key, uint32_t item_type, uint64_t length) {
    start(key, kGgufArray);
    value(item_type);
    value(length);
  }

  uint64_t n_entries() const { return n_entries_; }
  std::vector<uint8_t>& out() { return out_; }

 private:
  void start(const std::string& key, uint32_t type) {
    string(key);
    value(type);
    ++n_entries_;
  }

  std::vector<uint8_t> out_;
  uint64_t n_entries_ = 0;
};

uint32_t file_type(uint32_t weight_type) {
  switch (weight_type) {
    case SBR_TYPE_F32:
      return 0;
    case SBR_TYPE_F16:
      return 1;
    case SBR_TYPE_Q8_0:
      return 7;
    default:
      return 2;  // mostly Q4_0
  }
}

void append_code_point(std::string& text, uint32_t code_point) {
  if (code_point < 0x80) {
    text += static_cast<char>(code_point);
  } else {
    text += static_cast<char>(0xC0 | code_point >> 6);
    text += static_cast<char>(0x80 | (code_point & 0x3F));
  }
}

// GPT-2's byte-level alphabet: printable Latin-1 stands for itself, the 68 other bytes for U+0100 onwards.
std::vector<std::string> byte_symbols() {
  std::vector<std::string> symbols(256);
  uint32_t next = 256;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    append_code_point(symbols[byte], printable ? byte : next++);
  }
  return symbols;
}

const uint32_t kByteTokens = 256;
// "Ġt" (a space and a t): the one merge, since tokenizers refuse a byte-pair vocabulary without any.
const char kMerge[] = "\xC4\xA0 t";
const char kMerged[] = "\xC4\xA0t";

// The bytes, the merged token, fillers and at the end <|endoftext|>; small vocabularies are cut off after n_vocab.
std::vector<std::string> tokens(uint32_t n_vocab) {
  std::vector<std::string> all = byte_symbols();
  all.resize(n_vocab);
  for (uint32_t id = kByteTokens; id < n_vocab; ++id) {
    all[id] = id == kByteTokens ? kMerged : "<filler-" + std::to_string(id) + ">";
  }
  if (n_vocab > kByteTokens + 1) all[n_vocab - 1] = "<|endoftext|>";
  return all;
}

void add_tokenizer(HeaderWriter& header, uint32_t n_vocab) {
  header.add_string("tokenizer.ggml.model", "gpt2");
  header.add_string("tokenizer.ggml.pre", "qwen2");
  header.add_array("tokenizer.ggml.tokens", kGgufString, n_vocab);
  for (const std::string& token : tokens(n_vocab)) header.string(token);
  header.add_array("tokenizer.ggml.token_type", kGgufI32, n_vocab);
  for (uint32_t id = 0; id < n_vocab; ++id) {
    const bool control = id > kByteTokens && id == n_vocab - 1;
    header.value<int32_t>(control ? 3 : 1);  // 1: normal
  }
  header.add_array("tokenizer.ggml.merges", kGgufString, 1);
  header.string(kMerge);
  header.add_u32("tokenizer.ggml.bos_token_id", n_vocab - 1);
  header.add_u32("tokenizer.ggml.eos_token_id", n_vocab - 1);
  header.add_bool("tokenizer.ggml.add_bos_token", false);
}

// A SentencePiece vocabulary: <pad>, <eos>, <bos>, <unk>, the bytes and fillers.
void add_gemma_tokenizer(HeaderWriter& header, uint32_t n_vocab) {
  const char* const specials[] = {"<pad>", "<eos>", "<bos>", "<unk>"};
  const char digits[] = "0123456789ABCDEF";
  const uint32_t bytes_end = Gemma3n::kFirstByteToken + 256;
  header.add_string("tokenizer.ggml.model", "llama");
  header.add_string("tokenizer.ggml.pre", "default");
  header.add_array("tokenizer.ggml.tokens", kGgufString, n_vocab);
  for (uint32_t id = 0; id < n_vocab; ++id) {
    const uint32_t byte = id - Gemma3n::kFirstByteToken;
    if (id < Gemma3n::kFirstByteToken) {
      header.string(specials[id]);
    } else if (id < bytes_end) {
      header.string(std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">");
    } else {
      header.string("<filler-" + std::to_string(id) + ">");
    }
  }
  header.add_array("tokenizer.ggml.scores", kGgufF32, n_vocab);
  for (uint32_t id = 0; id < n_vocab; ++id) {
    header.value<float>(id < bytes_end ? 0.0F : -static_cast<float>(id - bytes_end));
  }
  header.add_array("tokenizer.ggml.token_type", kGgufI32, n_vocab);
  for (uint32_t id = 0; id < n_vocab; ++id) {
    header.value<int32_t>(id < 3 ? 3 : id == 3 ? 2 : id < bytes_end ? 6 : 1);  // control, unknown, byte, normal
  }
  header.add_u32("tokenizer.ggml.bos_token_id", 2);
  header.add_u32("tokenizer.ggml.eos_token_id", 1);
  header.add_u32("tokenizer.ggml.unknown_token_id", 3);
  header.add_u32("tokenizer.ggml.padding_token_id", 0);
  header.add_bool("tokenizer.ggml.add_bos_token", true);
}

void add_gemma3n_keys(HeaderWriter& header, const sbr_synth_spec& s) {
  const std::string p = "gemma3n.";
  header.add_u32(p + "embedding_length_per_layer_input", Gemma3n::kPerLayerWidth);
  header.add_u32(p + "altup.num_inputs", Gemma3n::kStreams);
  header.add_u32(p + "altup.active_idx", 0);
  header.add_array(p + "activation_sparsity_scale", kGgufF32, s.n_layer);
  for (uint32_t l = 0; l < s.n_layer; ++l) {
    // Standard deviations above the mean, where the gate's outputs begin to count: 5 % of a normal distribution.
    header.value<float>(l < Gemma3n::kSparseLayers ? 1.6448533535003662F : -std::numeric_limits<float>::infinity());
  }
  header.add_u32(p + "attention.sliding_window", s.sliding_window);
  header.add_array(p + "attention.sliding_window_pattern", kGgufBool, s.n_layer);
  for (uint32_t l = 0; l < s.n_layer; ++l) header.value<uint8_t>((l + 1) % Gemma3n::kGlobalEvery == 0 ? 0 : 1);
  header.add_u32(p + "attention.shared_kv_layers",
                 s.n_layer > Gemma3n::kOwnKvLayers ? s.n_layer - Gemma3n::kOwnKvLayers : 0);
}

void add_model_keys(HeaderWriter& header, const SynthSpec& spec) {
  const sbr_synth_spec& s = spec.raw;
  const std::string p = spec.architecture + ".";
  header.add_u32(p + "block_count", s.n_layer);
  header.add_u32(p + "context_length", s.n_ctx_train);
  header.add_u32(p + "embedding_length", s.n_embd);
  // qwen3moe files state the width of a dense layer that does as much work.
  header.add_u32(p + "feed_forward_length", spec.smallthinker || !spec.experts ? s.n_ff : s.n_ff * s.n_expert_used);
  header.add_u32(p + "attention.head_count", s.n_head);
  header.add_u32(p + "attention.head_count_kv", s.n_head_kv);
  header.add_u32(p + "attention.key_length", s.head_dim);
  header.add_u32(p + "attention.value_length", s.head_dim);
  header.add_f32(p + "attention.layer_norm_rms_epsilon", s.rms_eps);
  header.add_f32(p + "rope.freq_base", s.rope_freq_base);
  header.add_u32(p + "vocab_size", s.n_vocab);
  if (spec.architecture == "llama") header.add_u32(p + "rope.dimension_count", s.head_dim);
  if (spec.gemma3n) add_gemma3n_keys(header, s);
  if (!spec.experts) return;
  header.add_u32(p + "expert_feed_forward_length", s.n_ff);
  header.add_u32(p + "expert_count", s.n_expert);
  header.add_u32(p + "expert_used_count", s.n_expert_used);
  if (!spec.smallthinker) return;
  header.add_u32(p + "expert_gating_func", 2);  // sigmoid
  if (s.sliding_window != 0) header.add_u32(p + "attention.sliding_window", s.sliding_window);
}

void add_synthetic_keys(HeaderWriter& header, const SynthSpec& spec) {
  const std::string p = "stbench.synthetic.";
  header.add_u32(p + "generator_version", kGeneratorVersion);
  header.add_u64(p + "seed", spec.raw.seed);
  if (!spec.smallthinker) return;
  header.add_array(p + "zero_share", kGgufU32, spec.zero_share.size());
  for (const uint32_t share : spec.zero_share) header.value<uint32_t>(share);
  header.add_u32(p + "hot_experts", spec.raw.hot_experts);
  header.add_u32(p + "hot_share", spec.raw.hot_share);
  header.add_u32(p + "lm_head_keep", spec.raw.predictor_rank != 0 ? spec.raw.lm_head_keep : 0);
}

}  // namespace

std::vector<uint8_t> make_synth_header(const SynthSpec& spec, const SynthPlan& plan) {
  HeaderWriter metadata;
  metadata.add_string("general.architecture", spec.architecture);
  metadata.add_string("general.name", to_utf8(spec.name));
  metadata.add_u32("general.file_type", file_type(spec.raw.weight_type));
  metadata.add_u32("general.quantization_version", 2);
  metadata.add_u32("general.alignment", static_cast<uint32_t>(kSynthAlignment));
  add_model_keys(metadata, spec);
  add_synthetic_keys(metadata, spec);
  if (spec.gemma3n) {
    add_gemma_tokenizer(metadata, spec.raw.n_vocab);
  } else {
    add_tokenizer(metadata, spec.raw.n_vocab);
  }

  HeaderWriter header;
  header.bytes("GGUF", 4);
  header.value<uint32_t>(3);
  header.value<uint64_t>(plan.tensors.size());
  header.value<uint64_t>(metadata.n_entries());
  header.bytes(metadata.out().data(), metadata.out().size());
  for (const SynthTensor& tensor : plan.tensors) {
    header.string(tensor.name);
    header.value<uint32_t>(static_cast<uint32_t>(tensor.shape.size()));
    for (const uint64_t n : tensor.shape) header.value<uint64_t>(n);
    header.value<uint32_t>(tensor.type);
    header.value<uint64_t>(tensor.offset);
  }
  std::vector<uint8_t> out = std::move(header.out());
  out.resize((out.size() + kSynthAlignment - 1) / kSynthAlignment * kSynthAlignment);
  return out;
}

}  // namespace sbr
