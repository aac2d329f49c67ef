// Synthetic files: their bytes, the equality of the two down layouts, the bias channel, refusals, and what happens to
// an unfinished file. Statistics of a real forward pass: tests/test_synth_statistics.py.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "expect.h"
#include "gguf/gguf.h"
#include "io/file.h"
#include "quant/reference.h"
#include "sbr/sbr.h"
#include "synth/normal.h"
#include "synth/plan.h"
#include "synth/random.h"
#include "synth/synth.h"

namespace {

const uint16_t kShares[] = {950, 700};

// Fixed for good: the hashes below are of these.
sbr_synth_spec golden_spec(const char* architecture, uint32_t type) {
  sbr_synth_spec spec = {};
  spec.struct_size = sizeof spec;
  spec.n_layer = 2;
  spec.n_embd = 64;
  spec.n_head = 4;
  spec.n_head_kv = 2;
  spec.head_dim = 32;
  spec.n_ff = 96;
  spec.n_vocab = 300;
  spec.n_ctx_train = 512;
  spec.tied_output = 1;
  spec.weight_type = type;
  spec.seed = 42;
  spec.rope_freq_base = 1.5e6F;
  spec.rms_eps = 1e-6F;
  std::snprintf(spec.architecture, sizeof spec.architecture, "%s", architecture);
  std::snprintf(spec.name, sizeof spec.name, "golden");
  if (std::strcmp(architecture, "smallthinker") == 0) {
    spec.n_expert = 8;
    spec.n_expert_used = 2;
    spec.transposed_down = 1;
    spec.predictor_rank = 64;
    spec.zero_share = kShares;
    spec.hot_experts = 2;
    spec.hot_share = 600;
    spec.lm_head_keep = 100;
  } else {
    spec.tied_output = 0;
  }
  if (std::strcmp(architecture, "qwen3moe") == 0) {
    spec.n_expert = 8;
    spec.n_expert_used = 2;
  }
  if (std::strcmp(architecture, "gemma3n") == 0) {
    spec.tied_output = 1;
    spec.sliding_window = 64;
  }
  return spec;
}

std::string temporary(const char* name) { return std::string("test_synth-") + std::to_string(getpid()) + "-" + name; }

// A file written for one test, read through the parser.
struct Written {
  explicit Written(const sbr_synth_spec& spec) : path(temporary("file.gguf")) {
    sbr::synth_write(spec, path, nullptr, nullptr);
    map = sbr::MappedFile::open(path);
    gguf = std::make_unique<sbr::GgufFile>(sbr::GgufFile::open(path));
    std::remove(path.c_str());
  }
  std::vector<float> values(const sbr::GgufTensor& tensor) const {
    uint64_t n = 1;
    for (const uint64_t d : tensor.ne) n *= d;
    std::vector<float> out(n);
    sbr::dequantise_row(tensor.type, map.data() + tensor.offset, n, out.data());
    return out;
  }
  std::vector<float> values(const std::string& name) const { return values(gguf->tensor(name)); }

  std::string path;
  sbr::MappedFile map;
  std::unique_ptr<sbr::GgufFile> gguf;
};

uint64_t fnv1a(const uint8_t* data, uint64_t n) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (uint64_t i = 0; i < n; ++i) hash = (hash ^ data[i]) * 0x100000001b3u;
  return hash;
}

// The same on every machine, with every compiler; tests/test_synth_files.py holds SHA-256 sums of the same files.
void test_golden() {
  const struct {
    const char* architecture;
    uint32_t type;
    uint64_t bytes;
    uint64_t hash;
  } golden[] = {
      {"smallthinker", SBR_TYPE_F32, 1479104, 0xceaf9457d72fe84f},
      {"smallthinker", SBR_TYPE_F16, 752576, 0x01f94c83800c3df0},
      {"smallthinker", SBR_TYPE_Q8_0, 412032, 0x45c7541c9ee328f9},
      {"smallthinker", SBR_TYPE_Q4_0, 230400, 0x14951f6360a6b393},
      {"qwen3", SBR_TYPE_Q4_0, 78912, 0x5c0ae26ab8fdc79d},
      {"llama", SBR_TYPE_Q8_0, 140448, 0x9fb861ef3e370292},
      {"qwen3moe", SBR_TYPE_Q4_0, 228544, 0x44e00e39cc0886ee},
      {"gemma3n", SBR_TYPE_Q4_0, 349248, 0x74a5980279e44dee},
  };
  for (const auto& expected : golden) {
    const sbr_synth_spec spec = golden_spec(expected.architecture, expected.type);
    const Written file(spec);
    const uint64_t hash = fnv1a(file.map.data(), file.map.size());
    const bool same = file.map.size() == expected.bytes && hash == expected.hash;
    EXPECT(file.map.size() == sbr::synth_size(spec));
    if (!EXPECT(same)) {
      std::fprintf(stderr, "  {\"%s\", %u, %llu, 0x%016llx}\n", expected.architecture, expected.type,
                   static_cast<unsigned long long>(file.map.size()), static_cast<unsigned long long>(hash));
    }
  }
}

// Twins share all values: with or without a predictor, with either layout of down.
void test_layouts() {
  for (const uint32_t type : {SBR_TYPE_F32, SBR_TYPE_F16, SBR_TYPE_Q8_0, SBR_TYPE_Q4_0}) {
    sbr_synth_spec spec = golden_spec("smallthinker", type);
    const Written transposed(spec);
    spec.transposed_down = 0;
    spec.predictor_rank = 0;
    const Written standard(spec);
    EXPECT(transposed.gguf->tensors().size() == standard.gguf->tensors().size() + 1);
    for (const sbr::GgufTensor& tensor : standard.gguf->tensors()) {
      const sbr::GgufTensor& twin = transposed.gguf->tensor(tensor.name);
      const std::vector<float> a = standard.values(tensor);
      const std::vector<float> b = transposed.values(twin);
      if (tensor.name.find("ffn_down_exps") == std::string::npos) {
        EXPECT(a == b);
        continue;
      }
      const uint64_t f = tensor.ne[0];
      const uint64_t d = tensor.ne[1];
      EXPECT(f == spec.n_ff && d == spec.n_embd && twin.ne[0] == d && twin.ne[1] == f);
      bool equal = a.size() == b.size();
      for (uint64_t i = 0; equal && i < a.size(); ++i) {
        const uint64_t expert = i / (d * f);
        equal = a[i] == b[(expert * f + i % f) * d + i / f % d];
      }
      EXPECT(equal);
    }
  }
}

bool all_of_column0(const std::vector<float>& values, uint64_t cols, const std::function<bool(float)>& holds) {
  for (size_t i = 0; i < values.size(); i += cols) {
    if (!holds(values[i])) return false;
  }
  return true;
}

// Nothing writes channel 0 of the stream, every token sets it alike, and gate rows read it with one sign.
void test_bias_channel() {
  const sbr_synth_spec spec = golden_spec("smallthinker", SBR_TYPE_Q4_0);
  const Written file(spec);
  const uint64_t d = spec.n_embd;
  const std::vector<float> embedding = file.values("token_embd.weight");
  EXPECT(all_of_column0(embedding, d, [&](float v) { return v == embedding[0] && v > 0; }));
  for (const char* block : {"blk.0.", "blk.1."}) {
    const std::string b = block;
    const std::vector<float> output = file.values(b + "attn_output.weight");
    EXPECT(all_of_column0({output.begin(), output.begin() + spec.n_head * spec.head_dim}, 1,
                          [](float v) { return v == 0; }));
    EXPECT(all_of_column0(file.values(b + "ffn_down_exps.weight"), d, [](float v) { return v == 0; }));
    EXPECT(all_of_column0(file.values(b + "ffn_up_exps.weight"), d, [](float v) { return v == 0; }));
    EXPECT(all_of_column0(file.values(b + "ffn_gate_exps.weight"), d, [](float v) { return v < 0; }));
    EXPECT(file.values(b + "attn_norm.weight")[0] == 0 && file.values(b + "ffn_norm.weight")[0] > 0);
  }
  // A share of 950 needs a larger bias than one of 700.
  EXPECT(file.values("blk.0.ffn_norm.weight")[0] > 2 * file.values("blk.1.ffn_norm.weight")[0]);
  // Two experts per layer are preferred.
  for (const char* block : {"blk.0.", "blk.1."}) {
    const std::vector<float> router = file.values(std::string(block) + "ffn_gate_inp.weight");
    uint32_t hot = 0;
    for (uint32_t e = 0; e < spec.n_expert; ++e) hot += router[e * d] > -0.5F * std::fabs(router[0]) ? 1 : 0;
    EXPECT(hot == spec.hot_experts);
  }
}

// Any split of the rows among threads gives the same bytes.
void test_splits() {
  for (const uint32_t transposed : {0u, 1u}) {
    sbr_synth_spec raw = golden_spec("smallthinker", SBR_TYPE_Q4_0);
    raw.transposed_down = transposed;
    const sbr::SynthPlan plan = sbr::make_synth_plan(sbr::SynthSpec(raw));
    for (const sbr::SynthTensor& tensor : plan.tensors) {
      for (const sbr::SynthPart& part : tensor.parts) {
        const uint64_t unit = part.kind == sbr::SynthPart::Kind::kDownStandard ? part.rows_per_scale : 1;
        const uint64_t row_bytes = sbr::type_row_bytes(part.type, part.cols);
        std::vector<uint8_t> whole(part.rows * row_bytes);
        sbr::fill_synth_rows(part, 0, part.rows, whole.data());
        const uint64_t split = part.rows / unit / 3 * unit;
        std::vector<uint8_t> halves(whole.size());
        sbr::fill_synth_rows(part, split, part.rows, halves.data() + split * row_bytes);
        if (split > 0) sbr::fill_synth_rows(part, 0, split, halves.data());
        EXPECT(whole == halves);
      }
    }
  }
}

void test_normal() {
  EXPECT(std::fabs(sbr::normal_cdf(0) - 0.5) < 1e-15);
  EXPECT(std::fabs(sbr::normal_cdf(1.959963984540054) - 0.975) < 1e-14);
  EXPECT(std::fabs(sbr::normal_cdf(-3) - 0.0013498980316300946) < 1e-14);
  EXPECT(std::fabs(sbr::normal_quantile(0.7) - 0.5244005127080407) < 1e-13);
  EXPECT(std::fabs(sbr::normal_quantile(0.001) + 3.090232306167813) < 1e-11);
  EXPECT(std::fabs(sbr::relu_second_moment(0) - 0.5) < 1e-15);
  // Against a sum over a fine grid.
  for (const double z : {-1.0, 0.5, 1.88}) {
    double sum = 0;
    for (int i = 0; i < 100000; ++i) sum += i * 1e-4 * i * 1e-4 * sbr::normal_density(z + i * 1e-4) * 1e-4;
    EXPECT(std::fabs(sbr::relu_second_moment(z) - sum) < 1e-7);
  }
}

// Mean exactly zero over all bytes, the stated mean square, and no value outside the range.
void test_integers() {
  int64_t sum[2] = {};
  int64_t squares[2] = {};
  int extremes[2] = {};
  const uint64_t blocks = 20000;
  for (uint64_t b = 0; b < blocks; ++b) {
    int8_t q[32];
    for (int kind = 0; kind < 2; ++kind) {
      if (kind == 0) {
        sbr::random_nibbles(1, b, q);
      } else {
        sbr::random_int8(1, b, q);
      }
      for (const int8_t v : q) {
        sum[kind] += v;
        squares[kind] += v * v;
        extremes[kind] = std::max<int>(extremes[kind], std::abs(v));
      }
    }
  }
  const double n = 32.0 * blocks;
  EXPECT(extremes[0] == 7 && extremes[1] == 127);
  EXPECT(std::fabs(sum[0] / n) < 0.02 && std::fabs(sum[1] / n) < 0.4);
  EXPECT(std::fabs(squares[0] / n / sbr::kNibbleRange.mean_square - 1) < 0.01);
  EXPECT(std::fabs(squares[1] / n / sbr::kByteRange.mean_square - 1) < 0.01);
}

struct Progress {
  uint64_t stop_at = UINT64_MAX;
  uint64_t done = 0;
  uint64_t total = 0;
  bool ascending = true;
};

int32_t note_progress(void* user, uint64_t done, uint64_t total) {
  auto* progress = static_cast<Progress*>(user);
  progress->ascending = progress->ascending && done >= progress->done && done <= total;
  progress->done = done;
  progress->total = total;
  return done >= progress->stop_at ? 1 : 0;
}

void test_progress() {
  const sbr_synth_spec spec = golden_spec("qwen3", SBR_TYPE_F16);
  const std::string path = temporary("progress.gguf");
  Progress all;
  sbr::synth_write(spec, path, note_progress, &all);
  EXPECT(all.ascending && all.done == all.total && all.total == sbr::synth_size(spec));
  EXPECT(std::remove(path.c_str()) == 0);

  Progress stopped;
  stopped.stop_at = 1;
  try {
    sbr::synth_write(spec, path, note_progress, &stopped);
    EXPECT(false);
  } catch (const sbr::Error& error) {
    EXPECT(error.status() == SBR_ERR_CANCELLED);
  }
  EXPECT(access(path.c_str(), F_OK) != 0 && access((path + ".part").c_str(), F_OK) != 0);
}

void expect_refused(const char* architecture, const std::function<void(sbr_synth_spec&)>& bend, const char* part,
                    int line, int32_t status = SBR_ERR_ARGUMENT) {
  sbr_synth_spec spec = golden_spec(architecture, SBR_TYPE_Q4_0);
  bend(spec);
  std::string message = "accepted";
  try {
    sbr::synth_size(spec);
  } catch (const sbr::Error& error) {
    message = error.what();
    EXPECT(error.status() == status);
  }
  if (!sbr_test::expect(message.find(part) != std::string::npos, part, __FILE__, line)) {
    std::fprintf(stderr, "  got: %s\n", message.c_str());
  }
}

#define REFUSED(architecture, bend, ...) expect_refused(architecture, [](sbr_synth_spec& s) { bend; }, __VA_ARGS__)

void test_refusals() {
  const char* st = "smallthinker";
  REFUSED(st, s.architecture[0] = 'S',
          "\"Smallthinker\" is not supported (supported: smallthinker, qwen3, qwen3moe, llama, gemma3n)", __LINE__,
          SBR_ERR_UNSUPPORTED);
  REFUSED(st, s.weight_type = SBR_TYPE_Q4_K, "weight_type q4_k is not supported (supported: f32, f16, q8_0, q4_0)",
          __LINE__, SBR_ERR_UNSUPPORTED);
  REFUSED(st, s.n_layer = 0, "n_layer is 0, expected 1 to 1024", __LINE__);
  REFUSED(st, s.n_embd = 65, "n_embd is 65, expected a multiple of 32", __LINE__);
  REFUSED(st, s.n_head_kv = 3, "n_head_kv is 3, which does not divide n_head 4", __LINE__);
  REFUSED(st, s.n_ff = 64, "n_ff equals n_embd (64)", __LINE__);
  REFUSED(st, s.n_expert_used = 9, "n_expert_used is 9, expected 1 to 8", __LINE__);
  REFUSED(st, s.hot_experts = 8, "hot_experts is 8, expected 0 to 7", __LINE__);
  REFUSED(st, (s.hot_experts = 9, s.hot_share = 0), "hot_experts is 9, expected 0 to 7", __LINE__);
  REFUSED(st, (s.hot_experts = 1, s.hot_share = 600), "hot_share is 600 of 1000, which 1 of 8 experts", __LINE__);
  REFUSED(st, s.hot_share = 1000, "hot_share is 1000 of 1000", __LINE__);
  REFUSED(st, s.lm_head_keep = 0, "lm_head_keep is 0, expected 1 to 1000", __LINE__);
  REFUSED(st, s.predictor_rank = 70, "predictor_rank is 70, expected a multiple of 32", __LINE__);
  REFUSED(st, s.rms_eps = NAN, "rms_eps is not between", __LINE__);
  REFUSED(st, s.rope_freq_base = 0, "rope_freq_base is not between", __LINE__);
  static const uint16_t impossible[] = {500, 1000};
  REFUSED(st, s.zero_share = impossible, "zero_share[1] is 1000, expected 1 to 999", __LINE__);
  REFUSED("qwen3moe", s.n_expert_used = 9, "n_expert_used is 9, expected 1 to 8", __LINE__);
  REFUSED("qwen3moe", s.transposed_down = 1, "transposed_down is 1, but qwen3moe models have none", __LINE__);
  REFUSED("gemma3n", s.sliding_window = 0, "sliding_window is 0, expected 1 to 1048576", __LINE__);
  REFUSED("gemma3n", s.n_vocab = 260, "n_vocab is 260, expected 261 to 4194304", __LINE__);
  REFUSED("gemma3n", s.tied_output = 0, "gemma3n models have a tied output", __LINE__);
  REFUSED("qwen3", s.n_expert = 8, "n_expert is 8, but qwen3 models have none", __LINE__);
  REFUSED("llama", s.zero_share = kShares, "zero_share is given, but llama models have no ReLU", __LINE__);
}

}  // namespace

int main() {
  test_normal();
  test_integers();
  test_golden();
  test_layouts();
  test_bias_channel();
  test_splits();
  test_progress();
  test_refusals();
  return sbr_test::finish("test_synth");
}
