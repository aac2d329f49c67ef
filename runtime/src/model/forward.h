#pragma once

#include "model/step.h"

namespace sbr {

// Evaluates the step's tokens: appends their keys and values to the cache and writes the logits that are asked for.
// Returns false when the cancel flag stopped it, or weights could not be read (step.failed); the cache then holds keys
// and values of some layers for those positions, to be overwritten.
bool forward(Step& step);

}  // namespace sbr
