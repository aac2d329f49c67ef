#include "model/config.h"

#include <limits>

#include "base/error.h"
#include "sbr/sbr.h"

namespace sbr {
namespace {

constexpr uint32_t kMaxWidth = 1u << 20;

// Reads the keys `<architecture>.<key>` of one file.
class Keys {
 public:
  Keys(const GgufFile& file, const std::string& architecture, std::vector<std::string>* warnings)
      : file_(file), prefix_(architecture + "."), warnings_(warnings) {}

  bool has(const char* key) const { return file_.has(prefix_ + key); }
  uint32_t count(const char* key) const { return narrow(key, file_.get_uint(prefix_ + key)); }
  uint32_t count(const char* key, uint32_t absent) const { return narrow(key, file_.get_uint(prefix_ + key, absent)); }
  double number(const char* key) const { return file_.get_float(prefix_ + key); }
  double number(const char* key, double absent) const { return file_.get_float(prefix_ + key, absent); }
  std::string text(const char* key, const char* absent) const { return file_.get_string(prefix_ + key, absent); }
  void warn(const std::string& sentence) const { warnings_->push_back(file_.name() + ": " + sentence); }

  [[noreturn]] void malformed(const std::string& key, const std::string& what) const {
    throw Error(SBR_ERR_FORMAT, file_.name() + ": " + prefix_ + key + " " + what);
  }
  [[noreturn]] void unsupported(const std::string& what) const {
    throw Error(SBR_ERR_UNSUPPORTED, file_.name() + ": " + what);
  }

 private:
  uint32_t narrow(const char* key, uint64_t value) const {
    // Products of three such numbers stay within 64 bits.
    if (value > kMaxWidth) {
      malformed(key,
                "is " + std::to_string(value) + ", more than this runtime allows (" + std::to_string(kMaxWidth) + ")");
    }
    return static_cast<uint32_t>(value);
  }

  const GgufFile& file_;
  const std::string prefix_;
  std::vector<std::string>* warnings_;
};

// ---- one reader per architecture: what the common keys leave open ----

// With a window, layers 0, 4, 8, ... still attend globally, and without positional encoding. (Released files hold 4096,
// which other runtimes use whatever the file says.)
constexpr uint32_t kSmallthinkerGlobalEvery = 4;
constexpr uint32_t kSmallthinkerReleasedWindow = 4096;

// Bounds of what a session allocates per token: a file may claim any number.
constexpr uint32_t kMaxExperts = 4096;
constexpr uint32_t kMaxExpertsUsed = 256;

void read_experts(const Keys& keys, Config* config) {
  config->n_expert = keys.count("expert_count");
  config->n_expert_used = keys.count("expert_used_count");
  if (config->n_expert == 0) keys.malformed("expert_count", "is 0");
  if (config->n_expert > kMaxExperts) {
    keys.unsupported(config->architecture + ".expert_count is " + std::to_string(config->n_expert) +
                     ", more than is supported (" + std::to_string(kMaxExperts) + ")");
  }
  if (config->n_expert_used == 0 || config->n_expert_used > config->n_expert) {
    keys.malformed("expert_used_count", "is " + std::to_string(config->n_expert_used) +
                                            ", expected 1 to expert_count (" + std::to_string(config->n_expert) + ")");
  }
  if (config->n_expert_used > kMaxExpertsUsed) {
    keys.unsupported(config->architecture + ".expert_used_count is " + std::to_string(config->n_expert_used) +
                     ", more than is supported (" + std::to_string(kMaxExpertsUsed) + ")");
  }
}

void read_smallthinker(const Keys& keys, Config* config) {
  config->activation = Nonlinearity::kRelu;
  config->lm_head_predictor = true;
  read_experts(keys, config);
  config->n_ff = keys.count("expert_feed_forward_length", keys.count("feed_forward_length", 0));

  // Some converters forget the key; every released model of this architecture uses sigmoid.
  if (!keys.has("expert_gating_func")) {
    keys.warn("smallthinker.expert_gating_func is missing; sigmoid is assumed, as in the released models");
  }
  const uint32_t gating = keys.count("expert_gating_func", 2);
  if (gating != 1 && gating != 2)
    keys.unsupported("expert gating function " + std::to_string(gating) + " (supported: 1 softmax, 2 sigmoid)");
  config->gating = gating == 1 ? Gating::kSoftmax : Gating::kSigmoid;

  config->sliding_window = keys.count("attention.sliding_window", 0);
  if (config->sliding_window == 0) return;
  if (config->sliding_window != kSmallthinkerReleasedWindow) {
    keys.warn("smallthinker.attention.sliding_window is " + std::to_string(config->sliding_window) +
              ", which is used; other runtimes use 4096, as in the released models, whatever the file says");
  }
  for (uint32_t l = 0; l < config->n_layer; ++l) {
    const bool global = l % kSmallthinkerGlobalEvery == 0;
    config->layers[l].window = global ? 0 : config->sliding_window;
    config->layers[l].rope = !global;
  }
}

void refuse_window(const Keys& keys) {
  const uint32_t window = keys.count("attention.sliding_window", 0);
  if (window != 0)
    keys.unsupported("attention.sliding_window is " + std::to_string(window) +
                     ", and this architecture's implementation has no sliding window");
}

void read_qwen3(const Keys& keys, Config* config) {
  refuse_window(keys);
  config->qk_norm = true;
  config->n_ff = keys.count("feed_forward_length");
}

// The gating is not stored: every model of this architecture uses softmax. (feed_forward_length is that of dense
// layers, of which it has none.)
void read_qwen3moe(const Keys& keys, Config* config) {
  refuse_window(keys);
  read_experts(keys, config);
  config->qk_norm = true;
  config->gating = Gating::kSoftmax;
  config->router_after_attention = true;
  config->n_ff = keys.count("expert_feed_forward_length");
  const uint32_t gating = keys.count("expert_gating_func", 1);
  if (gating != 1) keys.unsupported("expert gating function " + std::to_string(gating) + " (supported: 1 softmax)");
  if (keys.count("expert_shared_count", 0) != 0) keys.unsupported("shared experts are not supported");
  const double scale = keys.number("expert_weights_scale", 0);
  if (scale != 0 && scale != 1)
    keys.unsupported("expert_weights_scale is " + std::to_string(scale) + "; scaled expert weights are not supported");
}

void read_llama(const Keys& keys, Config* config) {
  refuse_window(keys);
  config->rope_style = RopeStyle::kInterleaved;
  config->n_ff = keys.count("feed_forward_length");
  if (keys.count("expert_count", 0) != 0) keys.unsupported("llama models with experts are not supported");
}

struct Architecture {
  const char* name;
  double rope_freq_base;  // when the file has none
  void (*read)(const Keys& keys, Config* config);
};

// Adding an architecture: a line here, and a reader above that sets what Config describes.
constexpr Architecture kArchitectures[] = {
    {"smallthinker", 10000.0, read_smallthinker},
    {"qwen3", 1000000.0, read_qwen3},
    {"qwen3moe", 1000000.0, read_qwen3moe},
    {"llama", 10000.0, read_llama},
};

const Architecture& find_architecture(const GgufFile& file, const std::string& name) {
  std::string supported;
  for (const Architecture& architecture : kArchitectures) {
    if (name == architecture.name) return architecture;
    supported += (supported.empty() ? "" : ", ") + std::string(architecture.name);
  }
  throw Error(SBR_ERR_UNSUPPORTED,
              file.name() + ": architecture " + gguf_quoted(name) + " is not supported (supported: " + supported + ")");
}

// A model trained with scaled positions computes something else without the scaling. (Files write a factor of 0 for
// none, too.)
void refuse_rope_scaling(const Keys& keys) {
  const std::string type = keys.text("rope.scaling.type", "none");
  if (type != "none") keys.unsupported("RoPE scaling " + gguf_quoted(type) + " is not supported");
  for (const char* key : {"rope.scale_linear", "rope.scaling.factor", "rope.scaling.attn_factor"}) {
    const double factor = keys.number(key, 1);
    if (factor != 0 && factor != 1)
      keys.unsupported(std::string(key) + " is " + std::to_string(factor) + "; RoPE scaling is not supported");
  }
}

void read_attention(const Keys& keys, Config* config) {
  config->n_head = keys.count("attention.head_count");
  config->n_head_kv = keys.count("attention.head_count_kv", config->n_head);
  if (config->n_head == 0) keys.malformed("attention.head_count", "is 0");
  if (config->n_head_kv == 0 || config->n_head % config->n_head_kv != 0) {
    keys.malformed("attention.head_count_kv", "is " + std::to_string(config->n_head_kv) + ", which does not divide " +
                                                  std::to_string(config->n_head) + " heads");
  }
  config->head_dim = keys.count("attention.key_length", config->n_embd / config->n_head);
  // Heads are quantised one by one, in blocks of 32.
  if (config->head_dim == 0 || config->head_dim % 32 != 0) {
    keys.unsupported("a head dimension of " + std::to_string(config->head_dim) +
                     " is not supported (it must be a multiple of 32)");
  }
  if (config->q_dim() > kMaxWidth) {
    keys.unsupported(std::to_string(config->n_head) + " heads of " + std::to_string(config->head_dim) +
                     " elements are more than is supported (" + std::to_string(kMaxWidth) + " elements together)");
  }
  if (keys.count("attention.value_length", config->head_dim) != config->head_dim) {
    keys.unsupported("attention.value_length differs from the key length (" + std::to_string(config->head_dim) + ")");
  }
  if (keys.count("rope.dimension_count", config->head_dim) != config->head_dim) {
    keys.unsupported("rope.dimension_count differs from the head dimension (" + std::to_string(config->head_dim) + ")");
  }
  refuse_rope_scaling(keys);
}

}  // namespace

Config read_config(const GgufFile& file, std::vector<std::string>* warnings) {
  Config config;
  config.architecture = file.get_string("general.architecture");
  const Architecture& architecture = find_architecture(file, config.architecture);
  const Keys keys(file, config.architecture, warnings);

  config.name = file.get_string("general.name", "");
  config.n_layer = keys.count("block_count");
  if (config.n_layer == 0 || config.n_layer > 4096)
    keys.malformed("block_count", "is " + std::to_string(config.n_layer));
  config.layers.resize(config.n_layer);
  config.n_embd = keys.count("embedding_length");
  if (config.n_embd == 0) keys.malformed("embedding_length", "is 0");
  config.n_ctx_train = keys.count("context_length");
  read_attention(keys, &config);

  const double eps = keys.number("attention.layer_norm_rms_epsilon");
  if (!(eps >= 0 && eps < 1)) keys.malformed("attention.layer_norm_rms_epsilon", "is outside 0 to 1");
  config.rms_eps = static_cast<float>(eps);
  config.rope_freq_base = keys.number("rope.freq_base", architecture.rope_freq_base);
  if (!(config.rope_freq_base > 1 && config.rope_freq_base < 1e12))
    keys.malformed("rope.freq_base", "is not a usable base");

  architecture.read(keys, &config);
  if (config.n_ff == 0) keys.malformed("feed_forward_length", "is missing or 0");

  const GgufTensor& embedding = file.tensor("token_embd.weight");
  if (embedding.n_dims != 2 || embedding.ne[1] == 0 || embedding.ne[1] > std::numeric_limits<int32_t>::max()) {
    throw Error(SBR_ERR_FORMAT,
                file.name() + ": tensor token_embd.weight: expected the shape [embedding_length, vocabulary]");
  }
  config.n_vocab = static_cast<uint32_t>(embedding.ne[1]);
  return config;
}

}  // namespace sbr
