// Slow and readable conversions between rows of floats and rows of weight types. The kernels never use them; loading
// (re-quantising), embedding rows and tests do.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace sbr {

// Elements per block of an SBR_TYPE_* number (1 for float types, 0 for a type that this runtime does not compute with)
// and bytes per block.
size_t weight_block_elements(uint32_t type);
size_t weight_block_bytes(uint32_t type);

// n is a multiple of the block's elements. Error(SBR_ERR_UNSUPPORTED) for a type without layout.
void dequantise_row(uint32_t type, const uint8_t* in, size_t n, float* out);

// F32, F16, BF16, Q8_0, Q4_1 and Q4_0; Error(SBR_ERR_UNSUPPORTED) for others. Finite input.
void quantise_row(uint32_t type, const float* x, size_t n, uint8_t* out);

}  // namespace sbr
