// AMX: products with several tokens as tiles of 16 tokens times 16 rows; the rest is avx512vnni's.
//
// Every block of 32 has scales of its own, so a tile product covers 32 of the 64 products per element that the
// instruction could do, and its 256 exact sums pass through memory to be scaled by rule 4. docs/kernels.md counts the
// cycles. q6_k, whose halves of 16 have scales, would use a quarter of a product and stays with avx512vnni.
#if defined(__x86_64__)

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/avx512_interleaved_types.h"
#include "kernels/avx512_panel.h"
#include "kernels/kernels.h"
#include "kernels/tables.h"
#include "sbr/sbr.h"

namespace sbr {
namespace {

constexpr size_t kGroup = 16;  // tokens of a tile, at most
// A guess until a CPU with AMX has run it: with fewer tokens most of a tile is empty.
constexpr size_t kFewTokens = 4;

// Which tile register is what: four sums (one per block of a step), two each of tokens and of weights by turns.
constexpr int kSums = 0, kTokensTile = 4, kWeightsTile = 6;
constexpr size_t kRowBytes = 64;  // 16 rows' sums, or their quads

// Written as assembly because gcc's intrinsics do not tell the compiler that they access memory.
struct alignas(64) TileShapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  explicit TileShapes(size_t tokens) {
    for (int i = 0; i < 4; ++i) set(kSums + i, tokens, kRowBytes);
    for (int i = 0; i < 2; ++i) set(kTokensTile + i, tokens, kBlock);
    for (int i = 0; i < 2; ++i) set(kWeightsTile + i, kBlock / 4, kRowBytes);
  }
  void set(int tile, size_t n_rows, size_t bytes) {
    rows[tile] = uint8_t(n_rows);
    row_bytes[tile] = uint16_t(bytes);
  }
  void load() const { __asm__ volatile("ldtilecfg %0" ::"m"(*this)); }
};
static_assert(sizeof(TileShapes) == 64, "as ldtilecfg reads it");

void tile_release() { __asm__ volatile("tilerelease"); }

template <int kTile>
void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTile));
}

template <int kTile>
void tile_load(const void* first, size_t stride) {
  __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(kTile), "r"(first), "r"(stride) : "memory");
}

template <int kTile>
void tile_store(void* first, size_t stride) {
  __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(kTile), "r"(first), "r"(stride) : "memory");
}

template <int kTile, int kLeft, int kRight>
void tile_dot() {
  __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kTile), "i"(kLeft), "i"(kRight));
}

// The exact sums of one step: [block][token][row].
struct StepSums {
  alignas(64) int32_t sum[kStepBlocks][kGroup][16];
};

template <int kB>
void multiply_block(const UnpackedStep& w, const Panel& x, size_t p, size_t first_token) {
  constexpr int kTurn = kB % 2;
  tile_load<kTokensTile + kTurn>(x.q[p + kB][first_token], kBlock);
  tile_load<kWeightsTile + kTurn>(w.quad[kB], kRowBytes);
  tile_zero<kSums + kB>();
  tile_dot<kSums + kB, kTokensTile + kTurn, kWeightsTile + kTurn>();
}

// All products of the step before the first store: a product's latency is 52 cycles, and one starts every 16.
void multiply(const UnpackedStep& w, size_t valid, const Panel& x, size_t p, size_t first_token, StepSums* out) {
  multiply_block<0>(w, x, p, first_token);
  if (valid > 1) multiply_block<1>(w, x, p, first_token);
  if (valid > 2) multiply_block<2>(w, x, p, first_token);
  if (valid > 3) multiply_block<3>(w, x, p, first_token);
  tile_store<kSums>(out->sum[0], kRowBytes);
  if (valid > 1) tile_store<kSums + 1>(out->sum[1], kRowBytes);
  if (valid > 2) tile_store<kSums + 2>(out->sum[2], kRowBytes);
  if (valid > 3) tile_store<kSums + 3>(out->sum[3], kRowBytes);
}

// Rule 4 for tokens [begin, end) from the sums of the group that starts at first_token.
template <class T>
void scale_sums(const UnpackedStep& w, size_t valid, const Panel& x, size_t p, const StepSums& sums, size_t first_token,
                size_t begin, size_t end, __m512* acc) {
  for (size_t t = begin; t < end; ++t) {
    __m512 a = acc[t];
    for (size_t b = 0; b < valid; ++b) {
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums.sum[b][t - first_token]));
      a = _mm512_fmadd_ps(sum, _mm512_mul_ps(w.scale[b], _mm512_set1_ps(x.d[p + b][t])), a);
      if constexpr (T::kHasMin) a = _mm512_fmadd_ps(w.min[b], _mm512_set1_ps(x.sum[p + b][t]), a);
    }
    acc[t] = a;
  }
}

// Groups are of equal size, the last one overlapping the one before: one shape of tile serves a panel. While one
// group's sums are scaled, the next one's products are under way.
template <class T>
void step_times_panel(UnpackedStep* w, size_t valid, const Panel& x, size_t p, size_t n_tokens, size_t group,
                      __m512* acc) {
  if (T::kOffset != 0) {
    const __m512i offset = _mm512_set1_epi8(static_cast<char>(T::kOffset));
    for (size_t b = 0; b < valid; ++b) {
      for (__m512i& quad : w->quad[b]) quad = _mm512_sub_epi8(quad, offset);
    }
  }
  StepSums sums[2];
  multiply(*w, valid, x, p, 0, &sums[0]);
  for (size_t begin = 0, first = 0, turn = 0; begin < n_tokens; turn ^= 1) {
    const size_t end = begin + group < n_tokens ? begin + group : n_tokens;
    const size_t next = end + group <= n_tokens ? end : n_tokens - group;
    if (end < n_tokens) multiply(*w, valid, x, p, next, &sums[turn ^ 1]);
    scale_sums<T>(*w, valid, x, p, sums[turn], first, begin, end, acc);
    begin = end;
    first = next;
  }
}

template <class T>
void rows_times_tokens(GemmFn few, const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x,
                       size_t n_tokens, float* y, size_t y_stride) {
  while (n_tokens >= kFewTokens) {
    const size_t panel = n_tokens < kPanelTokens ? n_tokens : kPanelTokens;
    const size_t groups = (panel + kGroup - 1) / kGroup, group = (panel + groups - 1) / groups;
    TileShapes(group).load();
    const auto step = [group](UnpackedStep* unpacked, size_t valid, const Panel& packed, size_t p, size_t tokens,
                              __m512* acc) { step_times_panel<T>(unpacked, valid, packed, p, tokens, group, acc); };
    panels_times_rows<T>(w, row_bytes, n_rows, n, x, panel, step, y, y_stride);
    tile_release();
    x += panel;
    y += panel * y_stride;
    n_tokens -= panel;
  }
  if (n_tokens > 0) few(w, row_bytes, n_rows, n, x, n_tokens, y, y_stride);
}

#define SBR_AMX_GEMM(name, Type, number)                                                                        \
  void gemm_##name##_q8_0_amx(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x, \
                              size_t n_tokens, float* y, size_t y_stride) {                                     \
    rows_times_tokens<Type>(kAvx512VnniKernels.weights[number].gemm, w, row_bytes, n_rows, n, x, n_tokens, y,   \
                            y_stride);                                                                          \
  }

SBR_AMX_GEMM(q4_0, Q4_0, SBR_TYPE_Q4_0)
SBR_AMX_GEMM(q4_1, Q4_1, SBR_TYPE_Q4_1)
SBR_AMX_GEMM(q8_0, Q8_0, SBR_TYPE_Q8_0)
SBR_AMX_GEMM(q4_k, Q4_K, SBR_TYPE_Q4_K)
SBR_AMX_GEMM(q4_0_x16, TileQ4_0, kInterleaved + SBR_TYPE_Q4_0)
SBR_AMX_GEMM(q4_1_x16, TileQ4_1, kInterleaved + SBR_TYPE_Q4_1)
SBR_AMX_GEMM(q8_0_x16, TileQ8_0, kInterleaved + SBR_TYPE_Q8_0)
SBR_AMX_GEMM(q4_k_x16, TileQ4_K, kInterleaved + SBR_TYPE_Q4_K)

constexpr Kernels make_table() {
  Kernels k = {};
  k.isa = SBR_ISA_AMX;
  k.name = "amx";
  k.weights[SBR_TYPE_Q4_0].gemm = gemm_q4_0_q8_0_amx;
  k.weights[SBR_TYPE_Q4_1].gemm = gemm_q4_1_q8_0_amx;
  k.weights[SBR_TYPE_Q8_0].gemm = gemm_q8_0_q8_0_amx;
  k.weights[SBR_TYPE_Q4_K].gemm = gemm_q4_k_q8_0_amx;
  k.weights[kInterleaved + SBR_TYPE_Q4_0].gemm = gemm_q4_0_x16_q8_0_amx;
  k.weights[kInterleaved + SBR_TYPE_Q4_1].gemm = gemm_q4_1_x16_q8_0_amx;
  k.weights[kInterleaved + SBR_TYPE_Q8_0].gemm = gemm_q8_0_x16_q8_0_amx;
  k.weights[kInterleaved + SBR_TYPE_Q4_K].gemm = gemm_q4_k_x16_q8_0_amx;
  return k;
}

}  // namespace

constexpr Kernels kAmxKernels = make_table();

}  // namespace sbr

#endif
