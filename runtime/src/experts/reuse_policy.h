// SBR_CACHE_REUSE: the unit leaves whose next use is expected last.
#pragma once

#include <memory>

#include "experts/policy.h"

namespace sbr {

std::unique_ptr<EvictionPolicy> make_reuse_policy(const PolicyShape& shape);

}  // namespace sbr
