// AVX2 with the 256-bit dot products of AVX-VNNI (CPUs without AVX-512): quantised matrices only, the rest is avx2's.
#if defined(__x86_64__)

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "kernels/matrix_table.h"
#include "kernels/tables.h"
#include "sbr/sbr.h"

namespace sbr {
namespace {

#if defined(__AVXVNNI__)
__m256i dot_bytes(__m256i sum, __m256i u, __m256i s) { return _mm256_dpbusd_avx_epi32(sum, u, s); }
#else  // the tests' second compilation of this file
__m256i dot_bytes(__m256i sum, __m256i u, __m256i s) { return _mm256_dpbusd_epi32(sum, u, s); }
#endif

}  // namespace
}  // namespace sbr

#include "kernels/avxvnni_dot.h"
// After the products that it is made of.
#include "kernels/avx2_interleaved.h"
#include "kernels/avx2_matrix.h"

namespace sbr {
namespace {

SBR_QUANTISED_KERNELS(avxvnni)
SBR_INTERLEAVED_KERNELS(avxvnni)

constexpr Kernels make_table() {
  Kernels k = quantised_table(SBR_ISA_AVXVNNI, "avxvnni", nullptr, nullptr);
  set_interleaved_kernels(&k);
  return k;
}

}  // namespace

constexpr Kernels kAvxVnniKernels = make_table();

}  // namespace sbr

#endif
