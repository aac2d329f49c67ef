// The normal distribution, as far as the design of synthetic weights needs it. Same bits on every machine.
#pragma once

namespace sbr {

double normal_density(double z);
double normal_cdf(double z);       // |error| < 1e-14 for |z| <= 8
double normal_quantile(double p);  // of p in (0, 1); limited to -8..8
// Mean of max(N - z, 0)^2: the second moment of a ReLU output whose input is zero with probability normal_cdf(z).
double relu_second_moment(double z);

}  // namespace sbr
