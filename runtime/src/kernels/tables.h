// The tables that the kernel files define. A NULL entry of a table means its parent's kernel (dispatch.cpp).
#pragma once

#include "kernels/kernels.h"

namespace sbr {

extern const Kernels kScalarKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;        // parent: scalar
extern const Kernels kAvxVnniKernels;     // parent: avx2
extern const Kernels kAvx512VnniKernels;  // parent: avx2
extern const Kernels kAmxKernels;         // parent: avx512vnni
#elif defined(__aarch64__)
extern const Kernels kNeonKernels;         // parent: scalar
extern const Kernels kNeonDotprodKernels;  // parent: neon
extern const Kernels kNeonI8mmKernels;     // parent: neon-dotprod
#endif

}  // namespace sbr
