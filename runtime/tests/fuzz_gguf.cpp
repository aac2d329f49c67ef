// libFuzzer: any bytes are either parsed, described and walked, or refused with a sentence that names the file.
// Seeds: corpus/ (made by make_corpus.py).
#include <cstdlib>
#include <string>

#include "base/error.h"
#include "gguf/gguf.h"
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

// `unseen` bytes follow what is at hand, so that headers without their data reach the later checks too.
void parse(const uint8_t* data, size_t size, uint64_t unseen) {
  try {
    walk(sbr::GgufFile::parse(data, size, size + unseen, kName));
  } catch (const sbr::Error& error) {
    require(error.status() == SBR_ERR_FORMAT);
    require(std::string(error.what()).rfind(std::string(kName) + ": ", 0) == 0);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  parse(data, size, 0);
  parse(data, size, uint64_t{1} << 20);
  return 0;
}
