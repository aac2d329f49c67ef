// The table of compute kernels: one instance per instruction set, all bit-identical (docs/arithmetic.md).
// Plain data only: kernel files are compiled with their own target flags and include nothing but this
// header, quant/blocks.h and intrinsics, so that no inline function leaks an instruction set through the linker.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace sbr {

// One token's input of a matrix. Float weight types read `f`; quantised ones read q, d and sum (rule 3).
// n is a multiple of 32 whenever q is used.
struct Activation {
  const float* f;    // [n]
  const int8_t* q;   // [n], each in -127..127: kernels rely on -128 being absent
  const float* d;    // [n / 32]
  const float* sum;  // [n / 32]
};

// y[r] = dot(row r of w, x), r in 0..n_rows. Rows are row_bytes apart.
typedef void (*GemvFn)(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x, float* y);

// y[i] = dot(row rows[i] of w, x), i in 0..n_rows.
typedef void (*GatherGemvFn)(const uint8_t* w, size_t row_bytes, const uint32_t* rows, size_t n_rows, size_t n,
                             const Activation* x, float* y);

// y[t * y_stride + r] = dot(row r of w, x[t]), t in 0..n_tokens.
typedef void (*GemmFn)(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x,
                       size_t n_tokens, float* y, size_t y_stride);

// y[c - col_begin] = fma(coefficient[i] * d, q, y[...]) over i ascending (rule 8); columns are multiples of 32.
typedef void (*AxpyRowsFn)(const uint8_t* w, size_t row_bytes, const uint32_t* rows, const float* coefficient,
                           size_t n_rows, size_t col_begin, size_t col_end, float* y);

// y[c] = fma((gate[i] * dot(up[i], x)) * d, q, y[c]) over i ascending, c in 0..n, q and d of down[i] (rules 4 and 8):
// what gather_gemv, a product and axpy_rows compute, of n_rows neurons whose rows of n weights lie anywhere. n_after
// more pointers follow in up and down, to what will be asked for next.
typedef void (*UpDownFn)(const uint8_t* const* up, const uint8_t* const* down, const float* gate, size_t n_rows,
                         size_t n_after, size_t n, const Activation* x, float* y);

// Kernels that depend on the weight's type. NULL members: the type has no such kernel:
// types that the runtime does not know have none, and q4_1, q4_k and q6_k have no axpy_rows.
struct WeightKernels {
  GemvFn gemv;
  GatherGemvFn gather_gemv;
  GemmFn gemm;
  AxpyRowsFn axpy_rows;
  UpDownFn up_down = nullptr;  // of sets for which one pass is faster than two
};

// Rule 3: an amax below this counts as 0, because 127 / amax would overflow for the smallest.
constexpr float kQuantiseFloor = 0x1p-100f;

// WeightKernels are indexed by GGUF type numbers, of which the largest supported is BF16 = 30, and by those plus
// kInterleaved: the same weights in tiles of kInterleavedRows rows (kernels/interleaved.h). Interleaved matrices have
// no gathers and no axpy_rows; a gemv or gemm takes whole tiles, so that w is a tile's begin and n_rows a multiple of
// kInterleavedRows. row_bytes is what a row would take in the file's layout: a tile takes kInterleavedRows times that.
enum { kInterleaved = 32, kInterleavedRows = 16, kWeightTypeSlots = 2 * kInterleaved };

struct Kernels {
  uint32_t isa;      // SBR_ISA_*
  const char* name;  // as sbr_isa_info.name

  WeightKernels weights[kWeightTypeSlots];

  // Rule 3. n is a multiple of 32; x is finite.
  void (*quantise)(const float* x, size_t n, int8_t* q, float* d, float* sum);
  // Rule 7. x and y may be the same.
  void (*rms_norm)(const float* x, const float* weight, float eps, size_t n, float* y);
  // Rule 13 times up; h may be gate. relu_mul: h = gate > 0 ? gate * up : 0.
  void (*silu_mul)(const float* gate, const float* up, size_t n, float* h);
  void (*relu_mul)(const float* gate, const float* up, size_t n, float* h);
  // Writes the indices (+ base) of x[i] > threshold, ascending; returns how many. `out` has room for n + 16.
  size_t (*compact_greater)(const float* x, size_t n, float threshold, uint32_t base, uint32_t* out);
  // y += x;  y = fma(a, x, y)
  void (*add)(const float* x, size_t n, float* y);
  void (*scaled_add)(float a, const float* x, size_t n, float* y);
  // Rule 12 for one head of head_dim floats; cos_sin holds head_dim/2 cosines, then as many sines.
  void (*rope_neox)(float* x, size_t head_dim, const float* cos_sin);
  void (*f32_to_f16)(const float* x, size_t n, uint16_t* y);  // round to nearest even
  // Rule 11, for q heads that share keys and values. Positions are stride elements apart; q and out are
  // [n_heads][head_dim]. scores[h * scores_stride + t] = dot(q_h, k_t) * scale.
  void (*attn_scores_f16)(const float* q, size_t n_heads, const uint16_t* k, size_t stride, size_t n_pos,
                          size_t head_dim, float scale, float* scores, size_t scores_stride);
  void (*attn_scores_f32)(const float* q, size_t n_heads, const float* k, size_t stride, size_t n_pos, size_t head_dim,
                          float scale, float* scores, size_t scores_stride);
  void (*softmax)(float* x, size_t n);
  // out[h][c] = fma(p[h * p_stride + t], v[t][c], out[h][c]), going on from what `out` holds: positions may come in
  // pieces.
  void (*attn_mix_f16)(const float* p, size_t p_stride, size_t n_heads, const uint16_t* v, size_t stride, size_t n_pos,
                       size_t head_dim, float* out);
  void (*attn_mix_f32)(const float* p, size_t p_stride, size_t n_heads, const float* v, size_t stride, size_t n_pos,
                       size_t head_dim, float* out);
};

// dispatch.cpp
size_t kernels_count();  // compiled in, best last
const Kernels* kernels_at(size_t index);
bool kernels_supported(const Kernels* kernels);        // by this CPU and operating system
const char* kernels_requires(const Kernels* kernels);  // "avx2,fma,f16c"
const Kernels* kernels_best();
const Kernels* kernels_for(uint32_t isa);  // NULL: not compiled in; SBR_ISA_AUTO: the best

}  // namespace sbr
