// NEON with the dot product instructions of ARMv8.2: quantised matrices only, the rest is neon.cpp's.
#if defined(__aarch64__)

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "kernels/matrix_table.h"
#include "kernels/tables.h"
#include "sbr/sbr.h"

namespace sbr {
namespace {

template <bool kNarrow>
int32x4_t dot_halves(int8x16_t first, int8x16_t second, int8x16_t x_first, int8x16_t x_second) {
  return vdotq_s32(vdotq_s32(vdupq_n_s32(0), first, x_first), second, x_second);
}

}  // namespace
}  // namespace sbr

#include "kernels/neon_matrix.h"

namespace sbr {
namespace {

SBR_MATRIX_KERNELS(q4_0, Q4_0, neon_dotprod)
SBR_MATRIX_KERNELS(q4_1, Q4_1, neon_dotprod)
SBR_MATRIX_KERNELS(q8_0, Q8_0, neon_dotprod)
SBR_MATRIX_KERNELS(q4_k, Q4_K, neon_dotprod)
SBR_MATRIX_KERNELS(q6_k, Q6_K, neon_dotprod)

// axpy_rows, and everything else, comes from neon.
constexpr Kernels make_table() {
  Kernels k = {};
  k.isa = SBR_ISA_NEON_DOTPROD;
  k.name = "neon-dotprod";
  k.weights[SBR_TYPE_Q4_0] = q4_0_kernels(nullptr);
  k.weights[SBR_TYPE_Q8_0] = q8_0_kernels(nullptr);
  k.weights[SBR_TYPE_Q4_1] = q4_1_kernels(nullptr);
  k.weights[SBR_TYPE_Q4_K] = q4_k_kernels(nullptr);
  k.weights[SBR_TYPE_Q6_K] = q6_k_kernels(nullptr);
  return k;
}

}  // namespace

constexpr Kernels kNeonDotprodKernels = make_table();

}  // namespace sbr

#endif
