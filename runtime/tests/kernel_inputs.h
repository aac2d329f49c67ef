// What the kernels are tested with: guarded inputs, outputs between canaries, blocks of every weight type.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#include "base/det_math.h"
#include "check.h"
#include "kernels/kernels.h"
#include "quant/blocks.h"
#include "quant/reference.h"
#include "sbr/sbr.h"

namespace {

using namespace sbr;

// xorshift64*: the tests' only source of randomness.
struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed * 2654435769u + 1) {}
  uint32_t next() {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return uint32_t((state * 0x2545f4914f6cdd1du) >> 32);
  }
  uint32_t below(uint32_t n) { return uint32_t((uint64_t(next()) * n) >> 32); }
  float unit() { return float(int32_t(next())) * 0x1p-31f; }  // -1..1
};

// An array whose last byte is followed by a page that cannot be read or written.
template <class T>
class Guarded {
 public:
  explicit Guarded(size_t n) : n_(n) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    const size_t bytes = (n * sizeof(T) + page - 1) / page * page;
    mapped_ = bytes + page;
    base_ = static_cast<uint8_t*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + bytes, page, PROT_NONE) != 0) std::abort();
    data_ = reinterpret_cast<T*>(base_ + bytes - n * sizeof(T));
  }
  ~Guarded() { munmap(base_, mapped_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](size_t i) { return data_[i]; }
  size_t size() const { return n_; }

 private:
  size_t n_, mapped_;
  uint8_t* base_;
  T* data_;
};

// An output between canaries; one further row of canaries separates what a strided kernel must not touch.
template <class T>
struct Output {
  static constexpr size_t kPad = 32;
  static constexpr unsigned char kCanary = 0xa5;
  std::vector<T> all;
  size_t n;
  explicit Output(size_t size) : all(size + 2 * kPad), n(size) {
    std::memset(all.data(), kCanary, all.size() * sizeof(T));
  }
  T* data() { return all.data() + kPad; }
  bool canaries_hold() const {
    const auto* bytes = reinterpret_cast<const unsigned char*>(all.data());
    for (size_t i = 0; i < kPad * sizeof(T); ++i) {
      if (bytes[i] != kCanary || bytes[(kPad + n) * sizeof(T) + i] != kCanary) return false;
    }
    return true;
  }
  bool operator==(const Output& other) const {
    return std::memcmp(all.data(), other.all.data(), all.size() * sizeof(T)) == 0;
  }
};

// ---- inputs

enum class Fill { kRandom, kZero, kLargest, kSmallest, kHuge, kTiny, kDenormal };
const Fill kFills[] = {Fill::kRandom, Fill::kZero, Fill::kLargest, Fill::kSmallest,
                       Fill::kHuge,   Fill::kTiny, Fill::kDenormal};

// A block's scale: of magnitudes that the largest finite and denormal halves and floats come up, but no NaN.
float scale_value(Fill fill, Random* random) {
  switch (fill) {
    case Fill::kZero:
      return 0;
    case Fill::kHuge:
      return random->below(2) ? 65504.0f : -65504.0f;
    case Fill::kTiny:
      return 0x1p-14f * random->unit();
    case Fill::kDenormal:
      return 0x1p-24f * float(random->below(3));
    default:
      return random->unit() * 0.1f;
  }
}

uint8_t quant_byte(Fill fill, Random* random) {
  switch (fill) {
    case Fill::kZero:
      return 0;
    case Fill::kLargest:
      return 0x7f;
    case Fill::kSmallest:
      return 0x80;
    case Fill::kHuge:
      return 0xff;
    default:
      return uint8_t(random->next());
  }
}

void write_half(uint8_t* p, float value) {
  const uint16_t half = f32_to_f16(value);
  std::memcpy(p, &half, sizeof half);
}

// A row of random blocks: any bytes are valid quants, only scales must be finite.
void fill_row(uint32_t type, size_t n, Fill fill, Random* random, uint8_t* row) {
  const size_t blocks = n / weight_block_elements(type);
  const size_t bytes = weight_block_bytes(type);
  for (size_t b = 0; b < blocks; ++b) {
    uint8_t* block = row + b * bytes;
    for (size_t i = 0; i < bytes; ++i) block[i] = quant_byte(fill, random);
    switch (type) {
      case SBR_TYPE_F32: {
        const float value = scale_value(fill, random) * (fill == Fill::kHuge       ? 1e28f
                                                         : fill == Fill::kDenormal ? 1e-36f
                                                                                   : 1);
        std::memcpy(block, &value, sizeof value);
        break;
      }
      case SBR_TYPE_F16:
        write_half(block, scale_value(fill, random));
        break;
      case SBR_TYPE_BF16: {
        const uint16_t value = f32_to_bf16(scale_value(fill, random) * (fill == Fill::kDenormal ? 1e-36f : 1));
        std::memcpy(block, &value, sizeof value);
        break;
      }
      case SBR_TYPE_Q4_1:
      case SBR_TYPE_Q4_K:
        write_half(block + 2, scale_value(fill, random));
        [[fallthrough]];
      case SBR_TYPE_Q4_0:
      case SBR_TYPE_Q8_0:
        write_half(block, scale_value(fill, random));
        break;
      case SBR_TYPE_Q6_K:
        write_half(block + offsetof(BlockQ6_K, d), scale_value(fill, random));
        break;
      default:
        std::abort();
    }
  }
}

// Activations of several tokens, quantised by the scalar kernel, plus one whose quants are all of the largest
// magnitude.
struct Inputs {
  size_t n, n_tokens;
  Guarded<float> values;
  Guarded<int8_t> q;
  Guarded<float> d, sum;
  std::vector<Activation> x;

  Inputs(size_t n_, size_t tokens, Fill fill, Random* random)
      : n(n_),
        n_tokens(tokens),
        values(n_ * tokens),
        q(n_ / kBlock * kBlock * tokens),
        d(n_ / kBlock * tokens),
        sum(n_ / kBlock * tokens) {
    for (size_t t = 0; t < tokens; ++t) {
      float* v = values.data() + t * n;
      for (size_t i = 0; i < n; ++i) {
        const float u = random->unit();
        switch (fill) {
          case Fill::kZero:
            v[i] = 0;
            break;
          case Fill::kLargest:
            v[i] = 3;
            break;
          case Fill::kSmallest:
            v[i] = -3;
            break;
          case Fill::kHuge:
            v[i] = u * 1e30f;
            break;
          case Fill::kTiny:
            v[i] = u * 1e-20f;
            break;
          case Fill::kDenormal:
            v[i] = u * 1e-38f;
            break;
          default:
            v[i] = i % 37 == 0 ? u * 20 : u;
            break;
        }
      }
      const size_t blocks = n / kBlock;
      Activation a = {v, q.data() + t * blocks * kBlock, d.data() + t * blocks, sum.data() + t * blocks};
      kernels_for(SBR_ISA_SCALAR)
          ->quantise(v, blocks * kBlock, q.data() + t * blocks * kBlock, d.data() + t * blocks,
                     sum.data() + t * blocks);
      x.push_back(a);
    }
  }
};

struct TypeCase {
  uint32_t type;
  const char* name;
  size_t alignment;  // of rows
};
const TypeCase kTypes[] = {
    {SBR_TYPE_F32, "f32", 4},   {SBR_TYPE_F16, "f16", 2},   {SBR_TYPE_BF16, "bf16", 2}, {SBR_TYPE_Q4_0, "q4_0", 2},
    {SBR_TYPE_Q4_1, "q4_1", 2}, {SBR_TYPE_Q8_0, "q8_0", 2}, {SBR_TYPE_Q4_K, "q4_k", 2}, {SBR_TYPE_Q6_K, "q6_k", 2},
};

bool is_float(uint32_t type) { return weight_block_elements(type) == 1; }

}  // namespace
