// The probes measure something, in the time they were given, and refuse what they cannot measure. How fast a machine
// is cannot be tested here.
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "bundled_models.h"
#include "expect.h"
#include "io/file.h"
#include "probe/probe.h"

namespace {

const uint64_t kDuration = 20000000;

sbr_probe_options options(uint32_t n_threads, uint32_t row_bytes) {
  sbr_probe_options o = {};
  o.struct_size = sizeof o;
  o.n_threads = n_threads;
  o.row_bytes = row_bytes;
  o.buffer_bytes = 4u << 20;
  o.duration_ns = kDuration;
  return o;
}

void expect_plausible(const sbr_probe_result& result, uint32_t n_threads, uint64_t bytes_per_operation) {
  EXPECT(result.struct_size == sizeof result);
  EXPECT(result.n_threads == n_threads);
  EXPECT(result.ns >= kDuration);
  EXPECT(result.operations > 0 && result.bytes == result.operations * bytes_per_operation);
}

std::string refusal(const std::function<void()>& body, int32_t status) {
  try {
    body();
  } catch (const sbr::Error& error) {
    return error.status() == status ? error.what() : "status " + std::to_string(error.status());
  }
  return "accepted";
}

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

void test_memory() {
  for (const uint32_t n_threads : {1u, 3u}) {
    expect_plausible(sbr::probe_read(options(n_threads, 0)), n_threads, 256 << 10);
    sbr_probe_options cached = options(n_threads, 0);
    cached.buffer_bytes = n_threads * (16u << 10);
    expect_plausible(sbr::probe_read(cached), n_threads, 256 << 10);
    cached.buffer_bytes = n_threads * 5000u;  // 78 lines, 52 times
    expect_plausible(sbr::probe_read(cached), n_threads, 52 * 78 * 64);
    for (const uint32_t row_bytes : {1u, 31u, 864u, 65536u}) {
      expect_plausible(sbr::probe_gather(options(n_threads, row_bytes)), n_threads, row_bytes);
    }
  }
  const uint32_t cpu[] = {0};
  sbr_probe_options pinned = options(2, 864);
  pinned.cpus = cpu;
  pinned.n_cpus = 1;
  expect_plausible(sbr::probe_gather(pinned), 2, 864);
  EXPECT(sbr::probe_read(options(0, 0)).n_threads >= 1);
}

void test_storage() {
  const std::string path = "test_probe-" + std::to_string(getpid()) + ".tmp";
  {
    sbr::OutputFile(path, 1 << 20).commit();
  }
  expect_plausible(sbr::probe_storage(path, options(2, 4096)), 2, 4096);
  expect_plausible(sbr::probe_storage(path, options(1, 1000)), 1, 1000);
  sbr_probe_options direct = options(2, 65536);
  direct.direct = 1;
  try {
    expect_plausible(sbr::probe_storage(path, direct), 2, 65536);
  } catch (const sbr::Error& error) {
    // Not every file system can (tmpfs before Linux 6.6): the sentence says so.
    EXPECT(contains(error.what(), "O_DIRECT") || contains(error.what(), "cannot be read"));
  }
  direct.row_bytes = 1000;
  EXPECT(contains(refusal([&] { sbr::probe_storage(path, direct); }, SBR_ERR_ARGUMENT), "a multiple of 512"));
  EXPECT(contains(refusal([&] { sbr::probe_storage(path, options(1, 2 << 20)); }, SBR_ERR_IO), "too few for one read"));
  std::remove(path.c_str());
  EXPECT(contains(refusal([&] { sbr::probe_storage(path, options(1, 512)); }, SBR_ERR_IO), "cannot be opened"));
  EXPECT(contains(refusal([&] { sbr::probe_storage("/", options(1, 512)); }, SBR_ERR_IO), "/: "));
}

sbr_probe_options reads(uint32_t unit_bytes, uint32_t io, uint32_t at_a_time = 0) {
  sbr_probe_options o = options(at_a_time, unit_bytes);
  o.direct = 1;
  o.io = io;
  return o;
}

void expect_units(const sbr_probe_result& result, uint64_t unit_bytes) {
  EXPECT(result.struct_size == sizeof result);
  EXPECT(result.row_bytes == unit_bytes && result.bytes > 0 && result.ns > 0);
  EXPECT(result.io == SBR_IO_PREAD || result.io == SBR_IO_URING);
  EXPECT(result.io_direct == SBR_DIRECT_ON || result.io_direct == SBR_DIRECT_OFF);
}

size_t cached_pages(const std::string& path) {
  const sbr::MappedFile file = sbr::MappedFile::open(path);
  const size_t pages = static_cast<size_t>(file.size()) / sbr::page_size();
  std::vector<unsigned char> there(pages);
  EXPECT(mincore(const_cast<uint8_t*>(file.data()), file.size(), there.data()) == 0);
  size_t n = 0;
  for (const unsigned char page : there) n += page & 1u;
  return n;
}

void test_reads() {
  const std::string path = "test_probe-reads-" + std::to_string(getpid()) + ".tmp";
  {
    // More than one part of a unit, and more than one unit.
    sbr::OutputFile file(path, 36u << 20);
    const std::vector<uint8_t> some(1 << 20, 7);
    for (uint64_t at = 0; at < 36u << 20; at += some.size()) file.write_at(at, some.data(), some.size());
    file.commit();
    file.drop_cached();
  }
  for (const uint32_t unit : {4096u, 65536u, 12u << 20}) {
    for (const uint32_t io : {SBR_IO_AUTO, SBR_IO_PREAD}) {
      expect_units(sbr::probe_reads(path, reads(unit, io)), unit);
      expect_units(sbr::probe_reads(path, reads(unit, io, 1)), unit);
    }
  }
  EXPECT(sbr::probe_reads(path, reads(65536, SBR_IO_PREAD)).io == SBR_IO_PREAD);

  // Through the page cache, which holds nothing of it before and after: some file systems (tmpfs) cannot help it.
  sbr_probe_options through = reads(65536, SBR_IO_PREAD);
  through.direct = 0;
  const bool droppable = cached_pages(path) == 0;
  EXPECT(sbr::probe_reads(path, through).io_direct == SBR_DIRECT_OFF);
  if (droppable) EXPECT(cached_pages(path) == 0);

  EXPECT(contains(refusal([&] { sbr::probe_reads(path, reads(1000, 0)); }, SBR_ERR_ARGUMENT), "a multiple of 4096"));
  EXPECT(contains(refusal([&] { sbr::probe_reads(path, reads(4096, 0, 65)); }, SBR_ERR_ARGUMENT), "0 to 64"));
  EXPECT(contains(refusal([&] { sbr::probe_reads(path, reads(4096, 7)); }, SBR_ERR_ARGUMENT), "SBR_IO_*"));
  EXPECT(contains(refusal([&] { sbr::probe_reads(path, reads(64u << 20, 0)); }, SBR_ERR_IO), "too few for one read"));
  EXPECT(contains(refusal([&] { sbr::probe_reads(path, reads(0, 0)); }, SBR_ERR_FORMAT), "bundle"));
  std::remove(path.c_str());
  EXPECT(contains(refusal([&] { sbr::probe_reads(path, reads(4096, 0)); }, SBR_ERR_IO), "cannot be opened"));
}

// What this process has read from files so far; 0 where the kernel does not say.
unsigned long long bytes_read() {
  unsigned long long bytes = 0;
  if (std::FILE* file = std::fopen("/proc/self/io", "r")) {
    if (std::fscanf(file, "rchar: %llu", &bytes) != 1) bytes = 0;
    std::fclose(file);
  }
  return bytes;
}

// A bundle whose end is cut off while it is read: an error, not a wait.
void test_units() {
  const sbr_test::Bundled model(sbr_test::tiny_smallthinker(SBR_TYPE_Q4_0, true));
  const uint64_t unit = model.unit_bytes();
  expect_units(sbr::probe_reads(model.bundle(), reads(0, SBR_IO_AUTO)), unit);
  const std::string path = model.bundle() + ".short";
  {
    sbr::OutputFile(path, 8 << 20).commit();
  }
  sbr_probe_options slow = reads(65536, SBR_IO_PREAD);
  slow.duration_ns = 60000000000;
  const unsigned long long before = bytes_read();
  std::thread cut([&] {
    for (int looks = 0; looks < 1500 && bytes_read() < before + (2 << 20); ++looks)
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT(truncate(path.c_str(), 65536) == 0);
  });
  EXPECT(contains(refusal([&] { sbr::probe_reads(path, slow); }, SBR_ERR_IO), "cannot be read"));
  cut.join();
  std::remove(path.c_str());
}

void test_refusals() {
  sbr_probe_options o = options(1, 0);
  o.duration_ns = 0;
  EXPECT(contains(refusal([&] { sbr::probe_read(o); }, SBR_ERR_ARGUMENT), "duration_ns is 0"));
  o = options(2, 0);
  o.buffer_bytes = 1000;
  EXPECT(contains(refusal([&] { sbr::probe_read(o); }, SBR_ERR_ARGUMENT), "buffer_bytes is 1000, expected at least"));
  o = options(5000, 0);
  EXPECT(contains(refusal([&] { sbr::probe_read(o); }, SBR_ERR_ARGUMENT), "n_threads is 5000"));
  EXPECT(contains(refusal([&] { sbr::probe_gather(options(1, 0)); }, SBR_ERR_ARGUMENT), "row_bytes is 0"));
}

}  // namespace

int main() {
  test_memory();
  test_storage();
  test_reads();
  test_units();
  test_refusals();
  return sbr_test::finish("test_probe");
}
