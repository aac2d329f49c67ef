// A parsed header as JSON.
#include "base/json.h"
#include "gguf/gguf.h"
#include "gguf/reader.h"

namespace sbr {
namespace {

// The header has been checked when it was parsed; the reader's checks cannot fail any more.
const char kParsed[] = "a parsed value";

void write_value(JsonWriter& json, GgufReader& reader, uint32_t type, uint64_t max_array_items);

// Writes at most max_array_items items but walks over all, so that the reader ends behind the array.
void write_items(JsonWriter& json, GgufReader& reader, uint32_t item_type, uint64_t count, uint64_t max_array_items) {
  json.begin_array();
  const uint64_t shown = count < max_array_items ? count : max_array_items;
  for (uint64_t i = 0; i < shown; ++i) write_value(json, reader, item_type, max_array_items);
  for (uint64_t i = shown; i < count; ++i) reader.skip_value(item_type, kParsed);
  json.end_array();
}

void write_value(JsonWriter& json, GgufReader& reader, uint32_t type, uint64_t max_array_items) {
  switch (type) {
    case kGgufU8:
      json.uint(reader.read<uint8_t>(kParsed));
      break;
    case kGgufI8:
      json.sint(reader.read<int8_t>(kParsed));
      break;
    case kGgufU16:
      json.uint(reader.read<uint16_t>(kParsed));
      break;
    case kGgufI16:
      json.sint(reader.read<int16_t>(kParsed));
      break;
    case kGgufU32:
      json.uint(reader.read<uint32_t>(kParsed));
      break;
    case kGgufI32:
      json.sint(reader.read<int32_t>(kParsed));
      break;
    case kGgufU64:
      json.uint(reader.read<uint64_t>(kParsed));
      break;
    case kGgufI64:
      json.sint(reader.read<int64_t>(kParsed));
      break;
    case kGgufF32:
      json.f32(reader.read<float>(kParsed));
      break;
    case kGgufF64:
      json.f64(reader.read<double>(kParsed));
      break;
    case kGgufBool:
      json.boolean(reader.read<uint8_t>(kParsed) != 0);
      break;
    case kGgufString:
      json.string(reader.read_string(kParsed));
      break;
    case kGgufArray: {
      const auto item_type = reader.read<uint32_t>(kParsed);
      const auto count = reader.read<uint64_t>(kParsed);
      write_items(json, reader, item_type, count, max_array_items);
      break;
    }
    default:
      json.null();
      break;
  }
}

void write_entry(JsonWriter& json, GgufReader& reader, std::string_view key, uint32_t type, uint64_t max_array_items) {
  json.begin_object().key("key").string(key).key("type").string(gguf_value_name(type));
  if (type == kGgufArray) {
    const auto item_type = reader.read<uint32_t>(kParsed);
    const auto count = reader.read<uint64_t>(kParsed);
    json.key("item_type").string(gguf_value_name(item_type)).key("length").uint(count).key("value");
    write_items(json, reader, item_type, count, max_array_items);
  } else {
    json.key("value");
    write_value(json, reader, type, max_array_items);
  }
  json.end_object();
}

void write_tensor(JsonWriter& json, const GgufTensor& tensor) {
  const char* type = type_name(tensor.type);
  json.begin_object().key("name").string(tensor.name).key("type");
  json.string(type != nullptr ? std::string(type) : "type " + std::to_string(tensor.type));
  json.key("shape").begin_array();
  for (uint32_t d = 0; d < tensor.n_dims; ++d) json.uint(tensor.ne[d]);
  json.end_array().key("offset").uint(tensor.offset).key("bytes").uint(tensor.bytes).end_object();
}

}  // namespace

std::string GgufFile::describe(uint64_t max_array_items) const {
  JsonWriter json;
  json.begin_object().key("version").uint(version_).key("alignment").uint(alignment_);
  json.key("file_bytes").uint(file_bytes_).key("data_offset").uint(data_offset_);
  json.key("metadata").begin_array();
  for (const Entry& entry : entries_) {
    GgufReader reader(header_->data(), header_->size(), header_->size(), name_);
    reader.skip(entry.value, kParsed);
    write_entry(json, reader, key_of(entry), entry.type, max_array_items);
  }
  json.end_array().key("tensors").begin_array();
  for (const GgufTensor& tensor : tensors_) write_tensor(json, tensor);
  json.end_array().end_object();
  return json.take();
}

}  // namespace sbr
