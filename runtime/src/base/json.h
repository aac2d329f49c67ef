// A small JSON writer: the output is always valid JSON in valid UTF-8, whatever bytes go in.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sbr {

// `text` with every byte that is not part of a well-formed UTF-8 sequence replaced by U+FFFD.
std::string to_utf8(std::string_view text);

class JsonWriter {
 public:
  JsonWriter& begin_object() { return open('{'); }
  JsonWriter& end_object() { return close('}'); }
  JsonWriter& begin_array() { return open('['); }
  JsonWriter& end_array() { return close(']'); }
  JsonWriter& key(std::string_view name);

  JsonWriter& string(std::string_view text);
  JsonWriter& uint(uint64_t value);
  JsonWriter& sint(int64_t value);
  JsonWriter& f32(float value);   // shortest text that reads back as the same float; null when not finite
  JsonWriter& f64(double value);  // likewise for double
  JsonWriter& boolean(bool value);
  JsonWriter& null();

  // The text written so far; call it once, when every object and array is closed.
  std::string take() { return std::move(out_); }

 private:
  JsonWriter& open(char bracket);
  JsonWriter& close(char bracket);
  void separate();
  void quote(std::string_view text);

  std::string out_;
  std::vector<bool> has_items_;  // per open bracket: a comma is due before the next item
  bool after_key_ = false;
};

}  // namespace sbr
