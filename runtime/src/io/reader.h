// Reads of one file that go on while others compute. One interface, two implementations: pread on a few threads, which
// works everywhere, and io_uring (raw system calls) where the kernel allows it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace sbr {

// Offsets, lengths and addresses of reads are multiples of this, so that O_DIRECT may be used.
constexpr uint64_t kReadAlignment = 4096;

struct ReadRequest {
  uint64_t tag;       // chosen by the caller, unique among unfinished reads
  uint64_t offset;    // in the file
  uint64_t length;    // any; the reader cuts it into pieces that are read at the same time
  uint8_t* to;        // stays valid until read_done, or a successful cancel
  bool urgent;        // before all that are not
  bool idle = false;  // not urgent, behind all others, and only as far as the device has next to nothing to do
};

// For tests: stands between the kernel's answer and the reader. Called on a thread of the reader after each read; may
// sleep, may overwrite what arrived, and returns what the reader is to believe: bytes that arrived (fewer: a short
// read; 0: the end of the file), or a negative errno.
class ReadTamper {
 public:
  virtual ~ReadTamper() = default;
  virtual int64_t answer(uint64_t offset, uint64_t length, uint8_t* to, int64_t result) = 0;
};

class ReadListener {
 public:
  virtual ~ReadListener() = default;
  // All of a request has arrived (error 0), or it failed (an errno; EIO when the file is too short). Called on a thread
  // of the reader, once per request that was submitted and not cancelled. Must not block and must not throw.
  virtual void read_done(uint64_t tag, int error) = 0;
};

struct ReaderOptions {
  uint32_t kind = 0;     // SBR_IO_*
  uint32_t threads = 0;  // pread: 0: 4
  uint32_t direct = 0;   // SBR_DIRECT_*
  ReadTamper* tamper = nullptr;
};

struct ReaderInfo {
  uint32_t kind;   // SBR_IO_PREAD or SBR_IO_URING
  bool direct;     // O_DIRECT is in force
  uint32_t depth;  // reads that the kernel has at most
};

struct ReaderCounters {
  uint64_t reads = 0;    // of the kernel
  uint64_t bytes = 0;    // that arrived
  uint64_t ns_busy = 0;  // wall time with at least one read under way
};

class Reader {
 public:
  // Errors: IO (naming the path), UNSUPPORTED (a kind or O_DIRECT that was forced and cannot be had: the message says
  // what the system said). SBR_IO_AUTO and SBR_DIRECT_AUTO fall back, and info() says to what.
  static std::unique_ptr<Reader> open(const std::string& path, const ReaderOptions& options, ReadListener* listener);

  // As end().
  virtual ~Reader() = default;

  // Waits for reads that the kernel has; others, and all that is submitted from now on, are dropped without a call of
  // the listener. A listener that submits calls this while its own pointer to the reader still stands: what destroys a
  // unique_ptr may clear it first (libc++ does, libstdc++ does not).
  virtual void end() = 0;

  // From any thread; never waits for a read. Any number may be submitted: what the kernel may not have yet is queued.
  virtual void submit(const ReadRequest& request) = 0;
  // True: nothing of it has begun, nothing will, and the listener is not called.
  virtual bool cancel(uint64_t tag) = 0;
  // What was not urgent, or idle, is urgent now: of a read that has begun, the pieces that the kernel does not have
  // yet.
  virtual void promote(uint64_t tag) = 0;

  virtual ReaderInfo info() const = 0;
  virtual ReaderCounters counters() const = 0;
};

}  // namespace sbr
