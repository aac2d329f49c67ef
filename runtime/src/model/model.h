// A loaded model: configuration, weights, and the memory that the weights lie in. Immutable, so any number of sessions
// may share it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "experts/bundle.h"
#include "io/file.h"
#include "kernels/kernels.h"
#include "model/config.h"
#include "model/weights.h"
#include "sbr/sbr.h"

namespace sbr {

class Model {
 public:
  Model(const std::string& path, const sbr_model_options& options);

  const Config& config() const { return config_; }
  const Weights& weights() const { return weights_; }
  uint32_t down_layout() const { return down_layout_; }
  // Rows of down can be skipped (transposed, from the file or re-quantised).
  bool neuron_major_down() const { return down_layout_ == SBR_DOWN_TRANSPOSED || down_layout_ == SBR_DOWN_REQUANTISED; }
  // Rows of these lie together, so that single ones can be read.
  bool gathers_up() const;
  bool gathers_output() const { return weights_.output.type < kInterleaved; }
  // What stays on storage: its matrices have a type and a shape here, but no data. Or nullptr.
  const Bundle* bundle() const { return bundle_.get(); }
  const std::string& warnings() const { return warnings_; }
  sbr_model_info info() const;

 private:
  void requantise_down(const std::string& path);
  void open_bundle(const sbr_model_options& options);
  void touch_weights() const;

  MappedFile file_;
  Pages copy_;                      // the file's bytes when it is read rather than mapped
  Pages repacked_;                  // SBR_LOAD_REPACK: most matrices
  std::vector<Pages> requantised_;  // per layer: the transposed down matrices
  std::unique_ptr<Bundle> bundle_;
  uint64_t file_bytes_ = 0;
  uint64_t load_ns_ = 0;
  Config config_;
  Weights weights_;
  uint32_t down_layout_ = SBR_DOWN_NONE;
  std::string warnings_;  // one sentence per line
};

}  // namespace sbr
