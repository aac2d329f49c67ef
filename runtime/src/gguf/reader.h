// Reads little-endian values from untrusted bytes; private to gguf/.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "gguf/gguf.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "GGUF values are read as they lie in the file, which is little-endian"
#endif

namespace sbr {

enum GgufValueType : uint32_t {
  kGgufU8 = 0,
  kGgufI8 = 1,
  kGgufU16 = 2,
  kGgufI16 = 3,
  kGgufU32 = 4,
  kGgufI32 = 5,
  kGgufF32 = 6,
  kGgufBool = 7,
  kGgufString = 8,
  kGgufArray = 9,
  kGgufU64 = 10,
  kGgufI64 = 11,
  kGgufF64 = 12
};

// Bytes of a value of fixed size; 0 for strings, arrays and unknown types.
uint32_t gguf_value_bytes(uint32_t type);
const char* gguf_value_name(uint32_t type);  // nullptr: unknown

class GgufReader {
 public:
  // `readable` bytes are there, of a file of file_bytes.
  GgufReader(const uint8_t* bytes, uint64_t readable, uint64_t file_bytes, const std::string& file)
      : bytes_(bytes), readable_(readable), file_bytes_(file_bytes), file_(file) {}

  uint64_t position() const { return position_; }
  uint64_t remaining() const { return readable_ - position_; }
  const uint8_t* bytes() const { return bytes_; }
  uint64_t file_bytes() const { return file_bytes_; }
  const std::string& file() const { return file_; }

  // Throws SBR_ERR_FORMAT "<file>: <problem>".
  [[noreturn]] void fail(const std::string& problem) const;

  // `what` finishes the sentence "the file ends inside ...".
  void skip(uint64_t n, const std::string& what);
  template <typename T>
  T read(const std::string& what) {
    skip(sizeof(T), what);
    T value;
    std::memcpy(&value, bytes_ + position_ - sizeof(T), sizeof(T));
    return value;
  }
  std::string_view read_string(const std::string& what);
  // Walks over a value and checks it; what must be like "the value of the key 'x'".
  void skip_value(uint32_t type, const std::string& what, int depth = 0);

 private:
  const uint8_t* bytes_;
  uint64_t readable_;
  uint64_t file_bytes_;
  uint64_t position_ = 0;
  const std::string& file_;
};

}  // namespace sbr
