// GGUF v2/v3: untrusted bytes -> an immutable description of a file.
// Every count, length, offset and alignment is checked against the file's size before it is used;
// errors are sbr::Error(SBR_ERR_FORMAT | SBR_ERR_IO) whose message names the file and the tensor or key.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace sbr {

struct GgufTensor {
  std::string name;
  uint32_t type;    // GGUF number; may be one that the runtime cannot compute with
  uint32_t n_dims;  // 1..4
  uint64_t ne[4];   // contiguous dimension first; 1 beyond n_dims
  uint64_t offset;  // from the start of the file
  uint64_t bytes;   // 0 when the type is unknown
};

class GgufFile {
 public:
  // Parses a header that lies at the start of `bytes`; file_bytes is the size of the whole file.
  // `name` is used in messages only. Keeps a copy of the header, so `bytes` may go away.
  static GgufFile parse(const uint8_t* bytes, uint64_t n_bytes, uint64_t file_bytes, const std::string& name);
  // Maps the file, parses it and unmaps it again.
  static GgufFile open(const std::string& path);

  const std::string& name() const { return name_; }
  uint32_t version() const { return version_; }
  uint64_t file_bytes() const { return file_bytes_; }
  uint64_t data_offset() const { return data_offset_; }
  uint64_t alignment() const { return alignment_; }

  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* find_tensor(std::string_view tensor) const;  // nullptr: absent
  const GgufTensor& tensor(std::string_view tensor) const;       // Error: absent

  bool has(std::string_view key) const;
  // Numbers convert from any integer (or float) type of the file when the value fits; Error otherwise.
  // Floats are finite.
  uint64_t get_uint(std::string_view key) const;
  uint64_t get_uint(std::string_view key, uint64_t absent) const;
  double get_float(std::string_view key) const;
  double get_float(std::string_view key, double absent) const;
  std::string get_string(std::string_view key) const;
  std::string get_string(std::string_view key, std::string_view absent) const;

  // The JSON of sbr_gguf_describe.
  std::string describe(uint64_t max_array_items) const;

 private:
  // Offsets into the header; values are decoded on access, so an array of 151,936 tokens costs one walk.
  struct Entry {
    uint64_t key;
    uint64_t key_length;
    uint32_t type;
    uint64_t value;
  };

  GgufFile() = default;
  void parse_metadata(class GgufReader& reader, uint64_t count);
  void parse_tensors(class GgufReader& reader, uint64_t count);
  void place_tensors(uint64_t header_end);
  std::string_view key_of(const Entry& entry) const;
  const Entry* find(std::string_view key) const;
  const Entry& require(std::string_view key) const;
  [[noreturn]] void fail_key(std::string_view key, const std::string& problem) const;

  std::string name_;
  uint32_t version_ = 0;
  uint64_t file_bytes_ = 0;
  uint64_t data_offset_ = 0;
  uint64_t alignment_ = 32;
  std::shared_ptr<const std::vector<uint8_t>> header_;  // shared, so that copies keep the views below valid
  std::vector<Entry> entries_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string_view, size_t> entry_index_;  // keys are views into header_
  std::unordered_map<std::string, size_t> tensor_index_;
};

// A name from a file as messages show it: quoted, printable, at most 64 bytes of it.
std::string gguf_quoted(std::string_view name);

// Bytes of n elements (a multiple of the block length) of a GGUF type; 0 for an unknown type.
uint64_t type_row_bytes(uint32_t type, uint64_t n);
uint32_t type_block_elements(uint32_t type);  // 0 for an unknown type
uint32_t type_block_bytes(uint32_t type);     // 0 for an unknown type
const char* type_name(uint32_t type);         // "q4_0"; "type 99" is the caller's affair: NULL when unknown

}  // namespace sbr
