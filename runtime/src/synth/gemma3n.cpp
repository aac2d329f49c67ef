// The design of gemma3n weights. Every block normalises what it adds, so the scales of its matrices hardly matter; what
// counts is the weights of the norms. In units of the embedding's deviation (after its factor sqrt(D)):
//
//   The active stream is halved in power by each layer's 1 / sqrt(2) and refreshed by the normed stream (LAuReL), so
//   its size settles near 2.4. Attention and FFN add norms around 1, so that a wrong one shows in the logits. The other
//   streams of AltUp gather what the layers added, some sqrt(n_layer) of it. All of it stays finite in half precision.
#include <cmath>

#include "synth/builder.h"

namespace sbr {
namespace {

// Standard deviation of attention scores, as in the other models; scores are not divided by sqrt(head_dim) here.
const double kScoreDeviation = 2.0;
const double kLogitDeviation = 2.0;
const double kModalityDeviation = 0.5;  // of AltUp's router before tanh
const double kCoefficient = 0.1;        // of AltUp's mixing: streams stay themselves

class Gemma3nDesigner : PlanBuilder {
 public:
  explicit Gemma3nDesigner(const SynthSpec& spec) : PlanBuilder(spec), d_(s_.n_embd) {}

  SynthPlan design() {
    const uint64_t per_layer = uint64_t{Gemma3n::kPerLayerWidth} * s_.n_layer;
    const uint64_t others = Gemma3n::kStreams - 1;
    add_matrix("token_embd.weight", d_, s_.n_vocab, unit(d_));
    add_matrix("per_layer_token_embd.weight", per_layer, s_.n_vocab, unit(Gemma3n::kPerLayerWidth));
    add_halves("per_layer_model_proj.weight", {d_, per_layer}, 1.0);  // divided by sqrt(D) where it is used
    add_norm("per_layer_proj_norm.weight", Gemma3n::kPerLayerWidth, 1.0);
    add_halves("altup_proj.weight", {d_, d_, others}, unit(d_));
    add_halves("altup_unembd_proj.weight", {d_, d_, others}, unit(d_));
    // Random signs: otherwise the token at hand, a large part of the stream, would always win.
    add_norm("output_norm.weight", d_, kLogitDeviation, true);
    for (uint32_t layer = 0; layer < s_.n_layer; ++layer) {
      prefix_ = "blk." + std::to_string(layer) + ".";
      add_attention();
      add_ffn();
      add_altup();
    }
    return place();
  }

 private:
  // Deviation of weights that keeps the size of an input of n channels.
  static double unit(uint64_t n) { return 1.0 / std::sqrt(static_cast<double>(n)); }

  void add_norm(const std::string& name, uint64_t n, double centre, bool random_signs = false) {
    add(prefix_ + name, {n}, literal(norm_values(prefix_ + name, n, centre, random_signs)));
  }

  void add_weights(const std::string& name, uint64_t cols, uint64_t rows) {
    add_matrix(prefix_ + name, cols, rows, unit(cols));
  }

  // Small matrices that quantisers leave in F16.
  void add_halves(const std::string& name, std::vector<uint64_t> shape, double deviation) {
    const uint64_t rows = shape[1] * (shape.size() > 2 ? shape[2] : 1);
    SynthPart part = matrix(prefix_ + name, SBR_TYPE_F16, rows, shape[0], deviation);
    add(prefix_ + name, std::move(shape), std::move(part));
  }

  // 4 or 16 rows of 4 coefficients, in F32: too narrow for blocks.
  void add_coefficients(const std::string& name, uint64_t rows) {
    add(prefix_ + name, {Gemma3n::kStreams, rows},
        literal(norm_values(prefix_ + name, Gemma3n::kStreams * rows, kCoefficient, true)));
  }

  void add_attention() {
    const uint64_t q_width = uint64_t{s_.n_head} * s_.head_dim;
    const uint64_t kv_width = uint64_t{s_.n_head_kv} * s_.head_dim;
    const double qk = std::sqrt(kScoreDeviation * unit(s_.head_dim));
    add_norm("attn_norm.weight", d_, 1.0);
    add_weights("attn_q.weight", d_, q_width);
    add_weights("attn_k.weight", d_, kv_width);
    add_weights("attn_v.weight", d_, kv_width);
    add_norm("attn_q_norm.weight", s_.head_dim, qk);
    add_norm("attn_k_norm.weight", s_.head_dim, qk);
    add_weights("attn_output.weight", q_width, d_);
    add_norm("post_attention_norm.weight", d_, 1.0);
    add_halves("laurel_l.weight", {d_, Gemma3n::kLaurelRank}, unit(d_));
    add_halves("laurel_r.weight", {Gemma3n::kLaurelRank, d_}, unit(Gemma3n::kLaurelRank));
    add_norm("laurel_post_norm.weight", d_, 0.5);
  }

  void add_ffn() {
    add_norm("ffn_norm.weight", d_, 1.0);
    add_weights("ffn_gate.weight", d_, s_.n_ff);
    add_weights("ffn_up.weight", d_, s_.n_ff);
    add_weights("ffn_down.weight", s_.n_ff, d_);
    add_norm("post_ffw_norm.weight", d_, 1.0);
  }

  void add_altup() {
    add_weights("inp_gate.weight", d_, Gemma3n::kPerLayerWidth);
    add_weights("proj.weight", Gemma3n::kPerLayerWidth, d_);
    add_norm("post_norm.weight", d_, 0.5);
    add_coefficients("altup_correct_coef.weight", Gemma3n::kStreams);
    add_norm("altup_correct_scale.weight", d_, 1.0);
    add_coefficients("altup_predict_coef.weight", uint64_t{Gemma3n::kStreams} * Gemma3n::kStreams);
    // Its input is divided by D.
    add_halves("altup_router.weight", {d_, Gemma3n::kStreams}, kModalityDeviation / unit(d_));
    add_norm("altup_router_norm.weight", d_, 1.0);
  }

  const uint64_t d_;
  std::string prefix_;  // "blk.N."
};

}  // namespace

SynthPlan make_gemma3n_plan(const SynthSpec& spec) { return Gemma3nDesigner(spec).design(); }

}  // namespace sbr
