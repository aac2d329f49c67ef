// One arithmetic: every instruction set, thread count, batch size and sparsity switch gives the logits of the slowest
// path (scalar, one thread, token by token, dense), bit by bit. `test_forward few` tries fewer combinations, for
// emulators and sanitizers, where every one takes seconds.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <set>

#include "base/error.h"
#include "expect.h"
#include "kernels/kernels.h"
#include "tiny_models.h"

using namespace sbr_test;

namespace {

std::vector<uint32_t> runnable_isas() {
  std::vector<uint32_t> isas;
  for (size_t i = 0; i < sbr::kernels_count(); ++i) {
    if (sbr::kernels_supported(sbr::kernels_at(i))) isas.push_back(sbr::kernels_at(i)->isa);
  }
  return isas;
}

bool sane(const std::vector<float>& logits) {
  float low = std::numeric_limits<float>::infinity(), high = -low;
  for (float x : logits) {
    if (!std::isfinite(x)) return false;
    low = std::min(low, x);
    high = std::max(high, x);
  }
  return high - low > 1e-3f;
}

void expect_same(const char* model, const sbr_session_options& o, const std::vector<float>& got,
                 const std::vector<float>& expected) {
  if (EXPECT(same_bits(got, expected))) return;
  size_t first = 0;
  while (std::memcmp(&got[first], &expected[first], sizeof(float)) == 0) ++first;
  std::fprintf(stderr, "  %s: isa %u, %u threads, batch %u, sparse %u, kv %u: token %zu row %zu: %a, expected %a\n",
               model, o.isa, o.n_threads, o.n_batch, o.sparse_ffn, o.kv_type, first / kVocab, first % kVocab,
               static_cast<double>(got[first]), static_cast<double>(expected[first]));
}

struct Setting {
  uint32_t threads, batch;
};

bool few = false;

const std::vector<Setting> kSomeSettings = {{1, 1}, {3, 8}, {2, 64}};

// Few of them: every thread count and every batch size once.
std::vector<Setting> all_settings() {
  if (few) return {{1, 3}, {2, 8}, {3, 64}, {5, 1}};
  std::vector<Setting> settings;
  for (uint32_t threads : {1u, 2u, 3u, 5u}) {
    for (uint32_t batch : {1u, 3u, 8u, 64u}) settings.push_back({threads, batch});
  }
  return settings;
}

void test_equalities(const char* name, const sbr::Model& model, const std::vector<Setting>& settings) {
  const std::vector<int32_t> tokens = token_stream(66);
  for (uint32_t kv_type : {SBR_TYPE_F16, SBR_TYPE_F32}) {
    if (few && kv_type == SBR_TYPE_F32 && settings.size() == kSomeSettings.size()) continue;
    sbr_session_options options = session_options();
    options.kv_type = kv_type;
    const std::vector<float> expected = prefill_all(model, options, tokens);
    EXPECT(sane(expected));
    for (uint32_t isa : runnable_isas()) {
      for (const Setting& setting : settings) {
        options.isa = isa;
        options.n_threads = setting.threads;
        options.n_batch = setting.batch;
        for (uint32_t sparse = 0; sparse <= (model.config().relu_experts() ? 1u : 0u); ++sparse) {
          options.sparse_ffn = sparse;
          expect_same(name, options, prefill_all(model, options, tokens), expected);
        }
      }
    }
    // Decode, after a prefill of the first tokens.
    options.n_threads = 2;
    options.n_batch = 16;
    sbr::Session session(model, options);
    session.prefill(tokens.data(), 30, SBR_LOGITS_NONE, nullptr, nullptr);
    const std::vector<float> tail = decode_all(session, {tokens.begin() + 30, tokens.end()});
    expect_same(name, options, tail, {expected.begin() + 30 * kVocab, expected.end()});
  }
}

void test_models() {
  test_equalities("smallthinker q4_0 transposed", TinyModel(tiny_smallthinker(SBR_TYPE_Q4_0, true)).get(),
                  all_settings());
  test_equalities("smallthinker q4_0 standard", TinyModel(tiny_smallthinker(SBR_TYPE_Q4_0, false)).get(),
                  kSomeSettings);
  test_equalities("smallthinker q8_0 transposed", TinyModel(tiny_smallthinker(SBR_TYPE_Q8_0, true)).get(),
                  kSomeSettings);
  test_equalities("smallthinker f16 transposed", TinyModel(tiny_smallthinker(SBR_TYPE_F16, true)).get(), kSomeSettings);
  test_equalities("smallthinker f32 standard", TinyModel(tiny_smallthinker(SBR_TYPE_F32, false)).get(), kSomeSettings);
  test_equalities("smallthinker requantised",
                  TinyModel(tiny_smallthinker(SBR_TYPE_Q4_0, false), SBR_LOAD_READ, true).get(), kSomeSettings);

  sbr_synth_spec windowed = tiny_smallthinker(SBR_TYPE_Q4_0, true);
  windowed.sliding_window = 20;
  windowed.n_layer = 6;
  windowed.tied_output = 0;
  windowed.predictor_rank = 0;
  windowed.lm_head_keep = 0;
  test_equalities("smallthinker windowed", TinyModel(windowed).get(), kSomeSettings);

  test_equalities("qwen3 q8_0", TinyModel(tiny_spec("qwen3", SBR_TYPE_Q8_0)).get(), kSomeSettings);
  test_equalities("qwen3 q4_0", TinyModel(tiny_spec("qwen3", SBR_TYPE_Q4_0)).get(), kSomeSettings);
  test_equalities("qwen3moe q4_0", TinyModel(tiny_qwen3moe(SBR_TYPE_Q4_0)).get(), all_settings());
  test_equalities("qwen3moe q8_0", TinyModel(tiny_qwen3moe(SBR_TYPE_Q8_0)).get(), kSomeSettings);
  test_equalities("qwen3moe f16", TinyModel(tiny_qwen3moe(SBR_TYPE_F16)).get(), kSomeSettings);
  test_equalities("llama f16", TinyModel(tiny_spec("llama", SBR_TYPE_F16)).get(), kSomeSettings);
  test_equalities("llama q4_0", TinyModel(tiny_spec("llama", SBR_TYPE_Q4_0)).get(), kSomeSettings);
}

// The same bits on every machine: what x86 and aarch64, gcc and clang computed when this was written. A change of the
// arithmetic (docs/arithmetic.md) or of the synthetic weights changes these numbers, and nothing else may.
void test_pinned_logits() {
  const struct {
    sbr_synth_spec spec;
    uint64_t hash;
  } cases[] = {
      {tiny_smallthinker(SBR_TYPE_Q4_0, true), 0xc30471c93558798d},
      {tiny_spec("qwen3", SBR_TYPE_Q8_0), 0xfb6ab6d8628bb1a5},
      {tiny_qwen3moe(SBR_TYPE_Q4_0), 0xe55c13b348eb5a2c},
      {tiny_spec("llama", SBR_TYPE_F16), 0xc167cfcdca8164c7},
  };
  for (const auto& pinned : cases) {
    const std::vector<float> logits = prefill_all(TinyModel(pinned.spec).get(), session_options(), token_stream(30));
    uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
    const auto* bytes = reinterpret_cast<const unsigned char*>(logits.data());
    for (size_t i = 0; i < logits.size() * sizeof(float); ++i) hash = (hash ^ bytes[i]) * 0x100000001b3u;
    if (!EXPECT(hash == pinned.hash)) {
      std::fprintf(stderr, "  %s: 0x%016llx\n", pinned.spec.architecture, static_cast<unsigned long long>(hash));
    }
  }
}

// Reading a file and mapping it, and the standard layout of float weights and its lossless transposition, are the same
// model.
void test_loading() {
  const std::vector<int32_t> tokens = token_stream(12);
  const sbr_session_options options = session_options();
  const sbr_synth_spec spec = tiny_smallthinker(SBR_TYPE_Q4_0, true);
  const TinyModel mapped(spec), read(spec, SBR_LOAD_READ);
  EXPECT(same_bits(prefill_all(mapped.get(), options, tokens), prefill_all(read.get(), options, tokens)));

  const TinyModel transposed(tiny_smallthinker(SBR_TYPE_F32, true));
  const TinyModel turned(tiny_smallthinker(SBR_TYPE_F32, false), SBR_LOAD_MMAP, true);
  EXPECT(turned.get().down_layout() == SBR_DOWN_REQUANTISED);
  EXPECT(same_bits(prefill_all(transposed.get(), options, tokens), prefill_all(turned.get(), options, tokens)));
}

void test_sparse_lm_head() {
  const TinyModel model(tiny_smallthinker(SBR_TYPE_Q4_0, true));
  const std::vector<int32_t> tokens = token_stream(20);
  sbr_session_options options = session_options();
  const std::vector<float> dense = prefill_all(model.get(), options, tokens);

  for (uint32_t isa : runnable_isas()) {
    for (uint32_t threads : {1u, 2u, 5u}) {
      options.isa = isa;
      options.n_threads = threads;
      options.sparse_lm_head = 1;
      options.lm_head_threshold = -1e30f;
      options.lm_head_skipped = SBR_SKIPPED_EXCLUDED;
      sbr::Session all(model.get(), options);
      expect_same("all rows kept", options, decode_all(all, tokens), dense);
      EXPECT(all.counters().lm_head_rows == tokens.size() * kVocab);

      options.lm_head_threshold = 0;
      sbr::Session some(model.get(), options);
      std::vector<float> scores;
      const std::vector<float> kept = decode_all(some, tokens, &scores);
      uint64_t n_kept = 0;
      for (size_t i = 0; i < kept.size(); ++i) {
        const float expected = scores[i] > 0 ? dense[i] : -std::numeric_limits<float>::infinity();
        n_kept += scores[i] > 0;
        if (!EXPECT(std::memcmp(&kept[i], &expected, sizeof expected) == 0)) break;
      }
      EXPECT(n_kept > 0 && n_kept < kept.size());
      EXPECT(some.counters().lm_head_rows == n_kept);

      options.lm_head_skipped = SBR_SKIPPED_ZERO;
      sbr::Session zeros(model.get(), options);
      const std::vector<float> zeroed = decode_all(zeros, tokens);
      for (size_t i = 0; i < zeroed.size(); ++i) {
        if (!EXPECT(zeroed[i] == (scores[i] > 0 ? dense[i] : 0.0f))) break;
      }

      // Prefill ignores the switch.
      expect_same("prefill is dense", options, prefill_all(model.get(), options, tokens), dense);
    }
  }
}

// What the window and the missing positional encoding mean, apart from equality of paths.
void test_window() {
  sbr_synth_spec spec = tiny_smallthinker(SBR_TYPE_F32, true);
  spec.n_layer = 6;
  const TinyModel full(spec);
  spec.sliding_window = 20;
  const TinyModel windowed(spec);
  for (uint32_t l = 0; l < 6; ++l) {
    const sbr::LayerConfig& layer = windowed.get().config().layers[l];
    EXPECT(layer.window == (l % 4 == 0 ? 0u : 20u) && layer.rope == (l % 4 != 0));
    EXPECT(full.get().config().layers[l].window == 0 && full.get().config().layers[l].rope);
  }

  // Keys and values read: layers 0 and 4 all positions, the others at most 20.
  const std::vector<int32_t> tokens = token_stream(50);
  sbr::Session session(windowed.get(), session_options());
  session.prefill(tokens.data(), 50, SBR_LOGITS_NONE, nullptr, nullptr);
  uint64_t vectors = 0;
  for (uint64_t position = 0; position < 50; ++position)
    vectors += 2 * (position + 1) + 4 * std::min<uint64_t>(position + 1, 20);
  EXPECT(session.counters().kv_bytes_read == vectors * 2 * spec.n_head_kv * spec.head_dim * 2);

  // A single windowed layer cannot see a token 20 positions back; a global one can.
  spec.n_layer = 1;
  spec.sliding_window = 0;
  const TinyModel one(spec);
  std::vector<int32_t> changed = tokens;
  changed[0] = (changed[0] + 1) % static_cast<int32_t>(kVocab);
  const std::vector<float> a = prefill_all(one.get(), session_options(), tokens);
  const std::vector<float> b = prefill_all(one.get(), session_options(), changed);
  EXPECT(!same_bits({a.end() - kVocab, a.end()}, {b.end() - kVocab, b.end()}));
}

void test_counters() {
  const sbr_synth_spec spec = tiny_smallthinker(SBR_TYPE_Q4_0, true);
  const TinyModel model(spec);
  const std::vector<int32_t> tokens = token_stream(40);
  const uint64_t n = tokens.size(), D = spec.n_embd, F = spec.n_ff, K = spec.n_expert_used, L = spec.n_layer;
  const uint64_t row = D / 32 * 18;
  uint64_t active[2] = {0, 0};
  for (uint32_t sparse : {0u, 1u}) {
    for (uint32_t threads : {1u, 3u}) {
      sbr_session_options options = session_options();
      options.n_threads = threads;
      options.sparse_ffn = sparse;
      sbr::Session session(model.get(), options);
      decode_all(session, tokens);
      const sbr_counters c = session.counters();
      EXPECT(c.tokens == n);
      EXPECT(c.neurons_examined == n * L * K * F);
      EXPECT(c.neurons_active > 0 && c.neurons_active < c.neurons_examined);
      if (active[0] == 0) active[0] = c.neurons_active;
      EXPECT(c.neurons_active == active[0]);
      const uint64_t rows = sparse != 0 ? c.neurons_examined + 2 * c.neurons_active : 3 * c.neurons_examined;
      EXPECT(c.ffn_bytes == rows * row + n * L * D * sizeof(float));
      EXPECT(c.embedding_bytes == n * row);
      EXPECT(c.router_bytes == n * L * D * spec.n_expert * sizeof(float));
      EXPECT(c.lm_head_rows == n * kVocab && c.lm_head_bytes == n * kVocab * row);
      const uint64_t q = spec.n_head * spec.head_dim, kv = spec.n_head_kv * spec.head_dim;
      const uint64_t attention = (q + 2 * kv) * row + D * (q / 32 * 18) + D * sizeof(float);
      EXPECT(c.attention_bytes == n * (L * attention + D * sizeof(float)));
      EXPECT(c.kv_bytes_written == n * L * 2 * kv * 2);
      EXPECT(c.weight_bytes == c.embedding_bytes + c.attention_bytes + c.router_bytes + c.ffn_bytes + c.lm_head_bytes);
      uint64_t layers = 0, selections = 0;
      for (uint32_t l = 0; l < L; ++l) {
        layers += session.layer_counters(l).neurons_active;
        for (uint32_t e = 0; e < spec.n_expert; ++e) selections += session.expert_counts(l)[e];
      }
      EXPECT(layers == c.neurons_active && selections == n * L * K);
      session.reset_counters();
      EXPECT(session.counters().weight_bytes == 0 && session.counters().tokens == 0 &&
             session.expert_counts(0)[0] == 0);
    }
  }

  // In a batch each expert's weights are counted once, however many tokens use them.
  sbr_session_options options = session_options();
  options.n_batch = 64;
  sbr::Session session(model.get(), options);
  session.prefill(tokens.data(), static_cast<uint32_t>(n), SBR_LOGITS_NONE, nullptr, nullptr);
  uint64_t used = 0;
  for (uint32_t l = 0; l < L; ++l) {
    for (uint32_t e = 0; e < spec.n_expert; ++e) used += session.expert_counts(l)[e] != 0;
  }
  EXPECT(session.counters().ffn_bytes == used * 3 * F * row + L * D * sizeof(float));
}

// SiLU is nowhere zero: every neuron of the chosen experts is examined, active and read.
void test_silu_counters() {
  const sbr_synth_spec spec = tiny_qwen3moe(SBR_TYPE_Q4_0);
  const TinyModel model(spec);
  EXPECT(model.get().down_layout() == SBR_DOWN_NONE && model.get().config().router_after_attention);
  const std::vector<int32_t> tokens = token_stream(20);
  const uint64_t n = tokens.size(), D = spec.n_embd, F = spec.n_ff, K = spec.n_expert_used, L = spec.n_layer;
  const uint64_t row = D / 32 * 18, expert = 2 * F * row + D * (F / 32 * 18);
  for (uint32_t threads : {1u, 3u}) {
    sbr_session_options options = session_options();
    options.n_threads = threads;
    sbr::Session session(model.get(), options);
    decode_all(session, tokens);
    const sbr_counters c = session.counters();
    EXPECT(c.neurons_examined == n * L * K * F && c.neurons_active == c.neurons_examined);
    EXPECT(c.ffn_bytes == n * L * (K * expert + D * sizeof(float)));
    EXPECT(c.router_bytes == n * L * D * spec.n_expert * sizeof(float));
    EXPECT(c.lm_head_rows == n * kVocab && c.lm_head_bytes == n * kVocab * row);
    EXPECT(c.weight_bytes == c.embedding_bytes + c.attention_bytes + c.router_bytes + c.ffn_bytes + c.lm_head_bytes);
    uint64_t selections = 0;
    for (uint32_t l = 0; l < L; ++l) {
      for (uint32_t e = 0; e < spec.n_expert; ++e) selections += session.expert_counts(l)[e];
    }
    EXPECT(selections == n * L * K);
  }

  sbr_session_options options = session_options();
  options.n_batch = 64;
  sbr::Session session(model.get(), options);
  session.prefill(tokens.data(), static_cast<uint32_t>(n), SBR_LOGITS_NONE, nullptr, nullptr);
  uint64_t used = 0;
  for (uint32_t l = 0; l < L; ++l) {
    for (uint32_t e = 0; e < spec.n_expert; ++e) used += session.expert_counts(l)[e] != 0;
  }
  EXPECT(session.counters().ffn_bytes == used * expert + L * D * sizeof(float));

  bool refused = false;
  options.sparse_ffn = 1;
  try {
    sbr::Session sparse(model.get(), options);
  } catch (const sbr::Error& error) {
    refused = error.status() == SBR_ERR_UNSUPPORTED;
  }
  EXPECT(refused);
}

}  // namespace

int main(int argc, char** argv) {
  few = argc > 1 && std::strcmp(argv[1], "few") == 0;
  test_models();
  test_pinned_logits();
  test_loading();
  test_sparse_lm_head();
  test_window();
  test_counters();
  test_silu_counters();
  return finish("test_forward");
}
