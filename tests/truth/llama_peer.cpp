// What the truth tests ask of llama.cpp: logits, greedy tokens and token ids, as raw little-endian arrays.
//
//   llama_peer logits   MODEL TOKENS.i32 LOGITS.f32 KV THREADS LENGTH   logits after every token of each sequence of
//   LENGTH llama_peer greedy   MODEL TOKENS.i32 LOGITS.f32 KV THREADS COUNT    COUNT argmax tokens (stdout), all logits
//   llama_peer tokenize MODEL TEXT SPECIAL                              token ids of a file's bytes (stdout)
//
// KV is f16 or f32. Flash attention is off: it would compute in half precision.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "llama.h"

namespace {

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "llama_peer: %s\n", what);
  std::exit(1);
}

std::vector<char> read_file(const char* path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) fail(path);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

std::vector<llama_token> read_tokens(const char* path) {
  const std::vector<char> bytes = read_file(path);
  std::vector<llama_token> tokens(bytes.size() / sizeof(llama_token));
  std::memcpy(tokens.data(), bytes.data(), tokens.size() * sizeof(llama_token));
  return tokens;
}

llama_model* load(const char* path, bool vocabulary_only) {
  llama_model_params params = llama_model_default_params();
  params.vocab_only = vocabulary_only;
  llama_model* model = llama_model_load_from_file(path, params);
  if (model == nullptr) fail("the model does not load");
  return model;
}

llama_context* open_context(llama_model* model, const char* kv, const char* threads, size_t n_ctx, size_t n_batch) {
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<uint32_t>(n_ctx);
  params.n_batch = params.n_ubatch = static_cast<uint32_t>(n_batch);
  params.n_seq_max = 1;
  params.n_threads = params.n_threads_batch = std::atoi(threads);
  params.type_k = params.type_v = std::strcmp(kv, "f32") == 0 ? GGML_TYPE_F32 : GGML_TYPE_F16;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  params.no_perf = true;
  llama_context* context = llama_init_from_model(model, params);
  if (context == nullptr) fail("no context");
  return context;
}

// Evaluates tokens[begin, end) at positions from `position` on and writes the logits of every one of them.
void evaluate(llama_context* context, const std::vector<llama_token>& tokens, size_t begin, size_t end, size_t position,
              int n_vocab, std::FILE* out) {
  llama_batch batch = llama_batch_init(static_cast<int32_t>(end - begin), 0, 1);
  batch.n_tokens = static_cast<int32_t>(end - begin);
  for (size_t at = 0; at < end - begin; ++at) {
    batch.token[at] = tokens[begin + at];
    batch.pos[at] = static_cast<llama_pos>(position + at);
    batch.n_seq_id[at] = 1;
    batch.seq_id[at][0] = 0;
    batch.logits[at] = 1;
  }
  if (llama_decode(context, batch) != 0) fail("llama_decode failed");
  for (size_t at = 0; at < end - begin; ++at) {
    const float* logits = llama_get_logits_ith(context, static_cast<int32_t>(at));
    if (std::fwrite(logits, sizeof(float), n_vocab, out) != static_cast<size_t>(n_vocab)) fail("cannot write");
  }
  llama_batch_free(batch);
}

llama_token argmax_of_last(llama_context* context, int n_vocab) {
  const float* logits = llama_get_logits_ith(context, -1);
  llama_token best = 0;
  for (llama_token i = 1; i < n_vocab; ++i) {
    if (logits[i] > logits[best]) best = i;
  }
  return best;
}

void run_model(char** argv, bool greedy) {
  llama_model* model = load(argv[2], false);
  const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
  std::vector<llama_token> tokens = read_tokens(argv[3]);
  const size_t count = std::strtoul(argv[7], nullptr, 10);
  const size_t length = greedy ? tokens.size() : count;
  if (length == 0 || tokens.size() % length != 0) fail("the tokens are not whole sequences");
  llama_context* context = open_context(model, argv[5], argv[6], length + (greedy ? count : 0), length);
  std::FILE* out = std::fopen(argv[4], "wb");
  if (out == nullptr) fail(argv[4]);
  for (size_t begin = 0; begin < tokens.size(); begin += length) {
    llama_memory_clear(llama_get_memory(context), true);
    evaluate(context, tokens, begin, begin + length, 0, n_vocab, out);
  }
  for (size_t i = 0; greedy && i < count; ++i) {
    tokens.push_back(argmax_of_last(context, n_vocab));
    std::printf("%d\n", tokens.back());
    evaluate(context, tokens, tokens.size() - 1, tokens.size(), tokens.size() - 1, n_vocab, out);
  }
  if (std::fclose(out) != 0) fail("cannot write");
  llama_free(context);
  llama_model_free(model);
}

void tokenize(char** argv) {
  llama_model* model = load(argv[2], true);
  const std::vector<char> text = read_file(argv[3]);
  std::vector<llama_token> tokens(text.size() + 8);
  const bool special = std::strcmp(argv[4], "1") == 0;
  const int32_t n = llama_tokenize(llama_model_get_vocab(model), text.data(), static_cast<int32_t>(text.size()),
                                   tokens.data(), static_cast<int32_t>(tokens.size()), /*add_special=*/false, special);
  if (n < 0) fail("llama_tokenize failed");
  for (int32_t i = 0; i < n; ++i) std::printf("%d\n", tokens[i]);
  llama_model_free(model);
}

}  // namespace

int main(int argc, char** argv) {
  llama_log_set(
      [](ggml_log_level level, const char* text, void*) {
        if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
      },
      nullptr);
  llama_backend_init();
  const std::string action = argc > 1 ? argv[1] : "";
  if (action == "tokenize" && argc == 5) {
    tokenize(argv);
  } else if ((action == "logits" || action == "greedy") && argc == 8) {
    run_model(argv, action == "greedy");
  } else {
    fail("usage: see the head of llama_peer.cpp");
  }
  llama_backend_free();
  return 0;
}
