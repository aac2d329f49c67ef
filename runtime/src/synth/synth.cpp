#include "synth/synth.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"
#include "gguf/gguf.h"
#include "io/file.h"
#include "synth/plan.h"

namespace sbr {
namespace {

// Large enough for sequential disks, small enough that a dozen in flight do not matter to a 1 GB board.
const uint64_t kChunkBytes = 4u << 20;
const size_t kMaxThreads = 8;

// Rows of one part, at their place in the file.
struct Chunk {
  const SynthPart* part;
  uint64_t begin;
  uint64_t end;
  uint64_t offset;
  uint64_t bytes;
};

std::vector<Chunk> split(const SynthPlan& plan, uint64_t data_offset) {
  std::vector<Chunk> chunks;
  for (const SynthTensor& tensor : plan.tensors) {
    uint64_t offset = data_offset + tensor.offset;
    for (const SynthPart& part : tensor.parts) {
      const uint64_t row_bytes = type_row_bytes(part.type, part.cols);
      const uint64_t unit = part.kind == SynthPart::Kind::kDownStandard ? part.rows_per_scale : 1;
      const uint64_t step = std::max<uint64_t>(kChunkBytes / (row_bytes * unit), 1) * unit;
      for (uint64_t row = 0; row < part.rows; row += step) {
        const uint64_t end = std::min(row + step, part.rows);
        chunks.push_back({&part, row, end, offset + row * row_bytes, (end - row) * row_bytes});
      }
      offset += part.rows * row_bytes;
    }
  }
  return chunks;
}

// Writes all chunks, several threads at a time; the caller's thread reports progress between its own chunks.
class ChunkWriter {
 public:
  ChunkWriter(const std::vector<Chunk>& chunks, uint64_t total, OutputFile& file, sbr_progress progress, void* user)
      : chunks_(chunks), total_(total), file_(file), progress_(progress), user_(user) {}

  void run() {
    const size_t n_threads = std::min({allowed_cpus().size(), kMaxThreads, chunks_.size()});
    ThreadPool pool(static_cast<uint32_t>(n_threads), {});
    pool.run([this](uint32_t tid) { work(tid == 0); });
    if (failure_ != nullptr) std::rethrow_exception(failure_);
    done_ = total_;
    report();
  }

 private:
  void work(bool is_caller) {
    try {
      std::vector<uint8_t> buffer;
      for (size_t i = next_++; i < chunks_.size() && !stop_; i = next_++) {
        const Chunk& chunk = chunks_[i];
        buffer.resize(chunk.bytes);
        fill_synth_rows(*chunk.part, chunk.begin, chunk.end, buffer.data());
        file_.write_at(chunk.offset, buffer.data(), buffer.size());
        done_ += chunk.bytes;
        if (is_caller) report();
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (failure_ == nullptr) failure_ = std::current_exception();
      stop_ = true;
    }
  }

  void report() {
    if (progress_ == nullptr) return;
    if (progress_(user_, done_, total_) != 0) {
      throw Error(SBR_ERR_CANCELLED, "writing the synthetic model was cancelled");
    }
  }

  const std::vector<Chunk>& chunks_;
  const uint64_t total_;
  OutputFile& file_;
  const sbr_progress progress_;
  void* const user_;
  std::atomic<size_t> next_{0};
  std::atomic<uint64_t> done_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::exception_ptr failure_;
};

}  // namespace

uint64_t synth_size(const sbr_synth_spec& raw) {
  const SynthSpec spec(raw);
  const SynthPlan plan = make_synth_plan(spec);
  return make_synth_header(spec, plan).size() + plan.data_bytes;
}

void synth_write(const sbr_synth_spec& raw, const std::string& path, sbr_progress progress, void* user) {
  const SynthSpec spec(raw);
  const SynthPlan plan = make_synth_plan(spec);
  const std::vector<uint8_t> header = make_synth_header(spec, plan);
  const uint64_t total = header.size() + plan.data_bytes;

  OutputFile file(path, total);
  file.write_at(0, header.data(), header.size());
  ChunkWriter(split(plan, header.size()), total, file, progress, user).run();
  file.commit();
}

}  // namespace sbr
