#include "gguf/reader.h"

#include "base/error.h"
#include "sbr/sbr.h"

namespace sbr {
namespace {

// The format allows arrays of arrays; nobody writes them deeper than two.
const int kMaxArrayDepth = 4;

}  // namespace

uint32_t gguf_value_bytes(uint32_t type) {
  static const uint8_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return type < sizeof bytes ? bytes[type] : 0;
}

const char* gguf_value_name(uint32_t type) {
  static const char* const names[] = {"uint8", "int8",   "uint16", "int16",  "uint32", "int32",  "float32",
                                      "bool",  "string", "array",  "uint64", "int64",  "float64"};
  return type < sizeof names / sizeof names[0] ? names[type] : nullptr;
}

std::string gguf_quoted(std::string_view name) {
  std::string text = "'";
  for (const char c : name.substr(0, 64)) text += c >= 0x20 && c < 0x7F ? c : '?';
  if (name.size() > 64) text += "...";
  return text + "'";
}

void GgufReader::fail(const std::string& problem) const { throw Error(SBR_ERR_FORMAT, file_ + ": " + problem); }

void GgufReader::skip(uint64_t n, const std::string& what) {
  if (n > remaining()) {
    fail("the file ends inside " + what + ": " + std::to_string(n) + " bytes are needed at offset " +
         std::to_string(position_) + ", " + std::to_string(remaining()) + " are there");
  }
  position_ += n;
}

std::string_view GgufReader::read_string(const std::string& what) {
  const auto length = read<uint64_t>(what);
  skip(length, what);
  return {reinterpret_cast<const char*>(bytes_ + position_ - length), static_cast<size_t>(length)};
}

void GgufReader::skip_value(uint32_t type, const std::string& what, int depth) {
  if (gguf_value_name(type) == nullptr) {
    fail(what + " has the type " + std::to_string(type) + ", which the format does not define");
  }
  if (type == kGgufString) {
    (void)read_string(what);
    return;
  }
  if (type != kGgufArray) {
    skip(gguf_value_bytes(type), what);
    if (type == kGgufBool && bytes_[position_ - 1] > 1) {
      fail(what + " is a bool of value " + std::to_string(bytes_[position_ - 1]) + ", expected 0 or 1");
    }
    return;
  }
  if (depth >= kMaxArrayDepth) {
    fail(what + " nests arrays more than " + std::to_string(kMaxArrayDepth) + " deep");
  }
  const auto item_type = read<uint32_t>(what);
  const auto count = read<uint64_t>(what);
  if (gguf_value_name(item_type) == nullptr) {
    fail(what + " has items of type " + std::to_string(item_type) + ", which the format does not define");
  }
  // The fewest bytes that an item can take: a string is at least its length, an array its type and length.
  const uint32_t fixed = gguf_value_bytes(item_type);
  const uint64_t least = fixed != 0 ? fixed : item_type == kGgufString ? 8 : 12;
  if (count > remaining() / least) {
    fail(what + " claims " + std::to_string(count) + " array items, but only " + std::to_string(remaining()) +
         " bytes of the file follow");
  }
  if (fixed != 0 && item_type != kGgufBool) {
    skip(count * fixed, what);
    return;
  }
  for (uint64_t i = 0; i < count; ++i) skip_value(item_type, what, depth + 1);
}

}  // namespace sbr
