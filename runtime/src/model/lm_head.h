#pragma once

#include "model/step.h"

namespace sbr {

// Output rows of normed, tokens [first, first + n) of the batch -> step.logits [n][V]. Needs a barrier before and
// after.
void lm_head_dense(Worker& worker, uint32_t first, uint32_t n);

// One token; only rows whose predictor score exceeds the threshold, the others become switches.lm_head_skipped.
// scores = fc2 . (fc1 . normed) -> ws.predictor_scores [V]. Needs a barrier before and after, and has one inside.
void lm_head_sparse(Worker& worker);

}  // namespace sbr
