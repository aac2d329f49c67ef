// What sessions learn from the times of their steps: the threads' shares, and whether layers skip zero neurons. Both
// are fed with made-up times, so that nothing here depends on this machine's speed.
#include <algorithm>
#include <cmath>
#include <vector>

#include "base/balance.h"
#include "expect.h"
#include "model/sparsity_choice.h"

namespace {

using sbr::Balance;
using sbr::Range;
using sbr::SparsityChoice;

// Shares follow each other, cover everything, and are cut at multiples of the granule.
void expect_partition(const Balance& balance, uint32_t n_threads, size_t n, size_t granule) {
  size_t at = 0;
  for (uint32_t tid = 0; tid < n_threads; ++tid) {
    const Range range = balance.share(n, granule, tid);
    EXPECT(range.begin == at && range.begin <= range.end);
    EXPECT(range.end % granule == 0 || range.end == n);
    at = range.end;
  }
  EXPECT(at == n);
}

void expect_partitions(const Balance& balance, uint32_t n_threads) {
  for (size_t n : {0u, 1u, 31u, 32u, 100u, 768u, 1536u, 151936u}) {
    for (size_t granule : {1u, 4u, 32u}) expect_partition(balance, n_threads, n, granule);
  }
}

// The longest of the threads' times for one step of 1536 rows at given speeds, in rows per time.
double step_time(Balance* balance, const std::vector<double>& speed, double jitter, uint32_t* random) {
  std::vector<uint64_t> work(speed.size());
  double longest = 0;
  for (uint32_t tid = 0; tid < speed.size(); ++tid) {
    *random = *random * 1664525u + 1013904223u;
    const double noise = 1 + jitter * double(*random >> 8) / double(1 << 24);
    const double ns = 1000.0 * double(balance->share(1536, 32, tid).size()) / speed[tid] * noise;
    longest = std::max(longest, ns);
    work[tid] = static_cast<uint64_t>(ns);
  }
  balance->observe(work.data());
  return longest;
}

void test_unequal_threads() {
  for (const std::vector<double>& speed :
       {std::vector<double>{1, 0.4}, {1, 1, 0.25, 0.25}, {0.3, 1}, {1, 0.9, 0.8, 0.7, 0.6}}) {
    const auto n = static_cast<uint32_t>(speed.size());
    uint32_t random = 1;
    Balance equal(n, false), measured(n, true);
    double slow = 0, fast = 0, total = 0;
    for (double s : speed) total += s;
    for (int step = 0; step < 64; ++step) {
      slow = step_time(&equal, speed, 0, &random);
      fast = step_time(&measured, speed, 0, &random);
    }
    const double ideal = 1000.0 * 1536 / total;
    EXPECT(equal.changes() == 0 && slow > 1.15 * ideal);
    EXPECT(fast < 1.15 * ideal);  // granules of 32 rows limit how close it gets
    expect_partitions(measured, n);
  }
}

// Equal threads, one or another of which is interrupted in half of the steps, keep equal shares.
void test_noise_moves_nothing() {
  Balance balance(4, true);
  uint32_t random = 1;
  for (int step = 0; step < 400; ++step) {
    std::vector<uint64_t> work(4);
    for (uint64_t& ns : work) {
      random = random * 1664525u + 1013904223u;
      ns = 1000000 + (random >> 8) % 20000 + ((random >> 30) != 0 ? 0 : 3000000);
    }
    work[step % 4] *= 1 + step / 4 % 2;
    balance.observe(work.data());
  }
  EXPECT(balance.changes() == 0);
  expect_partitions(balance, 4);
}

// A thread that was slow and is no longer gets its share back; one that never answers keeps a little.
void test_recovery_and_floor() {
  Balance balance(2, true);
  uint32_t random = 1;
  for (int step = 0; step < 64; ++step) step_time(&balance, {1, 0.2}, 0, &random);
  EXPECT(balance.weight(1) < 0.25);
  for (int step = 0; step < 64; ++step) step_time(&balance, {1, 1}, 0, &random);
  EXPECT(std::abs(balance.weight(1) - 0.5) < 0.05);
  const uint64_t stuck[2] = {1000, 1000000000000};
  for (int step = 0; step < 64; ++step) balance.observe(stuck);
  EXPECT(balance.weight(1) > 0.01 && balance.share(1536, 32, 1).size() > 0);
  expect_partitions(balance, 2);
}

void test_sparsity_choice() {
  // Layer 0 is faster sparse, layer 1 dense, with a disturbed try in each.
  const uint64_t times[2][2] = {{100, 140}, {80, 150}};  // [sparse][layer]
  SparsityChoice choice(2, true, false);
  uint32_t dense_steps[2] = {0, 0};
  const auto run = [&](uint32_t steps) {
    for (uint32_t step = 0; step < steps; ++step) {
      uint64_t ns[2];
      for (uint32_t l = 0; l < 2; ++l) {
        ns[l] = times[choice.sparse(l)][l] * (step == l ? 10 : 1);
        dense_steps[l] += choice.sparse(l) ? 0 : 1;
      }
      choice.observe(ns);
    }
  };
  run(SparsityChoice::kPeriod);
  EXPECT(choice.chosen(0) && !choice.chosen(1));
  EXPECT(dense_steps[0] == SparsityChoice::kTries);
  EXPECT(dense_steps[1] == SparsityChoice::kPeriod - SparsityChoice::kTries);
  // What was faster may change.
  for (uint32_t step = 0; step < 2 * SparsityChoice::kTries; ++step) {
    const uint64_t ns[2] = {choice.sparse(0) ? 9u : 5u, choice.sparse(1) ? 5u : 9u};
    choice.observe(ns);
  }
  EXPECT(!choice.chosen(0) && choice.chosen(1) && !choice.sparse(0) && choice.sparse(1));

  for (bool fixed : {false, true}) {
    SparsityChoice set(1, false, fixed);
    for (int step = 0; step < 20; ++step) {
      const uint64_t ns[1] = {fixed == (step % 2 == 0) ? 1u : 1000u};
      set.observe(ns);
      EXPECT(set.sparse(0) == fixed && set.chosen(0) == fixed);
    }
  }
}

}  // namespace

int main() {
  for (uint32_t n : {1u, 2u, 3u, 7u, 64u}) expect_partitions(Balance(n, true), n);
  test_unequal_threads();
  test_noise_moves_nothing();
  test_recovery_and_floor();
  test_sparsity_choice();
  return sbr_test::finish("test_balance");
}
