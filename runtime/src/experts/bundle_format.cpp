#include "experts/bundle_format.h"

#include <algorithm>
#include <cstring>

#include "base/checksum.h"
#include "base/error.h"
#include "gguf/gguf.h"
#include "kernels/kernels.h"
#include "model/layout.h"
#include "quant/interleave.h"

namespace sbr {

const char* const kBundleShapeNames[kBundleShape] = {"n_layer", "n_embd",   "n_head",  "n_head_kv",      "head_dim",
                                                     "n_ff",    "n_expert", "n_vocab", "transposed_down"};

namespace {

constexpr char kMagic[8] = {'S', 'B', 'R', 'U', 'N', 'I', 'T', 'S'};
constexpr uint64_t kFixedBytes = 320, kPartBytes = 32, kSumBytes = 8;
constexpr size_t kArchitectureBytes = 32;
// Far beyond every model (the largest published ones need 200 KB), so that a damaged count asks for no gigabytes.
constexpr uint64_t kMaxHeaderBytes = 64u << 20;
constexpr uint64_t kMaxLayers = 4096, kMaxUnitsPerLayer = 4096;
constexpr uint64_t kMaxColumns = 1u << 24, kMaxRows = 1u << 30;

// The numbers of the roles in the file, and what a person reads.
struct Role {
  Matrix LayerWeights::* member;
  const char* name;
};
constexpr Role kRoles[kLayerMatrices] = {{&LayerWeights::attn_q, "q"},  {&LayerWeights::attn_k, "k"},
                                         {&LayerWeights::attn_v, "v"},  {&LayerWeights::attn_output, "output"},
                                         {&LayerWeights::gate, "gate"}, {&LayerWeights::up, "up"},
                                         {&LayerWeights::down, "down"}};

size_t first_role(uint32_t kind) { return kind == SBR_BUNDLE_EXPERTS ? kFirstOfFfn : 0; }
size_t parts_per_layer(uint32_t kind) { return kLayerMatrices - first_role(kind); }

uint64_t round_up(uint64_t value, uint64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

uint64_t header_bytes_for(uint32_t kind, uint64_t n_layer, uint64_t units_per_layer) {
  const uint64_t tables = n_layer * (parts_per_layer(kind) * kPartBytes + units_per_layer * kSumBytes);
  return round_up(kFixedBytes + tables + kSumBytes, kUnitAlignment);
}

uint64_t unit_end(const std::vector<BundlePart>& parts) { return parts.back().offset + parts.back().view.bytes(); }

std::string type_text(uint32_t type) {
  return std::string(type_name(type % kInterleaved)) + (type >= kInterleaved ? "_x16" : "");
}

// ---- bytes ----

class Writer {
 public:
  explicit Writer(uint64_t bytes) : bytes_(bytes) {}
  void u32(uint64_t value) { put(value, 4); }
  void u64(uint64_t value) { put(value, 8); }
  void text(const char* text, size_t capacity) {
    std::memcpy(&bytes_[at_], text, std::min(std::strlen(text), capacity - 1));
    at_ += capacity;
  }
  void magic() {
    std::memcpy(bytes_.data(), kMagic, sizeof kMagic);
    at_ += sizeof kMagic;
  }
  void skip_to(uint64_t offset) { at_ = offset; }
  std::vector<uint8_t> take_with_checksum() {
    at_ = bytes_.size() - kSumBytes;
    u64(Checksum::of(bytes_.data(), at_));
    return std::move(bytes_);
  }

 private:
  void put(uint64_t value, size_t n) {
    for (size_t i = 0; i < n; ++i) bytes_[at_++] = static_cast<uint8_t>(value >> 8 * i);
  }
  std::vector<uint8_t> bytes_;
  uint64_t at_ = 0;
};

uint64_t read_le(const uint8_t* at, size_t n) {
  uint64_t value = 0;
  for (size_t i = 0; i < n; ++i) value |= uint64_t{at[i]} << 8 * i;
  return value;
}

// Values one after another; what is beyond the end was ruled out before.
class Cursor {
 public:
  Cursor(const uint8_t* bytes, uint64_t at) : bytes_(bytes), at_(at) {}
  uint32_t u32() { return static_cast<uint32_t>(next(4)); }
  uint64_t u64() { return next(8); }
  std::string text(size_t capacity) {
    const char* begin = reinterpret_cast<const char*>(bytes_ + at_);
    at_ += capacity;
    return std::string(begin, strnlen(begin, capacity - 1));
  }
  void skip_to(uint64_t offset) { at_ = offset; }

 private:
  uint64_t next(size_t n) {
    at_ += n;
    return read_le(bytes_ + at_ - n, n);
  }
  const uint8_t* bytes_;
  uint64_t at_;
};

template <size_t N>
void copy_text(const std::string& text, char (&out)[N]) {
  std::memset(out, 0, N);
  std::memcpy(out, text.data(), std::min(text.size(), N - 1));
}

// ---- checks ----

class Decoder {
 public:
  Decoder(const uint8_t* bytes, uint64_t n_bytes, uint64_t file_bytes, const std::string& path)
      : bytes_(bytes), n_bytes_(n_bytes), file_bytes_(file_bytes), path_(path), cursor_(bytes, 16) {}

  BundleHeader run() {
    if (read_le(bytes_ + n_bytes_ - kSumBytes, 8) != Checksum::of(bytes_, n_bytes_ - kSumBytes)) {
      fail("has a damaged header (its checksum differs)");
    }
    numbers();
    texts();
    parts();
    header_.checksums.resize(header_.n_units());
    for (uint64_t& sum : header_.checksums) sum = cursor_.u64();
    // One header has one spelling, so that every byte was understood.
    if (encode_header(header_) != std::vector<uint8_t>(bytes_, bytes_ + n_bytes_))
      contradicts("its texts or reserved bytes are not those of version " + std::to_string(kBundleVersion));
    if (header_.info.file_bytes != file_bytes_) {
      fail(std::string(file_bytes_ < header_.info.file_bytes ? "is truncated" : "is too long") + ": it has " +
           std::to_string(file_bytes_) + " bytes, its header says " + std::to_string(header_.info.file_bytes));
    }
    return std::move(header_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const { throw Error(SBR_ERR_FORMAT, path_ + ": " + what); }
  [[noreturn]] void contradicts(const std::string& what) const {
    fail("has a header that contradicts itself: " + what);
  }

  uint32_t between(uint64_t least, uint64_t most, const char* name) {
    const uint32_t value = cursor_.u32();
    if (value < least || value > most) contradicts(std::string(name) + " is " + std::to_string(value));
    return value;
  }

  void numbers() {
    sbr_bundle_info& info = header_.info;
    info.struct_size = sizeof info;
    info.version = kBundleVersion;
    header_.header_bytes = n_bytes_;
    info.file_bytes = cursor_.u64();
    info.unit_bytes = cursor_.u64();
    info.kind = between(SBR_BUNDLE_EXPERTS, SBR_BUNDLE_LAYERS, "kind");
    info.gathers = between(0, SBR_GATHER_UP, "gathers");
    if (const uint32_t tiles = cursor_.u32(); tiles != kTileLayout) {
      throw Error(SBR_ERR_UNSUPPORTED, path_ + ": interleaves rows in layout " + std::to_string(tiles) +
                                           ", this library in layout " + std::to_string(kTileLayout) +
                                           "; make the bundle again");
    }
    info.n_layer = between(1, kMaxLayers, "n_layer");
    info.units_per_layer = between(1, info.kind == SBR_BUNDLE_EXPERTS ? kMaxUnitsPerLayer : 1, "units_per_layer");
    const uint64_t n_parts = parts_per_layer(info.kind);
    between(n_parts, n_parts, "parts_per_layer");
    for (uint32_t& number : header_.shape) number = cursor_.u32();

    if (header_.shape[0] != info.n_layer || std::max(header_.shape[6], 1u) != info.units_per_layer)
      contradicts("its shape has other layers or experts than its units");
    if (header_bytes_for(info.kind, info.n_layer, info.units_per_layer) != n_bytes_)
      contradicts(std::to_string(header_.n_units()) + " units do not fit its " + std::to_string(n_bytes_) + " bytes");
    const uint64_t body = info.file_bytes - n_bytes_;
    if (info.file_bytes <= n_bytes_ || info.unit_bytes == 0 || info.unit_bytes % kUnitAlignment != 0 ||
        body % info.unit_bytes != 0 || body / info.unit_bytes != header_.n_units()) {
      contradicts(std::to_string(header_.n_units()) + " units of " + std::to_string(info.unit_bytes) +
                  " bytes do not make a file of " + std::to_string(info.file_bytes));
    }
  }

  void texts() {
    cursor_.skip_to(96);
    header_.architecture = cursor_.text(kArchitectureBytes);
    cursor_.skip_to(128 + sizeof header_.info.layout);  // which follows from the parts
    copy_text(cursor_.text(sizeof header_.info.model_digest), header_.info.model_digest);
  }

  void parts() {
    const uint32_t kind = header_.info.kind;
    header_.parts.resize(header_.info.n_layer);
    cursor_.skip_to(kFixedBytes);
    uint64_t longest = 0;
    for (std::vector<BundlePart>& layer : header_.parts) {
      uint64_t end = 0;
      for (size_t role = first_role(kind); role < kLayerMatrices; ++role) {
        layer.push_back(part(static_cast<uint32_t>(role), end));
        end = unit_end(layer);
      }
      longest = std::max(longest, end);
    }
    copy_text(describe_layout(header_), header_.info.layout);
    if (round_up(longest, kUnitAlignment) != header_.info.unit_bytes) {
      contradicts("its largest unit has " + std::to_string(longest) + " bytes, unit_bytes is " +
                  std::to_string(header_.info.unit_bytes));
    }
  }

  // `end`: of the part before.
  BundlePart part(uint32_t role, uint64_t end) {
    const std::string name = std::string("the part ") + kRoles[role].name;
    between(role, role, "a part's role");
    Matrix view;
    view.type = cursor_.u32();
    view.cols = cursor_.u64();
    view.rows = cursor_.u64();
    const uint64_t offset = cursor_.u64();
    const uint32_t type = view.type % kInterleaved;
    const bool tiles = view.type >= kInterleaved;
    if (view.type >= 2 * kInterleaved || type_block_elements(type) == 0 || (tiles && !can_interleave(type)))
      contradicts(name + " has the type number " + std::to_string(view.type));
    if (view.cols == 0 || view.cols > kMaxColumns || view.cols % type_block_elements(type) != 0 || view.rows == 0 ||
        view.rows > kMaxRows || (tiles && view.rows % kInterleavedRows != 0)) {
      contradicts(name + " has " + std::to_string(view.rows) + " rows of " + std::to_string(view.cols));
    }
    view.row_bytes = type_row_bytes(type, view.cols);  // at most 2^27, so that bytes() is below 2^57
    const uint64_t unit_bytes = header_.info.unit_bytes;
    if (offset != round_up(end, kPartAlignment) || offset > unit_bytes || view.bytes() > unit_bytes - offset)
      contradicts(name + " lies at " + std::to_string(offset));
    return {kRoles[role].member, view, offset};
  }

  const uint8_t* const bytes_;
  const uint64_t n_bytes_, file_bytes_;
  const std::string& path_;
  Cursor cursor_;
  BundleHeader header_;
};

std::array<uint32_t, kBundleShape> shape_of(const Config& c, const Weights& weights) {
  return {c.n_layer,   c.n_embd,   c.n_head,
          c.n_head_kv, c.head_dim, c.n_ff,
          c.n_expert,  c.n_vocab,  weights.transposed_down ? 1u : 0u};
}

}  // namespace

BundleHeader plan_bundle(const Config& config, const Weights& weights, uint32_t gathers, const std::string& digest) {
  if (gathers > (SBR_GATHER_UP | SBR_GATHER_OUTPUT))
    throw Error(SBR_ERR_ARGUMENT, "gathers is " + std::to_string(gathers) + ", expected a sum of SBR_GATHER_*");
  BundleHeader header;
  sbr_bundle_info& info = header.info;
  if (digest.size() >= sizeof info.model_digest) {
    throw Error(SBR_ERR_ARGUMENT, "digest has " + std::to_string(digest.size()) + " bytes, at most " +
                                      std::to_string(sizeof info.model_digest - 1) + " are kept");
  }
  info.struct_size = sizeof info;
  info.version = kBundleVersion;
  info.kind = config.n_expert != 0 ? SBR_BUNDLE_EXPERTS : SBR_BUNDLE_LAYERS;
  info.gathers = gathers & SBR_GATHER_UP;
  info.n_layer = config.n_layer;
  info.units_per_layer = std::max(config.n_expert, 1u);
  header.architecture = config.architecture.substr(0, kArchitectureBytes - 1);
  header.shape = shape_of(config, weights);
  copy_text(digest, info.model_digest);

  uint64_t longest = 0;
  for (const LayerWeights& layer : weights.layers) {
    const auto placed = place_matrices(layer, config, weights.transposed_down, gathers);
    std::vector<BundlePart> parts;
    uint64_t end = 0;
    for (size_t role = first_role(info.kind); role < kLayerMatrices; ++role) {
      Matrix view = layer.*kRoles[role].member;
      view.data = nullptr;
      view.rows /= info.units_per_layer;
      if (placed[role].interleave) view.type += kInterleaved;
      if (view.cols > kMaxColumns || view.rows > kMaxRows)
        throw Error(SBR_ERR_UNSUPPORTED, std::string("the matrix ") + kRoles[role].name + " is too large for a bundle");
      parts.push_back({kRoles[role].member, view, round_up(end, kPartAlignment)});
      end = unit_end(parts);
    }
    longest = std::max(longest, end);
    header.parts.push_back(std::move(parts));
  }
  copy_text(describe_layout(header), info.layout);
  info.unit_bytes = round_up(longest, kUnitAlignment);
  header.header_bytes = header_bytes_for(info.kind, info.n_layer, info.units_per_layer);
  if (header.header_bytes > kMaxHeaderBytes)
    throw Error(SBR_ERR_UNSUPPORTED, std::to_string(header.n_units()) + " units are too many for a bundle");
  info.file_bytes = header.header_bytes + header.n_units() * info.unit_bytes;
  header.checksums.resize(header.n_units());
  return header;
}

std::string describe_layout(const BundleHeader& header) {
  std::string text, types;
  for (size_t i = 0; i < header.parts[0].size(); ++i) {
    std::string found;  // every type that the part has in some layer, in order of appearance
    for (const std::vector<BundlePart>& layer : header.parts) {
      const std::string type = type_text(layer[i].view.type);
      if (("/" + found + "/").find("/" + type + "/") == std::string::npos) found += (found.empty() ? "" : "/") + type;
    }
    if (i == 0 || found == types) {
      text += i == 0 ? "" : ",";
    } else {
      text.append(" ").append(types).append("; ");
    }
    text += kRoles[first_role(header.info.kind) + i].name;
    types = found;
  }
  return text + " " + types;
}

std::vector<uint8_t> encode_header(const BundleHeader& header) {
  const sbr_bundle_info& info = header.info;
  Writer out(header.header_bytes);
  out.magic();
  out.u32(info.version);
  out.u32(header.header_bytes);
  out.u64(info.file_bytes);
  out.u64(info.unit_bytes);
  out.u32(info.kind);
  out.u32(info.gathers);
  out.u32(kTileLayout);
  out.u32(info.n_layer);
  out.u32(info.units_per_layer);
  out.u32(parts_per_layer(info.kind));
  for (const uint32_t number : header.shape) out.u32(number);
  out.skip_to(96);
  out.text(header.architecture.c_str(), kArchitectureBytes);
  out.text(info.layout, sizeof info.layout);
  out.text(info.model_digest, sizeof info.model_digest);
  out.skip_to(kFixedBytes);
  for (const std::vector<BundlePart>& layer : header.parts) {
    for (size_t i = 0; i < layer.size(); ++i) {
      out.u32(first_role(info.kind) + i);
      out.u32(layer[i].view.type);
      out.u64(layer[i].view.cols);
      out.u64(layer[i].view.rows);
      out.u64(layer[i].offset);
    }
  }
  for (const uint64_t sum : header.checksums) out.u64(sum);
  return out.take_with_checksum();
}

uint64_t header_bytes(const uint8_t* bytes, uint64_t n_bytes, uint64_t file_bytes, const std::string& path) {
  if (n_bytes < sizeof kMagic || std::memcmp(bytes, kMagic, sizeof kMagic) != 0)
    throw Error(SBR_ERR_FORMAT, path + ": is not a bundle (it does not begin with \"SBRUNITS\")");
  if (n_bytes < kFirstLook)
    throw Error(SBR_ERR_FORMAT, path + ": is truncated: it has " + std::to_string(file_bytes) + " bytes");
  const uint64_t version = read_le(bytes + 8, 4);
  if (version != kBundleVersion) {
    throw Error(SBR_ERR_UNSUPPORTED, path + ": is a bundle of version " + std::to_string(version) +
                                         ", this library reads version " + std::to_string(kBundleVersion) +
                                         "; make the bundle again");
  }
  const uint64_t length = read_le(bytes + 12, 4);
  if (length < kUnitAlignment || length % kUnitAlignment != 0 || length > kMaxHeaderBytes)
    throw Error(SBR_ERR_FORMAT, path + ": has a damaged header (of " + std::to_string(length) + " bytes)");
  if (length > file_bytes) {
    throw Error(SBR_ERR_FORMAT, path + ": is truncated: it has " + std::to_string(file_bytes) +
                                    " bytes, its header alone " + std::to_string(length));
  }
  return length;
}

BundleHeader decode_header(const uint8_t* bytes, uint64_t n_bytes, uint64_t file_bytes, const std::string& path) {
  return Decoder(bytes, n_bytes, file_bytes, path).run();
}

}  // namespace sbr
