// A bundle: weights that do not stay in memory, in one file and in the exact layout that the kernels read. A unit is
// what one read brings: an expert (gate, up and down one after another), or, of a model without experts, a layer's
// matrices.
//
// The file format is described in docs/bundles.md.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "experts/bundle_format.h"
#include "model/config.h"
#include "model/weights.h"
#include "sbr/sbr.h"

namespace sbr {

class Bundle {
 public:
  // Reads and checks the header (all of it: sizes, offsets, its own checksum). Errors: IO; FORMAT (not a bundle,
  // truncated, a header that contradicts itself); UNSUPPORTED (another version). Each says what differs from what was
  // expected.
  static Bundle open(const std::string& path);

  // Refuses (FORMAT, naming what differs: shape, layout, digest) a bundle that was not made from this model for these
  // gathers. `weights` as bind_weights() gave them, before anything is repacked. `digest` may be empty: not compared.
  void require(const Config& config, const Weights& weights, uint32_t gathers, const std::string& digest) const;

  const std::string& path() const { return path_; }
  sbr_bundle_info info() const { return header_.info; }
  uint32_t kind() const { return header_.info.kind; }  // SBR_BUNDLE_*
  // Layer-major: unit = layer * units_per_layer + expert.
  uint32_t n_units() const { return static_cast<uint32_t>(header_.checksums.size()); }
  uint32_t units_per_layer() const { return header_.info.units_per_layer; }  // experts, or 1
  uint64_t unit_bytes() const { return header_.info.unit_bytes; }  // stride in file and memory, a multiple of 4096
  uint64_t offset(uint32_t unit) const { return header_.header_bytes + unit * header_.info.unit_bytes; }  // in the file
  const std::vector<BundlePart>& parts(uint32_t layer) const { return header_.parts[layer]; }
  uint64_t checksum(uint32_t unit) const { return header_.checksums[unit]; }
  // Whether a unit's bytes as read (unit_bytes of them) are those that were written.
  bool intact(uint32_t unit, const uint8_t* bytes) const;
  // "expert 3 of layer 5", "layer 5".
  std::string unit_name(uint32_t unit) const;

 private:
  Bundle(std::string path, BundleHeader header) : path_(std::move(path)), header_(std::move(header)) {}

  std::string path_;
  BundleHeader header_;
};

}  // namespace sbr
