// The tools that designs of weights share: matrices of a given deviation, norms, and the layout of the file.
#pragma once

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "gguf/gguf.h"
#include "synth/plan.h"
#include "synth/random.h"

namespace sbr {

// What the scales of blocks vary by: (1536 + i) / 2048 for i in 0..1023 (fill.cpp). Their mean square.
const double kScaleMeanSquare = 1.0 + 1.0 / 48;

class PlanBuilder {
 protected:
  explicit PlanBuilder(const SynthSpec& spec) : spec_(spec), s_(spec.raw), range_(range_of(s_.weight_type)) {}

  static const IntegerRange& range_of(uint32_t type) { return type == SBR_TYPE_Q4_0 ? kNibbleRange : kByteRange; }

  SynthPart matrix(const std::string& name, uint32_t type, uint64_t rows, uint64_t cols,
                   double element_deviation) const {
    SynthPart part;
    part.type = type;
    part.rows = rows;
    part.cols = cols;
    part.key = stream_key(s_.seed, name);
    part.scale = element_deviation / std::sqrt(range_of(type).mean_square * kScaleMeanSquare);
    return part;
  }
  SynthPart matrix(const std::string& name, uint64_t rows, uint64_t cols, double element_deviation) const {
    return matrix(name, s_.weight_type, rows, cols, element_deviation);
  }

  static SynthPart literal(std::vector<float> values) {
    SynthPart part;
    part.kind = SynthPart::Kind::kLiteral;
    part.type = SBR_TYPE_F32;
    part.rows = 1;
    part.cols = values.size();
    part.values = std::move(values);
    return part;
  }

  // Norm weights around `centre`, 0.75 to 1.25 times it.
  std::vector<float> norm_values(const std::string& name, uint64_t n, double centre, bool random_signs = false) const {
    const uint64_t key = stream_key(s_.seed, name);
    std::vector<float> values;
    for (uint64_t i = 0; i < n; ++i) {
      const uint64_t bits = random_u64(key, i);
      const double value = centre * (1536.0 + static_cast<double>(bits >> 54)) / 2048.0;
      values.push_back(static_cast<float>(random_signs && (bits & 1) != 0 ? -value : value));
    }
    return values;
  }

  void add(const std::string& name, std::vector<uint64_t> shape, SynthPart part) {
    std::vector<SynthPart> parts;
    parts.push_back(std::move(part));
    add(name, std::move(shape), std::move(parts));
  }

  void add(const std::string& name, std::vector<uint64_t> shape, std::vector<SynthPart> parts) {
    SynthTensor tensor;
    tensor.name = name;
    tensor.type = parts.front().type;
    tensor.shape = std::move(shape);
    tensor.parts = std::move(parts);
    plan_.tensors.push_back(std::move(tensor));
  }

  void add_matrix(const std::string& name, uint64_t cols, uint64_t rows, double deviation,
                  SynthPart::Column0 column0 = SynthPart::Column0::kRandom) {
    SynthPart part = matrix(name, rows, cols, deviation);
    part.column0 = column0;
    add(name, {cols, rows}, std::move(part));
  }

  // Gives every tensor its place; the plan is complete.
  SynthPlan place() {
    uint64_t offset = 0;
    for (SynthTensor& tensor : plan_.tensors) {
      tensor.offset = offset;
      for (const SynthPart& part : tensor.parts) tensor.bytes += part.rows * type_row_bytes(part.type, part.cols);
      offset += (tensor.bytes + kSynthAlignment - 1) / kSynthAlignment * kSynthAlignment;
    }
    plan_.data_bytes = offset;
    return std::move(plan_);
  }

  const SynthSpec& spec_;
  const sbr_synth_spec& s_;
  const IntegerRange range_;  // of the matrices
  SynthPlan plan_;
};

}  // namespace sbr
