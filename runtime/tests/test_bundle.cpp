// Bundles hold exactly the bytes that a repacked model has in memory, and whatever is not such a file, or belongs to
// another model, is refused with what differs.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>

#include "base/checksum.h"
#include "base/error.h"
#include "expect.h"
#include "experts/bundle.h"
#include "experts/bundle_writer.h"
#include "io/file.h"
#include "kernels/kernels.h"
#include "tiny_models.h"

using namespace sbr_test;
using sbr::Bundle;

namespace {

const char kPath[] = "test_bundle.tmp";
const char kDigest[] = "0123456789abcdef";

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// The sentence, or "wrong status", or "" when nothing was refused.
template <typename Call>
std::string refusal(int32_t status, Call call) {
  try {
    call();
  } catch (const sbr::Error& error) {
    return error.status() == status ? error.what() : "wrong status: " + std::string(error.what());
  }
  return "";
}

bool exists(const std::string& path) { return std::ifstream(path).good(); }

std::vector<uint8_t> read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write_file(const std::string& path, const std::vector<uint8_t>& bytes) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), std::streamsize(bytes.size()));
}

// Of a file of these bytes; in memory, since thousands of files take a disk half a minute.
std::string why_not(const std::vector<uint8_t>& bytes, int32_t status = SBR_ERR_FORMAT) {
  return refusal(status, [&] {
    const uint64_t first = std::min<uint64_t>(bytes.size(), sbr::kFirstLook);
    const uint64_t header = sbr::header_bytes(bytes.data(), first, bytes.size(), kPath);
    sbr::decode_header(bytes.data(), header, bytes.size(), kPath);
  });
}

std::string why_not_opened(const std::vector<uint8_t>& bytes) {
  write_file(kPath, bytes);
  return refusal(SBR_ERR_FORMAT, [] { Bundle::open(kPath); });
}

// What a file holds before anything is repacked: what require() is given.
class Bound {
 public:
  explicit Bound(const std::string& path) : file_(sbr::MappedFile::open(path)) {
    const auto gguf = sbr::GgufFile::parse(file_.data(), file_.size(), file_.size(), path);
    std::vector<std::string> warnings;
    config = sbr::read_config(gguf, &warnings);
    weights = sbr::bind_weights(gguf, file_.data(), config);
  }
  sbr::Config config;
  sbr::Weights weights;

 private:
  sbr::MappedFile file_;
};

void write_bundle(const std::string& model, uint32_t gathers = 0, const char* path = kPath) {
  sbr::write_bundle(model, kDigest, gathers, path, nullptr, nullptr);
}

// ---- the checksum ----

void test_checksum() {
  std::vector<uint8_t> bytes(300);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * i + 7 * i);
  // The same on every machine: files are made on one and read on another.
  EXPECT(sbr::Checksum::of(bytes.data(), 0) == 0x7ccffb41fa53f873u);
  EXPECT(sbr::Checksum::of(bytes.data(), 300) == 0x620adc0aad088b8cu);
  for (const size_t n : {1, 8, 63, 64, 65, 128, 200, 300}) {
    const uint64_t whole = sbr::Checksum::of(bytes.data(), n);
    for (size_t bit = 0; bit < 8 * n; ++bit) {
      bytes[bit / 8] ^= static_cast<uint8_t>(1u << bit % 8);
      EXPECT(sbr::Checksum::of(bytes.data(), n) != whole);
      bytes[bit / 8] ^= static_cast<uint8_t>(1u << bit % 8);
    }
    for (size_t step = 1; step < n; step += 13) {
      sbr::Checksum pieces;
      for (size_t at = 0; at < n; at += step) pieces.add(bytes.data() + at, std::min(step, n - at));
      EXPECT(pieces.value() == whole);
    }
    EXPECT(sbr::Checksum::of(bytes.data(), n - 1) != whole);
  }
  // Upper bits that differ in two words of one lane do not cancel out.
  std::vector<uint8_t> two(256);
  const uint64_t zeros = sbr::Checksum::of(two.data(), two.size());
  two[7] = two[64 + 7] = 0x80;
  EXPECT(sbr::Checksum::of(two.data(), two.size()) != zeros);
}

// ---- the bytes ----

sbr_model_options repacked(uint32_t gathers) {
  sbr_model_options options = {};
  options.struct_size = sizeof options;
  options.load_mode = SBR_LOAD_REPACK;
  options.gathers = gathers;
  return options;
}

void check_bytes(const char* name, const sbr_synth_spec& spec, uint32_t gathers, const char* layout) {
  const TinyModel file(spec);
  write_bundle(file.path(), gathers);
  const Bundle bundle = Bundle::open(kPath);
  const Bound bound(file.path());
  bundle.require(bound.config, bound.weights, gathers, kDigest);
  bundle.require(bound.config, bound.weights, gathers, "");
  if (!EXPECT(std::string(bundle.info().layout) == layout))
    std::fprintf(stderr, "  %s: %s\n", name, bundle.info().layout);
  EXPECT(bundle.kind() == (spec.n_expert != 0 ? SBR_BUNDLE_EXPERTS : SBR_BUNDLE_LAYERS));
  EXPECT(bundle.n_units() == spec.n_layer * (spec.n_expert != 0 ? spec.n_expert : 1));
  EXPECT(bundle.unit_bytes() % 4096 == 0 && bundle.offset(0) % 4096 == 0);

  const sbr::Model model(file.path(), repacked(gathers));
  const std::vector<uint8_t> bytes = read_file(kPath);
  EXPECT(bytes.size() == bundle.info().file_bytes && !exists(std::string(kPath) + ".part"));
  for (uint32_t unit = 0; unit < bundle.n_units(); ++unit) {
    const uint8_t* data = bytes.data() + bundle.offset(unit);
    EXPECT(bundle.intact(unit, data));
    uint64_t end = 0;
    for (const sbr::BundlePart& part : bundle.parts(unit / bundle.units_per_layer())) {
      const sbr::Matrix& whole = model.weights().layers[unit / bundle.units_per_layer()].*part.member;
      EXPECT(part.offset % 64 == 0 && part.offset >= end && part.offset < end + 64);
      end = part.offset + part.view.bytes();
      EXPECT(part.view.type == whole.type && part.view.cols == whole.cols && part.view.row_bytes == whole.row_bytes);
      EXPECT(part.view.rows * bundle.units_per_layer() == whole.rows && part.view.data == nullptr);
      // Rows of up and down may lie in turns in the model's memory, never in a bundle; tiles have no gaps.
      const uint64_t piece = whole.gap == 0 ? part.view.bytes() : part.view.row_bytes;
      const uint64_t first = unit % bundle.units_per_layer() * part.view.rows;
      bool same = true;
      for (uint64_t at = 0; at < part.view.bytes(); at += piece) {
        const uint8_t* expected = whole.row(first + at / part.view.row_bytes);
        same = same && std::memcmp(data + part.offset + at, expected, piece) == 0;
      }
      if (!EXPECT(same)) std::fprintf(stderr, "  %s: unit %u, offset %d\n", name, unit, int(part.offset));
    }
    EXPECT(end <= bundle.unit_bytes() && end + 4096 > bundle.unit_bytes());
  }
  sbr::verify_bundle(kPath, nullptr, nullptr);
}

void test_bytes() {
  for (const uint32_t output : {0, int{SBR_GATHER_OUTPUT}}) {  // of no concern to units
    check_bytes("transposed", tiny_smallthinker(SBR_TYPE_Q4_0, true), output, "gate,up q4_0_x16; down q4_0");
    check_bytes("transposed, sparse", tiny_smallthinker(SBR_TYPE_Q4_0, true), output | SBR_GATHER_UP,
                "gate q4_0_x16; up,down q4_0");
  }
  check_bytes("standard", tiny_smallthinker(SBR_TYPE_Q4_0, false), 0, "gate,up,down q4_0_x16");
  check_bytes("q8_0", tiny_smallthinker(SBR_TYPE_Q8_0, true), SBR_GATHER_UP, "gate q8_0_x16; up,down q8_0");
  check_bytes("f16", tiny_smallthinker(SBR_TYPE_F16, true), 0, "gate,up,down f16");
  check_bytes("qwen3moe", tiny_qwen3moe(SBR_TYPE_Q4_0), 0, "gate,up,down q4_0_x16");
  check_bytes("qwen3", tiny_spec("qwen3", SBR_TYPE_Q8_0), 0, "q,k,v,output,gate,up,down q8_0_x16");
  check_bytes("llama f32", tiny_spec("llama", SBR_TYPE_F32), 0, "q,k,v,output,gate,up,down f32");
}

// ---- plans ----

sbr::Matrix matrix(uint32_t type, uint64_t cols, uint64_t rows) {
  sbr::Matrix m;
  m.data = reinterpret_cast<const uint8_t*>(uintptr_t{4096});  // never read
  m.type = type;
  m.cols = cols;
  m.rows = rows;
  m.row_bytes = sbr::type_row_bytes(type, cols);
  return m;
}

void test_published_shape() {
  sbr::Config config;
  config.architecture = "smallthinker";
  config.n_layer = 32;
  config.n_embd = 1536;
  config.n_ff = 768;
  config.n_expert = 32;
  sbr::Weights weights;
  weights.transposed_down = true;
  weights.layers.resize(config.n_layer);
  for (sbr::LayerWeights& layer : weights.layers)
    layer.gate = layer.up = layer.down = matrix(SBR_TYPE_Q4_0, 1536, 768 * 32);
  const sbr::BundleHeader header = sbr::plan_bundle(config, weights, SBR_GATHER_UP, "");
  const std::vector<sbr::BundlePart>& parts = header.parts[31];
  EXPECT(parts[0].offset == 0 && parts[1].offset == 663552 && parts[2].offset == 2 * 663552);
  EXPECT(header.info.unit_bytes == 3 * 663552 && header.n_units() == 1024);
}

void test_types_that_differ_by_layer() {
  sbr::Config config;
  config.architecture = "qwen3";
  config.n_layer = 3;
  config.n_embd = 256;
  config.n_ff = 512;
  sbr::Weights weights;
  weights.layers.resize(3);
  for (sbr::LayerWeights& layer : weights.layers) {
    layer.attn_q = layer.attn_k = layer.attn_v = layer.attn_output = matrix(SBR_TYPE_Q4_K, 256, 256);
    layer.gate = layer.up = matrix(SBR_TYPE_Q4_K, 256, 512);
    layer.down = matrix(SBR_TYPE_Q4_K, 512, 256);
  }
  weights.layers[1].down = matrix(SBR_TYPE_Q6_K, 512, 256);
  weights.layers[1].attn_v = matrix(SBR_TYPE_Q6_K, 256, 256);  // q and k then keep their rows too
  const sbr::BundleHeader header = sbr::plan_bundle(config, weights, 0, kDigest);
  const std::string layout = header.info.layout;
  EXPECT(layout == "q,k q4_k_x16/q4_k; v q4_k_x16/q6_k; output,gate,up q4_k_x16; down q4_k_x16/q6_k");
  const auto end = [&](size_t layer) {
    return header.parts[layer].back().offset + header.parts[layer].back().view.bytes();
  };
  EXPECT(end(1) > end(0) && header.info.unit_bytes >= end(1) && header.info.unit_bytes < end(1) + 4096);

  const std::vector<uint8_t> bytes = sbr::encode_header(header);
  const sbr::BundleHeader again = sbr::decode_header(bytes.data(), bytes.size(), header.info.file_bytes, "x");
  EXPECT(sbr::encode_header(again) == bytes && again.parts[1].back().view.type == SBR_TYPE_Q6_K);
}

// ---- files that are not what they should be ----

void test_damaged_headers() {
  const TinyModel model(tiny_smallthinker(SBR_TYPE_Q4_0, true));
  write_bundle(model.path());
  const std::vector<uint8_t> good = read_file(kPath);
  const uint64_t header = Bundle::open(kPath).offset(0);

  for (size_t n = 0; n < good.size(); n += n < 400 ? 1 : 997) {
    const std::string why = why_not({good.begin(), good.begin() + long(n)});
    if (!EXPECT(contains(why, kPath) && contains(why, n < 8 ? "is not a bundle" : "is truncated")))
      std::fprintf(stderr, "  %d bytes: %s\n", int(n), why.c_str());
  }
  std::vector<uint8_t> bytes = good;
  bytes.push_back(0);
  EXPECT(contains(why_not(bytes), "is too long: it has " + std::to_string(bytes.size()) + " bytes, its header says " +
                                      std::to_string(good.size())));

  bytes = good;
  for (uint64_t i = 0; i < header; ++i) {
    const auto flipped = static_cast<uint8_t>(1u << i % 8);
    bytes[i] ^= flipped;
    const bool version = i >= 8 && i < 12;
    const std::string why = why_not(bytes, version ? SBR_ERR_UNSUPPORTED : SBR_ERR_FORMAT);
    const char* expected = i < 8     ? "is not a bundle"
                           : version ? "this library reads version 1; make the bundle again"
                           : i < 16  ? kPath
                                     : "has a damaged header (its checksum differs)";
    if (!EXPECT(contains(why, expected))) std::fprintf(stderr, "  byte %d: %s\n", int(i), why.c_str());
    bytes[i] ^= flipped;
  }
  for (const size_t n : {size_t{0}, size_t{5}, size_t{23}, size_t{4095}, size_t{4096}, good.size() - 1})
    EXPECT(why_not_opened({good.begin(), good.begin() + long(n)}) == why_not({good.begin(), good.begin() + long(n)}));
  EXPECT(contains(why_not_opened(read_file(model.path())), "is not a bundle (it does not begin with"));
  EXPECT(contains(refusal(SBR_ERR_IO, [] { Bundle::open("/no/such.bundle"); }), "cannot be opened"));
  EXPECT(contains(refusal(SBR_ERR_IO, [] { Bundle::open("/"); }), "is not a regular file"));
}

void test_damaged_units() {
  const TinyModel model(tiny_smallthinker(SBR_TYPE_Q4_0, true));
  write_bundle(model.path());
  const Bundle bundle = Bundle::open(kPath);
  std::vector<uint8_t> bytes = read_file(kPath);
  const uint32_t unit = 1 * 8 + 3;
  for (const uint64_t at : {uint64_t{0}, bundle.unit_bytes() / 2, bundle.unit_bytes() - 1}) {
    uint8_t& flipped = bytes[bundle.offset(unit) + at];
    flipped ^= 4;
    EXPECT(!bundle.intact(unit, bytes.data() + bundle.offset(unit)));
    EXPECT(bundle.intact(unit + 1, bytes.data() + bundle.offset(unit + 1)));
    EXPECT(why_not_opened(bytes).empty());  // the header is whole
    const std::string why = refusal(SBR_ERR_FORMAT, [] { sbr::verify_bundle(kPath, nullptr, nullptr); });
    if (!EXPECT(contains(why, "expert 3 of layer 1 is damaged") &&
                contains(why, "so do those of 0 of the other 15 units")))
      std::fprintf(stderr, "  %s\n", why.c_str());
    flipped ^= 4;
  }
  bytes[bundle.offset(14)] ^= 1;
  bytes[bundle.offset(5)] ^= 1;
  write_file(kPath, bytes);
  const std::string why = refusal(SBR_ERR_FORMAT, [] { sbr::verify_bundle(kPath, nullptr, nullptr); });
  EXPECT(contains(why, "expert 5 of layer 0 is damaged") && contains(why, "of 1 of the other 15"));
}

void test_other_models() {
  const auto why_not_for = [](const sbr_synth_spec& spec, uint32_t gathers, const std::string& digest) {
    const TinyModel model(spec);
    const Bound bound(model.path());
    return refusal(SBR_ERR_FORMAT, [&] { Bundle::open(kPath).require(bound.config, bound.weights, gathers, digest); });
  };
  const sbr_synth_spec spec = tiny_smallthinker(SBR_TYPE_Q4_0, true);
  const TinyModel model(spec);
  write_bundle(model.path());
  EXPECT(why_not_for(spec, 0, kDigest).empty() && why_not_for(spec, SBR_GATHER_OUTPUT, "").empty());
  EXPECT(contains(
      why_not_for(spec, 0, "beef"),
      "was made from the model file with the digest 0123456789abcdef, this one's is beef; make the bundle again"));
  EXPECT(contains(why_not_for(spec, SBR_GATHER_UP, kDigest),
                  "it was made for a dense FFN, the model is loaded for a sparse FFN"));
  sbr_synth_spec other = spec;
  other.n_ff = 128;
  EXPECT(contains(why_not_for(other, 0, ""), "n_ff is 96 in the bundle and 128 in the model"));
  other = spec;
  other.n_expert = 16;
  EXPECT(contains(why_not_for(other, 0, ""), "n_expert is 8 in the bundle and 16 in the model"));
  EXPECT(contains(why_not_for(tiny_smallthinker(SBR_TYPE_Q4_0, false), 0, ""),
                  "transposed_down is 1 in the bundle and 0"));
  EXPECT(contains(why_not_for(tiny_smallthinker(SBR_TYPE_Q8_0, true), 0, ""),
                  "the layout is \"gate,up q4_0_x16; down q4_0\""));
  EXPECT(contains(why_not_for(tiny_spec("qwen3", SBR_TYPE_Q4_0), 0, ""), "the architecture is \"smallthinker\""));

  sbr::write_bundle(model.path(), "", 0, kPath, nullptr, nullptr);
  EXPECT(contains(why_not_for(spec, 0, kDigest), "it does not say which model file it was made from"));
  EXPECT(why_not_for(spec, 0, "").empty());
}

// ---- writing ----

void test_writing() {
  const TinyModel model(tiny_smallthinker(SBR_TYPE_Q4_0, true));
  std::remove(kPath);
  struct Seen {
    uint64_t last = 0;
    int calls = 0;
    int stop_at = 1 << 20;
  } seen;
  const sbr_progress progress = [](void* user, uint64_t done, uint64_t total) -> int32_t {
    auto* s = static_cast<Seen*>(user);
    EXPECT(done >= s->last && done <= total);
    s->last = done;
    return ++s->calls >= s->stop_at ? 1 : 0;
  };
  seen.stop_at = 1;
  EXPECT(contains(refusal(SBR_ERR_CANCELLED, [&] { sbr::write_bundle(model.path(), "", 0, kPath, progress, &seen); }),
                  "writing the bundle was cancelled"));
  EXPECT(!exists(kPath) && !exists(std::string(kPath) + ".part"));

  seen = {};
  sbr::write_bundle(model.path(), kDigest, 0, kPath, progress, &seen);
  const sbr_bundle_info info = Bundle::open(kPath).info(), planned = sbr::plan_bundle_of(model.path(), 0);
  EXPECT(seen.calls >= 1 && seen.last == info.file_bytes && std::string(info.model_digest) == kDigest);
  EXPECT(planned.file_bytes == info.file_bytes && std::string(planned.layout) == info.layout &&
         planned.model_digest[0] == 0);
  seen = {};
  seen.stop_at = 1;
  EXPECT(
      contains(refusal(SBR_ERR_CANCELLED, [&] { sbr::verify_bundle(kPath, progress, &seen); }), "checking the bundle"));

  const std::string long_digest(72, 'a');
  const auto refused = [&](const std::string& digest, uint32_t gathers, const std::string& path) {
    return refusal(SBR_ERR_ARGUMENT, [&] { sbr::write_bundle(model.path(), digest, gathers, path, nullptr, nullptr); });
  };
  EXPECT(contains(refused(long_digest, 0, kPath), "digest has 72 bytes"));
  EXPECT(contains(refused("", 4, kPath), "gathers is 4"));
  EXPECT(contains(refused("", 0, model.path()), "is the model itself"));
}

// A writer keeps others away, and one that died does not.
void test_one_writer_at_a_time() {
  const TinyModel model(tiny_smallthinker(SBR_TYPE_Q4_0, true));
  write_bundle(model.path());
  const std::vector<uint8_t> good = read_file(kPath);
  const std::string part = std::string(kPath) + ".part";
  {
    sbr::OutputFile other(kPath, 100);
    EXPECT(contains(refusal(SBR_ERR_IO, [&] { write_bundle(model.path()); }), "is being written by another process"));
    EXPECT(exists(part));
  }
  EXPECT(!exists(part));
  write_file(part, std::vector<uint8_t>(3 * good.size(), 0xAA));
  write_bundle(model.path());
  EXPECT(read_file(kPath) == good && !exists(part));
}

}  // namespace

int main() {
  test_checksum();
  test_bytes();
  test_published_shape();
  test_types_that_differ_by_layer();
  test_damaged_headers();
  test_damaged_units();
  test_other_models();
  test_writing();
  test_one_writer_at_a_time();
  std::remove(kPath);
  return finish("test_bundle");
}
