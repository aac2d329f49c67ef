// Reads on a few threads that sleep when there is nothing to read: works everywhere.
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "io/io_thread.h"
#include "io/read_queue.h"
#include "io/readers.h"
#include "sbr/sbr.h"

namespace sbr {
namespace {

// A disk of 1.4 to 2.9 GB/s was saturated by 4 to 8 of them with reads of 0.5 MB and more.
constexpr uint32_t kThreads = 4;

class PreadReader final : public Reader {
 public:
  PreadReader(std::unique_ptr<OpenFile> file, const ReaderOptions& options, ReadListener* listener)
      : file_(std::move(file)), listener_(listener), tamper_(options.tamper) {
    const uint32_t n_threads = options.threads == 0 ? kThreads : options.threads;
    threads_.reserve(n_threads);
    try {
      for (uint32_t i = 0; i < n_threads; ++i) threads_.emplace_back([this] { work(); });
    } catch (...) {
      end();
      throw;
    }
  }
  ~PreadReader() override { end(); }

  void end() override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ending_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

  void submit(const ReadRequest& request) override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      queue_.add(request);
    }
    uint64_t pieces = (request.length + kPieceBytes - 1) / kPieceBytes;
    for (uint64_t i = 0; i < pieces && i < threads_.size(); ++i) wake_.notify_one();
  }

  bool cancel(uint64_t tag) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return queue_.cancel(tag);
  }

  void promote(uint64_t tag) override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      queue_.promote(tag);
    }
    wake_.notify_all();  // what was idle may have let threads sleep
  }

  ReaderInfo info() const override { return {SBR_IO_PREAD, file_->direct(), static_cast<uint32_t>(threads_.size())}; }

  ReaderCounters counters() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return queue_.counters();
  }

 private:
  int64_t read(const ReadQueue::Piece& piece) {
    int64_t result = ::pread(file_->fd(), piece.to, piece.length, static_cast<off_t>(piece.offset));
    if (result < 0) result = -errno;
    return tamper_ == nullptr ? result : tamper_->answer(piece.offset, piece.length, piece.to, result);
  }

  void work() {
    prefer_short_turns();
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      ReadQueue::Piece piece;
      while (!ending_ && !queue_.next(&piece)) wake_.wait(lock);
      if (ending_) return;
      ReadQueue::Finished finished;
      ReadQueue::Outcome outcome;
      do {
        lock.unlock();
        const int64_t result = read(piece);
        lock.lock();
        outcome = queue_.answered(&piece, result, file_->direct(), &finished);
      } while (outcome == ReadQueue::Outcome::kReadOn);
      if (outcome != ReadQueue::Outcome::kRequestDone) continue;
      lock.unlock();
      listener_->read_done(finished.tag, finished.error);
      lock.lock();
    }
  }

  const std::unique_ptr<OpenFile> file_;
  ReadListener* const listener_;
  ReadTamper* const tamper_;
  mutable std::mutex mutex_;  // over the two below
  ReadQueue queue_;
  bool ending_ = false;
  std::condition_variable wake_;
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<Reader> make_pread_reader(std::unique_ptr<OpenFile> file, const ReaderOptions& options,
                                          ReadListener* listener) {
  return std::make_unique<PreadReader>(std::move(file), options, listener);
}

}  // namespace sbr
