// One program, all threads (SPMD): run(fn) calls fn(0) on the caller and fn(1..n-1) on the pool's threads and
// returns when all are done. Inside fn, barrier(tid) waits until every thread has reached it.
//
// Waiting spins first (a decode step has hundreds of barriers, and a sleeping thread costs tens of microseconds to
// wake), then sleeps on a futex, so that more threads than cores, or a session at rest, cost no CPU time.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace sbr {

// Memory that a waiting thread fetches into its second-level cache.
struct Ahead {
  const uint8_t* at = nullptr;
  const uint8_t* end = nullptr;
};

// A number that threads wait on until it changes.
class Gate {
 public:
  uint32_t value() const { return value_.load(std::memory_order_acquire); }
  void advance();                                                           // value + 1; wakes whoever sleeps
  void wait_beyond(uint32_t seen, uint32_t spins, Ahead* ahead = nullptr);  // until value() != seen

 private:
  std::atomic<uint32_t> value_{0};
  std::atomic<uint32_t> sleepers_{0};
};

// Padding keeps what one thread writes off the cache lines that others spin on.
// NOLINTNEXTLINE(clang-analyzer-optin.performance.Padding)
class ThreadPool {
 public:
  // `cpus`: thread i is pinned to cpus[i % size]; empty: not pinned. The calling thread becomes thread 0 and is pinned
  // too, until it destroys the last of its pools that pin it. Errors: ARGUMENT naming a CPU that this process may not
  // use.
  ThreadPool(uint32_t n_threads, std::vector<uint32_t> cpus);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  uint32_t size() const { return n_threads_; }

  // fn must not throw and must call barrier() equally often on every thread. One caller at a time; the caller
  // is pinned as thread 0 if it is not yet.
  void run(const std::function<void(uint32_t)>& fn);
  void barrier(Ahead* ahead = nullptr);

  // Lets the calling thread go where it was allowed to be before pools of its own pinned it; their next run pins it
  // again. For whoever starts threads, which inherit where it may run.
  static void unpin_caller();

  // Operating-system ids; [0] is the thread that made the pool.
  const std::vector<int32_t>& thread_ids() const { return ids_; }

 private:
  void work(uint32_t tid);
  void end();  // joins the threads that were started and restores the caller's affinity
  void place_caller();

  alignas(64) Gate start_;
  alignas(64) Gate release_;
  alignas(64) std::atomic<uint32_t> arrived_{0};  // whoever reads the two below has just written this line anyway
  const uint32_t n_threads_;
  uint32_t spins_ = 0;  // before sleeping
  const std::vector<uint32_t> cpus_;
  std::vector<std::thread> threads_;
  std::vector<int32_t> ids_;
  const std::function<void(uint32_t)>* job_ = nullptr;  // nullptr: end
};

// CPUs that this thread may use, ascending, wherever pools of its own hold it.
std::vector<uint32_t> allowed_cpus();

}  // namespace sbr
