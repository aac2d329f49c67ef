// The parser of untrusted headers: what it accepts, what it refuses and with which words.
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "expect.h"
#include "gguf/gguf.h"
#include "gguf/reader.h"
#include "io/file.h"
#include "sbr/sbr.h"

namespace {

using sbr::GgufFile;

// Appends little-endian values.
class Bytes {
 public:
  template <typename T>
  Bytes& put(T value) {
    const char* from = reinterpret_cast<const char*>(&value);
    text_.append(from, sizeof value);
    return *this;
  }
  Bytes& u32(uint32_t value) { return put(value); }
  Bytes& u64(uint64_t value) { return put(value); }
  Bytes& raw(const std::string& text) {
    text_ += text;
    return *this;
  }
  Bytes& string(const std::string& text) { return u64(text.size()).raw(text); }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

struct Entry {
  std::string key;
  uint32_t type;
  std::string value;
};

struct Tensor {
  std::string name;
  std::vector<uint64_t> shape;
  uint32_t type;
  uint64_t offset;
};

// A header with the parts that a case wants to bend.
struct Header {
  std::string magic = "GGUF";
  uint32_t version = 3;
  uint64_t extra_tensors = 0;  // claimed, not there
  uint64_t extra_entries = 0;
  std::vector<Entry> entries;
  std::vector<Tensor> tensors;
  uint64_t data_bytes = 0;

  std::string build() const {
    Bytes out;
    out.raw(magic).u32(version).u64(tensors.size() + extra_tensors).u64(entries.size() + extra_entries);
    for (const Entry& entry : entries) out.string(entry.key).u32(entry.type).raw(entry.value);
    for (const Tensor& tensor : tensors) {
      out.string(tensor.name).u32(static_cast<uint32_t>(tensor.shape.size()));
      for (const uint64_t n : tensor.shape) out.u64(n);
      out.u32(tensor.type).u64(tensor.offset);
    }
    std::string text = out.text();
    if (!tensors.empty()) text.resize((text.size() + 31) / 32 * 32 + data_bytes);
    return text;
  }
};

GgufFile parse(const std::string& text) {
  return GgufFile::parse(reinterpret_cast<const uint8_t*>(text.data()), text.size(), text.size(), "x.gguf");
}

std::string refusal(const std::function<void()>& body, int32_t status = SBR_ERR_FORMAT) {
  try {
    body();
  } catch (const sbr::Error& error) {
    return error.status() == status ? error.what() : "status " + std::to_string(error.status());
  }
  return "accepted";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

void expect_refused(const std::string& header, const std::string& part, int line) {
  const std::string message = refusal([&] { parse(header); });
  const bool named = message.rfind("x.gguf: ", 0) == 0;
  if (!sbr_test::expect(named && contains(message, part), part.c_str(), __FILE__, line)) {
    std::fprintf(stderr, "  got: %s\n", message.c_str());
  }
}

#define REFUSED(header, part) expect_refused((header), (part), __LINE__)

Header with_entry(const std::string& key, uint32_t type, const std::string& value) {
  Header header;
  header.entries.push_back({key, type, value});
  return header;
}

Header with_tensor(const Tensor& tensor, uint64_t data_bytes) {
  Header header;
  header.tensors.push_back(tensor);
  header.data_bytes = data_bytes;
  return header;
}

void test_preamble() {
  REFUSED("", "the file is empty");
  REFUSED("GGU", "does not begin with \"GGUF\"");
  REFUSED("GGML and more", "does not begin with \"GGUF\"");
  REFUSED(std::string("GGUF\3\0", 6), "the file ends inside the version");
  Header header;
  header.version = 1;
  REFUSED(header.build(), "version 1, which is not supported");
  header.version = 0x03000000;
  REFUSED(header.build(), "big-endian");
  header.version = 4;
  REFUSED(header.build(), "version 4, supported are 2 and 3");
  header.version = 0;
  REFUSED(header.build(), "version 0, supported");
  header.version = 2;
  EXPECT(parse(header.build()).version() == 2);
  EXPECT(parse(header.build()).tensors().empty());
  REFUSED(header.build().substr(0, 15), "the file ends inside the number of tensors");
  header.extra_tensors = uint64_t{1} << 60;
  REFUSED(header.build(), "claims 1152921504606846976 tensors, more than its 24 bytes can hold");
  header.extra_tensors = 0;
  header.extra_entries = UINT64_MAX;
  REFUSED(header.build(), "claims 18446744073709551615 metadata entries");
}

void test_metadata() {
  const std::string u32_7 = Bytes().u32(7).text();
  REFUSED(with_entry("", sbr::kGgufU32, u32_7).build(), "metadata entry 0 has an empty key");
  REFUSED(with_entry(std::string(65536, 'k'), sbr::kGgufU32, u32_7).build(), "a key of 65536 bytes");
  REFUSED(with_entry("a.key", 13, u32_7).build(), "the key 'a.key' has the type 13");
  REFUSED(with_entry("a.key", sbr::kGgufBool, std::string(1, '\2')).build(), "a bool of value 2");
  REFUSED(with_entry("a.key", sbr::kGgufString, Bytes().u64(UINT64_MAX).text()).build(),
          "ends inside the key 'a.key': 18446744073709551615 bytes are needed");
  Header twice = with_entry("a.key", sbr::kGgufU32, u32_7);
  twice.entries.push_back(twice.entries[0]);
  REFUSED(twice.build(), "the key 'a.key' appears twice");
  // Whatever a key is made of, the message stays printable.
  REFUSED(with_entry("\x01\xff\n", 99, "").build(),
          "the key '?"
          "?"
          "?'");

  for (const uint32_t item : {sbr::kGgufU8, sbr::kGgufU64, sbr::kGgufString, sbr::kGgufArray, sbr::kGgufBool}) {
    const std::string value = Bytes().u32(item).u64(uint64_t{1} << 60).raw("12345678").text();
    REFUSED(with_entry("list", sbr::kGgufArray, value).build(), "claims 1152921504606846976 array items");
  }
  REFUSED(with_entry("list", sbr::kGgufArray, Bytes().u32(77).u64(0).text()).build(), "items of type 77");
  Bytes nested;
  for (int depth = 0; depth < 6; ++depth) nested.u32(sbr::kGgufArray).u64(1);
  nested.u32(sbr::kGgufU8).u64(0);
  REFUSED(with_entry("list", sbr::kGgufArray, nested.text()).build(), "nests arrays more than 4 deep");

  for (const uint32_t alignment : {0u, 1u, 4u, 24u, 33u, 1u << 21, 0x80000000u}) {
    REFUSED(with_entry("general.alignment", sbr::kGgufU32, Bytes().u32(alignment).text()).build(),
            "the key 'general.alignment' is " + std::to_string(alignment) + ", expected a power of two");
  }
  REFUSED(with_entry("general.alignment", sbr::kGgufU64, Bytes().u64(32).text()).build(), "of type uint64, expected");
  EXPECT(parse(with_entry("general.alignment", sbr::kGgufU32, Bytes().u32(64).text()).build()).alignment() == 64);
}

void test_tensors() {
  REFUSED(with_tensor({"t", {}, SBR_TYPE_F32, 0}, 64).build(), "tensor 't' has 0 dimensions");
  REFUSED(with_tensor({"t", {1, 1, 1, 1, 1}, SBR_TYPE_F32, 0}, 64).build(), "tensor 't' has 5 dimensions");
  REFUSED(with_tensor({"t", {4, 0}, SBR_TYPE_F32, 0}, 64).build(), "tensor 't' has a dimension of 0");
  REFUSED(with_tensor({"", {4}, SBR_TYPE_F32, 0}, 64).build(), "tensor 0 has an empty name");
  REFUSED(with_tensor({std::string(65, 'n'), {4}, SBR_TYPE_F32, 0}, 64).build(), "name of more than 64 bytes");
  REFUSED(with_tensor({"t", {UINT64_MAX / 2, 4}, SBR_TYPE_F32, 0}, 64).build(), "more than 2^64 elements");
  REFUSED(with_tensor({"t", {uint64_t{1} << 62}, SBR_TYPE_F32, 0}, 64).build(), "more than 2^64 bytes");
  REFUSED(with_tensor({"t", {33, 2}, SBR_TYPE_Q4_0, 0}, 64).build(), "rows of 33 elements, expected a multiple of 32");
  REFUSED(with_tensor({"t", {128}, SBR_TYPE_Q4_K, 0}, 64).build(), "expected a multiple of 256");
  REFUSED(with_tensor({"t", {4}, SBR_TYPE_F32, 8}, 64).build(),
          "the offset 8, expected a multiple of the alignment 32");
  REFUSED(with_tensor({"t", {16}, SBR_TYPE_F32, 0}, 63).build(), "64 bytes at offset 0 of the data, of which the file");
  REFUSED(with_tensor({"t", {8}, SBR_TYPE_F32, UINT64_MAX - 31}, 64).build(), "is it complete?");
  const std::string unpadded = with_tensor({"t", {1}, 99, 0}, 0).build().substr(0, 61);
  REFUSED(unpadded, "tensor 't' is missing: the file ends before its data");
  REFUSED(with_tensor({"t", {1}, 99, 96}, 64).build(), "is it complete?");

  Header two = with_tensor({"a", {16}, SBR_TYPE_F32, 0}, 96);
  two.tensors.push_back({"a", {8}, SBR_TYPE_F32, 64});
  REFUSED(two.build(), "tensor 'a' appears twice");
  two.tensors[1] = {"b", {8}, SBR_TYPE_F32, 32};
  REFUSED(two.build(), "tensor 'b' overlaps tensor 'a'");
  two.tensors[1].offset = 64;
  const GgufFile file = parse(two.build());
  EXPECT(file.tensors().size() == 2);
  EXPECT(file.tensor("a").bytes == 64 && file.tensor("a").ne[0] == 16 && file.tensor("a").ne[1] == 1);
  EXPECT(file.tensor("b").offset == file.data_offset() + 64);
  EXPECT(file.find_tensor("c") == nullptr);
  EXPECT(contains(refusal([&] { (void)file.tensor("c"); }), "x.gguf: tensor 'c' is missing"));

  const GgufFile unknown = parse(with_tensor({"t", {7}, 99, 0}, 0).build());
  EXPECT(unknown.tensor("t").bytes == 0);
  EXPECT(contains(unknown.describe(1), "\"type\":\"type 99\""));

  // Only the header is at hand, the data is elsewhere: what a caller that reads over a network has.
  const std::string header = with_tensor({"t", {16}, SBR_TYPE_F32, 0}, 0).build();
  const auto* bytes = reinterpret_cast<const uint8_t*>(header.data());
  EXPECT(GgufFile::parse(bytes, header.size(), header.size() + 64, "x.gguf").tensors().size() == 1);
}

void test_truncation() {
  Header header = with_tensor({"tensor", {16}, SBR_TYPE_F32, 0}, 64);
  header.entries.push_back({"text", sbr::kGgufString, Bytes().string("some words").text()});
  header.entries.push_back({"list", sbr::kGgufArray, Bytes().u32(sbr::kGgufString).u64(1).string("item").text()});
  const std::string whole = header.build();
  EXPECT(parse(whole).tensors().size() == 1);
  for (size_t n = 0; n < whole.size(); ++n) REFUSED(whole.substr(0, n), "");
}

void test_values() {
  Header header;
  header.entries = {{"u8", sbr::kGgufU8, Bytes().put<uint8_t>(200).text()},
                    {"i8", sbr::kGgufI8, Bytes().put<int8_t>(-3).text()},
                    {"u16", sbr::kGgufU16, Bytes().put<uint16_t>(60000).text()},
                    {"i16", sbr::kGgufI16, Bytes().put<int16_t>(300).text()},
                    {"u32", sbr::kGgufU32, Bytes().u32(4000000000u).text()},
                    {"i32", sbr::kGgufI32, Bytes().put<int32_t>(-1).text()},
                    {"u64", sbr::kGgufU64, Bytes().u64(UINT64_MAX).text()},
                    {"i64", sbr::kGgufI64, Bytes().put<int64_t>(INT64_MAX).text()},
                    {"f32", sbr::kGgufF32, Bytes().put(1e-6F).text()},
                    {"f64", sbr::kGgufF64, Bytes().put(32.0).text()},
                    {"huge", sbr::kGgufF64, Bytes().put(1e300).text()},
                    {"half", sbr::kGgufF32, Bytes().put(0.5F).text()},
                    {"nan", sbr::kGgufF32, Bytes().u32(0x7fc00000).text()},
                    {"yes", sbr::kGgufBool, std::string(1, '\1')},
                    {"text", sbr::kGgufString, Bytes().string(std::string("a\0\"\\\x7f\xff\xc3\xa9", 8)).text()},
                    {"none", sbr::kGgufString, Bytes().string("").text()}};
  Bytes nested;
  nested.u32(sbr::kGgufArray).u64(2);
  nested.u32(sbr::kGgufU8).u64(3).raw("\1\2\3").u32(sbr::kGgufString).u64(1).string("s");
  header.entries.push_back({"nested", sbr::kGgufArray, nested.text()});

  // The bytes that were parsed may go away, and so may the original of a copy.
  GgufFile file = parse("GGUF\2" + std::string(19, '\0'));
  {
    std::string text = header.build();
    const GgufFile original = parse(text);
    text.assign(text.size(), '\xAA');
    file = original;
  }
  EXPECT(file.get_uint("u8") == 200 && file.get_uint("u16") == 60000 && file.get_uint("i16") == 300);
  EXPECT(file.get_uint("u32") == 4000000000u && file.get_uint("u64") == UINT64_MAX);
  EXPECT(file.get_uint("i64") == INT64_MAX && file.get_uint("f64") == 32);
  EXPECT(file.get_uint("absent", 5) == 5 && file.get_float("absent", 0.25) == 0.25);
  EXPECT(file.get_string("absent", "x") == "x" && !file.has("absent") && file.has("u8"));
  EXPECT(file.get_float("f32") == static_cast<double>(1e-6F) && file.get_float("i8") == -3);
  EXPECT(file.get_string("none").empty());
  for (const char* key : {"i8", "i32", "half", "huge"}) {
    EXPECT(contains(refusal([&] { file.get_uint(key); }), std::string("the key '") + key + "' is "));
  }
  EXPECT(contains(refusal([&] { file.get_float("nan"); }), "the key 'nan' is not a finite number"));
  EXPECT(contains(refusal([&] { file.get_uint("text"); }), "is of type string, expected a number"));
  EXPECT(contains(refusal([&] { file.get_uint("nested"); }), "is of type array, expected a number"));
  EXPECT(contains(refusal([&] { file.get_string("u8"); }), "is of type uint8, expected a string"));
  EXPECT(contains(refusal([&] { file.get_uint("absent"); }), "x.gguf: the key 'absent' is missing"));

  const std::string json = file.describe(2);
  EXPECT(contains(json, R"({"key":"u64","type":"uint64","value":18446744073709551615})"));
  EXPECT(contains(json, R"({"key":"f32","type":"float32","value":1e-06})"));
  EXPECT(contains(json, R"({"key":"nan","type":"float32","value":null})"));
  EXPECT(contains(json, R"({"key":"yes","type":"bool","value":true})"));
  EXPECT(contains(json, "\"value\":\"a\\u0000\\\"\\\\\\u007f\xEF\xBF\xBD\xC3\xA9\""));
  EXPECT(contains(json, R"("item_type":"array","length":2,"value":[[1,2],["s"]])"));
  EXPECT(contains(file.describe(0), R"("length":2,"value":[])"));
}

void test_utf8() {
  const std::string replaced = "\xEF\xBF\xBD";
  EXPECT(sbr::to_utf8("plain \xE2\x82\xAC \xF0\x9F\x98\x80") == "plain \xE2\x82\xAC \xF0\x9F\x98\x80");
  EXPECT(sbr::to_utf8("\xC0\x80") == replaced + replaced);                                // overlong
  EXPECT(sbr::to_utf8("\xED\xA0\x80") == replaced + replaced + replaced);                 // surrogate
  EXPECT(sbr::to_utf8("\xF4\x90\x80\x80") == replaced + replaced + replaced + replaced);  // > U+10FFFF
  EXPECT(sbr::to_utf8("a\xE2\x82") == "a" + replaced + replaced);                         // cut off
}

void test_files() {
  const auto io_refusal = [](const char* path) { return refusal([&] { GgufFile::open(path); }, SBR_ERR_IO); };
  EXPECT(io_refusal("/no/such.gguf") == "/no/such.gguf: cannot be opened: No such file or directory");
  EXPECT(io_refusal("/") == "/: is not a regular file");
  EXPECT(io_refusal("/dev/null") == "/dev/null: is not a regular file");

  const std::string path = "test_gguf.tmp";
  const auto exists = [](const std::string& p) { return refusal([&] { sbr::MappedFile::open(p); }) == "accepted"; };
  {
    const sbr::OutputFile abandoned(path, 100);
  }
  EXPECT(!exists(path) && !exists(path + ".part"));
  {
    sbr::OutputFile out(path, 10);
    out.write_at(4, "abc", 3);
    EXPECT(exists(path + ".part") && !exists(path));
    out.commit();
  }
  {
    const sbr::MappedFile file = sbr::MappedFile::open(path);
    EXPECT(file.size() == 10 && std::memcmp(file.data(), "\0\0\0\0abc\0\0\0", 10) == 0);
    file.read_sequentially();
    file.release(9, UINT64_MAX);
    EXPECT(file.data()[4] == 'a');
  }
  const std::string full = refusal([&] { const sbr::OutputFile out(path, uint64_t{1} << 62); }, SBR_ERR_IO);
  EXPECT(contains(full, "test_gguf.tmp: needs 4611686018427387904 bytes, but its file system has only "));
  {
    sbr::OutputFile(path, 0).commit();
  }
  EXPECT(sbr::MappedFile::open(path).data() == nullptr);
  EXPECT(contains(refusal([&] { GgufFile::open(path); }), "test_gguf.tmp: the file is empty"));
  std::remove(path.c_str());
}

}  // namespace

int main() {
  test_preamble();
  test_metadata();
  test_tensors();
  test_truncation();
  test_values();
  test_utf8();
  test_files();
  return sbr_test::finish("test_gguf");
}
