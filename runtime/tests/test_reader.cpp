// Both readers, with and without O_DIRECT: contents, order, cancelling, every way in which a read goes wrong, and what
// a kernel may refuse.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstddef>

#include "base/buffer.h"
#include "base/error.h"
#include "expect.h"
#include "io/read_queue.h"
#include "io/reader.h"
#include "read_tests.h"
#include "sbr/sbr.h"

namespace {

using sbr::kIdlePieces;
using sbr::kPieceBytes;
using sbr::kReadAlignment;
using sbr::Pages;
using sbr::Reader;
using sbr::ReaderOptions;
using sbr_test::Door;
using sbr_test::holds;
using sbr_test::Listener;
using sbr_test::PatternFile;
using sbr_test::Tamper;

constexpr uint64_t kFileBytes = 6 * kPieceBytes;

ReaderOptions options_for(uint32_t kind, uint32_t direct, sbr::ReadTamper* tamper = nullptr, uint32_t threads = 0) {
  ReaderOptions options;
  options.kind = kind;
  options.direct = direct;
  options.tamper = tamper;
  options.threads = threads;
  return options;
}

sbr::Error error_of(const std::string& path, const ReaderOptions& options) {
  try {
    Listener listener;
    Reader::open(path, options, &listener);
  } catch (const sbr::Error& error) {
    return error;
  }
  return {SBR_OK, "nothing was thrown"};
}

bool says(const sbr::Error& error, const char* text) {
  return std::string(error.what()).find(text) != std::string::npos;
}

struct Mode {
  uint32_t kind, direct;
};

// ---- what arrives ---------------------------------------------------------------------------------

void test_contents(const PatternFile& file, Mode mode) {
  Listener listener;
  const auto reader = Reader::open(file.path(), options_for(mode.kind, mode.direct), &listener);
  EXPECT(reader->info().kind == mode.kind && reader->info().direct == (mode.direct == SBR_DIRECT_ON));
  Pages to(kFileBytes, false);
  // From one block to several pieces, in an order of no order, side by side.
  const uint64_t cuts[] = {0, 4096, 3 * 4096, kPieceBytes, 3 * kPieceBytes - 8192, 5 * kPieceBytes + 4096, kFileBytes};
  uint32_t n = 0;
  for (const uint32_t i : {3u, 0u, 5u, 2u, 4u, 1u}) {
    reader->submit({i, cuts[i], cuts[i + 1] - cuts[i], to.data() + cuts[i], i % 2 == 0});
    ++n;
  }
  const auto told = listener.first(n);
  EXPECT(told.size() == n);
  for (const auto& t : told) EXPECT(t.error == 0);
  EXPECT(holds(to.data(), 0, kFileBytes));
  const sbr::ReaderCounters counters = reader->counters();
  EXPECT(counters.bytes == kFileBytes && counters.reads >= 9 && counters.ns_busy > 0);
}

// Short answers are continued, and what failed for a moment is read again.
void test_patience(const PatternFile& file, Mode mode) {
  std::atomic<uint32_t> calls{0};
  Tamper tamper([&](uint64_t, uint64_t length, uint8_t* to, int64_t result) -> int64_t {
    switch (calls++ % 6) {
      case 0:
        return -EINTR;
      case 1:
        return -EAGAIN;
      case 2:
        return -ECANCELED;
      case 3:
        if (length <= kReadAlignment) return result;
        std::memset(to + kReadAlignment, 0xEE, length - kReadAlignment);
        return kReadAlignment;
      default:
        return result;
    }
  });
  Listener listener;
  const auto reader = Reader::open(file.path(), options_for(mode.kind, mode.direct, &tamper), &listener);
  Pages to(kFileBytes, false);
  reader->submit({1, 0, kFileBytes, to.data(), false});
  const auto told = listener.first(1);
  EXPECT(told.size() == 1 && told[0].error == 0);
  EXPECT(holds(to.data(), 0, kFileBytes));
  EXPECT(reader->counters().bytes == kFileBytes && calls > 6);
}

// One failed piece fails the request, once; others are not touched.
void test_errors(const PatternFile& file, Mode mode) {
  for (const int64_t wrong : {int64_t{-EIO}, int64_t{0}, int64_t{-ENODATA}, int64_t{-EINTR}}) {
    Tamper tamper([&](uint64_t offset, uint64_t, uint8_t*, int64_t result) {
      return offset / kPieceBytes == 1 ? wrong : result;  // -EINTR: for ever
    });
    Listener listener;
    const auto reader = Reader::open(file.path(), options_for(mode.kind, mode.direct, &tamper), &listener);
    Pages to(kFileBytes, false);
    reader->submit({7, 0, 4 * kPieceBytes, to.data(), false});
    reader->submit({8, 4 * kPieceBytes, kPieceBytes, to.data() + 4 * kPieceBytes, false});
    const auto told = listener.first(2);
    EXPECT(told.size() == 2);
    for (const auto& t : told) {
      EXPECT(t.error == (t.tag == 8 ? 0 : wrong == 0 ? EIO : static_cast<int>(-wrong)));
    }
    EXPECT(holds(to.data() + 4 * kPieceBytes, 4 * kPieceBytes, kPieceBytes));
    // And it can be read afterwards.
    reader->submit({7, 2 * kPieceBytes, 4096, to.data(), true});
    EXPECT(listener.first(3).size() == 3 && holds(to.data(), 2 * kPieceBytes, 4096));
  }
}

void test_end_of_file(Mode mode) {
  PatternFile file("test_reader_short", 2 * kPieceBytes);
  file.cut(2 * kPieceBytes - 1000);
  Listener listener;
  const auto reader = Reader::open(file.path(), options_for(mode.kind, mode.direct), &listener);
  Pages to(4 * kPieceBytes, false);
  reader->submit({1, 0, 2 * kPieceBytes, to.data(), false});                              // cut off within
  reader->submit({2, 2 * kPieceBytes, kPieceBytes, to.data() + 2 * kPieceBytes, false});  // wholly beyond
  reader->submit({3, 0, kPieceBytes, to.data() + 3 * kPieceBytes, false});
  const auto told = listener.first(3);
  EXPECT(told.size() == 3);
  for (const auto& t : told) EXPECT(t.error == (t.tag == 3 ? 0 : EIO));
}

// ---- order and cancelling -------------------------------------------------------------------------

// With the kernel's hands full, the urgent ones go first among those that wait; what waits can be cancelled or
// promoted, what has begun cannot be cancelled.
void test_order(const PatternFile& file, Mode mode) {
  Door door;
  Tamper tamper([&](uint64_t, uint64_t, uint8_t*, int64_t result) {
    door.pass();
    return result;
  });
  Listener listener;
  const auto reader = Reader::open(file.path(), options_for(mode.kind, mode.direct, &tamper, 1), &listener);
  const uint32_t depth = reader->info().depth, waiting = 8;
  Pages to(uint64_t{depth + waiting + 1} * 4096, false);
  const auto submit = [&](uint64_t tag, bool urgent) {
    reader->submit({tag, tag * 4096, 4096, to.data() + tag * 4096, urgent});
  };
  for (uint32_t tag = 0; tag < depth + waiting; ++tag) {
    submit(tag, false);
    if (tag + 1 == depth) door.await_arrivals(1);  // a thread has taken what it can
  }
  submit(depth + waiting, true);
  EXPECT(reader->cancel(depth + 2));
  EXPECT(!reader->cancel(depth + 2));
  EXPECT(!reader->cancel(0));
  EXPECT(!reader->cancel(12345));
  reader->promote(depth + 5);
  reader->promote(54321);
  door.open();
  const auto told = listener.first(depth + waiting);
  EXPECT(told.size() == depth + waiting);
  // Finishing in another order than beginning is the kernel's right, so look at how far from the end they are.
  const auto place = [&](uint64_t tag) {
    return std::find_if(told.begin(), told.end(), [&](const auto& t) { return t.tag == tag; }) - told.begin();
  };
  EXPECT(place(depth + 2) == static_cast<long>(told.size()));
  if (mode.kind == SBR_IO_PREAD) {
    EXPECT(place(depth + waiting) == 1 && place(depth + 5) == 2);
    EXPECT(place(depth) == 3 && place(depth + 1) == 4 && place(depth + 3) == 5);
  }
  for (const auto& t : told) EXPECT(t.error == 0 && holds(to.data() + t.tag * 4096, t.tag * 4096, 4096));
}

// Idle reads take no more than kIdlePieces of the kernel's attention, and none from those behind them that are urgent,
// or have become so.
void test_idle(const PatternFile& file, Mode mode) {
  Door door;
  Tamper tamper([&](uint64_t, uint64_t, uint8_t*, int64_t result) {
    door.pass();
    return result;
  });
  Listener listener;
  const auto reader = Reader::open(file.path(), options_for(mode.kind, mode.direct, &tamper, 8), &listener);
  constexpr uint32_t kReads = 12;
  Pages to(uint64_t{kReads} * 4096, false);
  const auto submit = [&](uint64_t tag, bool urgent) {
    reader->submit({tag, tag * 4096, 4096, to.data() + tag * 4096, urgent, !urgent});
  };
  const auto arrive = [&](uint32_t n) { door.await_arrivals(mode.kind == SBR_IO_PREAD ? n : 1); };
  for (uint32_t tag = 0; tag + 1 < kReads; ++tag) submit(tag, false);
  arrive(kIdlePieces);
  reader->promote(kIdlePieces + 2);
  arrive(kIdlePieces + 1);
  EXPECT(!reader->cancel(kIdlePieces + 2));  // has begun at once
  submit(kReads - 1, true);
  arrive(kIdlePieces + 2);
  for (uint32_t tag = 0; tag < kReads; ++tag) {
    const bool begun = tag < kIdlePieces || tag == kIdlePieces + 2 || tag == kReads - 1;
    if (begun || tag % 2 == 0) EXPECT(reader->cancel(tag) == !begun);
  }
  door.open();
  uint32_t left = 0;
  for (uint32_t tag = 0; tag < kReads; ++tag)
    left += tag < kIdlePieces || tag == kIdlePieces + 2 || tag == kReads - 1 || tag % 2 != 0;
  const auto told = listener.first(left);
  EXPECT(told.size() == left);
  for (const auto& t : told) EXPECT(t.error == 0 && holds(to.data() + t.tag * 4096, t.tag * 4096, 4096));
}

// The end of a reader: what the kernel has is waited for, the rest is dropped, and nobody is told afterwards.
void test_destruction(const PatternFile& file, Mode mode) {
  for (uint32_t round = 0; round < 20; ++round) {
    Listener listener;
    Pages to(kFileBytes, false);
    const auto begin = to.data();
    {
      const auto reader = Reader::open(file.path(), options_for(mode.kind, mode.direct), &listener);
      for (uint32_t i = 0; i < 6; ++i)
        reader->submit({i, i * kPieceBytes, kPieceBytes, begin + i * kPieceBytes, false});
      if (round % 2 == 0) listener.first(1 + round % 5);
    }
    const size_t told = listener.first(0).size();
    std::memset(begin, 0, kFileBytes);  // under the address sanitizer, and for the next line
    EXPECT(std::all_of(begin, begin + kFileBytes, [](uint8_t byte) { return byte == 0; }));
    EXPECT(listener.first(0).size() == told);
  }
}

// A kernel may cancel what a thread gave to io_uring when that thread ends.
void test_submitting_thread_ends(const PatternFile& file, Mode mode) {
  Listener listener;
  const auto reader = Reader::open(file.path(), options_for(mode.kind, mode.direct), &listener);
  Pages to(kFileBytes, false);
  uint32_t n = 0;
  for (uint32_t round = 0; round < 10; ++round) {
    std::thread([&] { reader->submit({round, 0, kFileBytes, to.data(), false}); }).join();
    const auto told = listener.first(++n);
    EXPECT(told.size() == n && told.back().error == 0 && holds(to.data(), 0, kFileBytes));
  }
}

// Many small reads from two threads; each is told of once.
void test_many(const PatternFile& file, Mode mode) {
  constexpr uint32_t kReads = 400, kBlocks = kFileBytes / 4096;
  Listener listener;
  const auto reader = Reader::open(file.path(), options_for(mode.kind, mode.direct), &listener);
  Pages to(uint64_t{kReads} * 4096, false);
  const auto submit = [&](uint32_t from) {
    for (uint32_t tag = from; tag < kReads; tag += 2) {
      reader->submit({tag, tag * 7 % kBlocks * 4096ull, 4096, to.data() + tag * 4096ull, tag % 3 == 0});
    }
  };
  std::thread other([&] { submit(1); });
  submit(0);
  other.join();
  const auto told = listener.first(kReads);
  std::vector<int> times(kReads, 0);
  for (const auto& t : told) ++times[t.tag];
  EXPECT(told.size() == kReads && std::count(times.begin(), times.end(), 1) == kReads);
  for (uint32_t tag = 0; tag < kReads; ++tag)
    EXPECT(holds(to.data() + tag * 4096ull, tag * 7 % kBlocks * 4096ull, 4096));
}

// ---- what may be refused --------------------------------------------------------------------------

void test_open(const PatternFile& file) {
  EXPECT(error_of("/nonexistent/bundle", {}).status() == SBR_ERR_IO);
  EXPECT(says(error_of("/nonexistent/bundle", {}), "/nonexistent/bundle: cannot be "));
  EXPECT(error_of("/tmp", {}).status() == SBR_ERR_IO);
  EXPECT(says(error_of(file.path(), options_for(77, 0)), "options.io is 77"));
  EXPECT(error_of(file.path(), options_for(0, 9)).status() == SBR_ERR_ARGUMENT);
  EXPECT(error_of(file.path(), options_for(0, 0, nullptr, 65)).status() == SBR_ERR_ARGUMENT);
}

// /proc's files are regular ones, and cannot be opened with O_DIRECT. (Emulators replace /proc/self/maps by a file of
// theirs.)
void test_no_direct() {
  const char* path = "/proc/filesystems";
  const sbr::Error forced = error_of(path, options_for(SBR_IO_PREAD, SBR_DIRECT_ON));
  EXPECT(forced.status() == SBR_ERR_UNSUPPORTED && says(forced, path) && says(forced, "Invalid argument"));
  Listener listener;
  const auto fallback = Reader::open(path, options_for(SBR_IO_PREAD, SBR_DIRECT_AUTO), &listener);
  EXPECT(!fallback->info().direct);
}

// In a process where io_uring_setup fails as under many containers' filters.
void test_no_uring(const PatternFile& file) {
  const pid_t child = ::fork();
  if (child == 0) {
    sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 425, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const sock_fprog program = {4, filter};
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
      ::_exit(77);
    }
    const sbr::Error forced = error_of(file.path(), options_for(SBR_IO_URING, SBR_DIRECT_AUTO));
    EXPECT(forced.status() == SBR_ERR_UNSUPPORTED && says(forced, "io_uring") &&
           says(forced, "Operation not permitted"));
    test_contents(file, {SBR_IO_PREAD, SBR_DIRECT_OFF});
    Listener listener;
    EXPECT(Reader::open(file.path(), {}, &listener)->info().kind == SBR_IO_PREAD);
    ::_exit(sbr_test::failures() == 0 ? 0 : 1);
  }
  int status = 0;
  EXPECT(child > 0 && ::waitpid(child, &status, 0) == child && WIFEXITED(status));
  if (WEXITSTATUS(status) == 77) std::printf("test_reader: system calls cannot be filtered here\n");
  EXPECT(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 77);
}

}  // namespace

int main() {
  const PatternFile file("test_reader", kFileBytes);
  test_open(file);
  test_no_direct();
  test_no_uring(file);
  for (const uint32_t kind : {SBR_IO_PREAD, SBR_IO_URING}) {
    for (const uint32_t direct : {SBR_DIRECT_ON, SBR_DIRECT_OFF}) {
      const sbr::Error refused = error_of(file.path(), options_for(kind, direct));
      if (refused.status() != SBR_OK) {  // an emulator without io_uring, a tmpfs of an old kernel
        EXPECT(refused.status() == SBR_ERR_UNSUPPORTED);
        std::printf("test_reader: left out: %s\n", refused.what());
        continue;
      }
      const Mode mode = {kind, direct};
      test_contents(file, mode);
      test_patience(file, mode);
      test_errors(file, mode);
      test_end_of_file(mode);
      test_order(file, mode);
      test_idle(file, mode);
      test_destruction(file, mode);
      test_submitting_thread_ends(file, mode);
      test_many(file, mode);
    }
  }
  return sbr_test::finish("test_reader");
}
