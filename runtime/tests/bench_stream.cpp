// Speed of decoding with layers on storage: bench_stream MODEL.gguf BUNDLE|- MiB [threads [tokens [io [direct
// [n_ctx]]]]]. The bundle is made if it is missing. `-`: no bundle, weights mapped. Run it in a memory cgroup, with the
// files' pages dropped before (docs/streaming.md). Compare with the storage rate of the same minute only.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "model/model.h"
#include "session.h"

namespace {

bool make_bundle(const char* model, const char* path) {
  if (access(path, F_OK) == 0) return true;
  sbr_error error = {};
  error.struct_size = sizeof error;
  if (sbr_bundle_write(model, nullptr, 0, path, nullptr, nullptr, &error) == SBR_OK) return true;
  std::fprintf(stderr, "%s\n", error.message);
  return false;
}

void run(const char* path, const char* bundle, uint64_t cache_bytes, uint32_t threads, uint32_t n_tokens, uint32_t io,
         uint32_t direct, uint32_t n_ctx) {
  sbr_model_options load = {};
  load.struct_size = sizeof load;
  load.load_mode = bundle == nullptr ? SBR_LOAD_MMAP : SBR_LOAD_REPACK;
  load.bundle = bundle;
  const sbr::Model model(path, load);
  sbr_session_options options = {};
  options.struct_size = sizeof options;
  options.n_threads = threads;
  options.n_ctx = n_ctx;
  options.n_batch = 64;
  options.kv_type = SBR_TYPE_F16;
  options.kv_touch = 1;
  options.phase_timing = 1;
  options.cache_bytes = cache_bytes;
  options.io = io;
  options.io_direct = direct;
  sbr::Session session(model, options);
  std::vector<int32_t> tokens(n_tokens);
  for (uint32_t i = 0; i < n_tokens; ++i) tokens[i] = static_cast<int32_t>(i * 7919u % model.config().n_vocab);
  session.decode(tokens.data(), std::min(n_tokens, 2u), nullptr, nullptr);
  session.rewind(0);
  session.reset_counters();
  std::vector<sbr_interval> times(n_tokens);
  session.decode(tokens.data(), n_tokens, times.data(), nullptr);
  std::vector<double> ms;
  for (const sbr_interval& t : times) ms.push_back(static_cast<double>(t.end_ns - t.begin_ns) * 1e-6);
  std::sort(ms.begin(), ms.end());
  const sbr_counters c = session.counters();
  const sbr_cache_counters of = session.cache_counters();
  const double n = n_tokens, ns = static_cast<double>(c.ns_total);
  std::printf(
      "%6.2f tokens/s | ms/token median %.1f max %.1f | compute reads %.0f MB/token | storage: %.1f MB/token, %.2f "
      "GB/s "
      "while busy, busy %.3f, thread 0 waits %.3f of the time | units %u, late %.2f of %.0f requests/token\n",
      n / ns * 1e9, ms[ms.size() / 2], ms.back(), static_cast<double>(c.weight_bytes) / n * 1e-6,
      static_cast<double>(of.bytes_read) / n * 1e-6,
      static_cast<double>(of.bytes_read) / std::max(1.0, static_cast<double>(of.ns_io_busy)),
      static_cast<double>(of.ns_io_busy) / ns, static_cast<double>(of.ns_wait) / ns, session.info().cache_units,
      static_cast<double>(of.late) / n, static_cast<double>(of.requests) / n);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s MODEL.gguf BUNDLE|- MiB [threads [tokens [io [direct [n_ctx]]]]]\n", argv[0]);
    return 2;
  }
  const auto number = [&](int i, uint32_t absent) {
    return argc > i ? static_cast<uint32_t>(std::atoi(argv[i])) : absent;
  };
  const char* bundle = std::strcmp(argv[2], "-") == 0 ? nullptr : argv[2];
  try {
    if (bundle != nullptr && !make_bundle(argv[1], bundle)) return 1;
    run(argv[1], bundle, uint64_t{number(3, 0)} << 20, number(4, 2), number(5, 16), number(6, SBR_IO_AUTO),
        number(7, SBR_DIRECT_AUTO), number(8, 512));
  } catch (const sbr::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
