// Synthetic models: GGUF files at real shapes with random weights whose statistics are set, not accidental.
// The bytes depend on the spec alone: integers from a counter-based generator, scales from + - * / sqrt and
// det_math.h (no libm), any block computable without the others, so that threads share the work.
#pragma once

#include <cstdint>
#include <string>

#include "sbr/sbr.h"

namespace sbr {

// The size of the file that synth_write would write. Errors: ARGUMENT and UNSUPPORTED, naming the spec's member.
uint64_t synth_size(const sbr_synth_spec& spec);

// Writes `path` through `path`.part. `progress` may be NULL and is called on the calling thread.
// Errors: those of synth_size; IO; CANCELLED when progress returned non-zero.
void synth_write(const sbr_synth_spec& spec, const std::string& path, sbr_progress progress, void* user);

}  // namespace sbr
