#pragma once

#include "model/step.h"

namespace sbr {

// silu(gate . h) * (up . h) for this thread's neurons -> ws.hidden [T][F]. Needs a barrier before and after.
void activate_dense(Worker& worker, uint32_t l);

// down . hidden -> ws.residual [T][D]. Needs a barrier before and after.
void project_dense(Worker& worker, uint32_t l);

}  // namespace sbr
