// A list of independent pieces of work with progress: writing a file, checking one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "sbr/sbr.h"

namespace sbr {

// Whether to report, and to whom; what is being done, for the error when it is stopped: "writing the synthetic model".
struct ProgressTo {
  sbr_progress call = nullptr;  // may be nullptr
  void* user = nullptr;
  const char* doing = "";
};

// Calls work(thread, i) for every i below n_items on up to `max_threads` threads (no more than CPUs or items); it
// returns how many of `total_bytes` that was. The caller's thread is thread 0, and reports between its own items and at
// the end. The first exception of any of them, or CANCELLED, ends the work and is thrown.
constexpr size_t kMostWorkers = 8;
void work_through(size_t n_items, uint64_t total_bytes, size_t max_threads, const ProgressTo& progress,
                  const std::function<uint64_t(size_t thread, size_t item)>& work);

}  // namespace sbr
