// What this CPU and its operating system can execute. Read from CPUID and XGETBV, or from the auxiliary vector;
// never from __builtin_cpu_supports, which some compilers' runtimes answer with 0 for AVX2 and VNNI.
#pragma once

namespace sbr {

struct CpuFeatures {
  // x86: true only when the operating system also saves the registers that they use.
  bool avx2;
  bool fma;
  bool f16c;
  bool avx512f;
  bool avx512bw;
  bool avx512dq;
  bool avx512vl;
  bool avx512vnni;
  bool avxvnni;
  bool amx;  // tiles and int8 products; permission to use them has been granted to this process
  // aarch64
  bool neon;
  bool dotprod;
  bool i8mm;
};

// Detected once; safe from any thread.
const CpuFeatures& cpu_features();

}  // namespace sbr
