// SBR_LOAD_REPACK: the matrices that every token reads move from the mapped file to memory of their own in huge pages,
// interleaved (kernels/interleaved.h) where whole matrices are multiplied, in the file's rows where rows are gathered.
// Where up's and down's are, they lie in turns, so that a neuron's two rows are side by side: one page of memory for
// both, and one walk through the page tables.
#pragma once

#include <cstdint>

#include "base/buffer.h"
#include "io/file.h"
#include "model/config.h"
#include "model/weights.h"

namespace sbr {

// Points `weights` into the returned memory. `gathers`: SBR_GATHER_*. What was copied is given back from the mapping
// piece by piece, so that the process never holds more than a few MB twice. Norms move too: they lie
// between the matrices, so that each would bring pages that nobody needs. Untied embeddings, of which a token reads a
// row, stay mapped; matrices that lie elsewhere (re-quantised ones, or in a bundle) stay what they are.
Pages repack(const MappedFile& file, const Config& config, uint32_t gathers, Weights* weights);

}  // namespace sbr
