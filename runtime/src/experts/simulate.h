// What a cache of units would have done with a known routing: the what-if behind `stbench simulate`.
#pragma once

#include <cstdint>

#include "sbr/sbr.h"

namespace sbr {

// Runs a policy over experts [n_tokens][n_layer][n_expert_used] as a session decodes: a layer's set is acquired
// together, what it holds already first (those units cannot leave for the others), and stays pinned until the whole set
// is there. A set larger than the cache is fetched in waves. `out`: requests, hits, ns. SBR_CACHE_STATIC and
// SBR_CACHE_BELADY know the whole routing; the static one holds its units from the beginning and computes others from
// room of their own. Errors: ARGUMENT, naming the option or the first wrong set.
sbr_simulate_result simulate(const uint16_t* experts, uint64_t n_tokens, const sbr_simulate_options& options);

}  // namespace sbr
