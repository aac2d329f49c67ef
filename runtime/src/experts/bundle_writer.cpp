#include "experts/bundle_writer.h"

#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "base/checksum.h"
#include "base/error.h"
#include "base/work.h"
#include "experts/bundle.h"
#include "experts/bundle_format.h"
#include "gguf/gguf.h"
#include "io/file.h"
#include "kernels/kernels.h"
#include "model/config.h"
#include "model/weights.h"
#include "quant/interleave.h"

namespace sbr {
namespace {

// What a thread holds of a unit at a time: units of layers can have 100 MB, which four threads of a board cannot hold.
constexpr uint64_t kPieceBytes = 4 << 20;

bool same_file(const std::string& a, const std::string& b) {
  struct stat first = {}, second = {};
  return ::stat(a.c_str(), &first) == 0 && ::stat(b.c_str(), &second) == 0 && first.st_dev == second.st_dev &&
         first.st_ino == second.st_ino;
}

// A model's file as far as a bundle needs it: nothing is read but the header.
struct Source {
  Source(const std::string& path, uint32_t gathers, const std::string& digest) : file(MappedFile::open(path)) {
    const GgufFile gguf = GgufFile::parse(file.data(), file.size(), file.size(), path);
    std::vector<std::string> warnings;
    const Config config = read_config(gguf, &warnings);
    weights = bind_weights(gguf, file.data(), config);
    header = plan_bundle(config, weights, gathers, digest);
  }

  MappedFile file;
  Weights weights;
  BundleHeader header;
};

// Writes one unit through a buffer, summing as it goes.
class UnitWriter {
 public:
  UnitWriter(OutputFile& out, std::vector<uint8_t>& buffer, uint64_t offset)
      : out_(out), buffer_(buffer), offset_(offset) {}

  // Room for the next bytes of the unit, to be filled before the next call.
  uint8_t* next(uint64_t bytes) {
    if (used_ + bytes > buffer_.size()) flush();
    if (bytes > buffer_.size()) buffer_.resize(bytes);
    used_ += bytes;
    return buffer_.data() + used_ - bytes;
  }

  void pad_to(uint64_t at) {
    while (position() < at) {
      const uint64_t n = std::min<uint64_t>(at - position(), kUnitAlignment);
      std::memset(next(n), 0, n);
    }
  }

  uint64_t finish() {
    flush();
    return sum_.value();
  }

 private:
  uint64_t position() const { return written_ + used_; }

  void flush() {
    sum_.add(buffer_.data(), used_);
    out_.write_at(offset_ + written_, buffer_.data(), used_);
    written_ += used_;
    used_ = 0;
  }

  OutputFile& out_;
  std::vector<uint8_t>& buffer_;
  const uint64_t offset_;
  Checksum sum_;
  uint64_t written_ = 0, used_ = 0;
};

// The checksum of the unit that was written.
uint64_t write_unit(const Source& source, uint32_t unit, OutputFile& out, std::vector<uint8_t>& buffer) {
  const sbr_bundle_info& info = source.header.info;
  const uint32_t layer = unit / info.units_per_layer, expert = unit % info.units_per_layer;
  UnitWriter writer(out, buffer, source.header.header_bytes + unit * info.unit_bytes);
  for (const BundlePart& part : source.header.parts[layer]) {
    writer.pad_to(part.offset);
    const Matrix& matrix = source.weights.layers[layer].*part.member;
    const uint64_t row_bytes = matrix.row_bytes;
    const uint64_t step = std::max<uint64_t>(kPieceBytes / 4 / row_bytes / kInterleavedRows, 1) * kInterleavedRows;
    for (uint64_t r = 0; r < part.view.rows; r += step) {
      const uint64_t n = std::min(step, part.view.rows - r);
      const uint8_t* from = matrix.row(expert * part.view.rows + r);
      uint8_t* to = writer.next(n * row_bytes);
      if (part.view.type >= kInterleaved) {
        interleave_rows(matrix.type, from, row_bytes, n, to);
      } else {
        std::memcpy(to, from, n * row_bytes);
      }
      source.file.release(static_cast<uint64_t>(from - source.file.data()), n * row_bytes);
    }
  }
  writer.pad_to(info.unit_bytes);
  return writer.finish();
}

}  // namespace

sbr_bundle_info plan_bundle_of(const std::string& model_path, uint32_t gathers) {
  return Source(model_path, gathers, "").header.info;
}

void write_bundle(const std::string& model_path, const std::string& digest, uint32_t gathers, const std::string& path,
                  sbr_progress progress, void* user) {
  Source source(model_path, gathers, digest);
  BundleHeader& header = source.header;
  if (same_file(model_path, path))
    throw Error(SBR_ERR_ARGUMENT, path + ": is the model itself; give the bundle another name");
  OutputFile out(path, header.info.file_bytes);
  std::vector<std::vector<uint8_t>> buffers(kMostWorkers);
  work_through(header.n_units(), header.info.file_bytes, kMostWorkers, {progress, user, "writing the bundle"},
               [&](size_t thread, size_t unit) {
                 if (buffers[thread].empty()) buffers[thread].resize(std::min(kPieceBytes, header.info.unit_bytes));
                 header.checksums[unit] = write_unit(source, static_cast<uint32_t>(unit), out, buffers[thread]);
                 return header.info.unit_bytes;
               });
  const std::vector<uint8_t> bytes = encode_header(header);
  out.write_at(0, bytes.data(), bytes.size());
  out.commit();
  out.drop_cached();
}

void verify_bundle(const std::string& path, sbr_progress progress, void* user) {
  const Bundle bundle = Bundle::open(path);
  const InputFile file(path);
  std::vector<std::vector<uint8_t>> buffers(kMostWorkers);
  std::atomic<uint32_t> first{UINT32_MAX}, n_damaged{0};
  work_through(bundle.n_units(), bundle.info().file_bytes, kMostWorkers, {progress, user, "checking the bundle"},
               [&](size_t thread, size_t i) {
                 const auto unit = static_cast<uint32_t>(i);
                 std::vector<uint8_t>& buffer = buffers[thread];
                 buffer.resize(std::min(kPieceBytes, bundle.unit_bytes()));
                 Checksum sum;
                 for (uint64_t at = 0; at < bundle.unit_bytes(); at += buffer.size()) {
                   const uint64_t n = std::min<uint64_t>(buffer.size(), bundle.unit_bytes() - at);
                   file.read_at(bundle.offset(unit) + at, buffer.data(), n);
                   sum.add(buffer.data(), n);
                 }
                 if (sum.value() != bundle.checksum(unit)) {
                   ++n_damaged;
                   for (uint32_t seen = first; unit < seen && !first.compare_exchange_weak(seen, unit);) {
                   }
                 }
                 return bundle.unit_bytes();
               });
  file.drop_cached();
  if (n_damaged == 0) return;
  throw Error(SBR_ERR_FORMAT, path + ": " + bundle.unit_name(first) +
                                  " is damaged (its checksum differs; so do those of " + std::to_string(n_damaged - 1) +
                                  " of the other " + std::to_string(bundle.n_units() - 1) +
                                  " units); make the bundle again");
}

}  // namespace sbr
