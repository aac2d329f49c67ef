// Speed of whole steps: bench_forward MODEL.gguf [threads [tokens [isa [load mode]]]]. Teacher-forced decode with each
// sparsity switch, and prefill of 512 tokens, each beside the weight bytes that it read. Compare with the bandwidth of
// the same minute only.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "base/error.h"
#include "model/model.h"
#include "session.h"

namespace {

std::vector<int32_t> token_stream(size_t n, uint32_t n_vocab) {
  std::vector<int32_t> tokens(n);
  uint32_t state = 1;
  for (int32_t& token : tokens) {
    state = state * 1664525u + 1013904223u;
    token = static_cast<int32_t>((state >> 4) % n_vocab);
  }
  return tokens;
}

void print(const char* what, const sbr::Session& session) {
  const sbr_counters c = session.counters();
  const double tokens = static_cast<double>(c.tokens), ns = static_cast<double>(c.ns_total);
  const double ms = 1e-6 / tokens;
  std::printf(
      "%-16s %8.2f tokens/s %7.1f MB/token %6.2f GB/s | ms/token: attention %.2f router %.2f ffn %.2f lm_head %.2f "
      "barrier %.2f | "
      "active %.3f\n",
      what, tokens / ns * 1e9, static_cast<double>(c.weight_bytes) / tokens * 1e-6,
      static_cast<double>(c.weight_bytes) / ns, static_cast<double>(c.ns_attention) * ms,
      static_cast<double>(c.ns_router) * ms, static_cast<double>(c.ns_ffn) * ms, static_cast<double>(c.ns_lm_head) * ms,
      static_cast<double>(c.ns_barrier) * ms,
      static_cast<double>(c.neurons_active) / static_cast<double>(c.neurons_examined));
  std::fflush(stdout);
}

void run(const char* path, uint32_t threads, uint32_t n_tokens, uint32_t isa, uint32_t load_mode) {
  sbr_model_options load = {};
  load.struct_size = sizeof load;
  load.populate = 1;
  load.load_mode = load_mode;
  const sbr::Model model(path, load);
  const std::vector<int32_t> tokens = token_stream(512, model.config().n_vocab);
  sbr_session_options options = {};
  options.struct_size = sizeof options;
  options.n_threads = threads;
  options.isa = isa;
  options.n_ctx = 1024;
  options.n_batch = 64;
  options.kv_type = SBR_TYPE_F16;
  options.kv_touch = 1;
  options.phase_timing = 1;
  for (uint32_t mode = 0; mode < 4; ++mode) {
    options.sparse_ffn = mode & 1;
    options.sparse_lm_head = mode >> 1;
    if (options.sparse_ffn != 0 && !model.config().relu_experts()) continue;
    if (options.sparse_lm_head != 0 && model.weights().predictor_rank == 0) continue;
    sbr::Session session(model, options);
    session.decode(tokens.data(), 4, nullptr, nullptr);
    session.reset_counters();
    session.decode(tokens.data(), n_tokens, nullptr, nullptr);
    const char* names[] = {"decode dense", "decode sparse", "decode lmhead", "decode both"};
    print(names[mode], session);
    if (options.sparse_lm_head != 0) continue;
    session.rewind(0);
    session.reset_counters();
    session.prefill(tokens.data(), 512, SBR_LOGITS_NONE, nullptr, nullptr);
    print(options.sparse_ffn != 0 ? "pp512 sparse" : "pp512 dense", session);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s MODEL.gguf [threads [tokens [isa number [load mode]]]]\n", argv[0]);
    return 2;
  }
  const auto number = [&](int i, uint32_t absent) {
    return argc > i ? static_cast<uint32_t>(std::atoi(argv[i])) : absent;
  };
  try {
    run(argv[1], number(2, 2), number(3, 64), number(4, SBR_ISA_AUTO), number(5, SBR_LOAD_MMAP));
  } catch (const sbr::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
