// Which kernel tables this library holds and which of them this machine can run.

#include <iterator>

#include "base/cpu_features.h"
#include "kernels/kernels.h"
#include "kernels/tables.h"
#include "sbr/sbr.h"

namespace sbr {
namespace {

struct Entry {
  const Kernels* own;
  const char* requires_features;
  bool (*supported)(const CpuFeatures&);
  size_t parent;  // whose requirements it includes, and whose kernels it has where it brings none of its own
  bool by_name_only = false;  // never run on hardware yet: SBR_ISA_AUTO passes it over
};

#if defined(__x86_64__)
bool has_avx2(const CpuFeatures& f) { return f.avx2 && f.fma && f.f16c; }
bool has_avx512vnni(const CpuFeatures& f) {
  return has_avx2(f) && f.avx512f && f.avx512bw && f.avx512dq && f.avx512vl && f.avx512vnni;
}
#elif defined(__aarch64__)
bool has_dotprod(const CpuFeatures& f) { return f.neon && f.dotprod; }
#endif

// Best last.
const Entry kEntries[] = {
    {&kScalarKernels, "", [](const CpuFeatures&) { return true; }, 0},
#if defined(__x86_64__)
    {&kAvx2Kernels, "avx2,fma,f16c", has_avx2, 0},
    {&kAvxVnniKernels, "avx2,fma,f16c,avxvnni", [](const CpuFeatures& f) { return has_avx2(f) && f.avxvnni; }, 1},
    {&kAvx512VnniKernels, "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni", has_avx512vnni, 1},
    {&kAmxKernels, "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx",
     [](const CpuFeatures& f) { return has_avx512vnni(f) && f.amx; }, 3, true},
#elif defined(__aarch64__)
    {&kNeonKernels, "neon", [](const CpuFeatures& f) { return f.neon; }, 0},
    {&kNeonDotprodKernels, "neon,dotprod", has_dotprod, 1},
    {&kNeonI8mmKernels, "neon,dotprod,i8mm", [](const CpuFeatures& f) { return has_dotprod(f) && f.i8mm; }, 2},
#endif
};
constexpr size_t kCount = std::size(kEntries);

template <class Function>
void inherit(Function*& own, Function* parent) {
  if (!own) own = parent;
}

Kernels with_parent(const Kernels& own, const Kernels& parent) {
  Kernels k = own;
  for (size_t type = 0; type < kWeightTypeSlots; ++type) {
    inherit(k.weights[type].gemv, parent.weights[type].gemv);
    inherit(k.weights[type].gather_gemv, parent.weights[type].gather_gemv);
    inherit(k.weights[type].gemm, parent.weights[type].gemm);
    inherit(k.weights[type].axpy_rows, parent.weights[type].axpy_rows);
    inherit(k.weights[type].up_down, parent.weights[type].up_down);
  }
  inherit(k.quantise, parent.quantise);
  inherit(k.rms_norm, parent.rms_norm);
  inherit(k.silu_mul, parent.silu_mul);
  inherit(k.relu_mul, parent.relu_mul);
  inherit(k.compact_greater, parent.compact_greater);
  inherit(k.add, parent.add);
  inherit(k.scaled_add, parent.scaled_add);
  inherit(k.rope_neox, parent.rope_neox);
  inherit(k.f32_to_f16, parent.f32_to_f16);
  inherit(k.attn_scores_f16, parent.attn_scores_f16);
  inherit(k.attn_scores_f32, parent.attn_scores_f32);
  inherit(k.softmax, parent.softmax);
  inherit(k.attn_mix_f16, parent.attn_mix_f16);
  inherit(k.attn_mix_f32, parent.attn_mix_f32);
  return k;
}

struct Tables {
  Kernels complete[kCount];
  Tables() {
    complete[0] = *kEntries[0].own;
    for (size_t i = 1; i < kCount; ++i) complete[i] = with_parent(*kEntries[i].own, complete[kEntries[i].parent]);
  }
};

const Tables& tables() {
  static const Tables instance;
  return instance;
}

// Tables are compared by ISA, so that a caller's copy with a replaced kernel still finds its requirements.
const Entry* entry_of(const Kernels* kernels) {
  for (const Entry& entry : kEntries) {
    if (entry.own->isa == kernels->isa) return &entry;
  }
  return nullptr;
}

}  // namespace

size_t kernels_count() { return kCount; }

const Kernels* kernels_at(size_t index) { return index < kCount ? &tables().complete[index] : nullptr; }

bool kernels_supported(const Kernels* kernels) {
  const Entry* entry = entry_of(kernels);
  return entry && entry->supported(cpu_features());
}

const char* kernels_requires(const Kernels* kernels) {
  const Entry* entry = entry_of(kernels);
  return entry ? entry->requires_features : "";
}

const Kernels* kernels_best() {
  size_t best = 0;
  for (size_t i = 0; i < kCount; ++i) {
    if (!kEntries[i].by_name_only && kEntries[i].supported(cpu_features())) best = i;
  }
  return kernels_at(best);
}

const Kernels* kernels_for(uint32_t isa) {
  if (isa == SBR_ISA_AUTO) return kernels_best();
  for (size_t i = 0; i < kCount; ++i) {
    if (kEntries[i].own->isa == isa) return kernels_at(i);
  }
  return nullptr;
}

}  // namespace sbr
