// Reads by io_uring: whoever asks for them gives them to the kernel, without waiting for another thread to be scheduled
// (on a machine whose cores all compute, that can take milliseconds); one thread sleeps until some have arrived.
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "base/buffer.h"
#include "io/io_thread.h"
#include "io/read_queue.h"
#include "io/readers.h"
#include "io/uring.h"
#include "sbr/sbr.h"

namespace sbr {
namespace {

// Reads that the kernel has at most. What is urgent waits for these only: 16 MiB, 6 to 11 ms of a disk of 1.4 to 2.9
// GB/s, which is saturated from 4 on.
constexpr uint32_t kDepth = 32;

class UringReader final : public Reader {
 public:
  UringReader(std::unique_ptr<OpenFile> file, const ReaderOptions& options, ReadListener* listener)
      : file_(std::move(file)), listener_(listener), tamper_(options.tamper), pieces_(kDepth) {
    for (uint32_t i = 0; i < kDepth; ++i) free_.push_back(i);
    ready_.reserve(kDepth);
    completions_.reserve(kDepth);
    finished_.reserve(kDepth);
  }

  bool start(std::string* refusal) {
    if (!ring_.open(kDepth, refusal) || !can_read(refusal)) return false;
    thread_ = std::thread([this] { work(); });
    return true;
  }

  ~UringReader() override { end(); }

  void end() override {
    if (!thread_.joinable()) return;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ending_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

  void submit(const ReadRequest& request) override {
    bool asleep;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      queue_.add(request);
      give_to_kernel();
      asleep = std::exchange(asleep_, false);
    }
    if (asleep) wake_.notify_one();
  }

  bool cancel(uint64_t tag) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return queue_.cancel(tag);
  }

  void promote(uint64_t tag) override {
    bool asleep;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      queue_.promote(tag);
      give_to_kernel();  // what was idle had not been given to it
      asleep = std::exchange(asleep_, false);
    }
    if (asleep) wake_.notify_one();
  }

  ReaderInfo info() const override { return {SBR_IO_URING, file_->direct(), kDepth}; }

  ReaderCounters counters() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return queue_.counters();
  }

 private:
  // A kernel may have io_uring without reads, or refuse them for this file.
  bool can_read(std::string* refusal) {
    Pages page(kReadAlignment, false);
    Uring::Completion completion = {};
    ring_.add_read(file_->fd(), 0, kReadAlignment, page.data(), 0);
    if (ring_.flush() != 1) {
      *refusal = "io_uring_enter takes no read";
      return false;
    }
    ring_.wait();
    if (!ring_.reap(&completion)) {
      *refusal = "io_uring_enter answers no read";
      return false;
    }
    if (completion.result >= 0) return true;
    *refusal = "its first read: " + std::generic_category().message(-completion.result);
    return false;
  }

  // With the lock. What the kernel does not take now stays in ready_.
  void give_to_kernel() {
    if (ending_) return;
    while (!free_.empty() && queue_.next(&pieces_[free_.back()])) {
      ready_.push_back(free_.back());
      free_.pop_back();
    }
    if (ready_.empty()) return;
    for (const uint32_t i : ready_) {
      const ReadQueue::Piece& piece = pieces_[i];
      ring_.add_read(file_->fd(), piece.offset, static_cast<uint32_t>(piece.length), piece.to, i);
    }
    const uint32_t taken = ring_.flush();
    ready_.erase(ready_.begin(), ready_.begin() + taken);
    in_kernel_ += taken;
  }

  // With the lock. One piece's answer.
  void answered(const Uring::Completion& completion) {
    const auto i = static_cast<uint32_t>(completion.tag);
    ReadQueue::Finished finished;
    switch (queue_.answered(&pieces_[i], completion.result, file_->direct(), &finished)) {
      case ReadQueue::Outcome::kReadOn:
        ready_.push_back(i);
        return;
      case ReadQueue::Outcome::kRequestDone:
        finished_.push_back(finished);
        break;
      case ReadQueue::Outcome::kPieceDone:
        break;
    }
    free_.push_back(i);
  }

  void work() {
    prefer_short_turns();
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      completions_.clear();
      if (in_kernel_ != 0) {
        lock.unlock();
        ring_.wait();
        lock.lock();
        Uring::Completion completion;
        while (ring_.reap(&completion)) completions_.push_back(completion);
        in_kernel_ -= static_cast<uint32_t>(completions_.size());
      } else if (ending_) {
        return;
      } else if (!ready_.empty()) {
        read_one(lock);  // the kernel takes nothing, and nothing will come from it that would have us try again
      } else {
        asleep_ = true;
        wake_.wait(lock);
        continue;
      }
      if (tamper_ != nullptr) tamper(lock);
      for (const Uring::Completion& completion : completions_) answered(completion);
      give_to_kernel();
      if (finished_.empty()) continue;
      lock.unlock();
      for (const ReadQueue::Finished& finished : finished_) listener_->read_done(finished.tag, finished.error);
      finished_.clear();
      lock.lock();
    }
  }

  void read_one(std::unique_lock<std::mutex>& lock) {
    const uint32_t i = ready_.front();
    ready_.erase(ready_.begin());
    const ReadQueue::Piece piece = pieces_[i];
    lock.unlock();
    const ssize_t result = ::pread(file_->fd(), piece.to, piece.length, static_cast<off_t>(piece.offset));
    completions_.push_back({i, static_cast<int32_t>(result < 0 ? -errno : result)});
    lock.lock();
  }

  void tamper(std::unique_lock<std::mutex>& lock) {
    for (Uring::Completion& completion : completions_) {
      const ReadQueue::Piece piece = pieces_[completion.tag];
      lock.unlock();
      completion.result =
          static_cast<int32_t>(tamper_->answer(piece.offset, piece.length, piece.to, completion.result));
      lock.lock();
    }
  }

  const std::unique_ptr<OpenFile> file_;
  ReadListener* const listener_;
  ReadTamper* const tamper_;
  mutable std::mutex mutex_;  // over what follows, up to the thread's own
  Uring ring_;                // its completions: the thread's own
  ReadQueue queue_;
  std::vector<ReadQueue::Piece> pieces_;  // [kDepth]
  std::vector<uint32_t> free_;            // of pieces_
  std::vector<uint32_t> ready_;           // handed out by the queue, but not taken by the kernel
  uint32_t in_kernel_ = 0;
  bool ending_ = false;
  bool asleep_ = false;
  std::condition_variable wake_;
  std::vector<Uring::Completion> completions_;
  std::vector<ReadQueue::Finished> finished_;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<Reader> make_uring_reader(std::unique_ptr<OpenFile> file, const ReaderOptions& options,
                                          ReadListener* listener, std::string* refusal) {
  auto reader = std::make_unique<UringReader>(std::move(file), options, listener);
  if (!reader->start(refusal)) return nullptr;
  return reader;
}

}  // namespace sbr
