#include "base/cpu_features.h"

#include <stdint.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace sbr {
namespace {

#if defined(__x86_64__)

// Which register states the operating system saves; callable only when CPUID reports OSXSAVE.
uint64_t extended_control_register() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return ((uint64_t)high << 32) | low;
}

// Linux lets a process use the tile registers (8 KiB more in every signal frame) only once it has asked.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

CpuFeatures detect() {
  CpuFeatures f = {};
  uint32_t eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return f;
  const bool os_saves = (ecx >> 27) & 1;
  const uint64_t saved = os_saves ? extended_control_register() : 0;
  const bool ymm = (saved & 0x06) == 0x06;         // SSE and AVX state
  const bool zmm = ymm && (saved & 0xe0) == 0xe0;  // mask registers, upper halves, upper 16 registers
  f.fma = ymm && ((ecx >> 12) & 1);
  f.f16c = ymm && ((ecx >> 29) & 1);
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return f;
  f.avx2 = ymm && ((ebx >> 5) & 1);
  f.avx512f = zmm && ((ebx >> 16) & 1);
  f.avx512dq = zmm && ((ebx >> 17) & 1);
  f.avx512bw = zmm && ((ebx >> 30) & 1);
  f.avx512vl = zmm && ((ebx >> 31) & 1);
  f.avx512vnni = zmm && ((ecx >> 11) & 1);
  const bool tiles = (saved & 0x60000) == 0x60000;  // tile configuration and data
  f.amx = tiles && ((edx >> 24) & 1) && ((edx >> 25) & 1) && may_use_tiles();
  if (eax < 1 || !__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) return f;
  f.avxvnni = ymm && ((eax >> 4) & 1);
  return f;
}

#elif defined(__aarch64__)

CpuFeatures detect() {
  // Bits of the kernel's arm64 ABI, written out because libc headers of old sysroots lack the newer names.
  const unsigned long capabilities = getauxval(AT_HWCAP);
  CpuFeatures f = {};
  f.neon = (capabilities >> 1) & 1;
  f.dotprod = (capabilities >> 20) & 1;
  f.i8mm = (getauxval(AT_HWCAP2) >> 13) & 1;
  return f;
}

#else

CpuFeatures detect() { return CpuFeatures{}; }

#endif

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

}  // namespace sbr
