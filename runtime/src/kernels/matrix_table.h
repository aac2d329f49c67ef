// The matrix kernels of all quantised types for one instruction set, after rows_times_vector and rows_times_tokens
// have been defined for the types Q4_0, Q4_1, Q8_0, Q4_K and Q6_K. Names follow the grammar
// <kernel>_<weights>_<activation>_<isa>, because names are what profilers show.
#pragma once

#include "kernels/kernels.h"
#include "sbr/sbr.h"

#define SBR_MATRIX_KERNELS(name, Type, isa)                                                                       \
  void gemv_##name##_q8_0_##isa(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x, \
                                float* y) {                                                                       \
    rows_times_vector<Type>(w, row_bytes, nullptr, n_rows, n, *x, y);                                             \
  }                                                                                                               \
  void gather_gemv_##name##_q8_0_##isa(const uint8_t* w, size_t row_bytes, const uint32_t* rows, size_t n_rows,   \
                                       size_t n, const Activation* x, float* y) {                                 \
    rows_times_vector<Type>(w, row_bytes, rows, n_rows, n, *x, y);                                                \
  }                                                                                                               \
  void gemm_##name##_q8_0_##isa(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x, \
                                size_t n_tokens, float* y, size_t y_stride) {                                     \
    rows_times_tokens<Type>(w, row_bytes, n_rows, n, x, n_tokens, y, y_stride);                                   \
  }                                                                                                               \
  constexpr WeightKernels name##_kernels(AxpyRowsFn axpy_rows) {                                                  \
    return {gemv_##name##_q8_0_##isa, gather_gemv_##name##_q8_0_##isa, gemm_##name##_q8_0_##isa, axpy_rows};      \
  }

// Of interleaved matrices, after tiles_times_vector and tiles_times_tokens have been defined for the types TileQ4_0,
// TileQ4_1, TileQ8_0 and TileQ4_K.
#define SBR_INTERLEAVED_KERNEL(name, Type, isa)                                                                       \
  void gemv_##name##_x16_q8_0_##isa(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x, \
                                    float* y) {                                                                       \
    tiles_times_vector<Type>(w, row_bytes, n_rows, n, *x, y);                                                         \
  }                                                                                                                   \
  void gemm_##name##_x16_q8_0_##isa(const uint8_t* w, size_t row_bytes, size_t n_rows, size_t n, const Activation* x, \
                                    size_t n_tokens, float* y, size_t y_stride) {                                     \
    tiles_times_tokens<Type>(w, row_bytes, n_rows, n, x, n_tokens, y, y_stride);                                      \
  }

#define SBR_INTERLEAVED_KERNELS(set)                                          \
  SBR_INTERLEAVED_KERNEL(q4_0, TileQ4_0, set)                                 \
  SBR_INTERLEAVED_KERNEL(q4_1, TileQ4_1, set)                                 \
  SBR_INTERLEAVED_KERNEL(q8_0, TileQ8_0, set)                                 \
  SBR_INTERLEAVED_KERNEL(q4_k, TileQ4_K, set)                                 \
  constexpr void set_interleaved_kernels(Kernels* k) {                        \
    k->weights[kInterleaved + SBR_TYPE_Q4_0].gemv = gemv_q4_0_x16_q8_0_##set; \
    k->weights[kInterleaved + SBR_TYPE_Q4_0].gemm = gemm_q4_0_x16_q8_0_##set; \
    k->weights[kInterleaved + SBR_TYPE_Q4_1].gemv = gemv_q4_1_x16_q8_0_##set; \
    k->weights[kInterleaved + SBR_TYPE_Q4_1].gemm = gemm_q4_1_x16_q8_0_##set; \
    k->weights[kInterleaved + SBR_TYPE_Q8_0].gemv = gemv_q8_0_x16_q8_0_##set; \
    k->weights[kInterleaved + SBR_TYPE_Q8_0].gemm = gemm_q8_0_x16_q8_0_##set; \
    k->weights[kInterleaved + SBR_TYPE_Q4_K].gemv = gemv_q4_k_x16_q8_0_##set; \
    k->weights[kInterleaved + SBR_TYPE_Q4_K].gemm = gemm_q4_k_x16_q8_0_##set; \
  }

// The kernels, and the table's quantised part: quantised_table(isa number, name, rule 8 for q4_0, for q8_0).
#define SBR_QUANTISED_KERNELS(set)                                                                                   \
  SBR_MATRIX_KERNELS(q4_0, Q4_0, set)                                                                                \
  SBR_MATRIX_KERNELS(q4_1, Q4_1, set)                                                                                \
  SBR_MATRIX_KERNELS(q8_0, Q8_0, set)                                                                                \
  SBR_MATRIX_KERNELS(q4_k, Q4_K, set)                                                                                \
  SBR_MATRIX_KERNELS(q6_k, Q6_K, set)                                                                                \
  constexpr Kernels quantised_table(uint32_t number, const char* name, AxpyRowsFn axpy_q4_0, AxpyRowsFn axpy_q8_0) { \
    Kernels k = {};                                                                                                  \
    k.isa = number;                                                                                                  \
    k.name = name;                                                                                                   \
    k.weights[SBR_TYPE_Q4_0] = q4_0_kernels(axpy_q4_0);                                                              \
    k.weights[SBR_TYPE_Q8_0] = q8_0_kernels(axpy_q8_0);                                                              \
    k.weights[SBR_TYPE_Q4_1] = q4_1_kernels(nullptr);                                                                \
    k.weights[SBR_TYPE_Q4_K] = q4_k_kernels(nullptr);                                                                \
    k.weights[SBR_TYPE_Q6_K] = q6_k_kernels(nullptr);                                                                \
    return k;                                                                                                        \
  }
