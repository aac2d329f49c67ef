#pragma once

#include "model/step.h"

namespace sbr {

// Cosines and sines of this thread's share of the batch's positions -> ws.rope [T][head_dim]. No barrier.
void prepare_rope(Worker& worker);

// Rows of q, k and v of normed -> ws.q, ws.k, ws.v. No barrier.
void project_qkv(Worker& worker, uint32_t l);

// Norms and turns q and k, and stores k and v in the cache. Needs a barrier before and after.
void position_and_store(Worker& worker, uint32_t l);

// Softmax attention of ws.q over the cache -> ws.attended [T][heads * head_dim]. Needs a barrier before and after.
void attend(Worker& worker, uint32_t l);

// attn_output . attended -> ws.residual [T][D]. Needs a barrier before and after.
void project_output(Worker& worker, uint32_t l);

}  // namespace sbr
