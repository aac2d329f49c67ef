#include "base/checksum.h"

#include <algorithm>
#include <cstring>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "words are read as they lie in memory, which the definition says is little-endian"
#endif

namespace sbr {
namespace {

// Odd, so that multiplying is a bijection of 64-bit words.
constexpr uint64_t kFactor = 0x9E3779B97F4A7C15u;

// One to one in `state` and in `word`: whatever differs in one word differs in the result. The rotation brings the
// upper bits, which a product can only move out, back to where the next product spreads them.
inline uint64_t mix(uint64_t state, uint64_t word) {
  const uint64_t x = state ^ word;
  return (x << 29 | x >> 35) * kFactor;
}

// Independent lanes: the latency of a multiplication is hidden by the other seven.
void mix_blocks(uint64_t* lanes, const uint8_t* bytes, size_t n_blocks) {
  uint64_t l[Checksum::kLanes];
  std::copy_n(lanes, Checksum::kLanes, l);
  for (size_t b = 0; b < n_blocks; ++b, bytes += Checksum::kBlock) {
    for (size_t i = 0; i < Checksum::kLanes; ++i) {
      uint64_t word;
      std::memcpy(&word, bytes + i * sizeof word, sizeof word);
      l[i] = mix(l[i], word);
    }
  }
  std::copy_n(l, Checksum::kLanes, lanes);
}

}  // namespace

Checksum::Checksum() {
  for (size_t i = 0; i < kLanes; ++i) lanes_[i] = (i + 1) * kFactor;
}

void Checksum::add(const void* data, size_t bytes) {
  const auto* at = static_cast<const uint8_t*>(data);
  const size_t waiting = bytes_ % kBlock;
  bytes_ += bytes;
  if (waiting != 0) {
    const size_t taken = std::min(bytes, kBlock - waiting);
    std::memcpy(rest_ + waiting, at, taken);
    if (waiting + taken < kBlock) return;
    mix_blocks(lanes_, rest_, 1);
    at += taken;
    bytes -= taken;
  }
  mix_blocks(lanes_, at, bytes / kBlock);
  if (bytes % kBlock != 0) std::memcpy(rest_, at + bytes / kBlock * kBlock, bytes % kBlock);
}

uint64_t Checksum::value() const {
  uint64_t lanes[kLanes];
  std::copy_n(lanes_, kLanes, lanes);
  if (const size_t waiting = bytes_ % kBlock; waiting != 0) {
    uint8_t last[kBlock] = {};
    std::memcpy(last, rest_, waiting);
    mix_blocks(lanes, last, 1);
  }
  uint64_t sum = bytes_;
  for (const uint64_t lane : lanes) sum = mix(sum, lane);
  sum ^= sum >> 32;
  sum *= kFactor;
  return sum ^ sum >> 29;
}

}  // namespace sbr
