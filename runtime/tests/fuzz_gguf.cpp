// libFuzzer: any bytes are either parsed, described, walked and bound as a model, or refused with a sentence that names
// the file. No tensor's data is read.
// Seeds: corpus/ (made by make_corpus.py).
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/error.h"
#include "gguf/gguf.h"
#include "model/config.h"
#include "model/weights.h"
#include "sbr/sbr.h"

namespace {

const char kName[] = "fuzz.gguf";

void require(bool condition) {
  if (!condition) std::abort();
}

// Calls one accessor on one key: a value, or a refusal.
template <typename Access>
void try_access(Access access) {
  try {
    access();
  } catch (const sbr::Error& error) {
    require(error.status() == SBR_ERR_FORMAT);
  }
}

void walk(const sbr::GgufFile& file) {
  require(file.describe(0).size() <= file.describe(3).size());
  for (const sbr::GgufTensor& tensor : file.tensors()) {
    require(file.find_tensor(tensor.name) == &tensor);
    require(tensor.offset % file.alignment() == 0);
    require(tensor.offset >= file.data_offset() && tensor.offset <= file.file_bytes());
    require(tensor.bytes <= file.file_bytes() - tensor.offset);
  }
  for (const char* key : {"general.architecture", "general.name", "general.alignment", "smallthinker.block_count",
                          "smallthinker.rope.freq_base", "tokenizer.ggml.tokens", "a", "b", "c", "d"}) {
    if (!file.has(key)) continue;
    try_access([&] { (void)file.get_uint(key); });
    try_access([&] { (void)file.get_float(key); });
    try_access([&] { (void)file.get_string(key); });
  }
}

void require_inside(const sbr::GgufFile& file, const uint8_t* base, const sbr::Matrix& matrix) {
  if (!matrix) return;
  const auto offset = static_cast<uint64_t>(matrix.data - base);
  require(offset <= file.file_bytes() && matrix.bytes() <= file.file_bytes() - offset);
  require(matrix.row_bytes == sbr::type_row_bytes(matrix.type, matrix.cols));
}

void bind(const sbr::GgufFile& file) {
  const auto* base = reinterpret_cast<const uint8_t*>(uintptr_t{1} << 32);  // an address to count from
  std::vector<std::string> warnings;
  const sbr::Config config = sbr::read_config(file, &warnings);
  require(config.q_dim() <= 1u << 20 && config.kv_dim() <= config.q_dim() && config.layers.size() == config.n_layer);
  const sbr::Weights weights = sbr::bind_weights(file, base, config);
  for (const sbr::Matrix& m : {weights.token_embd, weights.output, weights.predictor_fc1, weights.predictor_fc2})
    require_inside(file, base, m);
  for (const sbr::LayerWeights& l : weights.layers) {
    require(l.attn_q.rows == config.q_dim() && l.attn_k.rows == config.kv_dim());
    for (const sbr::Matrix& m : {l.attn_q, l.attn_k, l.attn_v, l.attn_output, l.router, l.gate, l.up, l.down})
      require_inside(file, base, m);
  }
}

// `unseen` bytes follow what is at hand, so that headers without their data reach the later checks too.
void parse(const uint8_t* data, size_t size, uint64_t unseen) {
  bool parsed = false;
  try {
    const sbr::GgufFile file = sbr::GgufFile::parse(data, size, size + unseen, kName);
    walk(file);
    parsed = true;
    bind(file);
  } catch (const sbr::Error& error) {
    require(error.status() == SBR_ERR_FORMAT || (parsed && error.status() == SBR_ERR_UNSUPPORTED));
    require(std::string(error.what()).rfind(std::string(kName) + ": ", 0) == 0);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  parse(data, size, 0);
  parse(data, size, uint64_t{1} << 20);
  return 0;
}
