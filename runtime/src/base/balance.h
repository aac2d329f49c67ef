// How a phase's work is shared out between threads of unequal speed (big and little cores, or a core that another
// process uses too): each thread has one contiguous share, in proportion to the speed it has shown.
//
// Taking pieces from a common counter instead would follow faster, but every piece begins with cold prefetchers: on two
// equal Zen 4 cores, pieces that halve down to 32 rows cost 6 to 14 % of decode.
//
// Who computes a row never changes what is computed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sbr {

struct Range {
  size_t begin, end;
  size_t size() const { return end - begin; }
};

// The contiguous share of thread `tid` of n items, cut at multiples of `granule`; equal ones, for small work.
inline Range share(size_t n, size_t granule, uint32_t tid, uint32_t n_threads) {
  const size_t granules = (n + granule - 1) / granule;
  const size_t begin = granules * tid / n_threads * granule;
  const size_t end = granules * (tid + 1) / n_threads * granule;
  return {begin < n ? begin : n, end < n ? end : n};
}

class Balance {
 public:
  // `measured` false: equal shares for ever.
  Balance(uint32_t n_threads, bool measured);

  // Thread `tid`'s contiguous share of n items, cut at multiples of `granule`.
  Range share(size_t n, size_t granule, uint32_t tid) const;

  // How long each thread worked on its shares of one step, without waiting for others. Not while a step runs.
  void observe(const uint64_t* work_ns);

  bool measured() const { return measured_; }
  uint32_t changes() const { return changes_; }  // how often the shares moved
  double weight(uint32_t tid) const;             // this thread's part of the whole

 private:
  uint32_t n_threads_;
  bool measured_;
  std::vector<uint32_t> edges_;    // [n_threads + 1] cumulative parts of kWhole
  std::vector<uint64_t> fastest_;  // [n_threads] of the steps observed since the last look
  uint32_t steps_ = 0;
  uint32_t changes_ = 0;
};

}  // namespace sbr
