// What storage gives to the readers that a session reads its units with: random units, the queue always full. A run
// asks for fewer reads at a time, and computes beside them, so it can only be slower.
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>

#include "base/buffer.h"
#include "base/error.h"
#include "experts/bundle.h"
#include "io/file.h"
#include "io/reader.h"
#include "probe/probe.h"
#include "synth/random.h"

namespace sbr {
namespace {

using Clock = std::chrono::steady_clock;

// Memory that is read into, whatever a unit's size. io_uring's 32 pieces of 512 KiB take half of it, so that the
// kernel has as many as it may while the next are on their way. A layer of 30 MB is read in parts.
constexpr uint64_t kBufferBytes = 32 << 20;
constexpr uint64_t kPartBytes = 8 << 20;
constexpr uint64_t kMostSlots = 64;
// The share of the time that fills the queue and is not counted.
constexpr int kRampShare = 8;
// A probe in which nothing at all arrives ends after this much more.
constexpr std::chrono::seconds kPatience(5);

struct Units {
  uint64_t offset, bytes, count;  // of the first one; of each; how many
};

Units units_of(const std::string& path, uint64_t row_bytes) {
  if (row_bytes == 0) {
    const Bundle bundle = Bundle::open(path);
    return {bundle.offset(0), bundle.unit_bytes(), bundle.n_units()};
  }
  if (row_bytes % kReadAlignment != 0) {
    throw Error(SBR_ERR_ARGUMENT, "probe: row_bytes is " + std::to_string(row_bytes) +
                                      ", expected a multiple of 4096, or 0 for the units of a bundle");
  }
  const uint64_t size = InputFile(path).size();
  if (size < row_bytes) {
    throw Error(SBR_ERR_IO, path + ": has " + std::to_string(size) + " bytes, too few for one read of " +
                                std::to_string(row_bytes));
  }
  return {0, row_bytes, size / row_bytes};
}

// Keeps a reader's queue full: what has arrived is asked for anew, elsewhere, at once.
class Pump final : public ReadListener {
 public:
  // `at_a_time`: requests under way; 0: as many as keep the queue full.
  Pump(const std::string& path, const Units& units, const ReaderOptions& options, uint32_t at_a_time)
      : units_(units),
        part_bytes_(std::min(units.bytes, kPartBytes)),
        n_parts_((units.bytes + part_bytes_ - 1) / part_bytes_),
        n_slots_(std::min(at_a_time != 0 ? at_a_time : kBufferBytes / part_bytes_, kMostSlots)),
        buffer_(n_slots_ * part_bytes_, true),
        seed_(static_cast<uint64_t>(Clock::now().time_since_epoch().count())),
        reader_(Reader::open(path, options, this)) {
    buffer_.touch();
  }
  ~Pump() override { stop(); }

  ReaderInfo info() const { return reader_->info(); }
  ReaderCounters counters() const { return reader_->counters(); }

  void start() {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (uint64_t slot = 0; slot < n_slots_; ++slot) ask(slot);
  }

  // Nothing is asked for any more.
  void stop() {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopped_ = true;
  }

  // Until then, or the first error; its number, or 0.
  int wait_until(Clock::time_point time) {
    std::unique_lock<std::mutex> lock(mutex_);
    failed_.wait_until(lock, time, [this] { return error_ != 0; });
    return error_;
  }

  void read_done(uint64_t tag, int error) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (stopped_) return;
    if (error == 0) {
      try {
        ask(tag);
        return;
      } catch (...) {
        error = ENOMEM;
      }
    }
    error_ = error;
    stopped_ = true;
    failed_.notify_one();
  }

 private:
  // With the lock. Units at random places, which differ from probe to probe; the parts of one in their order.
  void ask(uint64_t slot) {
    const uint64_t turn = turn_++;
    const uint64_t unit = random_u64(seed_, turn / n_parts_) % units_.count;
    const uint64_t begin = turn % n_parts_ * part_bytes_;
    reader_->submit({slot, units_.offset + unit * units_.bytes + begin, std::min(part_bytes_, units_.bytes - begin),
                     buffer_.data() + slot * part_bytes_, false});
  }

  const Units units_;
  const uint64_t part_bytes_, n_parts_, n_slots_;
  Pages buffer_;
  const uint64_t seed_;
  std::mutex mutex_;  // over what follows, up to the reader
  uint64_t turn_ = 0;
  bool stopped_ = false;
  int error_ = 0;
  std::condition_variable failed_;
  const std::unique_ptr<Reader> reader_;  // the first to go: it writes to the buffer
};

uint64_t nanoseconds(Clock::duration time) {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(time).count());
}

sbr_probe_result pumped(const std::string& path, const Units& units, const ReaderOptions& options, uint32_t at_a_time,
                        uint64_t duration_ns) {
  // What lies in the page cache is no storage; nor is anything left there.
  struct Cold {
    ~Cold() {
      if (file != nullptr) file->drop_cached();
    }
    std::unique_ptr<InputFile> file;
  } cold;
  Pump pump(path, units, options, at_a_time);
  const ReaderInfo info = pump.info();
  if (!info.direct) {
    cold.file = std::make_unique<InputFile>(path);
    cold.file->drop_cached();
  }
  const auto stop_at = [&](Clock::time_point time) {
    const int error = pump.wait_until(time);
    if (error != 0) throw_io_error(path, "cannot be read", error);
  };
  const std::chrono::nanoseconds duration(static_cast<int64_t>(duration_ns));
  const Clock::time_point start = Clock::now();
  pump.start();
  stop_at(start + duration / kRampShare);
  const uint64_t before = pump.counters().bytes;
  const Clock::time_point begin = Clock::now();
  // Pieces arrive one by one, and the last may be long in coming.
  const Clock::time_point latest = begin + duration + kPatience;
  Clock::time_point end = begin;
  uint64_t bytes = 0;
  while (bytes == 0 && end < latest) {
    stop_at(std::min(std::max(start + duration, end + duration / kRampShare), latest));
    bytes = pump.counters().bytes - before;
    end = Clock::now();
  }
  pump.stop();
  if (bytes == 0) throw Error(SBR_ERR_IO, path + ": nothing could be read of it in the time of a probe");
  sbr_probe_result result = {};
  result.struct_size = sizeof result;
  result.n_threads = info.depth;
  result.bytes = bytes;
  result.ns = nanoseconds(end - begin);
  result.operations = bytes / units.bytes;
  result.io = info.kind;
  result.io_direct = info.direct ? SBR_DIRECT_ON : SBR_DIRECT_OFF;
  result.row_bytes = units.bytes;
  return result;
}

}  // namespace

sbr_probe_result probe_reads(const std::string& path, const sbr_probe_options& options) {
  if (options.duration_ns == 0 || options.duration_ns > 600000000000u) {
    throw Error(SBR_ERR_ARGUMENT, "probe: duration_ns is " + std::to_string(options.duration_ns) +
                                      ", expected 1 to 600000000000 (10 minutes)");
  }
  if (options.n_threads > kMostSlots) {
    throw Error(SBR_ERR_ARGUMENT,
                "probe: n_threads is " + std::to_string(options.n_threads) + ", expected 0 to 64 units at a time");
  }
  const Units units = units_of(path, options.row_bytes);
  ReaderOptions reader;
  reader.kind = options.io;
  reader.threads = options.io_threads;
  reader.direct = options.direct != 0 ? SBR_DIRECT_AUTO : SBR_DIRECT_OFF;
  if (options.io != SBR_IO_AUTO) return pumped(path, units, reader, options.n_threads, options.duration_ns);
  // Whichever way brings more is what storage gives.
  const sbr_probe_result first = pumped(path, units, reader, options.n_threads, options.duration_ns / 2);
  reader.kind = SBR_IO_PREAD;
  const sbr_probe_result second = pumped(path, units, reader, options.n_threads, options.duration_ns / 2);
  const auto rate = [](const sbr_probe_result& r) { return static_cast<double>(r.bytes) / static_cast<double>(r.ns); };
  return rate(first) < rate(second) ? second : first;
}

}  // namespace sbr
