#include "base/balance.h"

#include <algorithm>

namespace sbr {
namespace {

constexpr uint32_t kWhole = 1u << 20;
// Steps between two looks at the times. Of each thread the fastest step counts: whoever was interrupted in all eight is
// slow, whoever was in some is not.
constexpr uint32_t kWindow = 8;
// Shares move when the slowest thread takes this much longer than the fastest. Equal cores differ by 1 to 3 %.
constexpr double kTolerance = 1.06;
// No thread's share falls below this part of an equal one: it must go on being measured.
constexpr double kLeast = 1.0 / 16;

}  // namespace

Balance::Balance(uint32_t n_threads, bool measured)
    : n_threads_(n_threads),
      measured_(measured && n_threads > 1),
      edges_(n_threads + 1),
      fastest_(n_threads, UINT64_MAX) {
  for (uint32_t i = 0; i <= n_threads; ++i) edges_[i] = static_cast<uint32_t>(uint64_t{kWhole} * i / n_threads);
}

Range Balance::share(size_t n, size_t granule, uint32_t tid) const {
  const uint64_t granules = (n + granule - 1) / granule;
  // Rounded to nearest: equal shares of a few granules (heads of attention, say) stay equal.
  const auto at = [&](uint32_t edge) {
    const uint64_t items = (granules * edge + kWhole / 2) / kWhole * granule;
    return static_cast<size_t>(items < n ? items : n);
  };
  return {at(edges_[tid]), at(edges_[tid + 1])};
}

double Balance::weight(uint32_t tid) const { return double(edges_[tid + 1] - edges_[tid]) / kWhole; }

void Balance::observe(const uint64_t* work_ns) {
  if (!measured_) return;
  for (uint32_t i = 0; i < n_threads_; ++i) fastest_[i] = std::min(fastest_[i], std::max<uint64_t>(work_ns[i], 1));
  if (++steps_ < kWindow) return;
  const auto [least, most] = std::minmax_element(fastest_.begin(), fastest_.end());
  if (double(*most) > kTolerance * double(*least)) {
    std::vector<double> speed(n_threads_);
    double sum = 0;
    for (uint32_t i = 0; i < n_threads_; ++i) sum += speed[i] = weight(i) / double(fastest_[i]);
    const double floor = kLeast / n_threads_ * sum;
    double total = 0;
    for (double& s : speed) total += s = std::max(s, floor);
    double before = 0;
    for (uint32_t i = 0; i < n_threads_; ++i) {
      edges_[i] = static_cast<uint32_t>(before / total * kWhole);
      before += speed[i];
    }
    ++changes_;
  }
  steps_ = 0;
  std::fill(fastest_.begin(), fastest_.end(), UINT64_MAX);
}

}  // namespace sbr
