// What a synthetic file consists of: every tensor with its shape, place and the recipe of its weights.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "synth/spec.h"

namespace sbr {

// Alignment of tensors in the file: the format's default, which every reader supports.
constexpr uint64_t kSynthAlignment = 32;

// A run of equally long rows: the whole of a tensor, except for the predictor, which is three runs.
struct SynthPart {
  enum class Kind {
    kMatrix,        // random integers times scales
    kDownStandard,  // the transpose, expert by expert, of a kMatrix of the same key
    kLiteral        // values
  };
  enum class Column0 { kRandom, kZero, kLow, kHigh };  // the bias channel: random, or an extreme integer everywhere

  Kind kind = Kind::kMatrix;
  uint32_t type = 0;  // SBR_TYPE_*
  uint64_t rows = 0;
  uint64_t cols = 0;  // a multiple of 32, except for kLiteral
  uint64_t key = 0;   // random stream
  double scale = 0;   // of the integers; blocks vary around it by +-25 %
  Column0 column0 = Column0::kRandom;
  bool zero_row0 = false;           // the row that would write the bias channel
  bool only_column0 = false;        // all other columns are 0
  bool flat_block0 = false;         // the first block of each row has exactly `scale`
  uint64_t rows_per_scale = 0;      // > 0: one scale for so many rows (experts) instead of one per block
  std::vector<float> first_column;  // F32 only: [rows], replaces column 0
  std::vector<float> values;        // kLiteral: [cols]
};

struct SynthTensor {
  std::string name;
  uint32_t type = 0;
  std::vector<uint64_t> shape;  // ne0 first
  std::vector<SynthPart> parts;
  uint64_t offset = 0;  // in the data section
  uint64_t bytes = 0;
};

struct SynthPlan {
  std::vector<SynthTensor> tensors;  // in file order
  uint64_t data_bytes = 0;           // padded to the alignment
};

// Designs the weights.
SynthPlan make_synth_plan(const SynthSpec& spec);
SynthPlan make_gemma3n_plan(const SynthSpec& spec);  // the part of it for that architecture

// Everything before the data section, padding included.
std::vector<uint8_t> make_synth_header(const SynthSpec& spec, const SynthPlan& plan);

// Rows [begin, end) of a part as they lie in the file; kDownStandard: whole experts.
void fill_synth_rows(const SynthPart& part, uint64_t begin, uint64_t end, uint8_t* out);

}  // namespace sbr
