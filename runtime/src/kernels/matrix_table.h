// The named matrix kernels of one quantised type and one instruction set, after rows_times_vector and rows_times_tokens
// have been defined. Names follow the grammar <kernel>_<weights>_<activation>_<isa>, because names are what profilers
// show.
#pragma once

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
