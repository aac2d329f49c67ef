// Elementary functions with the same result on every machine (docs/arithmetic.md, rule 2).
//
// Built from + - * / fma and rounding by a magic constant only: all correctly rounded by IEEE 754, so the bits do not
// depend on a libm, a compiler or an instruction set (given -ffp-contract=off). std::fma is an instruction or libc's
// correctly rounded emulation. Rounding mode: to nearest even; denormals are kept.
//
// Accuracy, as tested in test_det_math.cpp against libm:
//   det_expf      1 ulp over the whole range, denormal results included; inf from 88.7228 on; 0 below -103.98
//   det_exp       1 ulp
//   det_log       1 ulp (positive normal arguments)
//   det_pow       relative error below (2 + |y ln x|) * 2.3e-16
//   det_sin/cos   1.5 ulp of the larger of the result and 2^-10, for |x| up to 2^25
// A NaN argument gives a NaN. Every function here is static: this file is also included by kernel files that are
// compiled for other instruction sets, and must not emit a symbol that the linker could share with them.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

namespace sbr {

static inline float det_float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint32_t det_bits_from_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline double det_double_from_bits(uint64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint64_t det_bits_from_double(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// The constants of det_expf. Vector kernels repeat the same operations in the same order with them.
namespace det_expf_constants {
constexpr float kLow = -104.0f;  // below: 0 after rounding
constexpr float kHigh = 89.0f;   // above: infinity
constexpr float kLog2E = 0x1.715476p+0f;
constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
constexpr uint32_t kMagicBits = 0x4b400000u;
constexpr float kLn2High = 0x1.62e430p-1f;
constexpr float kLn2Low = -0x1.05c610p-29f;
// exp(r) = 1 + r + r^2 * (c2 + c3 r + ...), least relative error 3.2e-9 over |r| <= ln 2 / 2.
constexpr float kC2 = 0x1.fffffcp-2f;
constexpr float kC3 = 0x1.555492p-3f;
constexpr float kC4 = 0x1.5558aap-5f;
constexpr float kC5 = 0x1.12398cp-7f;
constexpr float kC6 = 0x1.6a5428p-10f;
}  // namespace det_expf_constants

static inline float det_expf(float x) {
  using namespace det_expf_constants;
  x = x < kLow ? kLow : x;
  x = x > kHigh ? kHigh : x;
  const float shifted = fmaf(x, kLog2E, kMagic);
  const float n = shifted - kMagic;
  float r = fmaf(n, -kLn2High, x);
  r = fmaf(n, -kLn2Low, r);
  float p = fmaf(kC6, r, kC5);
  p = fmaf(p, r, kC4);
  p = fmaf(p, r, kC3);
  p = fmaf(p, r, kC2);
  p = fmaf(p, r, 1.0f);
  p = fmaf(p, r, 1.0f);
  // 2^n in two factors, so that a denormal result is rounded once (n is in -150..128, each half a normal power).
  const int32_t n_int = (int32_t)(det_bits_from_float(shifted) - kMagicBits);
  const int32_t half = n_int >> 1;
  const float scale1 = det_float_from_bits((uint32_t)(half + 127) << 23);
  const float scale2 = det_float_from_bits((uint32_t)(n_int - half + 127) << 23);
  return p * scale1 * scale2;
}

// Rule 13.
static inline float det_sigmoidf(float x) { return 1.0f / (1.0f + det_expf(-x)); }
static inline float det_siluf(float x) { return x / (1.0f + det_expf(-x)); }

// Rounds to an integer (|x| < 2^51); *bits_low receives its low 32 bits.
static inline double det_round(double x, int32_t* bits_low) {
  const double magic = 6755399441055744.0;  // 1.5 * 2^52
  const double shifted = x + magic;
  *bits_low = (int32_t)(uint32_t)det_bits_from_double(shifted);
  return shifted - magic;
}

static inline double det_exp(double x) {
  if (!(x > -746.0)) return x <= -746.0 ? 0.0 : x;
  if (x > 710.0) return det_double_from_bits(0x7ff0000000000000u);
  int32_t n_int;
  const double n = det_round(x * 0x1.71547652b82fep+0, &n_int);
  double r = fma(n, -0x1.62e42fefa39efp-1, x);
  r = fma(n, -0x1.abc9e3b39803fp-56, r);
  // Taylor to degree 13: the next term is 4e-18 at |r| = ln 2 / 2.
  double p = 1.0 / 6227020800.0;
  p = fma(p, r, 1.0 / 479001600.0);
  p = fma(p, r, 1.0 / 39916800.0);
  p = fma(p, r, 1.0 / 3628800.0);
  p = fma(p, r, 1.0 / 362880.0);
  p = fma(p, r, 1.0 / 40320.0);
  p = fma(p, r, 1.0 / 5040.0);
  p = fma(p, r, 1.0 / 720.0);
  p = fma(p, r, 1.0 / 120.0);
  p = fma(p, r, 1.0 / 24.0);
  p = fma(p, r, 1.0 / 6.0);
  p = fma(p, r, 0.5);
  p = fma(p, r, 1.0);
  p = fma(p, r, 1.0);
  const int32_t half = n_int >> 1;
  const double scale1 = det_double_from_bits((uint64_t)(half + 1023) << 52);
  const double scale2 = det_double_from_bits((uint64_t)(n_int - half + 1023) << 52);
  return p * scale1 * scale2;
}

// Natural logarithm of a positive normal number.
static inline double det_log(double x) {
  // x = 2^k * m with m in [sqrt(1/2), sqrt(2)); log m = 2 atanh(s), s = (m - 1) / (m + 1), |s| <= 0.1716.
  const uint64_t bits = det_bits_from_double(x);
  const uint64_t shifted = bits - 0x3fe6a09e667f3bcdu;
  const int64_t k = (int64_t)shifted >> 52;
  const double m = det_double_from_bits(bits - ((uint64_t)k << 52));
  const double f = m - 1.0;  // exact
  const double s = f / (2.0 + f);
  const double z = s * s;
  // 2 atanh(s) = 2s + s * z * (2/3 + 2/5 z + ...); the next term is below 1e-18.
  double p = 2.0 / 23.0;
  p = fma(p, z, 2.0 / 21.0);
  p = fma(p, z, 2.0 / 19.0);
  p = fma(p, z, 2.0 / 17.0);
  p = fma(p, z, 2.0 / 15.0);
  p = fma(p, z, 2.0 / 13.0);
  p = fma(p, z, 2.0 / 11.0);
  p = fma(p, z, 2.0 / 9.0);
  p = fma(p, z, 2.0 / 7.0);
  p = fma(p, z, 2.0 / 5.0);
  p = fma(p, z, 2.0 / 3.0);
  // log m = f - f^2/2 + s * (f^2/2 + z * p): the large part of 2s is replaced by the exact f.
  const double half_square = 0.5 * f * f;
  const double tail = fma(s, fma(z, p, half_square), (double)k * 0x1.abc9e3b39803fp-56);
  const double head = (double)k * 0x1.62e42fefa39efp-1;
  const double head_error = fma((double)k, 0x1.62e42fefa39efp-1, -head);
  // head + f, with what the addition loses (|head| > |f| or head = 0)
  const double sum = head + f;
  const double sum_error = (head - sum) + f;
  return sum + (sum_error + (tail + (head_error - half_square)));
}

// x > 0.
static inline double det_pow(double x, double y) { return det_exp(y * det_log(x)); }

// sin and cos, |x| <= 2^25.
static inline void det_sincos(double x, double* sin_x, double* cos_x) {
  int32_t quadrant;
  const double n = det_round(x * 0x1.45f306dc9c883p-1, &quadrant);
  double r = fma(n, -0x1.921fb54442d18p+0, x);
  r = fma(n, -0x1.1a62633145c07p-54, r);
  r = fma(n, 0x1.f1976b7ed8fbcp-110, r);
  const double z = r * r;
  // Taylor: the next terms are 8e-20 and 2e-18 at |r| = pi / 4.
  double s = 1.0 / 355687428096000.0;
  s = fma(s, z, -1.0 / 1307674368000.0);
  s = fma(s, z, 1.0 / 6227020800.0);
  s = fma(s, z, -1.0 / 39916800.0);
  s = fma(s, z, 1.0 / 362880.0);
  s = fma(s, z, -1.0 / 5040.0);
  s = fma(s, z, 1.0 / 120.0);
  s = fma(s, z, -1.0 / 6.0);
  s = fma(s * z, r, r);
  double c = 1.0 / 20922789888000.0;
  c = fma(c, z, -1.0 / 87178291200.0);
  c = fma(c, z, 1.0 / 479001600.0);
  c = fma(c, z, -1.0 / 3628800.0);
  c = fma(c, z, 1.0 / 40320.0);
  c = fma(c, z, -1.0 / 720.0);
  c = fma(c, z, 1.0 / 24.0);
  c = fma(c, z, -0.5);
  c = fma(c, z, 1.0);
  const double sin_part = (quadrant & 1) ? c : s;
  const double cos_part = (quadrant & 1) ? s : c;
  *sin_x = (quadrant & 2) ? -sin_part : sin_part;
  *cos_x = ((quadrant + 1) & 2) ? -cos_part : cos_part;
}

static inline double det_sin(double x) {
  double s, c;
  det_sincos(x, &s, &c);
  return s;
}

static inline double det_cos(double x) {
  double s, c;
  det_sincos(x, &s, &c);
  return c;
}

}  // namespace sbr
