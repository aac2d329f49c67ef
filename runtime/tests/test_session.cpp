// Several sessions on one model, rewinding, cancelling from another thread, and what loading refuses.
#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <iterator>
#include <new>
#include <thread>

#include "base/error.h"
#include "expect.h"
#include "model/router.h"
#include "tiny_models.h"

using namespace sbr_test;

namespace {

void test_two_sessions_at_once() {
  const TinyModel model(tiny_smallthinker(SBR_TYPE_Q4_0, true));
  const std::vector<int32_t> first = token_stream(60);
  const std::vector<int32_t> second(first.rbegin(), first.rend());
  sbr_session_options options = session_options();
  options.isa = SBR_ISA_AUTO;
  options.n_batch = 8;
  const std::vector<float> expected_first = prefill_all(model.get(), options, first);
  const std::vector<float> expected_second = prefill_all(model.get(), options, second);
  std::vector<float> got_first, got_second;
  options.n_threads = 2;
  options.sparse_ffn = 1;
  std::thread a([&] { got_first = prefill_all(model.get(), options, first); });
  std::thread b([&] { got_second = prefill_all(model.get(), options, second); });
  a.join();
  b.join();
  EXPECT(same_bits(got_first, expected_first) && same_bits(got_second, expected_second));

  // Interleaved in one thread, and called from a thread that did not create it.
  sbr::Session one(model.get(), options), two(model.get(), options);
  for (size_t i = 0; i < 10; ++i) {
    got_first = decode_all(one, {first[i]});
    std::thread([&] { got_second = decode_all(two, {second[i]}); }).join();
    EXPECT(std::memcmp(got_first.data(), &expected_first[i * kVocab], kVocab * sizeof(float)) == 0);
    EXPECT(std::memcmp(got_second.data(), &expected_second[i * kVocab], kVocab * sizeof(float)) == 0);
  }
}

void test_rewind() {
  const TinyModel model(tiny_spec("qwen3", SBR_TYPE_Q4_0));
  const std::vector<int32_t> tokens = token_stream(30);
  sbr_session_options options = session_options();
  options.n_threads = 2;
  options.n_batch = 7;
  sbr::Session session(model.get(), options);
  const std::vector<float> whole = decode_all(session, tokens);
  for (uint32_t keep : {0u, 1u, 13u, 29u}) {
    session.rewind(keep);
    EXPECT(session.info().n_past == keep);
    std::vector<float> logits((tokens.size() - keep) * kVocab);
    session.prefill(tokens.data() + keep, static_cast<uint32_t>(tokens.size()) - keep, SBR_LOGITS_ALL, logits.data(),
                    nullptr);
    EXPECT(same_bits(logits, {whole.begin() + keep * kVocab, whole.end()}));
  }
}

// Whenever the flag is seen, the call fails, the position is as before, and a repetition gives the right logits.
void test_cancel_while_running() {
  const TinyModel model(tiny_smallthinker(SBR_TYPE_Q8_0, true));
  const std::vector<int32_t> tokens = token_stream(100);
  sbr_session_options options = session_options();
  options.n_threads = 2;
  options.n_batch = 4;
  const std::vector<float> expected = prefill_all(model.get(), options, tokens);
  sbr::Session session(model.get(), options);
  int cancelled = 0;
  // More attempts where the canceller always came too late: the machine has other work.
  for (int attempt = 0; attempt < 20 || (cancelled == 0 && attempt < 1000); ++attempt) {
    std::atomic<bool> running{true};
    std::thread canceller([&] {
      std::this_thread::sleep_for(std::chrono::microseconds(200 * (attempt % 20)));
      if (running) session.cancel();
    });
    try {
      session.prefill(tokens.data(), 100, SBR_LOGITS_NONE, nullptr, nullptr);
    } catch (const sbr::Error& error) {
      EXPECT(error.status() == SBR_ERR_CANCELLED);
      EXPECT(session.info().n_past == 0);
      ++cancelled;
    }
    running = false;
    canceller.join();
    session.rewind(0);
  }
  EXPECT(cancelled > 0);
  // A cancel that came too late for the last call stops the next one; once.
  session.cancel();
  bool refused = false;
  try {
    session.decode(tokens.data(), 1, nullptr, nullptr);
  } catch (const sbr::Error&) {
    refused = true;
  }
  EXPECT(refused);
  EXPECT(same_bits(decode_all(session, tokens), expected));
}

void test_top_k() {
  const float p[8] = {0.5f, 0.75f, 0.5f, 0.25f, 0.75f, 0.5f, 0.125f, 0.5f};
  uint32_t indices[8];
  float weights[8];
  sbr::top_k(p, 8, 4, indices, weights);
  // Two of 0.75, then the first two of four equal ones; ascending.
  const uint32_t expected[4] = {0, 1, 2, 4};
  EXPECT(std::memcmp(indices, expected, sizeof expected) == 0);
  EXPECT(weights[0] == 0.5f / 2.5f && weights[1] == 0.75f / 2.5f);
  sbr::top_k(p, 8, 8, indices, weights);
  EXPECT(indices[0] == 0 && indices[7] == 7);
  const float underflowed[8] = {};
  sbr::top_k(underflowed, 8, 4, indices, weights);
  for (uint32_t i = 0; i < 4; ++i) EXPECT(indices[i] == i && weights[i] == 0.25f);
}

// Loads `bytes` as a file; returns the refusal's sentence, or "" when it was accepted.
std::string refusal(const std::string& bytes, int32_t* status) {
  const char* path = "tiny-changed.gguf";
  std::ofstream(path, std::ios::binary) << bytes;
  std::string sentence;
  try {
    sbr_model_options options = {};
    options.struct_size = sizeof options;
    const sbr::Model model(path, options);
    *status = SBR_OK;
    sentence = model.warnings();
  } catch (const sbr::Error& error) {
    *status = error.status();
    sentence = error.what();
  }
  std::remove(path);
  return sentence;
}

std::string replaced(std::string bytes, const std::string& from, const std::string& to) {
  const size_t at = bytes.find(from);
  EXPECT(at != std::string::npos && from.size() == to.size());
  return at == std::string::npos ? bytes : bytes.replace(at, from.size(), to);
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::string file_bytes(const TinyModel& model) {
  std::ifstream file(model.path(), std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void test_loading_refuses() {
  const TinyModel model(tiny_smallthinker(SBR_TYPE_Q4_0, true));
  const std::string bytes = file_bytes(model);
  int32_t status = 0;

  std::string sentence = refusal(replaced(bytes, "general.architecture", "general.architectura"), &status);
  EXPECT(status == SBR_ERR_FORMAT && contains(sentence, "general.architecture"));

  // The value of general.architecture is the first such string.
  sentence = refusal(replaced(bytes, std::string("\x0c\0\0\0\0\0\0\0smallthinker", 20),
                              std::string("\x0c\0\0\0\0\0\0\0smallthunker", 20)),
                     &status);
  EXPECT(status == SBR_ERR_UNSUPPORTED && contains(sentence, "smallthunker") &&
         contains(sentence, "smallthinker, qwen3, qwen3moe, llama"));

  sentence = refusal(replaced(bytes, "blk.1.attn_k.weight", "blk.1.attn_j.weight"), &status);
  EXPECT(status == SBR_ERR_FORMAT && contains(sentence, "tiny-changed.gguf") &&
         contains(sentence, "blk.1.attn_k.weight"));

  // A tensor that nothing reads would silently change what the model computes.
  sentence = refusal(replaced(bytes, "lm_head_profiler.weight", "lm_head_profiler.wEight"), &status);
  EXPECT(status == SBR_ERR_UNSUPPORTED && contains(sentence, "lm_head_profiler.wEight"));

  // Some converters forget the gating function: sigmoid, and a warning.
  sentence = refusal(replaced(bytes, "smallthinker.expert_gating_func", "smallthinker.expert_gating_fxnc"), &status);
  EXPECT(status == SBR_OK && contains(sentence, "sigmoid"));

  sentence = refusal(bytes.substr(0, bytes.size() - 100), &status);
  EXPECT(status == SBR_ERR_FORMAT);
  sentence = refusal("", &status);
  EXPECT(status == SBR_ERR_FORMAT && contains(sentence, "tiny-changed.gguf"));
}

// Another value for a key that holds a uint32.
std::string with_count(std::string bytes, const std::string& key, uint32_t value) {
  const std::string entry = key + std::string("\4\0\0\0", 4);
  const size_t at = bytes.find(entry);
  if (EXPECT(at != std::string::npos)) std::memcpy(&bytes[at + entry.size()], &value, sizeof value);
  return bytes;
}

std::string raw(uint64_t value, size_t n_bytes) { return {reinterpret_cast<const char*>(&value), n_bytes}; }

// One more key, of this type and these value bytes; a second one keeps the tensors aligned.
std::string with_key(std::string bytes, const std::string& key, uint32_t type, const std::string& value) {
  const std::string filler = "filler";
  std::string added = raw(key.size(), 8) + key + raw(type, 4) + value;
  const size_t padding = 31 - (added.size() + 8 + filler.size() + 4 + 8 + 31) % 32;
  added += raw(filler.size(), 8) + filler + raw(8, 4) + raw(padding, 8) + std::string(padding, 'x');
  uint64_t n_keys = 0;
  std::memcpy(&n_keys, &bytes[16], 8);
  return bytes.replace(16, 8, raw(n_keys + 2, 8)).insert(24, added);
}

// Numbers that would make a product wrap, or a session allocate without bound.
void test_loading_refuses_hostile_numbers() {
  const std::string bytes = file_bytes(TinyModel(tiny_smallthinker(SBR_TYPE_Q4_0, true)));
  int32_t status = 0;
  // 65537 * 65536 is 65536 modulo 2^32: the matrices of one head.
  std::string hostile = with_count(bytes, "attention.head_count", 65537);
  hostile = with_count(hostile, "attention.head_count_kv", 1);
  hostile = with_count(hostile, "attention.key_length", 65536);
  hostile = with_count(hostile, "embedding_length", 32);
  std::string sentence = refusal(hostile, &status);
  EXPECT(status == SBR_ERR_UNSUPPORTED && contains(sentence, "65537 heads of 65536"));

  sentence = refusal(with_count(bytes, "smallthinker.expert_count", 4097), &status);
  EXPECT(status == SBR_ERR_UNSUPPORTED && contains(sentence, "expert_count is 4097"));
  hostile = with_count(with_count(bytes, "smallthinker.expert_count", 300), "expert_used_count", 257);
  sentence = refusal(hostile, &status);
  EXPECT(status == SBR_ERR_UNSUPPORTED && contains(sentence, "expert_used_count is 257"));
}

// What would silently compute another model.
void test_loading_refuses_ignored_features() {
  const std::string float_2 = raw(0x40000000, 4), float_1 = raw(0x3F800000, 4);
  const uint32_t u32 = 4, f32 = 6;
  int32_t status = 0;
  for (const std::string architecture : {"llama", "qwen3"}) {
    const std::string bytes = file_bytes(TinyModel(tiny_spec(architecture.c_str(), SBR_TYPE_Q4_0)));
    for (const std::string key : {"rope.scale_linear", "rope.scaling.factor", "rope.scaling.attn_factor"}) {
      const std::string sentence = refusal(with_key(bytes, architecture + "." + key, f32, float_2), &status);
      EXPECT(status == SBR_ERR_UNSUPPORTED && contains(sentence, key));
      EXPECT(refusal(with_key(bytes, architecture + "." + key, f32, float_1), &status).empty() && status == SBR_OK);
    }
    const std::string window = architecture + ".attention.sliding_window";
    EXPECT(contains(refusal(with_key(bytes, window, u32, raw(4096, 4)), &status), "attention.sliding_window is 4096"));
    EXPECT(status == SBR_ERR_UNSUPPORTED);
    EXPECT(refusal(with_key(bytes, window, u32, raw(0, 4)), &status).empty() && status == SBR_OK);
    const std::string type = raw(4, 8) + "ya\nn";
    EXPECT(contains(refusal(with_key(bytes, architecture + ".rope.scaling.type", 8, type), &status), "'ya?n'"));
    EXPECT(status == SBR_ERR_UNSUPPORTED);
  }
  const std::string bytes = file_bytes(TinyModel(tiny_smallthinker(SBR_TYPE_Q4_0, true)));
  const std::string window = "smallthinker.attention.sliding_window";
  EXPECT(contains(refusal(with_key(bytes, window, u32, raw(512, 4)), &status), window + " is 512"));
  EXPECT(status == SBR_OK);
  EXPECT(refusal(with_key(bytes, window, u32, raw(4096, 4)), &status).empty() && status == SBR_OK);
}

// A NaN in any matrix is noticed, although quantising makes it 0 and a ReLU drops it.
void test_damaged_weights_are_noticed() {
  for (const bool transposed : {true, false}) {
    const TinyModel model(tiny_smallthinker(SBR_TYPE_Q4_0, transposed));
    const std::string bytes = file_bytes(model);
    const std::vector<int32_t> tokens = token_stream(12);
    const auto evaluate = [&](const std::string& content, uint32_t sparse) {
      const char* path = "tiny-damaged.gguf";
      std::ofstream(path, std::ios::binary) << content;
      sbr_model_options load = {};
      load.struct_size = sizeof load;
      load.load_mode = SBR_LOAD_READ;
      const sbr::Model damaged(path, load);
      std::remove(path);
      sbr_session_options options = session_options();
      options.n_threads = 2;
      options.sparse_ffn = sparse;
      sbr::Session session(damaged, options);
      session.prefill(tokens.data(), 6, SBR_LOGITS_NONE, nullptr, nullptr);
      session.decode(tokens.data() + 6, 6, nullptr, nullptr);
      return session.counters().nonfinite;
    };
    EXPECT(evaluate(bytes, 0) == 0 && evaluate(bytes, 1) == 0);
    const sbr::Weights& weights = model.get().weights();
    const sbr::LayerWeights& layer = weights.layers[0];
    const std::vector<const sbr::Matrix*> matrices = {&layer.attn_q,      &layer.attn_k, &layer.attn_v,
                                                      &layer.attn_output, &layer.gate,   &layer.up,
                                                      &layer.down,        &layer.router, &weights.output};
    for (const sbr::Matrix* matrix : matrices) {
      const std::string first(reinterpret_cast<const char*>(matrix->data), matrix->bytes());
      const size_t at = bytes.find(first);
      if (!EXPECT(at != std::string::npos)) continue;
      std::string damaged = bytes;
      // Every row's first scale: which experts and neurons are used is not known.
      for (size_t r = 0; r < matrix->rows; ++r) {
        const uint32_t nan = 0x7fc07e00;  // an F32 NaN, and its first two bytes an F16 NaN
        std::memcpy(&damaged[at + r * matrix->row_bytes], &nan, matrix->type == SBR_TYPE_F32 ? 4 : 2);
      }
      for (uint32_t sparse : {0u, 1u}) EXPECT(evaluate(damaged, sparse) > 0);
    }
  }
}

void test_automatic_sparsity() {
  const TinyModel model(tiny_smallthinker(SBR_TYPE_Q4_0, true));
  const std::vector<int32_t> tokens = token_stream(40);
  sbr_session_options options = session_options();
  options.n_threads = 2;
  const std::vector<float> expected = prefill_all(model.get(), options, tokens);
  options.sparse_ffn = SBR_SPARSE_FFN_AUTO;
  options.row_split = SBR_SPLIT_EQUAL;
  sbr::Session session(model.get(), options);
  EXPECT(session.info().sparse_ffn == SBR_SPARSE_FULL && session.info().sparse_ffn_auto == 1);
  EXPECT(session.info().row_split == SBR_SPLIT_EQUAL);
  EXPECT(same_bits(decode_all(session, tokens), expected));
  EXPECT(session.layer_counters(0).sparse_ffn <= 1 && session.layer_counters(0).sparse_ffn_batch == 1);
  EXPECT(same_bits(prefill_all(model.get(), options, tokens), expected));
  for (int i = 0; i < 2; ++i) {
    sbr_session_options wrong = session_options();
    (i == 0 ? wrong.sparse_ffn : wrong.row_split) = 3;
    try {
      sbr::Session refused(model.get(), wrong);
      EXPECT(!"an unknown number was accepted");
    } catch (const sbr::Error& error) {
      EXPECT(error.status() == SBR_ERR_ARGUMENT && contains(error.what(), i == 0 ? "sparse_ffn" : "row_split"));
    }
  }
}

void test_what_loading_took() {
  const sbr_synth_spec spec = tiny_smallthinker(SBR_TYPE_Q4_0, false);
  const sbr_model_info mapped = TinyModel(spec).get().info(), read = TinyModel(spec, SBR_LOAD_READ).get().info();
  EXPECT(mapped.load_ns > 0 && mapped.anonymous_bytes == 0);
  EXPECT(read.load_ns > 0 && read.anonymous_bytes == read.file_bytes);
  EXPECT(TinyModel(spec, SBR_LOAD_MMAP, true).get().info().anonymous_bytes > 0);
  for (size_t bytes : {size_t{1}, size_t{2} << 20, (size_t{5} << 20) + 12345}) {
    sbr::Pages pages(bytes, true);
    pages.touch();
    pages.data()[bytes - 1] = 1;
    EXPECT(bytes < sbr::Pages::kHuge || reinterpret_cast<uintptr_t>(pages.data()) % sbr::Pages::kHuge == 0);
  }
}

// A cache that no machine holds is refused when its pages are to be resident, not met by the kernel's killer.
void test_impossible_cache() {
  sbr_synth_spec spec = tiny_spec("llama", SBR_TYPE_Q4_0);
  spec.n_layer = 8;
  spec.n_embd = 32;
  spec.n_head = spec.n_head_kv = 64;
  spec.head_dim = 128;
  const TinyModel model(spec);
  sbr_session_options options = session_options();
  options.n_ctx = 1u << 24;
  options.kv_type = SBR_TYPE_F32;
  options.kv_touch = 1;
  const size_t bytes = size_t{2} * 4 * 8 * 64 * 128 << 24;
  void* map = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map != MAP_FAILED) {  // a system that promises any amount: nothing can be refused
    munmap(map, bytes);
    return;
  }
  bool refused = false;
  try {
    sbr::Session session(model.get(), options);
  } catch (const std::bad_alloc&) {
    refused = true;
  }
  EXPECT(refused);
}

void test_unsupported_switches() {
  const TinyModel model(tiny_spec("llama", SBR_TYPE_Q8_0));
  for (int i = 0; i < 2; ++i) {
    sbr_session_options options = session_options();
    (i == 0 ? options.sparse_ffn : options.sparse_lm_head) = 1;
    try {
      sbr::Session session(model.get(), options);
      EXPECT(!"a switch without effect was accepted");
    } catch (const sbr::Error& error) {
      EXPECT(error.status() == SBR_ERR_UNSUPPORTED && contains(error.what(), i == 0 ? "sparse_ffn" : "sparse_lm_head"));
    }
  }
  const TinyModel standard(tiny_smallthinker(SBR_TYPE_Q4_0, false));
  sbr_session_options options = session_options();
  options.sparse_ffn = 1;
  EXPECT(sbr::Session(standard.get(), options).info().sparse_ffn == SBR_SPARSE_GATE_UP);
  const TinyModel transposed(tiny_smallthinker(SBR_TYPE_Q4_0, true));
  EXPECT(sbr::Session(transposed.get(), options).info().sparse_ffn == SBR_SPARSE_FULL);
}

}  // namespace

int main() {
  test_two_sessions_at_once();
  test_rewind();
  test_cancel_while_running();
  test_top_k();
  test_loading_refuses();
  test_loading_refuses_hostile_numbers();
  test_loading_refuses_ignored_features();
  test_damaged_weights_are_noticed();
  test_automatic_sparsity();
  test_what_loading_took();
  test_impossible_cache();
  test_unsupported_switches();
  return finish("test_session");
}
