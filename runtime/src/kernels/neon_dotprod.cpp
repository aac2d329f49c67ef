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

template <bool kNarrow>
class QuadSums {
 public:
  explicit QuadSums(int32_t start = 0) : sums_(vdupq_n_s32(start)) {}
  template <int kLane>
  void add(int8x16_t w0, int8x16_t w1, int8x16_t x) {
    sums_ = vdotq_laneq_s32(vdotq_laneq_s32(sums_, w0, x, kLane), w1, x, kLane + 1);
  }
  int32x4_t fold() const { return sums_; }

 private:
  int32x4_t sums_;
};

}  // namespace
}  // namespace sbr

#include "kernels/neon_interleaved.h"
#include "kernels/neon_matrix.h"

namespace sbr {
namespace {

SBR_QUANTISED_KERNELS(neon_dotprod)
SBR_INTERLEAVED_KERNELS(neon_dotprod)

// axpy_rows, and everything else, comes from neon.
constexpr Kernels make_table() {
  Kernels k = quantised_table(SBR_ISA_NEON_DOTPROD, "neon-dotprod", nullptr, nullptr);
  set_interleaved_kernels(&k);
  return k;
}

}  // namespace

constexpr Kernels kNeonDotprodKernels = make_table();

}  // namespace sbr

#endif
