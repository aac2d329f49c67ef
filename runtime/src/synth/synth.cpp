#include "synth/synth.h"

#include <algorithm>
#include <vector>

#include "base/work.h"
#include "gguf/gguf.h"
#include "io/file.h"
#include "synth/plan.h"

namespace sbr {
namespace {

// Large enough for sequential disks, small enough that a dozen in flight do not matter to a 1 GB board.
const uint64_t kChunkBytes = 4u << 20;

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
  const std::vector<Chunk> chunks = split(plan, header.size());
  std::vector<std::vector<uint8_t>> buffers(kMostWorkers);
  work_through(chunks.size(), total, kMostWorkers, {progress, user, "writing the synthetic model"},
               [&](size_t thread, size_t i) {
                 const Chunk& chunk = chunks[i];
                 std::vector<uint8_t>& buffer = buffers[thread];
                 buffer.resize(chunk.bytes);
                 fill_synth_rows(*chunk.part, chunk.begin, chunk.end, buffer.data());
                 file.write_at(chunk.offset, buffer.data(), buffer.size());
                 return chunk.bytes;
               });
  file.commit();
}

}  // namespace sbr
