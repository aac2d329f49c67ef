// The design of the weights: scales that keep every quantity at a known size, layer after layer.
//
// All sizes are in units of the embedding's standard deviation. The stream starts with variance 1 per channel and
// every attention block (alone with its token) and every FFN adds 1 / n_layer: large enough that a wrong block shows in
// the logits (one FFN of 32 carries 12 % of their standard deviation), small enough that the stream's size R is known
// at every depth. That matters because the bias channel does its work relative to R:
//
//   Hidden channel 0 of smallthinker models is a constant c: the embedding sets it, no block writes it. After the norm
//   it is ffn_norm[0] * c / rms. Gate rows have their most negative integer there, so all gate outputs are shifted down
//   by z standard deviations of the rest, and a share normal_cdf(z) of them is negative. The router prefers hot experts
//   and the lm_head predictor keeps its share of rows in the same way.
#include "synth/plan.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "quant/blocks.h"
#include "synth/builder.h"
#include "synth/normal.h"

namespace sbr {
namespace {

using Column0 = SynthPart::Column0;

// Attention averages over positions: mean of the sum of squared attention weights in streams of some hundred tokens.
const double kAttentionShare = 0.1;
// Standard deviation of attention scores. 1 would spread attention so thin that its output vanishes.
const double kScoreDeviation = 2.0;
const double kRouterDeviation = 1.5;  // of router logits ...
const double kRouterCentre = -1.5;    // ... around this, so that sigmoid weights of selected experts differ
const double kLogitDeviation = 2.0;
// Mean of silu(N)^2 for a standard normal N.
const double kSiluSecondMoment = 0.3556;
// Sum of squares of softmax weights of the best 8 of 128, in units of what equal weights have: their logits differ by a
// third of kRouterDeviation.
const double kSoftmaxWeightSpread = 1.3;

// Mean over the channels of squared weights of a norm, as a matrix with and without flat first blocks feels it.
struct NormMoments {
  double all = 0;   // sum of w^2 over the channels that count
  double flat = 0;  // the same with block scales: exact in the first block, kScaleMeanSquare in the others
};

class Designer : PlanBuilder {
 public:
  explicit Designer(const SynthSpec& spec)
      : PlanBuilder(spec), n_channels_(spec.smallthinker ? s_.n_embd - 1.0 : s_.n_embd) {}

  SynthPlan design() {
    add_embedding();
    for (uint32_t layer = 0; layer < s_.n_layer; ++layer) {
      prefix_ = "blk." + std::to_string(layer) + ".";
      if (spec_.smallthinker) add_router(layer);
      add_attention();
      stream_ += n_channels_ * kAttentionShare / s_.n_layer;
      if (spec_.smallthinker) {
        add_experts(layer);
      } else if (spec_.experts) {
        add_silu_experts();
      } else {
        add_dense_ffn();
      }
      stream_ += n_channels_ / s_.n_layer;
    }
    prefix_.clear();
    add_output();
    return place();
  }

 private:
  // Standard deviation of the stream's channels, without channel 0.
  double deviation() const { return std::sqrt(stream_ / n_channels_); }
  // The same after a norm with weights 1. Just below 1, since channel 0 takes part in the norm.
  double normed_deviation() const { return deviation() / rms(); }
  double rms() const { return std::sqrt((stream_ + bias_ * bias_) / s_.n_embd); }

  NormMoments moments(const std::vector<float>& norm) const {
    NormMoments m;
    for (size_t i = spec_.smallthinker ? 1 : 0; i < norm.size(); ++i) {
      const double square = static_cast<double>(norm[i]) * norm[i];
      m.all += square;
      m.flat += i < kBlock ? square : kScaleMeanSquare * square;
    }
    return m;
  }

  void add_embedding() {
    const std::string name = "token_embd.weight";
    SynthPart part = matrix(name, s_.n_vocab, s_.n_embd, 1.0);
    if (spec_.smallthinker) {
      part.column0 = Column0::kHigh;
      part.flat_block0 = true;  // every token has the same channel 0
      bias_ = range_.high * static_cast<double>(f16_to_f32(f32_to_f16(static_cast<float>(part.scale))));
      stream_ = (kBlock - 1) / kScaleMeanSquare + (s_.n_embd - static_cast<double>(kBlock));
    } else {
      stream_ = s_.n_embd;
    }
    add(name, {s_.n_embd, s_.n_vocab}, std::move(part));
  }

  // Reads the stream itself: before the norm and before attention.
  void add_router(uint32_t layer) {
    const std::string name = prefix_ + "ffn_gate_inp.weight";
    SynthPart part = matrix(name, s_.n_expert, s_.n_embd, 0);
    part.type = SBR_TYPE_F32;
    part.scale = kRouterDeviation / std::sqrt(stream_ * kByteRange.mean_square * kScaleMeanSquare);
    const std::vector<bool> hot = hot_experts(layer);
    const double push = kRouterDeviation * hot_push();
    for (uint32_t e = 0; e < s_.n_expert; ++e) {
      part.first_column.push_back(static_cast<float>((kRouterCentre + (hot[e] ? push : 0)) / bias_));
    }
    add(name, {s_.n_embd, s_.n_expert}, std::move(part));
  }

  // How many standard deviations the hot experts' logits are raised. With many experts a token selects those above a
  // threshold t: hot_share * used / hot of the hot ones, which lie above t - push, and the rest of the others.
  double hot_push() const {
    if (s_.hot_experts == 0 || s_.hot_share == 0) return 0;
    const double hot = s_.hot_share / 1000.0 * s_.n_expert_used / s_.hot_experts;
    const double cold = (1 - s_.hot_share / 1000.0) * s_.n_expert_used / (s_.n_expert - s_.hot_experts);
    return normal_quantile(1 - cold) - normal_quantile(1 - hot);
  }

  // A random choice (the first hot_experts of a shuffle), other experts in every layer.
  std::vector<bool> hot_experts(uint32_t layer) const {
    const uint64_t key = stream_key(s_.seed, "hot experts " + std::to_string(layer));
    std::vector<uint32_t> order(s_.n_expert);
    for (uint32_t e = 0; e < s_.n_expert; ++e) order[e] = e;
    std::vector<bool> hot(s_.n_expert);
    for (uint32_t i = 0, left = s_.n_expert; i < s_.hot_experts && left > 0; ++i, --left) {
      std::swap(order[i], order[i + random_u64(key, i) % left]);
      hot[order[i]] = true;
    }
    return hot;
  }

  void add_attention() {
    std::vector<float> norm = norm_values(prefix_ + "attn_norm.weight", s_.n_embd, 1.0);
    if (spec_.smallthinker) norm[0] = 0;  // attention does not see the bias channel
    const double unit = 1.0 / (std::sqrt(moments(norm).all) * normed_deviation());  // gives outputs of variance 1
    add(prefix_ + "attn_norm.weight", {s_.n_embd}, literal(std::move(norm)));

    const uint64_t q_width = uint64_t{s_.n_head} * s_.head_dim;
    const uint64_t kv_width = uint64_t{s_.n_head_kv} * s_.head_dim;
    const double qk = std::sqrt(kScoreDeviation);
    add_matrix(prefix_ + "attn_q.weight", s_.n_embd, q_width, unit * qk, Column0::kRandom);
    add_matrix(prefix_ + "attn_k.weight", s_.n_embd, kv_width, unit * qk, Column0::kRandom);
    add_matrix(prefix_ + "attn_v.weight", s_.n_embd, kv_width, unit, Column0::kRandom);
    if (spec_.qk_norm) {
      for (const char* name : {"attn_q_norm.weight", "attn_k_norm.weight"}) {
        add(prefix_ + name, {s_.head_dim}, literal(norm_values(prefix_ + name, s_.head_dim, qk)));
      }
    }
    SynthPart output = matrix(prefix_ + "attn_output.weight", s_.n_embd, q_width,
                              std::sqrt(1.0 / s_.n_layer / static_cast<double>(q_width)));
    output.zero_row0 = spec_.smallthinker;
    add(prefix_ + "attn_output.weight", {q_width, s_.n_embd}, std::move(output));
  }

  void add_experts(uint32_t layer) {
    const uint64_t d = s_.n_embd;
    const uint64_t f = s_.n_ff;
    const uint64_t e = s_.n_expert;
    const double z = normal_quantile(spec_.zero_share[layer] / 1000.0);

    std::vector<float> norm = norm_values(prefix_ + "ffn_norm.weight", d, 1.0);
    const NormMoments m = moments(norm);
    // low * scale * h[0] = -z * (standard deviation of the other channels' sum)
    norm[0] = static_cast<float>(z * std::sqrt(range_.mean_square * m.flat) * deviation() / (-range_.low * bias_));
    add(prefix_ + "ffn_norm.weight", {d}, literal(std::move(norm)));

    SynthPart gate = matrix(prefix_ + "ffn_gate_exps.weight", e * f, d, 0);
    gate.scale = 1.0 / (std::sqrt(range_.mean_square * m.flat) * normed_deviation());
    gate.column0 = Column0::kLow;
    gate.flat_block0 = true;
    add(prefix_ + "ffn_gate_exps.weight", {d, f, e}, std::move(gate));

    SynthPart up = matrix(prefix_ + "ffn_up_exps.weight", e * f, d, 1.0 / (std::sqrt(m.all) * normed_deviation()));
    up.column0 = Column0::kZero;
    add(prefix_ + "ffn_up_exps.weight", {d, f, e}, std::move(up));

    // Few neurons fire at high shares; below this moment their outputs are not scaled up any more.
    const double moment = std::max(relu_second_moment(z), 0.005);
    // The selected experts' weights are near 1 / used each; their spread adds 3 % to the sum of squares.
    const double expert_weights = 1.03 / s_.n_expert_used;
    add_down(d, f, e, std::sqrt(1.0 / s_.n_layer / (static_cast<double>(f) * moment * expert_weights)));
  }

  // Both layouts hold the same values, hence one scale per expert.
  void add_down(uint64_t d, uint64_t f, uint64_t e, double deviation) {
    const std::string name = prefix_ + "ffn_down_exps.weight";
    SynthPart down = matrix(name, e * f, d, deviation);
    down.column0 = Column0::kZero;
    down.rows_per_scale = f;
    if (s_.transposed_down != 0) {
      add(name, {d, f, e}, std::move(down));
      return;
    }
    down.kind = SynthPart::Kind::kDownStandard;
    down.rows = e * d;
    down.cols = f;
    down.rows_per_scale = d;
    add(name, {f, d, e}, std::move(down));
  }

  // Their router reads what they read: the normed hidden state. No experts are preferred: there is no bias channel.
  void add_silu_experts() {
    const uint64_t d = s_.n_embd;
    const uint64_t f = s_.n_ff;
    const uint64_t e = s_.n_expert;
    std::vector<float> norm = norm_values(prefix_ + "ffn_norm.weight", d, 1.0);
    const double unit = 1.0 / (std::sqrt(moments(norm).all) * normed_deviation());
    add(prefix_ + "ffn_norm.weight", {d}, literal(std::move(norm)));
    add(prefix_ + "ffn_gate_inp.weight", {d, e},
        matrix(prefix_ + "ffn_gate_inp.weight", SBR_TYPE_F32, e, d, unit * kRouterDeviation));
    add(prefix_ + "ffn_gate_exps.weight", {d, f, e}, matrix(prefix_ + "ffn_gate_exps.weight", e * f, d, unit));
    add(prefix_ + "ffn_up_exps.weight", {d, f, e}, matrix(prefix_ + "ffn_up_exps.weight", e * f, d, unit));
    const double weights = kSoftmaxWeightSpread / s_.n_expert_used;
    add(prefix_ + "ffn_down_exps.weight", {f, d, e},
        matrix(prefix_ + "ffn_down_exps.weight", e * d, f,
               std::sqrt(1.0 / s_.n_layer / (static_cast<double>(f) * kSiluSecondMoment * weights))));
  }

  void add_dense_ffn() {
    std::vector<float> norm = norm_values(prefix_ + "ffn_norm.weight", s_.n_embd, 1.0);
    const double unit = 1.0 / (std::sqrt(moments(norm).all) * normed_deviation());
    add(prefix_ + "ffn_norm.weight", {s_.n_embd}, literal(std::move(norm)));
    add_matrix(prefix_ + "ffn_gate.weight", s_.n_embd, s_.n_ff, unit, Column0::kRandom);
    add_matrix(prefix_ + "ffn_up.weight", s_.n_embd, s_.n_ff, unit, Column0::kRandom);
    add_matrix(prefix_ + "ffn_down.weight", s_.n_ff, s_.n_embd,
               std::sqrt(1.0 / s_.n_layer / (s_.n_ff * kSiluSecondMoment)), Column0::kRandom);
  }

  // A tied output matrix has deviation 1, so the norm before it is small; an output matrix of its own is small itself.
  // Random signs keep the token at hand, whose embedding is a large part of the stream, from always winning.
  void add_output() {
    const double unit = kLogitDeviation / std::sqrt(static_cast<double>(s_.n_embd));
    const bool tied = s_.tied_output != 0;
    std::vector<float> norm = norm_values("output_norm.weight", s_.n_embd, tied ? unit : 1.0, true);
    if (norm[0] < 0) norm[0] = -norm[0];
    const NormMoments m = moments(norm);
    const double hidden_bias = norm[0] * bias_ / rms();
    add("output_norm.weight", {s_.n_embd}, literal(std::move(norm)));
    if (!tied) add_matrix("output.weight", s_.n_embd, s_.n_vocab, unit, Column0::kRandom);
    if (s_.predictor_rank != 0) add_predictor(m, hidden_bias);
  }

  // fc1's first row passes the bias channel on and its other rows ignore it; fc2 subtracts it from every score.
  void add_predictor(const NormMoments& m, double hidden_bias) {
    const std::string name = "lm_head_profiler.weight";
    const uint64_t r = s_.predictor_rank;
    const IntegerRange& q = kNibbleRange;
    const double z = normal_quantile(1 - s_.lm_head_keep / 1000.0);
    // Sum of squares, in units of fc2's scale, of a score's terms apart from the bias.
    const double spread = q.mean_square * ((kBlock - 1) + kScaleMeanSquare * static_cast<double>(r - kBlock));
    const double wanted_bias = z * std::sqrt(spread) / -q.low;

    SynthPart pass = matrix(name + " pass", 1, s_.n_embd, 0);
    pass.scale = wanted_bias / (q.high * hidden_bias);
    pass.column0 = Column0::kHigh;
    pass.only_column0 = true;
    pass.flat_block0 = true;

    SynthPart fc1 = matrix(name + " fc1", r - 1, s_.n_embd, 0);
    fc1.scale = 1.0 / (std::sqrt(m.all * q.mean_square * kScaleMeanSquare) * normed_deviation());
    fc1.column0 = Column0::kZero;

    SynthPart fc2 = matrix(name + " fc2", s_.n_vocab, r, 0);
    fc2.scale = 1.0 / std::sqrt(spread);
    fc2.column0 = Column0::kLow;
    fc2.flat_block0 = true;

    std::vector<SynthPart> parts = {std::move(pass), std::move(fc1), std::move(fc2)};
    for (SynthPart& part : parts) part.type = SBR_TYPE_Q4_0;
    add(name, {r * (uint64_t{s_.n_embd} + s_.n_vocab)}, std::move(parts));
  }

  const double n_channels_;  // that blocks write: all, less the bias channel
  double bias_ = 0;          // channel 0 of smallthinker models
  double stream_ = 0;        // expected sum of squares of the other channels, here
  std::string prefix_;       // "blk.N."
};

}  // namespace

SynthPlan make_synth_plan(const SynthSpec& spec) {
  return spec.gemma3n ? make_gemma3n_plan(spec) : Designer(spec).design();
}

}  // namespace sbr
