// The header of a bundle (docs/bundles.md): what it says, its bytes, and the checks of bytes that may be anything.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/weights.h"
#include "sbr/sbr.h"

namespace sbr {

// One matrix of a unit: `view.data` is null; where it lies is `offset` bytes behind the unit's first.
struct BundlePart {
  Matrix LayerWeights::* member;  // &LayerWeights::gate, ...
  Matrix view;                    // of one unit: an expert's F rows, not the tensor's E * F; type with kInterleaved
  uint64_t offset;
};

// Numbers of the model that the units were taken from, in this order: n_layer, n_embd, n_head, n_head_kv, head_dim,
// n_ff, n_expert, n_vocab, and 1 where down is neuron-major.
constexpr size_t kBundleShape = 9;
extern const char* const kBundleShapeNames[kBundleShape];

struct BundleHeader {
  sbr_bundle_info info = {};  // what callers see
  uint64_t header_bytes = 0;  // where the first unit begins
  std::string architecture;   // at most 31 bytes
  std::array<uint32_t, kBundleShape> shape = {};
  std::vector<std::vector<BundlePart>> parts;  // [n_layer]
  std::vector<uint64_t> checksums;             // [n_units], layer-major

  uint64_t n_units() const { return uint64_t{info.n_layer} * info.units_per_layer; }
};

// Units begin at multiples of this, in the file and in memory (io/reader.h asks for it), and their parts at cache
// lines.
constexpr uint64_t kUnitAlignment = 4096;
constexpr uint64_t kPartAlignment = 64;

constexpr uint32_t kBundleVersion = 1;
// Goes up when kernels/interleaved.h arranges a tile differently.
constexpr uint32_t kTileLayout = 1;

// The header of a bundle of this model, checksums zero. `weights` as bind_weights() gave them. Errors: ARGUMENT
// (`gathers`, a digest of more than 71 bytes), UNSUPPORTED (a model beyond the format's limits).
BundleHeader plan_bundle(const Config& config, const Weights& weights, uint32_t gathers, const std::string& digest);

// "q,k,v,output,gate,up q4_0_x16; down q4_0_x16/q6_k"; cut where it does not fit.
std::string describe_layout(const BundleHeader& header);

// header_bytes of them, the checksum of the header included.
std::vector<uint8_t> encode_header(const BundleHeader& header);

// The bytes of the header whose first `n_bytes` (at least kFirstLook, or all that the file has) are at hand. Errors as
// decode_header; a caller reads as much as this says, then decodes.
constexpr uint64_t kFirstLook = 24;
uint64_t header_bytes(const uint8_t* bytes, uint64_t n_bytes, uint64_t file_bytes, const std::string& path);

// `n_bytes` is what header_bytes() said. Every count and offset is checked before it is used. Errors: FORMAT,
// UNSUPPORTED; both begin with `path`.
BundleHeader decode_header(const uint8_t* bytes, uint64_t n_bytes, uint64_t file_bytes, const std::string& path);

}  // namespace sbr
