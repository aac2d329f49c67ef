// The arithmetic of docs/arithmetic.md in its readable form, for any CPU. Every other kernel file is tested for
// equality with this one, bit by bit; slow is fine here, but not too slow: references for the speed table are
// computed with it, so inner integer loops are written for the auto-vectoriser.

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/det_math.h"
#include "kernels/kernels.h"
#include "kernels/scalar_interleaved.h"
#include "kernels/tables.h"
#include "quant/blocks.h"
#include "sbr/sbr.h"

namespace sbr {
namespace {

// ---- rules 5 and 6: sixteen lanes --------------------------------------------------------------------------------

float fold_lanes(float* lane) {
  for (int apart = 8; apart >= 1; apart /= 2) {
    for (int i = 0; i < apart; ++i) lane[i] += lane[i + apart];
  }
  return lane[0];
}

float load_f32(const uint8_t* w, size_t i) {
  float value;
  memcpy(&value, w + 4 * i, sizeof value);
  return value;
}

uint16_t load_u16(const uint8_t* w, size_t i) {
  uint16_t value;
  memcpy(&value, w + 2 * i, sizeof value);
  return value;
}

float load_f16(const uint8_t* w, size_t i) { return f16_to_f32(load_u16(w, i)); }
float load_bf16(const uint8_t* w, size_t i) { return bf16_to_f32(load_u16(w, i)); }

// c[i] = fma(a[i], b[i], c[i]) for 16 lanes, which is all that its result depends on.
// Where fma is no instruction (baseline x86) fmaf() is a call of 5 ns. A product of floats is exact in double, so the
// sum there is rounded once, and rounding it again to float is right unless the first rounding ended exactly halfway
// between two floats (or the result is a denormal float); only then, about once in 2^29 times, fmaf() is called.
void fma_lanes(const float* a, const float* b, float* c) {
#if defined(__FP_FAST_FMAF) || defined(__aarch64__)
  for (int i = 0; i < 16; ++i) c[i] = fmaf(a[i], b[i], c[i]);
#else
  double sum[16];
  float rounded[16];
  uint64_t bits[16];
  for (int i = 0; i < 16; ++i) sum[i] = double(a[i]) * double(b[i]) + double(c[i]);
  memcpy(bits, sum, sizeof bits);
  uint32_t doubtful = 0;
  for (int i = 0; i < 16; ++i) {
    rounded[i] = float(sum[i]);
    doubtful |= uint32_t((uint32_t(bits[i]) & 0x1fffffffu) == 0x10000000u);
    doubtful |= uint32_t(uint32_t(bits[i] >> 32 & 0x7fffffffu) - 1u < 0x38100000u - 1u);  // 0 < |sum| < 2^-126
  }
  if (doubtful) {
    for (int i = 0; i < 16; ++i) c[i] = fmaf(a[i], b[i], c[i]);
  } else {
    memcpy(c, rounded, sizeof rounded);
  }
#endif
}

template <float (*kLoad)(const uint8_t*, size_t)>
float dot_floats(const uint8_t* w, const float* x, size_t n) {
  float lane[16] = {};
  size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    float weights[16];
    for (size_t l = 0; l < 16; ++l) weights[l] = kLoad(w, i + l);
    fma_lanes(weights, x + i, lane);
  }
  for (; i < n; ++i) lane[i % 16] = fmaf(kLoad(w, i), x[i], lane[i % 16]);
  return fold_lanes(lane);
}

// y[i] = fma(a, w[i], y[i]).
void scaled_add_lanes(float a, const float* w, float* y) {
  float factor[16];
  for (float& lane : factor) lane = a;
  fma_lanes(factor, w, y);
}

// ---- rule 4: dots of a row with an activation ----------------------------------------------------------------------

// In place: a local copy would be written in pieces and read back whole, which stalls.
template <class Block>
const Block& block_at(const uint8_t* row, size_t index) {
  return reinterpret_cast<const Block*>(row)[index];
}

// In 16 bits, because that is what compilers have a vector instruction for.
template <int kN>
int32_t dot_integers(const int8_t* a, const int8_t* b) {
  int16_t wide_a[kN], wide_b[kN];
  for (int i = 0; i < kN; ++i) {
    wide_a[i] = int16_t(+a[i]);
    wide_b[i] = int16_t(+b[i]);
  }
  int32_t sum = 0;
  for (int i = 0; i < kN; ++i) sum += wide_a[i] * wide_b[i];
  return sum;
}

struct DotF32 {
  static float dot(const uint8_t* row, size_t n, const Activation& x) { return dot_floats<load_f32>(row, x.f, n); }
};
struct DotF16 {
  static float dot(const uint8_t* row, size_t n, const Activation& x) { return dot_floats<load_f16>(row, x.f, n); }
};
struct DotBf16 {
  static float dot(const uint8_t* row, size_t n, const Activation& x) { return dot_floats<load_bf16>(row, x.f, n); }
};

// Rule 4 for block `b` of a row (of kElements elements) and of x: continues the sum.
struct AddQ4_0 {
  typedef BlockQ4_0 Block;
  static constexpr size_t kElements = kBlock;
  static float add(const Block& w, size_t b, const Activation& x, float acc) {
    int8_t q[32];
    for (int j = 0; j < 16; ++j) {
      q[j] = int8_t((w.nibbles[j] & 15) - 8);
      q[j + 16] = int8_t((w.nibbles[j] >> 4) - 8);
    }
    return fmaf(float(dot_integers<32>(q, x.q + b * kBlock)), f16_to_f32(w.d) * x.d[b], acc);
  }
};

struct AddQ4_1 {
  typedef BlockQ4_1 Block;
  static constexpr size_t kElements = kBlock;
  static float add(const Block& w, size_t b, const Activation& x, float acc) {
    int8_t q[32];
    for (int j = 0; j < 16; ++j) {
      q[j] = int8_t(w.nibbles[j] & 15);
      q[j + 16] = int8_t(w.nibbles[j] >> 4);
    }
    acc = fmaf(float(dot_integers<32>(q, x.q + b * kBlock)), f16_to_f32(w.d) * x.d[b], acc);
    return fmaf(f16_to_f32(w.m), x.sum[b], acc);
  }
};

struct AddQ8_0 {
  typedef BlockQ8_0 Block;
  static constexpr size_t kElements = kBlock;
  static float add(const Block& w, size_t b, const Activation& x, float acc) {
    return fmaf(float(dot_integers<32>(w.q, x.q + b * kBlock)), f16_to_f32(w.d) * x.d[b], acc);
  }
};

struct AddQ4_K {
  typedef BlockQ4_K Block;
  static constexpr size_t kElements = kSuperBlock;
  static float add(const Block& w, size_t super, const Activation& x, float acc) {
    const float d = f16_to_f32(w.d);
    const float dmin = f16_to_f32(w.dmin);
    for (size_t sub = 0; sub < 8; ++sub) {
      const size_t b = super * 8 + sub;
      uint8_t scale, min;
      q4_k_scale_min(w.scales, sub, &scale, &min);
      const uint8_t* nibbles = w.nibbles + 32 * (sub / 2);
      const int shift = sub & 1 ? 4 : 0;
      int8_t q[32];
      for (int i = 0; i < 32; ++i) q[i] = int8_t((nibbles[i] >> shift) & 15);
      acc = fmaf(float(dot_integers<32>(q, x.q + b * kBlock)), (d * float(scale)) * x.d[b], acc);
      acc = fmaf(-(dmin * float(min)), x.sum[b], acc);
    }
    return acc;
  }
};

struct AddQ6_K {
  typedef BlockQ6_K Block;
  static constexpr size_t kElements = kSuperBlock;
  static float add(const Block& w, size_t super, const Activation& x, float acc) {
    const float d = f16_to_f32(w.d);
    for (int sub = 0; sub < 8; ++sub) {
      const size_t b = super * 8 + size_t(sub);
      const int half = sub / 4, k = sub % 4;
      const uint8_t* low = w.low + 64 * half + 32 * (k & 1);
      const uint8_t* high = w.high + 32 * half;
      int8_t q[32];
      for (int i = 0; i < 32; ++i) {
        q[i] = int8_t((((low[i] >> 4 * (k / 2)) & 15) | ((high[i] >> 2 * k) & 3) << 4) - 32);
      }
      const int32_t sum = w.scales[2 * sub] * dot_integers<16>(q, x.q + b * kBlock) +
                          w.scales[2 * sub + 1] * dot_integers<16>(q + 16, x.q + b * kBlock + 16);
      acc = fmaf(float(sum), d * x.d[b], acc);
    }
    return acc;
  }
};

template <class Add>
struct DotBlocks {
  static float dot(const uint8_t* row, size_t n, const Activation& x) {
    float acc = 0;
    for (size_t b = 0; b < n / Add::kElements; ++b) {
      acc = Add::add(block_at<typename Add::Block>(row, b), b, x, acc);
    }
    return acc;
  }
};

template <class Dot>
void gemv_scalar(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x, float* y) {
  for (size_t r = 0; r < n_rows; ++r) y[r] = Dot::dot(w + r * row_bytes, n, *x);
}

template <class Dot>
void gather_gemv_scalar(const uint8_t* w, size_t row_bytes, const uint32_t* rows, size_t n_rows, size_t n,
                        const Activation* x, float* y) {
  for (size_t i = 0; i < n_rows; ++i) y[i] = Dot::dot(w + rows[i] * row_bytes, n, *x);
}

template <class Dot>
void gemm_scalar(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x, size_t n_tokens,
                 float* y, size_t y_stride) {
  for (size_t r = 0; r < n_rows; ++r) {
    for (size_t t = 0; t < n_tokens; ++t) y[t * y_stride + r] = Dot::dot(w + r * row_bytes, n, x[t]);
  }
}

// ---- rule 8: sums of scaled rows -----------------------------------------------------------------------------------

template <float (*kLoad)(const uint8_t*, size_t)>
struct AxpyFloats {
  static void row(const uint8_t* w, float coefficient, size_t col_begin, size_t col_end, float* y) {
    float weights[16];
    for (size_t c = col_begin; c < col_end; c += 16) {
      for (size_t i = 0; i < 16; ++i) weights[i] = kLoad(w, c + i);
      scaled_add_lanes(coefficient, weights, y + (c - col_begin));
    }
  }
};

struct AxpyQ4_0 {
  static void row(const uint8_t* w, float coefficient, size_t col_begin, size_t col_end, float* y) {
    for (size_t c = col_begin; c < col_end; c += kBlock) {
      const BlockQ4_0& block = block_at<BlockQ4_0>(w, c / kBlock);
      const float scale = coefficient * f16_to_f32(block.d);
      float* out = y + (c - col_begin);
      float weights[32];
      for (int j = 0; j < 16; ++j) {
        weights[j] = float((block.nibbles[j] & 15) - 8);
        weights[j + 16] = float((block.nibbles[j] >> 4) - 8);
      }
      scaled_add_lanes(scale, weights, out);
      scaled_add_lanes(scale, weights + 16, out + 16);
    }
  }
};

struct AxpyQ8_0 {
  static void row(const uint8_t* w, float coefficient, size_t col_begin, size_t col_end, float* y) {
    for (size_t c = col_begin; c < col_end; c += kBlock) {
      const BlockQ8_0& block = block_at<BlockQ8_0>(w, c / kBlock);
      const float scale = coefficient * f16_to_f32(block.d);
      float* out = y + (c - col_begin);
      float weights[32];
      for (int j = 0; j < 32; ++j) weights[j] = float(block.q[j]);
      scaled_add_lanes(scale, weights, out);
      scaled_add_lanes(scale, weights + 16, out + 16);
    }
  }
};

template <class Axpy>
void axpy_rows_scalar(const uint8_t* w, size_t row_bytes, const uint32_t* rows, const float* coefficient, size_t n_rows,
                      size_t col_begin, size_t col_end, float* y) {
  for (size_t i = 0; i < n_rows; ++i) Axpy::row(w + rows[i] * row_bytes, coefficient[i], col_begin, col_end, y);
}

// ---- rule 3

void quantise_scalar(const float* x, size_t n, int8_t* q, float* d, float* sum) {
  const float magic = 12582912.0f;  // adding 1.5 * 2^23 rounds to the nearest even integer
  for (size_t b = 0; b < n / kBlock; ++b, x += kBlock, q += kBlock) {
    float amax = 0;
    for (int i = 0; i < kBlock; ++i) amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
    if (amax < kQuantiseFloor) amax = 0;
    const float inverse = amax > 0 ? 127.0f / amax : 0.0f;
    int32_t total = 0;
    for (int i = 0; i < kBlock; ++i) {
      q[i] = int8_t(det_bits_from_float(x[i] * inverse + magic) - det_bits_from_float(magic));
      total += q[i];
    }
    d[b] = amax / 127.0f;
    sum[b] = d[b] * float(total);
  }
}

// ---- rules 7, 12, 13 and the small ones --------------------------------------------------------------------------

void rms_norm_scalar(const float* x, const float* weight, float eps, size_t n, float* y) {
  const float square = dot_floats<load_f32>(reinterpret_cast<const uint8_t*>(x), x, n);
  const float s = 1.0f / sqrtf(square / float(n) + eps);
  for (size_t i = 0; i < n; ++i) y[i] = (x[i] * s) * weight[i];
}

void silu_mul_scalar(const float* gate, const float* up, size_t n, float* h) {
  for (size_t i = 0; i < n; ++i) h[i] = det_siluf(gate[i]) * up[i];
}

void relu_mul_scalar(const float* gate, const float* up, size_t n, float* h) {
  for (size_t i = 0; i < n; ++i) h[i] = gate[i] > 0 ? gate[i] * up[i] : 0.0f;
}

size_t compact_greater_scalar(const float* x, size_t n, float threshold, uint32_t base, uint32_t* out) {
  size_t count = 0;
  for (size_t i = 0; i < n; ++i) {
    out[count] = base + uint32_t(i);
    count += x[i] > threshold;
  }
  return count;
}

void add_scalar(const float* x, size_t n, float* y) {
  for (size_t i = 0; i < n; ++i) y[i] += x[i];
}

void scaled_add_scalar(float a, const float* x, size_t n, float* y) {
  size_t i = 0;
  for (; i + 16 <= n; i += 16) scaled_add_lanes(a, x + i, y + i);
  for (; i < n; ++i) y[i] = fmaf(a, x[i], y[i]);
}

void rope_neox_scalar(float* x, size_t head_dim, const float* cos_sin) {
  const size_t half = head_dim / 2;
  for (size_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    const float c = cos_sin[i], s = cos_sin[i + half];
    x[i] = fmaf(a, c, -(b * s));
    x[i + half] = fmaf(b, c, a * s);
  }
}

void f32_to_f16_scalar(const float* x, size_t n, uint16_t* y) {
  for (size_t i = 0; i < n; ++i) y[i] = f32_to_f16(x[i]);
}

// ---- rule 11

template <class Element, float (*kLoad)(const uint8_t*, size_t)>
void attn_scores_scalar(const float* q, size_t n_heads, const Element* k, size_t stride, size_t n_pos, size_t head_dim,
                        float scale, float* scores, size_t scores_stride) {
  for (size_t h = 0; h < n_heads; ++h, q += head_dim, scores += scores_stride) {
    for (size_t t = 0; t < n_pos; ++t) {
      scores[t] = dot_floats<kLoad>(reinterpret_cast<const uint8_t*>(k + t * stride), q, head_dim) * scale;
    }
  }
}

template <class Element, float (*kLoad)(const uint8_t*, size_t)>
void attn_mix_scalar(const float* p, size_t p_stride, size_t n_heads, const Element* v, size_t stride, size_t n_pos,
                     size_t head_dim, float* out) {
  for (size_t h = 0; h < n_heads; ++h, p += p_stride, out += head_dim) {
    for (size_t t = 0; t < n_pos; ++t) {
      const uint8_t* row = reinterpret_cast<const uint8_t*>(v + t * stride);
      for (size_t c = 0; c < head_dim; ++c) out[c] = fmaf(p[t], kLoad(row, c), out[c]);
    }
  }
}

void softmax_scalar(float* x, size_t n) {
  if (n == 0) return;
  float max = x[0];
  for (size_t i = 1; i < n; ++i) max = x[i] > max ? x[i] : max;
  float lane[16] = {};
  for (size_t i = 0; i < n; ++i) {
    x[i] = det_expf(x[i] - max);
    lane[i % 16] += x[i];
  }
  const float inverse = 1.0f / fold_lanes(lane);
  for (size_t i = 0; i < n; ++i) x[i] *= inverse;
}

// ---- the table

template <class Dot>
constexpr WeightKernels weight_kernels(AxpyRowsFn axpy_rows) {
  return {gemv_scalar<Dot>, gather_gemv_scalar<Dot>, gemm_scalar<Dot>, axpy_rows};
}

constexpr Kernels make_table() {
  Kernels k = {};
  k.isa = SBR_ISA_SCALAR;
  k.name = "scalar";
  k.weights[SBR_TYPE_F32] = weight_kernels<DotF32>(axpy_rows_scalar<AxpyFloats<load_f32>>);
  k.weights[SBR_TYPE_F16] = weight_kernels<DotF16>(axpy_rows_scalar<AxpyFloats<load_f16>>);
  k.weights[SBR_TYPE_BF16] = weight_kernels<DotBf16>(axpy_rows_scalar<AxpyFloats<load_bf16>>);
  k.weights[SBR_TYPE_Q4_0] = weight_kernels<DotBlocks<AddQ4_0>>(axpy_rows_scalar<AxpyQ4_0>);
  k.weights[SBR_TYPE_Q8_0] = weight_kernels<DotBlocks<AddQ8_0>>(axpy_rows_scalar<AxpyQ8_0>);
  k.weights[SBR_TYPE_Q4_1] = weight_kernels<DotBlocks<AddQ4_1>>(nullptr);
  k.weights[SBR_TYPE_Q4_K] = weight_kernels<DotBlocks<AddQ4_K>>(nullptr);
  k.weights[SBR_TYPE_Q6_K] = weight_kernels<DotBlocks<AddQ6_K>>(nullptr);
  k.weights[kInterleaved + SBR_TYPE_Q4_0] = interleaved_scalar_kernels<AddQ4_0, 1>();
  k.weights[kInterleaved + SBR_TYPE_Q8_0] = interleaved_scalar_kernels<AddQ8_0, 1>();
  k.weights[kInterleaved + SBR_TYPE_Q4_1] = interleaved_scalar_kernels<AddQ4_1, 2>();
  k.weights[kInterleaved + SBR_TYPE_Q4_K] = interleaved_scalar_kernels<AddQ4_K, 2>();
  k.quantise = quantise_scalar;
  k.rms_norm = rms_norm_scalar;
  k.silu_mul = silu_mul_scalar;
  k.relu_mul = relu_mul_scalar;
  k.compact_greater = compact_greater_scalar;
  k.add = add_scalar;
  k.scaled_add = scaled_add_scalar;
  k.rope_neox = rope_neox_scalar;
  k.f32_to_f16 = f32_to_f16_scalar;
  k.attn_scores_f16 = attn_scores_scalar<uint16_t, load_f16>;
  k.attn_scores_f32 = attn_scores_scalar<float, load_f32>;
  k.softmax = softmax_scalar;
  k.attn_mix_f16 = attn_mix_scalar<uint16_t, load_f16>;
  k.attn_mix_f32 = attn_mix_scalar<float, load_f32>;
  return k;
}

}  // namespace

constexpr Kernels kScalarKernels = make_table();

}  // namespace sbr
