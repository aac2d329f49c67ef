// The simulator with a clock: when each unit is asked for, arrives and is computed, so that guesses can be followed,
// which are read while the device would be idle.
#pragma once

#include <cstdint>

#include "experts/policy.h"
#include "experts/trace.h"
#include "sbr/sbr.h"

namespace sbr {

// Runs a session's decoding over the trace and fills in all of the result but `ns`. Tokens from warmup_tokens on count.
// `sets_by_misses` [per_set + 1], or NULL: units that were not there when their layer asked, those on their way
// included.
sbr_simulate_result simulate_clock(const Trace& trace, const sbr_simulate_options& options,
                                   const sbr_simulate_clock& clock, EvictionPolicy& policy);

}  // namespace sbr
