// The generator behind synthetic weights: a hash of (key, counter), so that any block can be made on its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace sbr {

// A bijection of 64-bit numbers in which every input bit flips every output bit with probability about 1/2
// (the finaliser known from MurmurHash3, with Stafford's constants).
inline uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// The counter-th number of the stream `key`. The step is 2^64 / golden ratio: neighbours differ in many bits.
inline uint64_t random_u64(uint64_t key, uint64_t counter) { return mix64(key + counter * 0x9E3779B97F4A7C15u); }

// The stream of one tensor. Depends on its name and not on its place, so twins with and without a predictor or with
// another layout agree in all other tensors.
inline uint64_t stream_key(uint64_t seed, std::string_view name) {
  uint64_t key = mix64(seed + 1);
  for (const char c : name) key = mix64(key ^ static_cast<unsigned char>(c));
  return key;
}

// Integers that weights are multiples of. The extremes of the formats (-8 of Q4_0, -127 and 127 of Q8_0) are left to
// the bias channel or occur like any other; the mean is exactly 0.
struct IntegerRange {
  int low;             // the most negative integer of the format that the bias channel uses
  int high;            // the most positive one
  double mean_square;  // of the random integers
};

// -7..7: 15 values from a byte, 17 bytes each and 18 for the middle one (0).
constexpr IntegerRange kNibbleRange = {-8, 7, 280.0 * 17 / 256};
// -127..127, one byte each and two for 0.
constexpr IntegerRange kByteRange = {-127, 127, 1381760.0 / 256};

// 32 integers of block `index`.
inline void random_bytes(uint64_t key, uint64_t index, uint8_t* out) {
  for (uint64_t word = 0; word < 4; ++word) {
    const uint64_t bits = random_u64(key, index * 4 + word);
    std::memcpy(out + 8 * word, &bits, 8);
  }
}

inline void random_nibbles(uint64_t key, uint64_t index, int8_t* out) {
  uint8_t bytes[32];
  random_bytes(key, index, bytes);
  for (size_t i = 0; i < 32; ++i) out[i] = static_cast<int8_t>((((30u * bytes[i] + 15u) & 0xFFFFu) >> 9) - 7);
}

inline void random_int8(uint64_t key, uint64_t index, int8_t* out) {
  uint8_t bytes[32];
  random_bytes(key, index, bytes);
  for (size_t i = 0; i < 32; ++i) {
    const int centred = static_cast<int>(bytes[i]) - 128;
    out[i] = static_cast<int8_t>(centred == -128 ? 0 : centred);
  }
}

}  // namespace sbr
