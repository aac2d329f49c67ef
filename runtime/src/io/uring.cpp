#include "io/uring.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

namespace sbr {
namespace {

#if defined(__alpha__)
constexpr long kSetupCall = 535, kEnterCall = 536;
#else
constexpr long kSetupCall = 425, kEnterCall = 426;  // everywhere else
#endif

// The kernel's ABI, fields that are not used here left as padding.
struct SubmissionOffsets {
  uint32_t head, tail, mask, entries, flags, dropped, array, reserved;
  uint64_t address;
};
struct CompletionOffsets {
  uint32_t head, tail, mask, entries, overflow, answers, flags, reserved;
  uint64_t address;
};
struct Parameters {
  uint32_t submission_entries, completion_entries, flags, thread_cpu, thread_idle, features, shared_fd, reserved[3];
  SubmissionOffsets submission;
  CompletionOffsets completion;
};
static_assert(sizeof(Parameters) == 120, "the kernel's");

constexpr uint32_t kFeatureSingleMap = 1;  // Linux 5.4; reads need 5.6
constexpr uint8_t kRead = 22;
constexpr uint32_t kWaitForEvents = 1;
constexpr off_t kMapRings = 0, kMapEntries = 0x10000000;

long enter(int fd, uint32_t submit, uint32_t wait_for, uint32_t flags) {
  return ::syscall(kEnterCall, fd, submit, wait_for, flags, nullptr, 0);
}

std::string said(const char* call, int error) {
  return std::string(call) + ": " + std::generic_category().message(error);
}

}  // namespace

struct Uring::Entry {
  uint8_t operation, flags;
  uint16_t priority;
  int32_t fd;
  uint64_t offset, address;
  uint32_t length, operation_flags;
  uint64_t tag;
  uint64_t padding[3];
};

struct Uring::Answer {
  uint64_t tag;
  int32_t result;
  uint32_t flags;
};

Uring::~Uring() {
  if (entries_ != nullptr) ::munmap(entries_, entry_bytes_);
  if (rings_ != nullptr) ::munmap(rings_, ring_bytes_);
  if (fd_ >= 0) ::close(fd_);
}

bool Uring::open(uint32_t depth, std::string* refusal) {
  static_assert(sizeof(Entry) == 64 && sizeof(Answer) == 16, "the kernel's");
  Parameters parameters = {};
  const long fd = ::syscall(kSetupCall, depth, &parameters);
  if (fd < 0) {
    *refusal = said("io_uring_setup", errno);
    if (errno == EPERM) *refusal += " (kernel.io_uring_disabled or a container's filter of system calls forbids it)";
    return false;
  }
  fd_ = static_cast<int>(fd);
  if ((parameters.features & kFeatureSingleMap) == 0) {
    *refusal = "this kernel's io_uring has no reads yet (they came with Linux 5.6)";
    return false;
  }
  const SubmissionOffsets& submission = parameters.submission;
  const CompletionOffsets& completion = parameters.completion;
  ring_bytes_ = std::max<size_t>(submission.array + parameters.submission_entries * sizeof(uint32_t),
                                 completion.answers + parameters.completion_entries * sizeof(Answer));
  entry_bytes_ = parameters.submission_entries * sizeof(Entry);
  void* rings = ::mmap(nullptr, ring_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd_, kMapRings);
  if (rings == MAP_FAILED) {
    *refusal = said("mmap of the rings", errno);
    return false;
  }
  rings_ = static_cast<uint8_t*>(rings);
  void* entries = ::mmap(nullptr, entry_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd_, kMapEntries);
  if (entries == MAP_FAILED) {
    *refusal = said("mmap of the submissions", errno);
    return false;
  }
  entries_ = static_cast<Entry*>(entries);
  const auto word = [this](uint32_t offset) { return reinterpret_cast<uint32_t*>(rings_ + offset); };
  taken_ = word(submission.head);
  given_ = word(submission.tail);
  mask_ = *word(submission.mask);
  reaped_ = word(completion.head);
  answered_ = word(completion.tail);
  answer_mask_ = *word(completion.mask);
  answers_ = reinterpret_cast<Answer*>(rings_ + completion.answers);
  // Which entry each place of the submission ring means: always the one of the same number.
  for (uint32_t i = 0; i < parameters.submission_entries; ++i) word(submission.array)[i] = i;
  tail_ = *given_;
  return true;
}

void Uring::add_read(int fd, uint64_t offset, uint32_t length, uint8_t* to, uint64_t tag) {
  Entry& entry = entries_[tail_++ & mask_];
  entry = {};
  entry.operation = kRead;
  entry.fd = fd;
  entry.offset = offset;
  entry.address = reinterpret_cast<uintptr_t>(to);
  entry.length = length;
  entry.tag = tag;
}

uint32_t Uring::flush() {
  const uint32_t before = __atomic_load_n(taken_, __ATOMIC_ACQUIRE);
  if (tail_ == before) return 0;
  __atomic_store_n(given_, tail_, __ATOMIC_RELEASE);  // the kernel must see the entries before their number
  long taken;
  do {
    taken = enter(fd_, tail_ - before, 0, 0);
  } while (taken < 0 && errno == EINTR);
  // The kernel looks at the ring during that call only, so what it left there can be taken back.
  const uint32_t after = __atomic_load_n(taken_, __ATOMIC_ACQUIRE);
  tail_ = after;
  __atomic_store_n(given_, tail_, __ATOMIC_RELEASE);
  return after - before;
}

void Uring::wait() {
  while (__atomic_load_n(answered_, __ATOMIC_ACQUIRE) == *reaped_) {
    if (enter(fd_, 0, 1, kWaitForEvents) < 0 && errno != EINTR) return;
  }
}

bool Uring::reap(Completion* completion) {
  const uint32_t head = *reaped_;  // only this thread moves it
  if (__atomic_load_n(answered_, __ATOMIC_ACQUIRE) == head) return false;
  const Answer& answer = answers_[head & answer_mask_];
  *completion = {answer.tag, answer.result};
  __atomic_store_n(reaped_, head + 1, __ATOMIC_RELEASE);  // the kernel may now overwrite it
  return true;
}

}  // namespace sbr
