#include "probe/probe.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <exception>
#include <vector>

#include "base/buffer.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "io/file.h"
#include "synth/random.h"

namespace sbr {
namespace {

const uint64_t kSeed = 20240229;
// Bytes read between two looks at the clock: 10 us at 25 GB/s, against 25 ns for the look.
const uint64_t kReadStep = 256 << 10;
const uint64_t kLeastSlice = 4096;
const size_t kGatherStep = 256;  // rows
// While a row is read, the lines of the row that comes this many rows later are requested, one for one, into the
// second-level cache, as kernels that know their rows can. Requests into the first level, or for a whole row at once,
// fill the few line buffers of a core. Zen 4, 864-byte rows, huge pages, 1 thread, best of 3 on a busy machine that
// streams 30 GB/s: 4.7 GB/s without; 8, 9.6, 11.2, 11.6 and 12.0 for 1, 2, 4, 8 and 16 rows ahead; 9 into the first
// level. Rows in ascending order, 29 % of them, reach 13.
const size_t kRowsAhead = 8;
const size_t kCacheLine = 64;
const int kSecondLevel = 2;  // of __builtin_prefetch
// A limit is what the best layout reaches: in pages of 4 KiB a gather misses the TLB on nearly every row, and a stream
// loses a quarter on the virtual machine above.
const bool kHugePages = true;

uint64_t now_ns() {
  timespec time = {};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<uint64_t>(time.tv_sec) * 1000000000u + static_cast<uint64_t>(time.tv_nsec);
}

[[noreturn]] void refuse(const std::string& problem) { throw Error(SBR_ERR_ARGUMENT, "probe: " + problem); }

uint32_t thread_count(const sbr_probe_options& options) {
  if (options.n_threads > 1024) refuse("n_threads is " + std::to_string(options.n_threads) + ", more than 1024");
  if (options.n_threads != 0) return options.n_threads;
  return std::max<uint32_t>(static_cast<uint32_t>(allowed_cpus().size()), 1);
}

std::vector<uint32_t> cpu_list(const sbr_probe_options& options) {
  if (options.cpus == nullptr || options.n_cpus == 0) return {};
  return {options.cpus, options.cpus + options.n_cpus};
}

void check_duration(const sbr_probe_options& options) {
  if (options.duration_ns == 0 || options.duration_ns > 600000000000u) {
    refuse("duration_ns is " + std::to_string(options.duration_ns) + ", expected 1 to 600000000000 (10 minutes)");
  }
}

// What one thread did. Padded, so that threads do not share a line while they count.
struct alignas(kCacheLine) Tally {
  uint64_t begin_ns = 0;
  uint64_t end_ns = 0;
  uint64_t bytes = 0;
  uint64_t operations = 0;
  uint64_t sink = 0;  // depends on every byte read, so that no read can be left out
};

// Runs prepare(tid) and then, all threads at once, step(tid, tally) until the time is up.
template <typename Prepare, typename Step>
sbr_probe_result measure(const sbr_probe_options& options, uint32_t n_threads, Prepare prepare, Step step) {
  std::vector<Tally> tallies(n_threads);
  std::vector<std::exception_ptr> failures(n_threads);
  ThreadPool pool(n_threads, cpu_list(options));
  pool.run([&](uint32_t tid) {
    try {
      prepare(tid);
    } catch (...) {
      failures[tid] = std::current_exception();
    }
    pool.barrier();
    if (failures[tid] != nullptr) return;
    Tally& tally = tallies[tid];
    tally.begin_ns = now_ns();
    try {
      do {
        step(tid, tally);
        tally.end_ns = now_ns();
      } while (tally.end_ns - tally.begin_ns < options.duration_ns);
    } catch (...) {
      failures[tid] = std::current_exception();
    }
  });
  for (const std::exception_ptr& failure : failures) {
    if (failure != nullptr) std::rethrow_exception(failure);
  }
  sbr_probe_result result = {};
  result.struct_size = sizeof result;
  result.n_threads = n_threads;
  uint64_t begin = tallies[0].begin_ns;
  uint64_t end = tallies[0].end_ns;
  volatile uint64_t sink = 0;
  for (const Tally& tally : tallies) {
    begin = std::min(begin, tally.begin_ns);
    end = std::max(end, tally.end_ns);
    result.bytes += tally.bytes;
    result.operations += tally.operations;
    sink = sink ^ tally.sink;
  }
  result.ns = end - begin;
  return result;
}

// A register that every CPU of x86-64 and aarch64 has; memory bandwidth is reached with it. (Wider vector types go
// through the stack when the compiler has to split them: 10 GB/s from the first-level cache.)
typedef uint64_t Vector __attribute__((vector_size(16)));

Vector load(const uint8_t* from) {
  Vector value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// Combines n bytes into a number. Four chains, so that the loads do not wait for the operations. `next`: n bytes that
// are requested meanwhile, or null.
uint64_t read_bytes(const uint8_t* from, size_t n, const uint8_t* next = nullptr) {
  Vector a = {};
  Vector b = {};
  Vector c = {};
  Vector d = {};
  size_t i = 0;
  for (; i + kCacheLine <= n; i += kCacheLine) {
    if (next != nullptr) __builtin_prefetch(next + i, 0, kSecondLevel);
    a ^= load(from + i);
    b ^= load(from + i + 16);
    c ^= load(from + i + 32);
    d ^= load(from + i + 48);
  }
  if (next != nullptr) __builtin_prefetch(next + n - 1, 0, kSecondLevel);
  for (; i + 16 <= n; i += 16) a ^= load(from + i);
  uint64_t sum = 0;
  for (; i < n; ++i) sum += from[i];
  a ^= b ^ c ^ d;
  return sum ^ a[0] ^ a[1];
}

// The buffer's share of one thread, made resident by that thread.
struct Slice {
  Pages pages;
  uint64_t at = 0;             // read: next byte
  std::vector<uint32_t> rows;  // gather: all rows in random order
  size_t next_row = 0;
};

uint64_t slice_bytes(const sbr_probe_options& options, uint32_t n_threads, uint64_t least) {
  const uint64_t bytes = options.buffer_bytes / n_threads;
  if (bytes < least || options.buffer_bytes > SIZE_MAX / 2) {
    refuse("buffer_bytes is " + std::to_string(options.buffer_bytes) + ", expected at least " +
           std::to_string(least * n_threads) + " for " + std::to_string(n_threads) + " threads");
  }
  return bytes;
}

void shuffle_rows(uint32_t tid, uint64_t count, std::vector<uint32_t>& rows) {
  rows.resize(count);
  for (uint64_t i = 0; i < count; ++i) rows[i] = static_cast<uint32_t>(i);
  for (uint64_t i = 1; i < count; ++i) std::swap(rows[i], rows[random_u64(kSeed + tid, i) % (i + 1)]);
}

class Descriptor {
 public:
  Descriptor(const std::string& path, bool direct) {
    fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | (direct ? O_DIRECT : 0));
    if (fd_ < 0 && direct && errno == EINVAL) {
      throw Error(SBR_ERR_IO, path + ": its file system cannot bypass the page cache (O_DIRECT)");
    }
    if (fd_ < 0) throw_io_error(path, "cannot be opened", errno);
  }
  ~Descriptor() { ::close(fd_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

}  // namespace

sbr_probe_result probe_read(const sbr_probe_options& options) {
  check_duration(options);
  const uint32_t n_threads = thread_count(options);
  // What is smaller than a step is read several times in each.
  const uint64_t available = slice_bytes(options, n_threads, kLeastSlice);
  const uint64_t pass = std::min(available / kCacheLine * kCacheLine, kReadStep), passes = kReadStep / pass;
  const uint64_t bytes = available / pass * pass;
  std::vector<Slice> slices(n_threads);
  return measure(
      options, n_threads,
      [&](uint32_t tid) {
        slices[tid].pages = Pages(bytes, kHugePages);
        slices[tid].pages.touch();
      },
      [&](uint32_t tid, Tally& tally) {
        Slice& slice = slices[tid];
        for (uint64_t i = 0; i < passes; ++i) {
          tally.sink += read_bytes(slice.pages.data() + slice.at, pass);
          slice.at = slice.at + pass == bytes ? 0 : slice.at + pass;
          std::atomic_signal_fence(std::memory_order_seq_cst);  // what was read is not known: read it again
        }
        tally.bytes += passes * pass;
        ++tally.operations;
      });
}

sbr_probe_result probe_gather(const sbr_probe_options& options) {
  check_duration(options);
  const size_t row_bytes = options.row_bytes;
  if (row_bytes == 0 || row_bytes > (1u << 30)) {
    refuse("row_bytes is " + std::to_string(row_bytes) + ", expected 1 to 1073741824");
  }
  const uint32_t n_threads = thread_count(options);
  const uint64_t n_rows = slice_bytes(options, n_threads, uint64_t{16} * row_bytes) / row_bytes;
  if (n_rows > UINT32_MAX) refuse("buffer_bytes holds more than 2^32 rows of row_bytes per thread");
  std::vector<Slice> slices(n_threads);
  return measure(
      options, n_threads,
      [&](uint32_t tid) {
        slices[tid].pages = Pages(n_rows * row_bytes, kHugePages);
        slices[tid].pages.touch();
        shuffle_rows(tid, n_rows, slices[tid].rows);
      },
      [&](uint32_t tid, Tally& tally) {
        Slice& slice = slices[tid];
        const uint8_t* base = slice.pages.data();
        for (size_t i = 0; i < kGatherStep; ++i) {
          const size_t later = slice.next_row + kRowsAhead;
          const uint32_t ahead = slice.rows[later < n_rows ? later : later - n_rows];
          tally.sink += read_bytes(base + uint64_t{slice.rows[slice.next_row]} * row_bytes, row_bytes,
                                   base + uint64_t{ahead} * row_bytes);
          slice.next_row = slice.next_row + 1 == n_rows ? 0 : slice.next_row + 1;
        }
        tally.bytes += kGatherStep * row_bytes;
        tally.operations += kGatherStep;
      });
}

sbr_probe_result probe_storage(const std::string& path, const sbr_probe_options& options) {
  check_duration(options);
  const size_t row_bytes = options.row_bytes;
  const bool direct = options.direct != 0;
  if (row_bytes == 0 || row_bytes > (1u << 30)) {
    refuse("row_bytes is " + std::to_string(row_bytes) + ", expected 1 to 1073741824");
  }
  if (direct && row_bytes % 512 != 0) {
    refuse("row_bytes is " + std::to_string(row_bytes) + ", but direct reads need a multiple of 512");
  }
  const Descriptor file(path, direct);
  struct stat status = {};
  if (::fstat(file.get(), &status) != 0) throw_io_error(path, "cannot be examined", errno);
  if (!S_ISREG(status.st_mode)) throw Error(SBR_ERR_IO, path + ": is not a regular file");
  const uint64_t n_rows = static_cast<uint64_t>(status.st_size) / row_bytes;
  if (n_rows == 0) {
    throw Error(SBR_ERR_IO, path + ": has " + std::to_string(status.st_size) + " bytes, too few for one read of " +
                                std::to_string(row_bytes));
  }
  const uint32_t n_threads = thread_count(options);
  std::vector<Slice> slices(n_threads);
  return measure(
      options, n_threads,
      [&](uint32_t tid) {
        slices[tid].pages = Pages(row_bytes, kHugePages);  // page-aligned, as O_DIRECT wants it
        slices[tid].pages.touch();
      },
      [&](uint32_t tid, Tally& tally) {
        const uint64_t row = random_u64(kSeed + tid, tally.operations) % n_rows;
        const ssize_t got =
            ::pread(file.get(), slices[tid].pages.data(), row_bytes, static_cast<off_t>(row * row_bytes));
        if (got < 0 && errno == EINTR) return;
        if (got < 0) throw_io_error(path, "cannot be read", errno);
        if (static_cast<size_t>(got) != row_bytes) throw Error(SBR_ERR_IO, path + ": became shorter while it was read");
        tally.bytes += row_bytes;
        ++tally.operations;
      });
}

}  // namespace sbr
