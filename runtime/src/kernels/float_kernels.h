// The float kernels of every vector instruction set, written once over vectors of 16 lanes (rules 5, 6, 12 and 13 of
// docs/arithmetic.md define sums by 16 lanes). Included by a kernel file after it has defined, in namespace sbr and an
// anonymous namespace,
//   V16                                   16 floats in one or more registers
//   zero16() splat16(x) load16(p) store16(p, v) load16_f16(p) load16_bf16(p) store16_f16(p, v)
//   add16 sub16 mul16 div16 abs16         lane by lane; fma16(a, b, c) = a * b + c, fused
//   max16(a, b) min16(a, b)               b where either is NaN
//   fold16(v)                             the sum of rule 5; fold16_max(v) the largest lane
//   fold16x4(v0, v1, v2, v3, p)           p[i] = fold16(vi)
//   ldexp16(p, shifted)                   the last step of det_expf
//   round_store16(v, q)                   q[i] = int8 of lane i rounded to even; returns their sum
//   kGemmRows, kGemmTokens                register tile of a matrix product
//   kMixVectors                           vectors of output columns, even, that float_attention.h keeps in registers
// Everything is in an anonymous namespace: each including file has its own copy, compiled with its own flags.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/det_math.h"
#include "kernels/kernels.h"
#include "quant/blocks.h"

namespace sbr {
namespace {

// ---- how 16 weights, or one, become floats -----------------------------------------------------------------------

struct F32Weights {
  static constexpr size_t kBytes = 4;
  static V16 load(const uint8_t* row, size_t i) { return load16(reinterpret_cast<const float*>(row) + i); }
  static float one(const uint8_t* row, size_t i) {
    float value;
    memcpy(&value, row + 4 * i, sizeof value);
    return value;
  }
};

struct F16Weights {
  static constexpr size_t kBytes = 2;
  static V16 load(const uint8_t* row, size_t i) { return load16_f16(row + 2 * i); }
  static float one(const uint8_t* row, size_t i) {
    uint16_t value;
    memcpy(&value, row + 2 * i, sizeof value);
    return f16_to_f32(value);
  }
};

struct Bf16Weights {
  static constexpr size_t kBytes = 2;
  static V16 load(const uint8_t* row, size_t i) { return load16_bf16(row + 2 * i); }
  static float one(const uint8_t* row, size_t i) {
    uint16_t value;
    memcpy(&value, row + 2 * i, sizeof value);
    return bf16_to_f32(value);
  }
};

// ---- rule 5

// The tail of a dot whose length is no multiple of 16, in the first lanes. Not by zero padding: fma(0, 0, -0) is +0.
template <class W>
V16 dot_tail(const uint8_t* row, const float* x, size_t i, size_t n, V16 acc) {
  float lane[16];
  store16(lane, acc);
  for (; i < n; ++i) lane[i % 16] = fmaf(W::one(row, i), x[i], lane[i % 16]);
  return load16(lane);
}

// Whether a tile's rows fetch the next tile's into the second-level cache: a router's, which come from memory (on Zen 4
// 14 % less time, docs/kernels.md). A load is a line of them.
template <class W, int kTokens>
constexpr bool kFetchesNext = kTokens == 1 && W::kBytes == 4;

// out[r * out_row + t * out_token] = dot(row[r], x[t]), for a tile of rows and vectors held in registers. `next`: NULL,
// or the rows to fetch meanwhile.
template <class W, int kRows, int kTokens>
void dot_tile(const uint8_t* const* row, const float* const* x, size_t n, float* out, size_t out_row, size_t out_token,
              const uint8_t* const* next) {
  V16 acc[kRows][kTokens];
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kTokens; ++t) acc[r][t] = zero16();
  }
  const size_t whole = n / 16 * 16;
  for (size_t i = 0; i < whole; i += 16) {
    V16 xs[kTokens];
    for (int t = 0; t < kTokens; ++t) xs[t] = load16(x[t] + i);
    for (int r = 0; r < kRows; ++r) {
      const V16 w = W::load(row[r], i);
      if (kFetchesNext<W, kTokens> && next) __builtin_prefetch(next[r] + i * W::kBytes, 0, 2);
      for (int t = 0; t < kTokens; ++t) acc[r][t] = fma16(w, xs[t], acc[r][t]);
    }
  }
  if (whole < n) {
    for (int r = 0; r < kRows; ++r) {
      for (int t = 0; t < kTokens; ++t) acc[r][t] = dot_tail<W>(row[r], x[t], whole, n, acc[r][t]);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    if (kRows == 4) {
      float sums[4];
      fold16x4(acc[0][t], acc[1 % kRows][t], acc[2 % kRows][t], acc[3 % kRows][t], sums);
      for (int r = 0; r < kRows; ++r) out[size_t(r) * out_row + size_t(t) * out_token] = sums[r];
    } else {
      for (int r = 0; r < kRows; ++r) out[size_t(r) * out_row + size_t(t) * out_token] = fold16(acc[r][t]);
    }
  }
}

template <class W, int kTokens>
void dot_rows(const uint8_t* w, size_t row_bytes, const uint32_t* rows, size_t n_rows, const float* const* x, size_t n,
              float* out, size_t out_token) {
  constexpr int kRows = kTokens == 1 ? 4 : kGemmRows;
  const uint8_t* row[kRows];
  const uint8_t* next[kRows];
  size_t r = 0;
  for (; r + kRows <= n_rows; r += kRows) {
    const bool fetch = kFetchesNext<W, kTokens> && r + 2 * kRows <= n_rows;
    for (size_t i = 0; i < kRows; ++i) {
      row[i] = w + (rows ? rows[r + i] : r + i) * row_bytes;
      if (fetch) next[i] = w + (rows ? rows[r + kRows + i] : r + kRows + i) * row_bytes;
    }
    dot_tile<W, kRows, kTokens>(row, x, n, out + r, 1, out_token, fetch ? next : nullptr);
  }
  for (; r < n_rows; ++r) {
    row[0] = w + (rows ? rows[r] : r) * row_bytes;
    dot_tile<W, 1, kTokens>(row, x, n, out + r, 1, out_token, nullptr);
  }
}

template <class W>
void gemv_floats(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x, float* y) {
  dot_rows<W, 1>(w, row_bytes, nullptr, n_rows, &x->f, n, y, 0);
}

template <class W>
void gather_gemv_floats(const uint8_t* w, size_t row_bytes, const uint32_t* rows, size_t n_rows, size_t n,
                        const Activation* x, float* y) {
  dot_rows<W, 1>(w, row_bytes, rows, n_rows, &x->f, n, y, 0);
}

template <class W>
void gemm_floats(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x, size_t n_tokens,
                 float* y, size_t y_stride) {
  // Panels of rows that stay in the first-level cache while all tokens pass over them.
  const size_t panel = kGemmRows * 4;
  for (size_t r = 0; r < n_rows; r += panel) {
    const size_t panel_rows = n_rows - r < panel ? n_rows - r : panel;
    const uint8_t* first = w + r * row_bytes;
    size_t t = 0;
    for (; t + kGemmTokens <= n_tokens; t += kGemmTokens) {
      const float* xs[kGemmTokens];
      for (size_t i = 0; i < kGemmTokens; ++i) xs[i] = x[t + i].f;
      dot_rows<W, kGemmTokens>(first, row_bytes, nullptr, panel_rows, xs, n, y + t * y_stride + r, y_stride);
    }
    for (; t < n_tokens; ++t) {
      dot_rows<W, 1>(first, row_bytes, nullptr, panel_rows, &x[t].f, n, y + t * y_stride + r, y_stride);
    }
  }
}

// ---- rule 8, float weights

template <class W>
void axpy_rows_floats(const uint8_t* w, size_t row_bytes, const uint32_t* rows, const float* coefficient, size_t n_rows,
                      size_t col_begin, size_t col_end, float* y) {
  constexpr size_t kInFlight = 4;
  size_t i = 0;
  while (i < n_rows) {
    const size_t count = n_rows - i < kInFlight ? n_rows - i : kInFlight;
    const uint8_t* row[kInFlight];
    V16 c[kInFlight];
    for (size_t k = 0; k < count; ++k) {
      row[k] = w + rows[i + k] * row_bytes;
      c[k] = splat16(coefficient[i + k]);
      if (i + k + kInFlight < n_rows) {
        const uint8_t* next = w + rows[i + k + kInFlight] * row_bytes;
        for (size_t at = col_begin * W::kBytes; at < col_end * W::kBytes; at += 64) __builtin_prefetch(next + at);
      }
    }
    for (size_t col = col_begin; col < col_end; col += 16) {
      V16 acc = load16(y + (col - col_begin));
      for (size_t k = 0; k < count; ++k) acc = fma16(c[k], W::load(row[k], col), acc);
      store16(y + (col - col_begin), acc);
    }
    i += count;
  }
}

// ---- rules 3, 7, 12, 13 and the small ones

void quantise_lanes(const float* x, size_t n, int8_t* q, float* d, float* sum) {
  for (size_t b = 0; b < n / kBlock; ++b, x += kBlock, q += kBlock) {
    const V16 low = load16(x);
    const V16 high = load16(x + 16);
    float amax = fold16_max(max16(abs16(low), abs16(high)));
    if (amax < kQuantiseFloor) amax = 0;
    const V16 inverse = splat16(amax > 0 ? 127.0f / amax : 0.0f);
    const int32_t total = round_store16(mul16(low, inverse), q) + round_store16(mul16(high, inverse), q + 16);
    d[b] = amax / 127.0f;
    sum[b] = d[b] * float(total);
  }
}

void rms_norm_lanes(const float* x, const float* weight, float eps, size_t n, float* y) {
  const uint8_t* row = reinterpret_cast<const uint8_t*>(x);
  float square;
  dot_tile<F32Weights, 1, 1>(&row, &x, n, &square, 0, 0, nullptr);
  const float s = 1.0f / sqrtf(square / float(n) + eps);
  const V16 scale = splat16(s);
  size_t i = 0;
  for (; i + 16 <= n; i += 16) store16(y + i, mul16(mul16(load16(x + i), scale), load16(weight + i)));
  for (; i < n; ++i) y[i] = (x[i] * s) * weight[i];
}

// det_expf, lane by lane.
V16 exp16(V16 x) {
  using namespace det_expf_constants;
  // Argument order matters for NaNs only.
  x = max16(splat16(kLow), x);
  x = min16(splat16(kHigh), x);
  const V16 shifted = fma16(x, splat16(kLog2E), splat16(kMagic));
  const V16 n = sub16(shifted, splat16(kMagic));
  V16 r = fma16(n, splat16(-kLn2High), x);
  r = fma16(n, splat16(-kLn2Low), r);
  V16 p = fma16(splat16(kC6), r, splat16(kC5));
  p = fma16(p, r, splat16(kC4));
  p = fma16(p, r, splat16(kC3));
  p = fma16(p, r, splat16(kC2));
  p = fma16(p, r, splat16(1.0f));
  p = fma16(p, r, splat16(1.0f));
  return ldexp16(p, shifted);
}

void silu_mul_lanes(const float* gate, const float* up, size_t n, float* h) {
  const V16 one = splat16(1.0f);
  size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const V16 g = load16(gate + i);
    const V16 denominator = add16(one, exp16(sub16(splat16(-0.0f), g)));
    store16(h + i, mul16(div16(g, denominator), load16(up + i)));
  }
  for (; i < n; ++i) h[i] = det_siluf(gate[i]) * up[i];
}

// relu_mul, add, scaled_add and compact_greater are loops that compilers vectorise without help.
void relu_mul_lanes(const float* gate, const float* up, size_t n, float* h) {
  for (size_t i = 0; i < n; ++i) {
    const float product = gate[i] * up[i];
    h[i] = gate[i] > 0 ? product : 0.0f;
  }
}

void add_lanes(const float* x, size_t n, float* y) {
  size_t i = 0;
  for (; i + 16 <= n; i += 16) store16(y + i, add16(load16(y + i), load16(x + i)));
  for (; i < n; ++i) y[i] += x[i];
}

void scaled_add_lanes(float a, const float* x, size_t n, float* y) {
  size_t i = 0;
  for (; i + 16 <= n; i += 16) store16(y + i, fma16(splat16(a), load16(x + i), load16(y + i)));
  for (; i < n; ++i) y[i] = fmaf(a, x[i], y[i]);
}

void rope_neox_lanes(float* x, size_t head_dim, const float* cos_sin) {
  const size_t half = head_dim / 2;
  size_t i = 0;
  for (; i + 16 <= half; i += 16) {
    const V16 a = load16(x + i), b = load16(x + i + half);
    const V16 c = load16(cos_sin + i), s = load16(cos_sin + i + half);
    store16(x + i, fma16(a, c, sub16(splat16(-0.0f), mul16(b, s))));
    store16(x + i + half, fma16(b, c, mul16(a, s)));
  }
  for (; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    const float c = cos_sin[i], s = cos_sin[i + half];
    x[i] = fmaf(a, c, -(b * s));
    x[i + half] = fmaf(b, c, a * s);
  }
}

void f32_to_f16_lanes(const float* x, size_t n, uint16_t* y) {
  size_t i = 0;
  for (; i + 16 <= n; i += 16) store16_f16(y + i, load16(x + i));
  for (; i < n; ++i) y[i] = f32_to_f16(x[i]);
}

// ---- the table's float part

template <class W>
constexpr WeightKernels float_weight_kernels() {
  return {gemv_floats<W>, gather_gemv_floats<W>, gemm_floats<W>, axpy_rows_floats<W>};
}

constexpr void set_float_kernels(Kernels* k, uint32_t f32, uint32_t f16, uint32_t bf16) {
  k->weights[f32] = float_weight_kernels<F32Weights>();
  k->weights[f16] = float_weight_kernels<F16Weights>();
  k->weights[bf16] = float_weight_kernels<Bf16Weights>();
  k->quantise = quantise_lanes;
  k->rms_norm = rms_norm_lanes;
  k->silu_mul = silu_mul_lanes;
  k->relu_mul = relu_mul_lanes;
  k->add = add_lanes;
  k->scaled_add = scaled_add_lanes;
  k->rope_neox = rope_neox_lanes;
  k->f32_to_f16 = f32_to_f16_lanes;
}

}  // namespace
}  // namespace sbr
