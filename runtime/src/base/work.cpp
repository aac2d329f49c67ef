#include "base/work.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <string>

#include "base/error.h"
#include "base/thread_pool.h"

namespace sbr {

void work_through(size_t n_items, uint64_t total_bytes, size_t max_threads, const ProgressTo& progress,
                  const std::function<uint64_t(size_t thread, size_t item)>& work) {
  std::atomic<size_t> next{0};
  std::atomic<uint64_t> done{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  std::exception_ptr failure;
  const auto report = [&](uint64_t bytes) {
    if (progress.call != nullptr && progress.call(progress.user, bytes, total_bytes) != 0)
      throw Error(SBR_ERR_CANCELLED, std::string(progress.doing) + " was cancelled");
  };
  const size_t n_threads = std::clamp<size_t>(std::min(allowed_cpus().size(), n_items), 1, max_threads);
  ThreadPool pool(static_cast<uint32_t>(n_threads), {});
  pool.run([&](uint32_t thread) {
    try {
      for (size_t i; !stop && (i = next++) < n_items;) {
        done += work(thread, i);
        if (thread == 0) report(done);
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (failure == nullptr) failure = std::current_exception();
      stop = true;
    }
  });
  if (failure != nullptr) std::rethrow_exception(failure);
  report(total_bytes);
}

}  // namespace sbr
