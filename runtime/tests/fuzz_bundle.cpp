// libFuzzer: any bytes are either refused with a sentence that names the file, or are the header of a bundle, every
// part of which lies within its unit and every unit within the file.
//
// Random bytes never have a right checksum, so that the input is also taken as changes to headers that are right, and
// the checksum corrected. No seeds are needed.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/checksum.h"
#include "base/error.h"
#include "experts/bundle_format.h"
#include "gguf/gguf.h"
#include "kernels/kernels.h"
#include "sbr/sbr.h"

namespace {

const char kName[] = "fuzz.bundle";

void require(bool condition) {
  if (!condition) std::abort();
}

void walk(const sbr::BundleHeader& header, uint64_t file_bytes) {
  const sbr_bundle_info& info = header.info;
  require(info.file_bytes == file_bytes && header.n_units() == header.checksums.size());
  require(header.header_bytes + header.n_units() * info.unit_bytes == file_bytes);
  require(info.unit_bytes % sbr::kUnitAlignment == 0 && header.header_bytes % sbr::kUnitAlignment == 0);
  require(std::memchr(info.model_digest, '\0', sizeof info.model_digest) != nullptr);
  require(std::memchr(info.layout, '\0', sizeof info.layout) != nullptr);
  require(header.parts.size() == info.n_layer);
  for (const std::vector<sbr::BundlePart>& layer : header.parts) {
    uint64_t end = 0;
    for (const sbr::BundlePart& part : layer) {
      require(part.offset >= end && part.offset % sbr::kPartAlignment == 0 && part.offset <= info.unit_bytes);
      require(part.view.row_bytes == sbr::type_row_bytes(part.view.type % sbr::kInterleaved, part.view.cols));
      require(part.view.rows <= info.unit_bytes / part.view.row_bytes);
      require(part.view.bytes() <= info.unit_bytes - part.offset);
      end = part.offset + part.view.bytes();
    }
  }
}

void decode(const std::vector<uint8_t>& bytes, uint64_t file_bytes) {
  try {
    const uint64_t first = std::min<uint64_t>(bytes.size(), sbr::kFirstLook);
    const uint64_t length = sbr::header_bytes(bytes.data(), first, file_bytes, kName);
    require(length <= file_bytes);
    if (length > bytes.size()) return;  // a caller would read on
    const sbr::BundleHeader header = sbr::decode_header(bytes.data(), length, file_bytes, kName);
    walk(header, file_bytes);
    require(sbr::encode_header(header) ==
            std::vector<uint8_t>(bytes.begin(), bytes.begin() + static_cast<long>(length)));
  } catch (const sbr::Error& error) {
    require(error.status() == SBR_ERR_FORMAT || error.status() == SBR_ERR_UNSUPPORTED);
    require(std::string(error.what()).rfind(std::string(kName) + ": ", 0) == 0);
  }
}

sbr::Matrix matrix(uint32_t type, uint64_t cols, uint64_t rows) {
  sbr::Matrix m;
  m.data = reinterpret_cast<const uint8_t*>(uintptr_t{1} << 32);  // never read
  m.type = type;
  m.cols = cols;
  m.rows = rows;
  m.row_bytes = sbr::type_row_bytes(type, cols);
  return m;
}

std::vector<uint8_t> right_header(bool experts) {
  sbr::Config config;
  config.architecture = experts ? "smallthinker" : "qwen3";
  config.n_layer = 2;
  config.n_embd = config.n_ff = 32;
  config.n_expert = experts ? 3 : 0;
  sbr::Weights weights;
  weights.layers.resize(2);
  for (sbr::LayerWeights& layer : weights.layers) {
    layer.attn_q = layer.attn_k = layer.attn_v = layer.attn_output = matrix(SBR_TYPE_Q8_0, 32, 32);
    layer.gate = layer.up = layer.down = matrix(SBR_TYPE_Q4_0, 32, experts ? 96 : 32);
  }
  return sbr::encode_header(sbr::plan_bundle(config, weights, SBR_GATHER_UP, "d16e57"));
}

void put_u64(std::vector<uint8_t>& bytes, size_t at, uint64_t value) {
  for (size_t i = 0; i < 8; ++i) bytes[at + i] = static_cast<uint8_t>(value >> 8 * i);
}

// The input as (place, new byte) after (place, new byte); half of the header's bytes are padding.
void change(std::vector<uint8_t> bytes, const uint8_t* data, size_t size) {
  for (size_t i = 0; i + 3 <= size; i += 3) bytes[(data[i] | data[i + 1] << 8) % 640] = data[i + 2];
  put_u64(bytes, bytes.size() - 8, sbr::Checksum::of(bytes.data(), bytes.size() - 8));
  uint64_t said = 0;
  for (size_t i = 0; i < 8; ++i) said |= uint64_t{bytes[16 + i]} << 8 * i;
  decode(bytes, said);
  decode(bytes, bytes.size() + 1000);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::vector<uint8_t> experts = right_header(true), layers = right_header(false);
  decode({data, data + size}, size);
  change(experts, data, size);
  change(layers, data, size);
  return 0;
}
