// The mixture of experts. With ReLU, skipping is exact: a neuron whose gate is not positive contributes nothing.
#pragma once

#include "model/step.h"

namespace sbr {

// Every (token, expert) of the plan -> ws.expert_out [P][D]. Needs a barrier before and after. False, on every thread:
// an expert could not be read; ws.expert_out is then worthless.
bool compute_experts(Worker& worker, uint32_t l);

// x += sum over experts of weight * expert_out, for one token; experts in ascending order (rule 10).
void mix_experts(Worker& worker, size_t token);

}  // namespace sbr
