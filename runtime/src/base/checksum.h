// A 64-bit checksum of bytes, made to be as fast as memory: it tells accidents (a flipped bit, a lost or foreign block)
// apart, not forgeries. docs/bundles.md defines it; the same bytes give the same number on every machine.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sbr {

class Checksum {
 public:
  Checksum();
  void add(const void* data, size_t bytes);
  uint64_t value() const;

  static uint64_t of(const void* data, size_t bytes) {
    Checksum sum;
    sum.add(data, bytes);
    return sum.value();
  }

  // Bytes that are mixed at a time: one word into each lane.
  static constexpr size_t kLanes = 8;
  static constexpr size_t kBlock = kLanes * sizeof(uint64_t);

 private:
  uint64_t lanes_[kLanes];
  uint64_t bytes_ = 0;
  uint8_t rest_[kBlock];  // bytes_ % kBlock of them
};

}  // namespace sbr
