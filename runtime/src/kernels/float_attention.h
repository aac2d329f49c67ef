// Attention (rule 11) of every vector instruction set, written once over the vectors of float_kernels.h: included by a
// kernel file after it, with the same anonymous namespace.
#pragma once

#include "kernels/float_kernels.h"

namespace sbr {
namespace {

// Positions whose values stay in the first-level cache while the heads of a group pass over them, 8 KB at 128 f16
// elements; and so far ahead keys and values are asked for. On Zen 4 at depth 4096 attention took 12.0 ms of a
// SmallThinker-4B token without asking and 9.4 with; 64 positions were up to 8 % slower than 32.
constexpr size_t kPositions = 32;

// Asks for `bytes` of a key or value.
void fetch_vector(const uint8_t* at, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(at + i, 0, 2);
}

// scores of n_pos positions from `k` on with kTokens heads at q.
template <class W, int kTokens>
void score_heads(const float* q, const uint8_t* k, size_t stride_bytes, size_t n_pos, size_t head_dim, float* scores,
                 size_t scores_stride) {
  const float* heads[kTokens];
  for (size_t i = 0; i < kTokens; ++i) heads[i] = q + i * head_dim;
  dot_rows<W, kTokens>(k, stride_bytes, nullptr, n_pos, heads, head_dim, scores, scores_stride);
}

// Heads of a group pass over a tile of keys together: a key is widened once for all of them, and keys to come arrive
// while one is used.
template <class W, class Element>
void attn_scores_lanes(const float* q, size_t n_heads, const Element* k, size_t stride, size_t n_pos, size_t head_dim,
                       float scale, float* scores, size_t scores_stride) {
  const uint8_t* first = reinterpret_cast<const uint8_t*>(k);
  const size_t stride_bytes = stride * W::kBytes;
  for (size_t t = 0; t < n_pos; t += kGemmRows) {
    const size_t n = n_pos - t < kGemmRows ? n_pos - t : kGemmRows;
    const uint8_t* keys = first + t * stride_bytes;
    for (size_t i = 0; i < n && t + i + kPositions < n_pos; ++i) {
      fetch_vector(keys + (i + kPositions) * stride_bytes, head_dim * W::kBytes);
    }
    size_t h = 0;
    for (; h + kGemmTokens <= n_heads; h += kGemmTokens) {
      score_heads<W, kGemmTokens>(q + h * head_dim, keys, stride_bytes, n, head_dim, scores + h * scores_stride + t,
                                  scores_stride);
    }
    if (kGemmTokens > 2 && h + 2 <= n_heads) {
      score_heads<W, 2>(q + h * head_dim, keys, stride_bytes, n, head_dim, scores + h * scores_stride + t,
                        scores_stride);
      h += 2;
    }
    for (; h < n_heads; ++h) {
      score_heads<W, 1>(q + h * head_dim, keys, stride_bytes, n, head_dim, scores + h * scores_stride + t,
                        scores_stride);
    }
  }
  for (size_t h = 0; h < n_heads; ++h) {
    for (size_t t = 0; t < n_pos; ++t) scores[h * scores_stride + t] *= scale;
  }
}

// `n_after` positions after these are asked for, this part of their columns.
template <class W, int kHeads, int kVectors>
void mix_columns(const float* p, size_t p_stride, const uint8_t* v, size_t stride_bytes, size_t n_pos, size_t n_after,
                 size_t head_dim, size_t column, float* out) {
  V16 acc[kHeads][kVectors];
  for (int h = 0; h < kHeads; ++h) {
    for (int j = 0; j < kVectors; ++j) acc[h][j] = load16(out + size_t(h) * head_dim + column + 16 * size_t(j));
  }
  for (size_t t = 0; t < n_pos; ++t, v += stride_bytes) {
    if (t < n_after) fetch_vector(v + n_pos * stride_bytes + column * W::kBytes, 16 * kVectors * W::kBytes);
    V16 weight[kHeads];
    for (int h = 0; h < kHeads; ++h) weight[h] = splat16(p[size_t(h) * p_stride + t]);
    for (int j = 0; j < kVectors; ++j) {
      const V16 value = W::load(v, column + 16 * size_t(j));
      for (int h = 0; h < kHeads; ++h) acc[h][j] = fma16(weight[h], value, acc[h][j]);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int j = 0; j < kVectors; ++j) store16(out + size_t(h) * head_dim + column + 16 * size_t(j), acc[h][j]);
  }
}

template <class W, int kHeads>
void mix_heads(const float* p, size_t p_stride, const uint8_t* v, size_t stride_bytes, size_t n_pos, size_t n_after,
               size_t head_dim, float* out) {
  constexpr int kVectors = kMixVectors / kHeads;
  size_t c = 0;
  for (; c + 16 * kVectors <= head_dim; c += 16 * kVectors) {
    mix_columns<W, kHeads, kVectors>(p, p_stride, v, stride_bytes, n_pos, n_after, head_dim, c, out);
  }
  for (; c + 16 <= head_dim; c += 16) {
    mix_columns<W, kHeads, 1>(p, p_stride, v, stride_bytes, n_pos, n_after, head_dim, c, out);
  }
  for (size_t h = 0; h < kHeads; ++h) {
    for (size_t i = c; i < head_dim; ++i) {
      float acc = out[h * head_dim + i];
      for (size_t t = 0; t < n_pos; ++t) acc = fmaf(p[h * p_stride + t], W::one(v + t * stride_bytes, i), acc);
      out[h * head_dim + i] = acc;
    }
  }
}

template <class W, class Element>
void attn_mix_lanes(const float* p, size_t p_stride, size_t n_heads, const Element* v, size_t stride, size_t n_pos,
                    size_t head_dim, float* out) {
  const uint8_t* values = reinterpret_cast<const uint8_t*>(v);
  const size_t stride_bytes = stride * W::kBytes;
  for (size_t t = 0; t < n_pos; t += kPositions, values += kPositions * stride_bytes) {
    const size_t left = n_pos - t, n = left < kPositions ? left : kPositions;
    // The first heads ask for the next positions, on behalf of all.
    size_t n_after = left - n < kPositions ? left - n : kPositions;
    size_t h = 0;
    for (; h + 2 <= n_heads; h += 2, n_after = 0) {
      mix_heads<W, 2>(p + h * p_stride + t, p_stride, values, stride_bytes, n, n_after, head_dim, out + h * head_dim);
    }
    if (h < n_heads) {
      mix_heads<W, 1>(p + h * p_stride + t, p_stride, values, stride_bytes, n, n_after, head_dim, out + h * head_dim);
    }
  }
}

void softmax_lanes(float* x, size_t n) {
  if (n == 0) return;
  const size_t whole = n / 16 * 16;
  V16 largest = splat16(x[0]);
  for (size_t i = 0; i < whole; i += 16) largest = max16(largest, load16(x + i));
  float max = fold16_max(largest);
  for (size_t i = whole; i < n; ++i) max = x[i] > max ? x[i] : max;
  const V16 shift = splat16(max);
  V16 sum = zero16();
  for (size_t i = 0; i < whole; i += 16) {
    const V16 e = exp16(sub16(load16(x + i), shift));
    store16(x + i, e);
    sum = add16(sum, e);
  }
  if (whole < n) {
    float lane[16];
    store16(lane, sum);
    for (size_t i = whole; i < n; ++i) {
      x[i] = det_expf(x[i] - max);
      lane[i % 16] += x[i];
    }
    sum = load16(lane);
  }
  const float inverse = 1.0f / fold16(sum);
  const V16 factor = splat16(inverse);
  for (size_t i = 0; i < whole; i += 16) store16(x + i, mul16(load16(x + i), factor));
  for (size_t i = whole; i < n; ++i) x[i] *= inverse;
}

constexpr void set_attention_kernels(Kernels* k) {
  k->attn_scores_f16 = attn_scores_lanes<F16Weights, uint16_t>;
  k->attn_scores_f32 = attn_scores_lanes<F32Weights, float>;
  k->softmax = softmax_lanes;
  k->attn_mix_f16 = attn_mix_lanes<F16Weights, uint16_t>;
  k->attn_mix_f32 = attn_mix_lanes<F32Weights, float>;
}

}  // namespace
}  // namespace sbr
