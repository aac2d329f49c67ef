// Making a bundle from a GGUF file, and checking all of one.
#pragma once

#include <cstdint>
#include <string>

#include "sbr/sbr.h"

namespace sbr {

// sbr_bundle_plan, sbr_bundle_write and sbr_bundle_verify of sbr.h.
sbr_bundle_info plan_bundle_of(const std::string& model_path, uint32_t gathers);
void write_bundle(const std::string& model_path, const std::string& digest, uint32_t gathers, const std::string& path,
                  sbr_progress progress, void* user);
void verify_bundle(const std::string& path, sbr_progress progress, void* user);

}  // namespace sbr
