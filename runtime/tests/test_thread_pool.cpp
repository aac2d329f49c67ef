// The pool under more threads than cores, at every size, and its errors. Run under TSan too (preset tsan).
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"
#include "expect.h"
#include "sbr/sbr.h"

namespace {

// Plain (not atomic) memory is handed on over barriers: each thread reads what its neighbour wrote before the barrier.
void test_barriers(uint32_t n_threads, int runs, int barriers) {
  sbr::ThreadPool pool(n_threads, {});
  std::vector<uint64_t> cells(n_threads * 8, 0);
  std::atomic<int> wrong{0};
  for (int run = 0; run < runs; ++run) {
    pool.run([&](uint32_t tid) {
      for (int i = 0; i < barriers; ++i) {
        const uint64_t stamp = static_cast<uint64_t>(run) * 1000 + static_cast<uint64_t>(i);
        cells[tid * 8] = stamp;
        pool.barrier();
        if (cells[(tid + 1) % n_threads * 8] != stamp) ++wrong;
        pool.barrier();
      }
    });
  }
  EXPECT(wrong == 0);
}

// Workers have gone to sleep by the time of the next run.
void test_sleep_and_wake() {
  sbr::ThreadPool pool(3, {});
  std::vector<int> counts(3 * 16, 0);
  for (int i = 0; i < 20; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    pool.run([&](uint32_t tid) { ++counts[tid * 16]; });
  }
  EXPECT(counts[0] == 20 && counts[16] == 20 && counts[32] == 20);
}

void test_thread_ids() {
  sbr::ThreadPool pool(4, {});
  EXPECT(pool.thread_ids().size() == 4);
  EXPECT(pool.thread_ids()[0] == static_cast<int32_t>(syscall(SYS_gettid)));
  EXPECT(std::set<int32_t>(pool.thread_ids().begin(), pool.thread_ids().end()).size() == 4);
  sbr::ThreadPool one(1, {});
  int calls = 0;
  one.run([&](uint32_t tid) {
    calls += tid == 0;
    one.barrier();
  });
  EXPECT(calls == 1);
}

void test_pinning() {
  const std::vector<uint32_t> before = sbr::allowed_cpus();
  const uint32_t last = before.back();
  {
    sbr::ThreadPool pool(3, {last});
    std::atomic<int> elsewhere{0};
    pool.run([&](uint32_t) {
      if (sbr::allowed_cpus() != std::vector<uint32_t>{last} || sched_getcpu() != static_cast<int>(last)) ++elsewhere;
    });
    EXPECT(elsewhere == 0);
  }
  EXPECT(sbr::allowed_cpus() == before);

  uint32_t forbidden = 0;
  while (std::find(before.begin(), before.end(), forbidden) != before.end()) ++forbidden;
  for (uint32_t cpu : {forbidden, 1000000u}) {
    try {
      sbr::ThreadPool pool(2, {before[0], cpu});
      EXPECT(!"a forbidden CPU was accepted");
    } catch (const sbr::Error& error) {
      EXPECT(error.status() == SBR_ERR_ARGUMENT);
      EXPECT(std::string(error.what()).find("CPU " + std::to_string(cpu)) != std::string::npos);
    }
  }
  EXPECT(sbr::allowed_cpus() == before);
}

// No machine has a stack of 16 TB per thread to give.
[[maybe_unused]] void test_threads_refused() {
  const std::vector<uint32_t> before = sbr::allowed_cpus();
  pthread_attr_t usual, huge;
  EXPECT(pthread_getattr_default_np(&usual) == 0 && pthread_attr_init(&huge) == 0);
  EXPECT(pthread_attr_setstacksize(&huge, size_t{1} << 44) == 0 && pthread_setattr_default_np(&huge) == 0);
  try {
    sbr::ThreadPool pool(4, {before.back()});
    EXPECT(!"threads with impossible stacks were started");
  } catch (const sbr::Error& error) {
    EXPECT(error.status() == SBR_ERR_MEMORY);
    EXPECT(std::string(error.what()).find("4 threads") != std::string::npos);
  }
  EXPECT(pthread_setattr_default_np(&usual) == 0);
  EXPECT(sbr::allowed_cpus() == before);
}

}  // namespace

int main() {
  for (uint32_t n : {1u, 2u, 3u, 5u, 16u}) test_barriers(n, 5, n > 3 ? 50 : 500);
  test_sleep_and_wake();
  test_thread_ids();
  test_pinning();
#if defined(__x86_64__)  // emulators reserve the 16 TB for real and are killed
  test_threads_refused();
#endif
  return sbr_test::finish("test_thread_pool");
}
