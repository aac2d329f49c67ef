#include "gguf/gguf.h"

#include <algorithm>

#include "base/error.h"
#include "gguf/reader.h"
#include "io/file.h"
#include "sbr/sbr.h"

namespace sbr {
namespace {

const uint32_t kMagic = 0x46554747;   // "GGUF"
const uint64_t kMaxKeyBytes = 65535;  // the format's limit
const uint64_t kMaxNameBytes = 64;    // likewise, of tensor names
const uint64_t kMinAlignment = 8;     // the format's; float tensors are read in place and rely on it
const uint64_t kMaxAlignment = 1u << 20;
// The fewest bytes of a key with its value (length, one character, type, a bool) and of a tensor (length, one
// character, dimensions, one of them, type, offset). What a count claims is held against the file with these.
const uint64_t kLeastEntryBytes = 8 + 1 + 4 + 1;
const uint64_t kLeastTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;

uint32_t read_version(GgufReader& reader) {
  if (reader.file_bytes() == 0) reader.fail("the file is empty");
  if (reader.remaining() < 4 || reader.read<uint32_t>("the magic number") != kMagic) {
    reader.fail("is not a GGUF file: it does not begin with \"GGUF\"");
  }
  const auto version = reader.read<uint32_t>("the version");
  if (version == 1) reader.fail("is GGUF version 1, which is not supported: convert it to version 3");
  if (version != 0 && (version & 0xFFFF) == 0) {
    reader.fail("is a big-endian GGUF file, which is not supported: convert it to little-endian");
  }
  if (version != 2 && version != 3) {
    reader.fail("is GGUF version " + std::to_string(version) + ", supported are 2 and 3");
  }
  return version;
}

uint64_t read_count(GgufReader& reader, const char* what, uint64_t least_bytes) {
  const auto count = reader.read<uint64_t>(std::string("the number of ") + what);
  if (count > reader.file_bytes() / least_bytes) {
    reader.fail("claims " + std::to_string(count) + " " + what + ", more than its " +
                std::to_string(reader.file_bytes()) + " bytes can hold");
  }
  return count;
}

// n * m, or false when it does not fit.
bool multiply(uint64_t n, uint64_t m, uint64_t* product) { return !__builtin_mul_overflow(n, m, product); }

GgufTensor read_tensor(GgufReader& reader, uint64_t index) {
  const std::string where = "the description of tensor " + std::to_string(index);
  GgufTensor tensor = {};
  tensor.name = reader.read_string(where).substr(0, kMaxNameBytes + 1);
  if (tensor.name.empty()) reader.fail("tensor " + std::to_string(index) + " has an empty name");
  const std::string what = "tensor " + gguf_quoted(tensor.name);
  if (tensor.name.size() > kMaxNameBytes) {
    reader.fail(what + " has a name of more than " + std::to_string(kMaxNameBytes) + " bytes");
  }
  tensor.n_dims = reader.read<uint32_t>(what);
  if (tensor.n_dims < 1 || tensor.n_dims > 4) {
    reader.fail(what + " has " + std::to_string(tensor.n_dims) + " dimensions, expected 1 to 4");
  }
  uint64_t elements = 1;
  for (uint32_t d = 0; d < 4; ++d) {
    tensor.ne[d] = d < tensor.n_dims ? reader.read<uint64_t>(what) : 1;
    if (tensor.ne[d] == 0) reader.fail(what + " has a dimension of 0");
    if (!multiply(elements, tensor.ne[d], &elements)) reader.fail(what + " has more than 2^64 elements");
  }
  tensor.type = reader.read<uint32_t>(what);
  tensor.offset = reader.read<uint64_t>(what);
  const uint32_t block = type_block_elements(tensor.type);
  if (block == 0) return tensor;
  if (tensor.ne[0] % block != 0) {
    reader.fail(what + " is of type " + type_name(tensor.type) + " with rows of " + std::to_string(tensor.ne[0]) +
                " elements, expected a multiple of " + std::to_string(block));
  }
  if (!multiply(elements / block, type_block_bytes(tensor.type), &tensor.bytes)) {
    reader.fail(what + " has more than 2^64 bytes");
  }
  return tensor;
}

std::string type_text(uint32_t type) {
  const char* name = gguf_value_name(type);
  return name == nullptr ? "unknown" : name;
}

template <typename T>
T load(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

}  // namespace

GgufFile GgufFile::open(const std::string& path) {
  const MappedFile file = MappedFile::open(path);
  file.read_sequentially();
  return parse(file.data(), file.size(), file.size(), path);
}

GgufFile GgufFile::parse(const uint8_t* bytes, uint64_t n_bytes, uint64_t file_bytes, const std::string& name) {
  GgufFile file;
  file.name_ = name;
  file.file_bytes_ = file_bytes;

  GgufReader reader(bytes, n_bytes, file_bytes, name);
  file.version_ = read_version(reader);
  const uint64_t n_tensors = read_count(reader, "tensors", kLeastTensorBytes);
  const uint64_t n_entries = read_count(reader, "metadata entries", kLeastEntryBytes);
  file.parse_metadata(reader, n_entries);
  file.parse_tensors(reader, n_tensors);

  file.header_ = std::make_shared<const std::vector<uint8_t>>(bytes, bytes + reader.position());
  for (size_t i = 0; i < file.entries_.size(); ++i) {
    const std::string_view key = file.key_of(file.entries_[i]);
    if (!file.entry_index_.emplace(key, i).second) file.fail_key(key, "appears twice");
  }
  const auto found = file.entry_index_.find("general.alignment");
  if (found != file.entry_index_.end()) {
    const uint32_t type = file.entries_[found->second].type;
    if (type != kGgufU32) file.fail_key("general.alignment", "is of type " + type_text(type) + ", expected uint32");
    file.alignment_ = file.get_uint("general.alignment");
    if ((file.alignment_ & (file.alignment_ - 1)) != 0 || file.alignment_ < kMinAlignment ||
        file.alignment_ > kMaxAlignment) {
      file.fail_key("general.alignment",
                    "is " + std::to_string(file.alignment_) + ", expected a power of two from 8 to 1048576");
    }
  }
  file.place_tensors(reader.position());
  return file;
}

void GgufFile::parse_metadata(GgufReader& reader, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    const std::string where = "metadata entry " + std::to_string(i);
    const std::string_view key = reader.read_string(where);
    if (key.empty()) reader.fail(where + " has an empty key");
    if (key.size() > kMaxKeyBytes) {
      reader.fail(where + " has a key of " + std::to_string(key.size()) + " bytes, the format allows " +
                  std::to_string(kMaxKeyBytes));
    }
    Entry entry = {};
    entry.key = reader.position() - key.size();
    entry.key_length = key.size();
    const std::string what = "the key " + gguf_quoted(key);
    entry.type = reader.read<uint32_t>(what);
    entry.value = reader.position();
    reader.skip_value(entry.type, what);
    entries_.push_back(entry);
  }
}

void GgufFile::parse_tensors(GgufReader& reader, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    GgufTensor tensor = read_tensor(reader, i);
    if (!tensor_index_.emplace(tensor.name, i).second) {
      reader.fail("tensor " + gguf_quoted(tensor.name) + " appears twice");
    }
    tensors_.push_back(std::move(tensor));
  }
}

// Turns offsets into the data section into offsets into the file and checks that the tensors lie there, one
// beside the other.
void GgufFile::place_tensors(uint64_t header_end) {
  data_offset_ = (header_end + alignment_ - 1) & ~(alignment_ - 1);
  const auto fail = [this](const GgufTensor& tensor, const std::string& problem) {
    throw Error(SBR_ERR_FORMAT, name_ + ": tensor " + gguf_quoted(tensor.name) + " " + problem);
  };
  if (!tensors_.empty() && data_offset_ > file_bytes_) {
    fail(tensors_[0], "is missing: the file ends before its data");
  }
  for (GgufTensor& tensor : tensors_) {
    if (tensor.offset % alignment_ != 0) {
      fail(tensor, "has the offset " + std::to_string(tensor.offset) + ", expected a multiple of the alignment " +
                       std::to_string(alignment_));
    }
    const uint64_t room = file_bytes_ - data_offset_;
    if (tensor.offset > room || tensor.bytes > room - tensor.offset) {
      fail(tensor, "has " + std::to_string(tensor.bytes) + " bytes at offset " + std::to_string(tensor.offset) +
                       " of the data, of which the file holds " + std::to_string(room) + ": is it complete?");
    }
    tensor.offset += data_offset_;
  }
  std::vector<const GgufTensor*> by_offset;
  by_offset.reserve(tensors_.size());
  for (const GgufTensor& tensor : tensors_) by_offset.push_back(&tensor);
  std::sort(by_offset.begin(), by_offset.end(), [](const GgufTensor* a, const GgufTensor* b) {
    return a->offset != b->offset ? a->offset < b->offset : a->bytes < b->bytes;
  });
  for (size_t i = 1; i < by_offset.size(); ++i) {
    const GgufTensor& before = *by_offset[i - 1];
    if (before.bytes > by_offset[i]->offset - before.offset) {
      fail(*by_offset[i], "overlaps tensor " + gguf_quoted(before.name));
    }
  }
}

const GgufTensor* GgufFile::find_tensor(std::string_view tensor) const {
  const auto found = tensor_index_.find(std::string(tensor));
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

const GgufTensor& GgufFile::tensor(std::string_view tensor) const {
  const GgufTensor* found = find_tensor(tensor);
  if (found == nullptr) throw Error(SBR_ERR_FORMAT, name_ + ": tensor " + gguf_quoted(tensor) + " is missing");
  return *found;
}

std::string_view GgufFile::key_of(const Entry& entry) const {
  return {reinterpret_cast<const char*>(header_->data() + entry.key), static_cast<size_t>(entry.key_length)};
}

const GgufFile::Entry* GgufFile::find(std::string_view key) const {
  const auto found = entry_index_.find(key);
  return found == entry_index_.end() ? nullptr : &entries_[found->second];
}

const GgufFile::Entry& GgufFile::require(std::string_view key) const {
  const Entry* entry = find(key);
  if (entry == nullptr) fail_key(key, "is missing");
  return *entry;
}

void GgufFile::fail_key(std::string_view key, const std::string& problem) const {
  throw Error(SBR_ERR_FORMAT, name_ + ": the key " + gguf_quoted(key) + " " + problem);
}

bool GgufFile::has(std::string_view key) const { return find(key) != nullptr; }

double GgufFile::get_float(std::string_view key) const {
  const Entry& entry = require(key);
  const uint8_t* value = header_->data() + entry.value;
  double number = 0;
  switch (entry.type) {
    case kGgufU8:
      return load<uint8_t>(value);
    case kGgufI8:
      return load<int8_t>(value);
    case kGgufU16:
      return load<uint16_t>(value);
    case kGgufI16:
      return load<int16_t>(value);
    case kGgufU32:
      return load<uint32_t>(value);
    case kGgufI32:
      return load<int32_t>(value);
    case kGgufU64:
      return static_cast<double>(load<uint64_t>(value));
    case kGgufI64:
      return static_cast<double>(load<int64_t>(value));
    case kGgufF32:
      number = load<float>(value);
      break;
    case kGgufF64:
      number = load<double>(value);
      break;
    default:
      fail_key(key, "is of type " + type_text(entry.type) + ", expected a number");
  }
  if (!(number - number == 0)) fail_key(key, "is not a finite number");
  return number;
}

uint64_t GgufFile::get_uint(std::string_view key) const {
  const Entry& entry = require(key);
  if (entry.type == kGgufU64) return load<uint64_t>(header_->data() + entry.value);
  if (entry.type == kGgufI64) {
    const auto value = load<int64_t>(header_->data() + entry.value);
    if (value < 0) fail_key(key, "is " + std::to_string(value) + ", expected a non-negative integer");
    return static_cast<uint64_t>(value);
  }
  // All other numbers that are integers below 2^53 pass through a double unchanged.
  const double value = get_float(key);
  if (!(value >= 0 && value < 9007199254740992.0) || static_cast<double>(static_cast<uint64_t>(value)) != value) {
    fail_key(key, "is " + std::to_string(value) + ", expected a non-negative integer");
  }
  return static_cast<uint64_t>(value);
}

std::string GgufFile::get_string(std::string_view key) const {
  const Entry& entry = require(key);
  if (entry.type != kGgufString) fail_key(key, "is of type " + type_text(entry.type) + ", expected a string");
  const uint8_t* value = header_->data() + entry.value;
  return {reinterpret_cast<const char*>(value + 8), static_cast<size_t>(load<uint64_t>(value))};
}

uint64_t GgufFile::get_uint(std::string_view key, uint64_t absent) const { return has(key) ? get_uint(key) : absent; }

double GgufFile::get_float(std::string_view key, double absent) const { return has(key) ? get_float(key) : absent; }

std::string GgufFile::get_string(std::string_view key, std::string_view absent) const {
  return has(key) ? get_string(key) : std::string(absent);
}

}  // namespace sbr
