// Keeps two virtual CPUs on different chiplets; hold_places.py says why, and runs it at a class that only takes idle
// time.
//
//   hold_places SECONDS CPU CPU NS
//
// Two threads hand a cache line to and fro, so that neither CPU sleeps. Where it comes back within NS nanoseconds, both
// CPUs are on one chiplet: the threads sleep for a moment, and the hypervisor places the CPUs anew as they wake.
// Output: a line every 5 seconds, "SECONDS ROUND_TRIP_NS PLACED_ANEW".

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kTrips = 1000, kWindows = 5;
constexpr auto kSleep = std::chrono::milliseconds(20);
constexpr double kToldEvery = 5.0;

// Odd: the second thread's turn. kPause and kEnd: it sleeps, or ends.
enum : uint32_t { kPause = 0xfffffffe, kEnd = 0xffffffff };
alignas(64) std::atomic<uint32_t> line{0};

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

void stay_on(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(cpu), &set);
  if (::pthread_setaffinity_np(::pthread_self(), sizeof set, &set) == 0) return;
  std::fprintf(stderr, "hold_places: CPU %d cannot be had\n", cpu);
  std::exit(2);
}

void answer(int cpu) {
  stay_on(cpu);
  for (;;) {
    const uint32_t now = line.load(std::memory_order_acquire);
    if (now == kEnd) return;
    if (now == kPause) {
      std::this_thread::sleep_for(kSleep);
      line.store(0, std::memory_order_release);
    } else if (now % 2 == 1) {
      line.store(now + 1, std::memory_order_release);
    }
  }
}

// The shortest of some windows: what else runs here only ever adds.
double round_trip_ns() {
  double best = 1e30;
  for (int window = 0; window < kWindows; ++window) {
    const auto begin = Clock::now();
    line.store(0, std::memory_order_relaxed);
    for (uint32_t trip = 0; trip < kTrips; ++trip) {
      line.store(2 * trip + 1, std::memory_order_release);
      while (line.load(std::memory_order_acquire) != 2 * trip + 2) {
      }
    }
    best = std::min(best, seconds_since(begin) / kTrips * 1e9);
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fputs("usage: hold_places SECONDS CPU CPU NS\n", stderr);
    return 2;
  }
  const double seconds = std::atof(argv[1]), near_ns = std::atof(argv[4]);
  std::thread other(answer, std::atoi(argv[3]));
  stay_on(std::atoi(argv[2]));
  const auto begin = Clock::now();
  double told = 0;
  int anew = 0;
  for (bool first = true; seconds_since(begin) < seconds; first = false) {
    const double trip = round_trip_ns();
    if (first || seconds_since(begin) - told > kToldEvery) {
      told = seconds_since(begin);
      std::printf("%.0f %.0f %d\n", told, trip, anew);
      std::fflush(stdout);
    }
    if (trip > near_ns) continue;
    ++anew;
    line.store(kPause, std::memory_order_release);
    std::this_thread::sleep_for(kSleep);
    while (line.load(std::memory_order_acquire) == kPause) {
    }
  }
  line.store(kEnd, std::memory_order_release);
  other.join();
  return 0;
}
