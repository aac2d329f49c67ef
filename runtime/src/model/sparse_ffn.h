// The mixture of experts. With ReLU, skipping is exact: a neuron whose gate is not positive contributes nothing.
#pragma once

#include "model/step.h"

namespace sbr {

// Gate and up of every selected expert, this thread's segments of plan.segments. Leaves the neurons' outputs as the
// layer's down needs them. Needs a barrier before and after.
void activate_neurons(Worker& worker, uint32_t l);

// Down of every (token, expert) -> ws.expert_out [P][D]. Needs a barrier before and after.
void project_down(Worker& worker, uint32_t l);

// x += sum over experts of weight * expert_out, for one token; experts in ascending order (rule 10).
void mix_experts(Worker& worker, size_t token);

}  // namespace sbr
