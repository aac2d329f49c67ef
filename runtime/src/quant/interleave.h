// Conversion between rows as files have them and the interleaved layout of kernels/interleaved.h.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace sbr {

// Whether kernels for the interleaved layout exist for a weight type.
bool can_interleave(uint32_t type);

// n_rows (a multiple of kInterleavedRows) rows of row_bytes each, of a type that can_interleave(). `out` takes as much
// as `in`; they do not overlap.
void interleave_rows(uint32_t type, const uint8_t* in, size_t row_bytes, size_t n_rows, uint8_t* out);

// Row r of an interleaved matrix, as the file had it: row_bytes to `out`.
void extract_row(uint32_t type, const uint8_t* matrix, size_t row_bytes, size_t r, uint8_t* out);

}  // namespace sbr
