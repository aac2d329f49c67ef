#include "base/thread_pool.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <system_error>

#include "base/error.h"
#include "sbr/sbr.h"

namespace sbr {
namespace {

// Enough for machines of today; the kernel refuses a mask that is too small for it.
constexpr size_t kMaxCpus = 4096;

struct CpuMask {
  uint64_t bits[kMaxCpus / 64] = {};

  bool get(uint32_t cpu) const { return cpu < kMaxCpus && ((bits[cpu / 64] >> (cpu % 64)) & 1) != 0; }
  void set(uint32_t cpu) { bits[cpu / 64] |= uint64_t{1} << (cpu % 64); }
  bool operator==(const CpuMask& other) const { return std::memcmp(bits, other.bits, sizeof bits) == 0; }
};

int32_t current_thread_id() { return static_cast<int32_t>(syscall(SYS_gettid)); }

CpuMask current_mask() {
  CpuMask mask;
  const long bytes = syscall(SYS_sched_getaffinity, 0, sizeof(mask.bits), mask.bits);
  if (bytes < 0) throw Error(SBR_ERR_INTERNAL, "sched_getaffinity failed");
  return mask;
}

bool set_mask(const CpuMask& mask) { return syscall(SYS_sched_setaffinity, 0, sizeof(mask.bits), mask.bits) == 0; }

CpuMask only(uint32_t cpu) {
  CpuMask mask;
  mask.set(cpu);
  return mask;
}

// Pools that pin the present thread, where it was allowed before the first of them, and where they put it.
struct PinnedBy {
  std::vector<const void*> pools;
  CpuMask before, now;
};
thread_local PinnedBy pinned_by;

// Whether it is still where a pool put it; its program may have placed it elsewhere since.
bool held_by_a_pool() { return !pinned_by.pools.empty() && current_mask() == pinned_by.now; }

// What this thread may use, whichever CPU a pool of its own holds it to.
CpuMask allowed_mask() {
  const CpuMask mask = current_mask();
  return !pinned_by.pools.empty() && mask == pinned_by.now ? pinned_by.before : mask;
}

inline void pause_cpu() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb" ::: "memory");  // yield is a no-op on most cores; isb takes tens of cycles
#endif
}

std::string describe(const CpuMask& mask) {
  std::string text;
  for (uint32_t cpu = 0; cpu < kMaxCpus; ++cpu) {
    if (!mask.get(cpu)) continue;
    uint32_t last = cpu;
    while (mask.get(last + 1)) ++last;
    if (!text.empty()) text += ",";
    text += std::to_string(cpu);
    if (last != cpu) text += "-" + std::to_string(last);
    cpu = last;
  }
  return text;
}

}  // namespace

std::vector<uint32_t> allowed_cpus() {
  const CpuMask mask = allowed_mask();
  std::vector<uint32_t> cpus;
  for (uint32_t cpu = 0; cpu < kMaxCpus; ++cpu) {
    if (mask.get(cpu)) cpus.push_back(cpu);
  }
  return cpus;
}

void Gate::advance() {
  value_.fetch_add(1, std::memory_order_seq_cst);
  // Either this load sees a sleeper, or the sleeper's futex call sees the new value and returns at once.
  if (sleepers_.load(std::memory_order_seq_cst) != 0) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&value_), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
  }
}

void Gate::wait_beyond(uint32_t seen, uint32_t spins, Ahead* ahead) {
  for (uint32_t i = 0; i < spins; ++i) {
    if (value() != seen) return;
    if (ahead != nullptr && ahead->at < ahead->end) {
      __builtin_prefetch(ahead->at, 0, 2);
      ahead->at += 64;
      continue;
    }
    pause_cpu();
  }
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  while (value_.load(std::memory_order_seq_cst) == seen) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&value_), FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
  }
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

ThreadPool::ThreadPool(uint32_t n_threads, std::vector<uint32_t> cpus)
    : n_threads_(n_threads), cpus_(std::move(cpus)), ids_(n_threads, 0) {
  const CpuMask before = allowed_mask();
  for (uint32_t cpu : cpus_) {
    if (before.get(cpu)) continue;
    throw Error(SBR_ERR_ARGUMENT, "options.cpus names CPU " + std::to_string(cpu) +
                                      ", which this process may not use (allowed: " + describe(before) + ")");
  }
  // With a core for every thread a barrier takes well under a microsecond and spinning is right for the longest
  // imbalance worth spinning for (about 0.1 ms); with fewer cores each spin keeps the awaited thread from running.
  const size_t cores = cpus_.empty() ? allowed_cpus().size() : cpus_.size();
  spins_ = n_threads <= cores ? 4000 : 50;

  ids_[0] = current_thread_id();
  place_caller();  // a thread inherits the CPUs of the one that starts it
  const std::function<void(uint32_t)> introduce = [this](uint32_t tid) {
    if (tid == 0) return;
    ids_[tid] = current_thread_id();
    if (!cpus_.empty()) set_mask(only(cpus_[tid % cpus_.size()]));
  };
  try {
    threads_.reserve(n_threads - 1);
    for (uint32_t tid = 1; tid < n_threads; ++tid) threads_.emplace_back([this, tid] { work(tid); });
  } catch (const std::system_error&) {
    end();
    throw Error(SBR_ERR_MEMORY, "The operating system refused to start " + std::to_string(n_threads) + " threads");
  } catch (...) {
    end();
    throw;
  }
  run(introduce);
}

ThreadPool::~ThreadPool() { end(); }

void ThreadPool::end() {
  // The threads wait for a job; an empty one lets them end.
  job_ = nullptr;
  start_.advance();
  for (std::thread& thread : threads_) thread.join();
  std::vector<const void*>& pools = pinned_by.pools;
  const auto at = std::find(pools.begin(), pools.end(), this);
  if (at == pools.end()) return;
  const bool held = held_by_a_pool();
  pools.erase(at);
  if (held && pools.empty()) set_mask(pinned_by.before);
}

// Other pools of the same thread may have placed it elsewhere meanwhile, so this is repeated at every run.
void ThreadPool::place_caller() {
  if (cpus_.empty()) return unpin_caller();
  const CpuMask mask = current_mask();
  std::vector<const void*>& pools = pinned_by.pools;
  if (pools.empty() || !(mask == pinned_by.now)) pinned_by.before = mask;
  if (std::find(pools.begin(), pools.end(), this) == pools.end()) pools.push_back(this);
  pinned_by.now = only(cpus_[0]);
  if (!(mask == pinned_by.now)) set_mask(pinned_by.now);
}

void ThreadPool::unpin_caller() {
  if (held_by_a_pool()) set_mask(pinned_by.before);
}

void ThreadPool::run(const std::function<void(uint32_t)>& fn) {
  place_caller();
  if (n_threads_ == 1) {
    fn(0);
    return;
  }
  job_ = &fn;
  start_.advance();
  fn(0);
  barrier();
}

void ThreadPool::work(uint32_t tid) {
  uint32_t seen = 0;
  for (;;) {
    start_.wait_beyond(seen, spins_);
    ++seen;
    if (job_ == nullptr) return;
    (*job_)(tid);
    barrier();
  }
}

void ThreadPool::barrier(Ahead* ahead) {
  if (n_threads_ == 1) return;
  const uint32_t seen = release_.value();
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == n_threads_) {
    arrived_.store(0, std::memory_order_relaxed);
    release_.advance();
  } else {
    release_.wait_beyond(seen, spins_, ahead);
  }
}

}  // namespace sbr
