#include "synth/normal.h"

#include "base/det_math.h"

namespace sbr {
namespace {

const double kInverseSqrt2Pi = 0.39894228040143268;
const double kLimit = 8;  // the cdf is 0 or 1 to within 1e-15 beyond

}  // namespace

double normal_density(double z) { return kInverseSqrt2Pi * det_exp(-0.5 * z * z); }

double normal_cdf(double z) {
  if (z < -kLimit) return 0;
  if (z > kLimit) return 1;
  // 1/2 + density(z) * (z + z^3/3 + z^5/(3*5) + ...): all terms of one sign, so nothing cancels.
  double term = z;
  double sum = 0;
  for (int odd = 3; sum + term != sum; odd += 2) {
    sum += term;
    term = term * z * z / odd;
  }
  return 0.5 + normal_density(z) * sum;
}

double normal_quantile(double p) {
  double low = -kLimit;
  double high = kLimit;
  for (int i = 0; i < 60; ++i) {
    const double middle = 0.5 * (low + high);
    (normal_cdf(middle) < p ? low : high) = middle;
  }
  return 0.5 * (low + high);
}

double relu_second_moment(double z) { return (1 + z * z) * (1 - normal_cdf(z)) - z * normal_density(z); }

}  // namespace sbr
