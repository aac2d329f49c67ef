// The one exception of the runtime: thrown anywhere below capi.cpp, caught only there.
#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <utility>

namespace sbr {

class Error : public std::exception {
 public:
  // `status` is one of the SBR_ERR_* numbers; `message` is a full sentence without a final stop. Control characters,
  // which names from untrusted files bring along, become '?': a NUL would end the sentence early.
  Error(int32_t status, std::string message) : status_(status), message_(std::move(message)) {
    for (char& c : message_) {
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
    }
  }
  int32_t status() const { return status_; }
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  int32_t status_;
  std::string message_;
};

}  // namespace sbr
