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

SBR_QUANTISED_KERNELS(neon_dotprod)

}  // namespace

// axpy_rows, and everything else, comes from neon.
constexpr Kernels kNeonDotprodKernels = quantised_table(SBR_ISA_NEON_DOTPROD, "neon-dotprod", nullptr, nullptr);

}  // namespace sbr

#endif
