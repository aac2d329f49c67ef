// The pool under more threads than cores, at every size, and its errors. Run under TSan too (preset tsan).
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"
#include "expect.h"
#include "sbr/sbr.h"

namespace {

// Where the calling thread may run just now, ascending.
std::vector<uint32_t> affinity() {
  cpu_set_t set;
  EXPECT(sched_getaffinity(0, sizeof set, &set) == 0);
  std::vector<uint32_t> cpus;
  for (uint32_t cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

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
      if (affinity() != std::vector<uint32_t>{last} || sched_getcpu() != static_cast<int>(last)) ++elsewhere;
    });
    EXPECT(elsewhere == 0);
  }
  EXPECT(affinity() == before && sbr::allowed_cpus() == before);

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

// Pools of one thread: one that pins it forbids the others nothing, and the last of them gives it back, in whichever
// order they end.
void test_several_pools_of_a_thread() {
  const std::vector<uint32_t> before = sbr::allowed_cpus();
  const std::vector<uint32_t> first = {before.front()}, last = {before.back()};
  auto one = std::make_unique<sbr::ThreadPool>(1, first);
  EXPECT(affinity() == first && sbr::allowed_cpus() == before);
  auto other = std::make_unique<sbr::ThreadPool>(2, last);
  sbr::ThreadPool unpinned(3, {});
  std::atomic<int> elsewhere{0};
  const auto expect_at = [&](sbr::ThreadPool& pool, const std::vector<uint32_t>& cpus) {
    pool.run([&](uint32_t) { elsewhere += affinity() != cpus; });
  };
  for (int i = 0; i < 2; ++i) {
    expect_at(*one, first);
    expect_at(*other, last);
    expect_at(unpinned, before);
  }
  EXPECT(elsewhere == 0);
  one.reset();
  expect_at(*other, last);
  other.reset();
  EXPECT(elsewhere == 0 && affinity() == before);
}

// A pool that another thread used in between gives the first one its CPUs back all the same.
void test_a_pool_that_changes_hands() {
  const std::vector<uint32_t> before = sbr::allowed_cpus();
  for (int i = 0; i < 2; ++i) {
    sbr::ThreadPool pool(1, {before.back()});
    std::thread([&] { pool.run([](uint32_t) {}); }).join();
    pool.run([](uint32_t) {});
  }
  EXPECT(affinity() == before && sbr::allowed_cpus() == before);
}

// Where the program placed the thread itself since, it stays, whatever pools say.
void test_what_the_program_chose_stays() {
  const std::vector<uint32_t> before = sbr::allowed_cpus();
  if (before.size() < 2) return;
  sbr::ThreadPool unpinned(2, {});
  {
    sbr::ThreadPool pinned(1, {before.front()});
    cpu_set_t own;
    CPU_ZERO(&own);
    CPU_SET(before.back(), &own);
    EXPECT(sched_setaffinity(0, sizeof own, &own) == 0);
    unpinned.run([](uint32_t) {});
    EXPECT(affinity() == std::vector<uint32_t>{before.back()});
  }
  EXPECT(affinity() == std::vector<uint32_t>{before.back()});
  cpu_set_t all;
  CPU_ZERO(&all);
  for (const uint32_t cpu : before) CPU_SET(cpu, &all);
  EXPECT(sched_setaffinity(0, sizeof all, &all) == 0);
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
  test_several_pools_of_a_thread();
  test_a_pool_that_changes_hands();
  test_what_the_program_chose_stays();
#if defined(__x86_64__)  // emulators reserve the 16 TB for real and are killed
  test_threads_refused();
#endif
  return sbr_test::finish("test_thread_pool");
}
