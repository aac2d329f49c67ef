// GGUF v2/v3: untrusted bytes -> an immutable description of a file.
// Every count, length, offset and alignment is checked against the file's size before it is used;
// errors are sbr::Error(SBR_ERR_FORMAT | SBR_ERR_IO) whose message names the file and the tensor or key.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sbr {

struct GgufTensor {
  std::string name;
  uint32_t type;         // GGUF number; may be one that the runtime cannot compute with
  uint32_t n_dims;       // 1..4
  uint64_t ne[4];        // contiguous dimension first; 1 beyond n_dims
  uint64_t offset;       // from the start of the file
  uint64_t bytes;        // 0 when the type is unknown
};

// A metadata value; arrays keep a view into the file's bytes and are decoded on access.
struct GgufValue;

class GgufFile {
 public:
  // Parses a header that lies at the start of `bytes`; file_bytes is the size of the whole file.
  // `name` is used in messages only.
  static GgufFile parse(const uint8_t* bytes, uint64_t n_bytes, uint64_t file_bytes, const std::string& name);
  // Maps the file, parses it and unmaps it again.
  static GgufFile open(const std::string& path);

  const std::string& name() const;
  uint32_t version() const;
  uint64_t file_bytes() const;
  uint64_t data_offset() const;
  uint64_t alignment() const;

  const std::vector<GgufTensor>& tensors() const;
  const GgufTensor* find_tensor(std::string_view tensor) const;   // nullptr: absent
  const GgufTensor& tensor(std::string_view tensor) const;        // Error: absent

  bool has(std::string_view key) const;
  // Numbers convert from any integer (or float) type of the file when the value fits; Error otherwise.
  uint64_t get_uint(std::string_view key) const;
  uint64_t get_uint(std::string_view key, uint64_t absent) const;
  double get_float(std::string_view key) const;
  double get_float(std::string_view key, double absent) const;
  std::string get_string(std::string_view key) const;
  std::string get_string(std::string_view key, std::string_view absent) const;

  // The JSON of sbr_gguf_describe.
  std::string describe(uint64_t max_array_items) const;
};

// Bytes of n elements (a multiple of the block length) of a GGUF type; 0 for an unknown type.
uint64_t type_row_bytes(uint32_t type, uint64_t n);
uint32_t type_block_elements(uint32_t type);  // 0 for an unknown type
const char* type_name(uint32_t type);         // "q4_0"; "type 99" is the caller's affair: NULL when unknown

}  // namespace sbr
