// The probes measure something, in the time they were given, and refuse what they cannot measure. How fast a machine
// is cannot be tested here.
#include <unistd.h>

#include <cstdio>
#include <functional>
#include <string>

#include "base/error.h"
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
  test_refusals();
  return sbr_test::finish("test_probe");
}
