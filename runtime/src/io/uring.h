// The kernel's io_uring as this library uses it: reads only, one ring, submitted by whoever holds the reader's lock and
// reaped by one thread. Raw system calls, and the kernel's structures written out here: neither liburing nor recent
// kernel headers are needed to build for a board.
#pragma once

#include <cstdint>
#include <string>

namespace sbr {

class Uring {
 public:
  struct Completion {
    uint64_t tag;
    int32_t result;  // bytes, or a negative errno
  };

  Uring() = default;
  ~Uring();
  Uring(const Uring&) = delete;
  Uring& operator=(const Uring&) = delete;

  // Makes a ring of `depth` entries, a power of 2. False: *refusal says how the kernel refused.
  bool open(uint32_t depth, std::string* refusal);

  // Queues a read for flush(). At most `depth` between two flushes.
  void add_read(int fd, uint64_t offset, uint32_t length, uint8_t* to, uint64_t tag);
  // Gives the kernel what was added. How many it took, the first ones; it forgets the others.
  uint32_t flush();

  // Until there is at least one completion. For one thread, beside flush() by others.
  void wait();
  // The next completion; false: there is none.
  bool reap(Completion* completion);

 private:
  struct Entry;
  struct Answer;

  int fd_ = -1;
  uint8_t* rings_ = nullptr;
  size_t ring_bytes_ = 0;
  Entry* entries_ = nullptr;
  size_t entry_bytes_ = 0;
  uint32_t* taken_ = nullptr;   // submission ring: the kernel's end
  uint32_t* given_ = nullptr;   // ours
  uint32_t* reaped_ = nullptr;  // completion ring: our end
  uint32_t* answered_ = nullptr;
  Answer* answers_ = nullptr;
  uint32_t mask_ = 0, answer_mask_ = 0;
  uint32_t tail_ = 0;  // ours, with what was added
};

}  // namespace sbr
