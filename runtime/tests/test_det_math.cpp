// det_math.h against libm with its stated bounds, and against pinned hashes: the same bits on every machine.

#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "base/det_math.h"
#include "check.h"

namespace {

using namespace sbr;

// Distance of `got` from `exact` in units of the last place of a float or double near `exact`.
double ulps_float(float got, double exact) {
  int exponent;
  std::frexp(exact, &exponent);
  const double unit = std::ldexp(1.0, exponent - 24 < -149 ? -149 : exponent - 24);
  return std::fabs(double(got) - exact) / unit;
}

// The unit is not taken smaller than that of `floor`.
double ulps_double(double got, long double exact, long double floor = 0) {
  int exponent;
  std::frexp(std::fabs(exact) > floor ? exact : floor, &exponent);
  const long double unit = std::ldexp(1.0L, exponent - 53 < -1074 ? -1074 : exponent - 53);
  return double(std::fabs((long double)(got)-exact) / unit);
}

struct Hash {
  uint64_t value = 0xcbf29ce484222325u;
  void add(uint64_t bits) { value = (value ^ bits) * 0x100000001b3u; }
  void add(float x) { add(uint64_t(det_bits_from_float(x))); }
  void add(double x) { add(det_bits_from_double(x)); }
};

void check_expf() {
  double worst = 0;
  Hash hash;
  for (int i = -440000; i <= 365000; ++i) {
    const float x = float(i) * 0x1p-12f * 0.99f;
    const float got = det_expf(x);
    hash.add(got);
    if (x > 88.72f || x < -103.9f) continue;
    const double ulps = ulps_float(got, std::exp(double(x)));
    worst = ulps > worst ? ulps : worst;
  }
  std::printf("det_expf: %.3f ulp\n", worst);
  CHECK(worst <= 1.0);
  CHECK_MSG(hash.value == 0x575b6d63c446f0c1u, "%#llx", (unsigned long long)hash.value);

  CHECK(det_expf(0.0f) == 1 && det_expf(-0.0f) == 1);
  CHECK(det_expf(88.72f) < INFINITY && det_expf(88.73f) == INFINITY && det_expf(INFINITY) == INFINITY);
  CHECK(det_expf(-103.9f) == 0x1p-149f && det_expf(-104.0f) == 0 && det_expf(-INFINITY) == 0);
  CHECK(std::isnan(det_expf(NAN)));
  CHECK(det_sigmoidf(0.0f) == 0.5f && det_sigmoidf(200.0f) == 1 && det_sigmoidf(-200.0f) == 0);
  CHECK(det_siluf(0.0f) == 0 && det_siluf(-200.0f) == 0 && det_siluf(100.0f) == 100);
}

void check_exp_and_log() {
  double worst_exp = 0, worst_log = 0, worst_pow = 0;
  Hash hash;
  for (int i = -100000; i <= 100000; ++i) {
    const double x = double(i) * 0x1p-7 * 0.9;
    if (x > -744 && x < 709.7) {
      const double got = det_exp(x);
      hash.add(got);
      const double ulps = ulps_double(got, std::exp((long double)x));
      worst_exp = ulps > worst_exp ? ulps : worst_exp;
    }
    const double near_one = 1 + double(i) * 0x1p-19;
    const double wide = std::ldexp(1 + (i & 1023) / 1024.0 + 0x1p-40 * i, i / 100);
    for (const double v : {near_one, wide}) {
      const double got = det_log(v);
      hash.add(got);
      const double ulps = v == 1 ? std::fabs(got) * 0x1p1000 : ulps_double(got, std::log((long double)v));
      worst_log = ulps > worst_log ? ulps : worst_log;
    }
  }
  for (int i = 1; i < 4096; ++i) {
    const double base = 10000 + 1e4 * (i % 500), exponent = -double(i) / 4096;
    const double got = det_pow(base, exponent);
    hash.add(got);
    const long double exact = std::pow((long double)base, (long double)exponent);
    const double bound = (2 + std::fabs(exponent * std::log(base))) * 2.3e-16;
    const double error = double(std::fabs(got - exact) / exact) / bound;
    worst_pow = error > worst_pow ? error : worst_pow;
  }
  std::printf("det_exp: %.3f ulp, det_log: %.3f ulp, det_pow: %.3f of its bound\n", worst_exp, worst_log, worst_pow);
  CHECK(worst_exp <= 1.0);
  CHECK(worst_log <= 1.0);
  CHECK(worst_pow <= 1.0);
  CHECK_MSG(hash.value == 0x414180ed80749fbbu, "%#llx", (unsigned long long)hash.value);
  CHECK(det_exp(0.0) == 1 && det_exp(-1e6) == 0 && std::isinf(det_exp(1e6)) && std::isnan(det_exp(NAN)));
  CHECK(det_log(1.0) == 0 && det_pow(7.0, 0.0) == 1);
}

void check_sin_and_cos() {
  double worst = 0;
  Hash hash;
  for (int i = -200000; i <= 200000; ++i) {
    // Angles of RoPE: positions times frequencies, and some near multiples of a quarter turn.
    const double scales[] = {0.731, 1e-5, 160.0, 1.5707963267948966};
    const double x = double(i) * scales[i & 3];
    double s, c;
    det_sincos(x, &s, &c);
    hash.add(s);
    hash.add(c);
    const long double exact[2] = {std::sin((long double)x), std::cos((long double)x)};
    const double got[2] = {s, c};
    for (int k = 0; k < 2; ++k) {
      const double ulps = ulps_double(got[k], exact[k], 0x1p-10L);
      worst = ulps > worst ? ulps : worst;
    }
  }
  std::printf("det_sincos: %.3f ulp\n", worst);
  CHECK(worst <= 1.5);
  CHECK_MSG(hash.value == 0xc51a78f596ccda79u, "%#llx", (unsigned long long)hash.value);
  CHECK(det_sin(0.0) == 0 && det_cos(0.0) == 1);
}

}  // namespace

int main() {
  check_expf();
  check_exp_and_log();
  check_sin_and_cos();
  return check_result();
}
