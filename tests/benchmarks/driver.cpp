// What the gates run: one process, one library, one model, one thread.
//
//   driver LIBRARY MODEL time ISA...    median nanoseconds of processor time per token
//   driver LIBRARY MODEL count ISA...   a callgrind dump per measurement (under valgrind --tool=callgrind)
//
// The library is opened by name, so the program measures whichever build it is given. Output: lines of
// "ISA/MEASUREMENT VALUE", where the value of `count` is the tokens or calls that the dump of that label covers.

#include <dlfcn.h>
#include <sbr/sbr.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#ifdef COUNT_INSTRUCTIONS
#include <valgrind/callgrind.h>
#else
#define CALLGRIND_ZERO_STATS
#define CALLGRIND_DUMP_STATS_AT(label) (void)(label)
#endif

namespace {

constexpr uint32_t kTimedPrompt = 64, kTimedSteps = 64, kRepeats = 15;
constexpr uint32_t kCountedPrompt = 8, kCountedSteps = 4, kCountedCalls = 4;

sbr_error error = {sizeof error, 0, ""};

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(1);
}

void must(sbr_status status, const char* call) {
  if (status != SBR_OK) fail(std::string(call) + ": " + error.message);
}

template <typename Function>
Function* find(void* library, const char* name, Function*) {
  return reinterpret_cast<Function*>(dlsym(library, name));
}

#define FIND(name) find(library, #name, &name)

struct Library {
  void* library;
  decltype(&sbr_isa_count) isa_count = FIND(sbr_isa_count);
  decltype(&sbr_isa_get) isa_get = FIND(sbr_isa_get);
  decltype(&sbr_model_load) model_load = FIND(sbr_model_load);
  decltype(&sbr_session_options_init) options_init = FIND(sbr_session_options_init);
  decltype(&sbr_session_create) session_create = FIND(sbr_session_create);
  decltype(&sbr_session_free) session_free = FIND(sbr_session_free);
  decltype(&sbr_session_rewind) session_rewind = FIND(sbr_session_rewind);
  decltype(&sbr_prefill) prefill = FIND(sbr_prefill);
  decltype(&sbr_decode) decode = FIND(sbr_decode);
  // Null in builds older than these.
  decltype(&sbr_kernel_bench_create) bench_create = FIND(sbr_kernel_bench_create);
  decltype(&sbr_kernel_bench_run) bench_run = FIND(sbr_kernel_bench_run);
  decltype(&sbr_kernel_bench_free) bench_free = FIND(sbr_kernel_bench_free);
};

uint32_t isa_number(const Library& sbr, const std::string& name) {
  for (uint32_t i = 0; i < sbr.isa_count(); ++i) {
    sbr_isa_info info = {};
    info.struct_size = sizeof info;
    must(sbr.isa_get(i, &info, &error), "sbr_isa_get");
    if (name == info.name && info.supported) return info.isa;
    if (name == "auto" && info.is_auto) return info.isa;
  }
  fail(name + ": not an instruction set of this library and CPU");
}

std::vector<int32_t> tokens(uint32_t count) {
  std::vector<int32_t> all(count);
  for (uint32_t i = 0; i < count; ++i) all[i] = static_cast<int32_t>((7919 * i + 13) % 500);
  return all;
}

double processor_ns() {
  timespec time = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e9 + static_cast<double>(time.tv_nsec);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Bench {
  const Library& sbr;
  bool counting;
  std::string isa;

  void print(const std::string& name, double value) const {
    std::printf("%s/%s %.17g\n", isa.c_str(), name.c_str(), value);
  }

  // Runs `work`, which covers `units` tokens or calls, after running `before`.
  template <typename Before, typename Work>
  void measure(const std::string& name, uint32_t units, const Before& before, const Work& work) const {
    if (counting) {
      const std::string label = isa + "/" + name;
      before();
      CALLGRIND_ZERO_STATS;
      work();
      CALLGRIND_DUMP_STATS_AT(label.c_str());
      print(name, units);
      return;
    }
    std::vector<double> samples;
    for (uint32_t i = 0; i < kRepeats; ++i) {
      before();
      const double begin = processor_ns();
      work();
      samples.push_back((processor_ns() - begin) / units);
    }
    print(name, median(samples));
  }

  void tokens_of(const sbr_model* model, bool sparse) const {
    const std::vector<int32_t> prompt = tokens(counting ? kCountedPrompt : kTimedPrompt);
    const std::vector<int32_t> steps = tokens(counting ? kCountedSteps : kTimedSteps);
    const uint32_t n_prompt = static_cast<uint32_t>(prompt.size()), n_steps = static_cast<uint32_t>(steps.size());
    sbr_session_options options;
    sbr.options_init(&options);
    options.isa = isa_number(sbr, isa);
    options.n_ctx = 256;
    options.n_batch = n_prompt;
    options.sparse_ffn = sparse;
    sbr_session* session = nullptr;
    must(sbr.session_create(model, &options, &session, &error), "sbr_session_create");
    const auto rewind = [&](uint32_t position) {
      must(sbr.session_rewind(session, position, &error), "sbr_session_rewind");
    };
    const auto prefill = [&] {
      must(sbr.prefill(session, prompt.data(), n_prompt, SBR_LOGITS_NONE, nullptr, nullptr, &error), "sbr_prefill");
    };
    const auto decode = [&] {
      must(sbr.decode(session, steps.data(), n_steps, nullptr, nullptr, &error), "sbr_decode");
    };
    const std::string tail = sparse ? "-sparse" : "-dense";
    // Once before it counts: tables made at the first use belong to no token.
    prefill();
    decode();
    measure("prefill" + tail, n_prompt, [&] { rewind(0); }, prefill);
    measure("decode" + tail, n_steps, [&] { rewind(n_prompt); }, decode);
    sbr.session_free(session);
  }

  void kernel(const char* name, uint32_t which, const char* type_name, uint32_t type) const {
    sbr_kernel_bench_options options = {};
    options.struct_size = sizeof options;
    options.isa = isa_number(sbr, isa);
    options.kernel = which;
    options.weight_type = type;
    options.n_rows = 192;
    options.n_cols = 256;
    options.n_tokens = 8;
    options.keep = 300;
    sbr_kernel_bench* bench = nullptr;
    must(sbr.bench_create(&options, &bench, &error), "sbr_kernel_bench_create");
    sbr_probe_result result = {};
    result.struct_size = sizeof result;
    const auto work = [&] { must(sbr.bench_run(bench, kCountedCalls, &result, &error), "sbr_kernel_bench_run"); };
    measure(std::string(name) + "-" + type_name, kCountedCalls, [] {}, work);
    sbr.bench_free(bench);
  }

  void kernels() const {
    if (sbr.bench_create == nullptr) return;
    kernel("gemv", SBR_KERNEL_GEMV, "q4_0", SBR_TYPE_Q4_0);
    kernel("gather_gemv", SBR_KERNEL_GATHER_GEMV, "q4_0", SBR_TYPE_Q4_0);
    kernel("gemm", SBR_KERNEL_GEMM, "q4_0", SBR_TYPE_Q4_0);
    kernel("axpy_rows", SBR_KERNEL_AXPY_ROWS, "q4_0", SBR_TYPE_Q4_0);
    kernel("gemv", SBR_KERNEL_GEMV, "q8_0", SBR_TYPE_Q8_0);
    kernel("quantise", SBR_KERNEL_QUANTISE, "f32", SBR_TYPE_F32);
  }
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) fail("usage: driver LIBRARY MODEL time|count ISA...");
  void* opened = dlopen(argv[1], RTLD_NOW);
  if (opened == nullptr) fail(dlerror());
  const Library sbr = {opened};
  sbr_model* model = nullptr;
  must(sbr.model_load(argv[2], nullptr, &model, &error), "sbr_model_load");
  for (int i = 4; i < argc; ++i) {
    const Bench bench = {sbr, std::strcmp(argv[3], "count") == 0, argv[i]};
    bench.tokens_of(model, false);
    bench.tokens_of(model, true);
    if (bench.counting) bench.kernels();
  }
}
