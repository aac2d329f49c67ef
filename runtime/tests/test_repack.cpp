// A repacked model computes the bits of the mapped one, whichever rows are kept for gathering, and refuses sessions
// that would gather rows it has interleaved.
#include <cstdio>

#include "base/error.h"
#include "expect.h"
#include "kernels/kernels.h"
#include "tiny_models.h"

using namespace sbr_test;

namespace {

class Loaded {
 public:
  Loaded(const std::string& path, uint32_t load_mode, uint32_t gathers, bool requantise = false)
      : model_(path, model_options(load_mode, gathers, requantise)) {}
  const sbr::Model& get() const { return model_; }

 private:
  static sbr_model_options model_options(uint32_t load_mode, uint32_t gathers, bool requantise) {
    sbr_model_options options = {};
    options.struct_size = sizeof options;
    options.load_mode = load_mode;
    options.requantise_down = requantise;
    options.populate = 1;
    options.gathers = gathers;
    return options;
  }
  sbr::Model model_;
};

// Logits after every token: some by prefill, the rest one by one.
std::vector<float> logits_of(const sbr::Model& model, const sbr_session_options& options) {
  const uint32_t V = model.config().n_vocab, n_prompt = 9;
  std::vector<int32_t> tokens = token_stream(14);
  for (int32_t& token : tokens) token %= static_cast<int32_t>(V);
  std::vector<float> logits(tokens.size() * V);
  sbr::Session session(model, options);
  session.prefill(tokens.data(), n_prompt, SBR_LOGITS_ALL, logits.data(), nullptr);
  for (size_t i = n_prompt; i < tokens.size(); ++i) {
    const uint32_t step = 0;
    sbr_capture capture = {};
    capture.struct_size = sizeof capture;
    capture.n_steps = 1;
    capture.steps = &step;
    capture.logits = logits.data() + i * V;
    session.decode(&tokens[i], 1, nullptr, &capture);
  }
  return logits;
}

uint64_t interleaved_matrices(const sbr::Model& model) {
  uint64_t count = model.weights().output.type >= sbr::kInterleaved;
  for (const sbr::LayerWeights& l : model.weights().layers) {
    for (const sbr::Matrix* m : {&l.attn_q, &l.attn_k, &l.attn_v, &l.attn_output, &l.gate, &l.up, &l.down})
      count += m->type >= sbr::kInterleaved;
  }
  return count;
}

void check_model(const char* name, const sbr_synth_spec& spec, uint64_t expected_interleaved, bool requantise = false) {
  const TinyModel file(spec);
  const Loaded mapped(file.path(), SBR_LOAD_MMAP, 0, requantise);
  const bool relu = mapped.get().config().relu_experts(), predictor = mapped.get().weights().predictor_rank != 0;
  const Loaded dense(file.path(), SBR_LOAD_REPACK, 0, requantise);
  if (!EXPECT(interleaved_matrices(dense.get()) == expected_interleaved))
    std::fprintf(stderr, "  %s: %d matrices are interleaved\n", name, int(interleaved_matrices(dense.get())));
  for (uint32_t gathers = 0; gathers < 4; ++gathers) {
    const uint32_t sparse_ffn = gathers & SBR_GATHER_UP ? 1 : 0, sparse_head = gathers & SBR_GATHER_OUTPUT ? 1 : 0;
    if ((sparse_ffn != 0 && !relu) || (sparse_head != 0 && !predictor)) continue;
    const Loaded repacked(file.path(), SBR_LOAD_REPACK, gathers, requantise);
    sbr_session_options options = session_options();
    options.sparse_ffn = sparse_ffn;
    options.sparse_lm_head = sparse_head;
    const std::vector<float> expected = logits_of(mapped.get(), options);
    for (size_t i = 0; i < sbr::kernels_count(); ++i) {
      if (!sbr::kernels_supported(sbr::kernels_at(i))) continue;
      options.isa = sbr::kernels_at(i)->isa;
      for (uint32_t threads : {1u, 3u}) {
        options.n_threads = threads;
        options.n_batch = threads == 1 ? 4 : 16;
        if (!EXPECT(same_bits(logits_of(repacked.get(), options), expected)))
          std::fprintf(stderr, "  %s: gathers %u, isa %u, %u threads\n", name, gathers, options.isa, threads);
      }
    }
  }
}

void test_same_bits() {
  // Two layers of q, k, v, output, gate, up and, in the standard layout, down. 403 output rows are no whole tiles.
  check_model("smallthinker q4_0 transposed", tiny_smallthinker(SBR_TYPE_Q4_0, true), 2 * 6);
  check_model("smallthinker q4_0 standard", tiny_smallthinker(SBR_TYPE_Q4_0, false), 2 * 7);
  check_model("smallthinker requantised", tiny_smallthinker(SBR_TYPE_Q4_0, false), 2 * 6, true);
  check_model("smallthinker q8_0", tiny_smallthinker(SBR_TYPE_Q8_0, true), 2 * 6);
  check_model("smallthinker f16", tiny_smallthinker(SBR_TYPE_F16, true), 0);
  check_model("qwen3moe q4_0", tiny_qwen3moe(SBR_TYPE_Q4_0), 2 * 7);
  check_model("qwen3 q8_0", tiny_spec("qwen3", SBR_TYPE_Q8_0), 2 * 7);
  check_model("llama q4_0", tiny_spec("llama", SBR_TYPE_Q4_0), 2 * 7);

  sbr_synth_spec tiles = tiny_spec("qwen3", SBR_TYPE_Q4_0);
  tiles.n_vocab = 416;  // the embedding is the interleaved output matrix
  check_model("qwen3, tied", tiles, 2 * 7 + 1);
  tiles.tied_output = 0;
  check_model("qwen3, untied", tiles, 2 * 7 + 1);
}

void test_memory() {
  const TinyModel file(tiny_smallthinker(SBR_TYPE_Q4_0, false));
  const sbr_model_info info = Loaded(file.path(), SBR_LOAD_REPACK, 0).get().info();
  EXPECT(info.anonymous_bytes > info.file_bytes * 8 / 10 && info.anonymous_bytes <= info.file_bytes);
  EXPECT(info.load_ns > 0);
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

void test_refusals() {
  const TinyModel file(tiny_smallthinker(SBR_TYPE_Q4_0, true));
  sbr_synth_spec tiled = tiny_smallthinker(SBR_TYPE_Q4_0, true);
  tiled.n_vocab = 416;
  const TinyModel tiles(tiled);
  const auto refused = [](const sbr::Model& model, const sbr_session_options& options) -> std::string {
    try {
      const sbr::Session session(model, options);
    } catch (const sbr::Error& error) {
      return error.status() == SBR_ERR_ARGUMENT ? error.what() : "wrong status";
    }
    return "";
  };
  sbr_session_options options = session_options();
  for (uint32_t sparse : {1u, 2u}) {
    options.sparse_ffn = sparse;
    EXPECT(contains(refused(Loaded(file.path(), SBR_LOAD_REPACK, SBR_GATHER_OUTPUT).get(), options), "SBR_GATHER_UP"));
    EXPECT(refused(Loaded(file.path(), SBR_LOAD_REPACK, SBR_GATHER_UP).get(), options).empty());
    EXPECT(refused(Loaded(file.path(), SBR_LOAD_READ, 0).get(), options).empty());
  }
  options = session_options();
  options.sparse_lm_head = 1;
  EXPECT(contains(refused(Loaded(tiles.path(), SBR_LOAD_REPACK, SBR_GATHER_UP).get(), options), "SBR_GATHER_OUTPUT"));
  EXPECT(refused(Loaded(tiles.path(), SBR_LOAD_REPACK, SBR_GATHER_OUTPUT).get(), options).empty());
}

}  // namespace

int main() {
  test_same_bits();
  test_memory();
  test_refusals();
  return finish("test_repack");
}
