// From recipes to bytes. This is the hot path: integers of a whole row first, then scales, each loop simple enough for
// the compiler to vectorise.
#include <cstring>
#include <vector>

#include "gguf/gguf.h"
#include "quant/blocks.h"
#include "synth/plan.h"
#include "synth/random.h"

namespace sbr {
namespace {

const size_t kScales = 1024;
const uint64_t kScaleStream = 0x5CA1E5;  // separates the scales' stream from the integers'

// The scales of a part: (1536 + i) / 2048 times its scale, i in 0..1023, as the halves that quantised blocks store.
// The middle one is the part's scale itself.
class Scales {
 public:
  explicit Scales(const SynthPart& part) : part_(part), key_(mix64(part.key ^ kScaleStream)) {
    for (size_t i = 0; i < kScales; ++i) {
      halves_[i] = f32_to_f16(static_cast<float>(part.scale * (1536.0 + static_cast<double>(i)) / 2048.0));
    }
  }

  uint16_t half(uint64_t row, uint64_t block, uint64_t blocks_per_row) const {
    if (part_.flat_block0 && block == 0) return halves_[kScales / 2];
    const uint64_t counter = part_.rows_per_scale > 0 ? row / part_.rows_per_scale : row * blocks_per_row + block;
    return halves_[random_u64(key_, counter) >> 54];
  }

 private:
  const SynthPart& part_;
  const uint64_t key_;
  uint16_t halves_[kScales];
};

void random_row(const SynthPart& part, uint64_t row, uint64_t cols, int8_t* out) {
  const uint64_t blocks = cols / kBlock;
  const bool nibbles = part.type == SBR_TYPE_Q4_0;
  for (uint64_t b = 0; b < blocks; ++b) {
    if (nibbles) {
      random_nibbles(part.key, row * blocks + b, out + b * kBlock);
    } else {
      random_int8(part.key, row * blocks + b, out + b * kBlock);
    }
  }
  if (part.only_column0 || (part.zero_row0 && row == 0)) std::memset(out, 0, cols);
  if (part.zero_row0 && row == 0) return;
  const IntegerRange& range = nibbles ? kNibbleRange : kByteRange;
  switch (part.column0) {
    case SynthPart::Column0::kRandom:
      break;
    case SynthPart::Column0::kZero:
      out[0] = 0;
      break;
    case SynthPart::Column0::kLow:
      out[0] = static_cast<int8_t>(range.low);
      break;
    case SynthPart::Column0::kHigh:
      out[0] = static_cast<int8_t>(range.high);
      break;
  }
}

void write_block(uint32_t type, const int8_t* q, uint16_t scale, uint8_t* out) {
  if (type == SBR_TYPE_Q4_0) {
    std::memcpy(out, &scale, 2);
    for (size_t i = 0; i < 16; ++i) out[2 + i] = static_cast<uint8_t>((q[i] + 8) | ((q[i + 16] + 8) << 4));
  } else if (type == SBR_TYPE_Q8_0) {
    std::memcpy(out, &scale, 2);
    std::memcpy(out + 2, q, kBlock);
  } else {
    const float d = f16_to_f32(scale);
    float values[kBlock];
    for (size_t i = 0; i < kBlock; ++i) values[i] = static_cast<float>(q[i]) * d;
    if (type == SBR_TYPE_F32) {
      std::memcpy(out, values, sizeof values);
    } else {
      uint16_t halves[kBlock];
      for (size_t i = 0; i < kBlock; ++i) halves[i] = f32_to_f16(values[i]);
      std::memcpy(out, halves, sizeof halves);
    }
  }
}

void write_row(const SynthPart& part, const Scales& scales, uint64_t row, const int8_t* q, uint8_t* out) {
  const uint64_t blocks = part.cols / kBlock;
  const uint64_t block_bytes = type_row_bytes(part.type, kBlock);
  for (uint64_t b = 0; b < blocks; ++b) {
    write_block(part.type, q + b * kBlock, scales.half(row, b, blocks), out + b * block_bytes);
  }
  if (!part.first_column.empty()) std::memcpy(out, &part.first_column[row], sizeof(float));
}

// out[c][r] = in[r][c], in tiles that stay in the first-level cache.
void transpose(const int8_t* in, uint64_t rows, uint64_t cols, int8_t* out) {
  const uint64_t tile = 32;  // divides both
  for (uint64_t r = 0; r < rows; r += tile) {
    for (uint64_t c = 0; c < cols; c += tile) {
      for (uint64_t j = 0; j < tile; ++j) {
        for (uint64_t i = 0; i < tile; ++i) out[(c + j) * rows + r + i] = in[(r + i) * cols + c + j];
      }
    }
  }
}

}  // namespace

void fill_synth_rows(const SynthPart& part, uint64_t begin, uint64_t end, uint8_t* out) {
  if (part.kind == SynthPart::Kind::kLiteral) {
    std::memcpy(out, part.values.data(), part.values.size() * sizeof(float));
    return;
  }
  const Scales scales(part);
  const uint64_t row_bytes = type_row_bytes(part.type, part.cols);
  if (part.kind == SynthPart::Kind::kMatrix) {
    std::vector<int8_t> q(part.cols);
    for (uint64_t row = begin; row < end; ++row, out += row_bytes) {
      random_row(part, row, part.cols, q.data());
      write_row(part, scales, row, q.data(), out);
    }
    return;
  }
  const uint64_t d = part.rows_per_scale;
  const uint64_t f = part.cols;
  std::vector<int8_t> neurons(f * d);
  std::vector<int8_t> outputs(d * f);
  for (uint64_t row = begin; row < end; row += d) {
    const uint64_t expert = row / d;
    for (uint64_t j = 0; j < f; ++j) random_row(part, expert * f + j, d, neurons.data() + j * d);
    transpose(neurons.data(), f, d, outputs.data());
    for (uint64_t i = 0; i < d; ++i, out += row_bytes) {
      write_row(part, scales, row + i, outputs.data() + i * f, out);
    }
  }
}

}  // namespace sbr
