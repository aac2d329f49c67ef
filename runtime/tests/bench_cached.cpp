// Decode with experts on storage, against what the machine could do: bench_cached MODEL.gguf BUNDLE [option=value ...]
//
//   cache=600        MiB of units            threads=2     tokens=64 (timed, after as many to warm up)
//   routing=uniform  or router: the model's  sparse=1      rounds=3
//   policy=0 io=0 direct=0 prefetch=0 verify=0 io_threads=0 (the numbers of sbr.h)
//   prefetch=10,20,40: a session of each, in turns within every round
//
// Makes the bundle if it is not there. Each round measures storage (direct reads of one unit each, 4 at a time), the
// model in memory, and the cache, so that the three are of the same minute; the last number is how much of min(compute
// rate, storage rate / bytes read per token) decode reaches. Medians of a setting's tokens over all rounds are at the
// end: on a machine that others use they say more than rates.
#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "experts/bundle_writer.h"
#include "model/model.h"
#include "probe/probe.h"
#include "session.h"

namespace {

struct Settings {
  uint32_t cache = 600, threads = 2, tokens = 64, sparse = 1, rounds = 3;
  uint32_t policy = 0, io = 0, direct = 0, verify = 0, io_threads = 0;
  std::vector<uint32_t> prefetch = {0};
  bool uniform = true;
};

uint32_t next_random(uint32_t* state) {
  *state = *state * 1664525u + 1013904223u;
  return *state >> 8;
}

std::vector<int32_t> token_stream(size_t n, uint32_t n_vocab) {
  std::vector<int32_t> tokens(n);
  uint32_t state = 1;
  for (int32_t& token : tokens) token = static_cast<int32_t>(next_random(&state) % n_vocab);
  return tokens;
}

// Every set of K experts is as likely as any other.
std::vector<uint16_t> uniform_routing(const sbr::Config& c, size_t n_tokens) {
  std::vector<uint16_t> table;
  std::vector<uint16_t> all(c.n_expert);
  uint32_t state = 2;
  for (size_t i = 0; i < n_tokens * c.n_layer; ++i) {
    for (uint32_t e = 0; e < c.n_expert; ++e) all[e] = static_cast<uint16_t>(e);
    for (uint32_t k = 0; k < c.n_expert_used; ++k) std::swap(all[k], all[k + next_random(&state) % (c.n_expert - k)]);
    std::sort(all.begin(), all.begin() + c.n_expert_used);
    table.insert(table.end(), all.begin(), all.begin() + c.n_expert_used);
  }
  return table;
}

double storage_rate(const std::string& path, uint64_t unit_bytes) {
  sbr_probe_options options = {};
  options.struct_size = sizeof options;
  options.n_threads = 4;
  options.row_bytes = static_cast<uint32_t>(unit_bytes);
  options.duration_ns = 1000000000;
  options.direct = 1;
  const sbr_probe_result result = sbr::probe_storage(path, options);
  return static_cast<double>(result.bytes) / static_cast<double>(result.ns);
}

// Appends each token's milliseconds.
double tokens_per_second(sbr::Session& session, const std::vector<int32_t>& tokens, const Settings& s,
                         std::vector<double>* ms) {
  std::vector<sbr_interval> times(s.tokens);
  session.rewind(0);
  session.reset_counters();
  session.decode(tokens.data(), s.tokens, times.data(), nullptr);
  for (const sbr_interval& time : times) ms->push_back(static_cast<double>(time.end_ns - time.begin_ns) * 1e-6);
  const sbr_counters c = session.counters();
  return static_cast<double>(c.tokens) / static_cast<double>(c.ns_total) * 1e9;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// A session of one setting.
struct Contender {
  uint32_t prefetch;
  std::unique_ptr<sbr::Session> session;
  std::vector<double> ms, wait_ms, busy_gb_s;  // by token; by round
};

void print_phases(const sbr::Session& session) {
  const sbr_counters c = session.counters();
  const double ms = 1e-6 / static_cast<double>(c.tokens);
  std::printf("    ms/token: total %.2f attention %.2f router %.2f ffn %.2f lm_head %.2f barrier %.2f\n",
              static_cast<double>(c.ns_total) * ms, static_cast<double>(c.ns_attention) * ms,
              static_cast<double>(c.ns_router) * ms, static_cast<double>(c.ns_ffn) * ms,
              static_cast<double>(c.ns_lm_head) * ms, static_cast<double>(c.ns_barrier) * ms);
}

double share(uint64_t part, uint64_t all) {
  return all == 0 ? 0 : static_cast<double>(part) / static_cast<double>(all);
}

void print_cached(Contender* contender, double speed, double compute, double storage, const Settings& s) {
  const sbr_cache_counters c = contender->session->cache_counters();
  const double n = s.tokens, read = static_cast<double>(c.bytes_read) / n;
  const double total = static_cast<double>(contender->session->counters().ns_total);
  const double device = share(c.bytes_read, c.ns_io_busy);
  contender->wait_ms.push_back(static_cast<double>(c.ns_wait) * 1e-6 / n);
  contender->busy_gb_s.push_back(device);
  std::printf(
      "  prefetch %u: %.2f tokens/s | hits %.3f read %.1f MB/token | io busy %.3f (%.2f GB/s then) wait %.3f "
      "late %.1f/token | guesses %.2f/token, used %.3f, cancelled %.3f, predicted right %.3f | %.1f %% of min\n",
      contender->prefetch, speed, share(c.hits, c.requests), read * 1e-6, static_cast<double>(c.ns_io_busy) / total,
      device, static_cast<double>(c.ns_wait) / total, static_cast<double>(c.late) / n,
      static_cast<double>(c.guesses) / n, share(c.guesses_used, c.guesses), share(c.guesses_cancelled, c.guesses),
      share(c.predicted_right, c.predicted), 100 * speed / std::min(compute, storage * 1e9 / read));
}

void run(const std::string& path, const std::string& bundle, const Settings& s) {
  const uint32_t gathers = s.sparse != 0 ? SBR_GATHER_UP | SBR_GATHER_OUTPUT : 0;
  struct stat there;
  if (stat(bundle.c_str(), &there) != 0) sbr::write_bundle(path, "", gathers & SBR_GATHER_UP, bundle, nullptr, nullptr);
  sbr_model_options load = {};
  load.struct_size = sizeof load;
  load.load_mode = SBR_LOAD_REPACK;
  load.gathers = gathers;
  const sbr::Model whole(path, load);
  load.bundle = bundle.c_str();
  const sbr::Model model(path, load);
  const sbr::Config& config = model.config();
  const uint64_t unit = model.bundle()->unit_bytes();

  sbr_session_options options = {};
  options.struct_size = sizeof options;
  options.n_threads = s.threads;
  options.n_ctx = s.tokens + 64;
  options.n_batch = 1;
  options.kv_type = SBR_TYPE_F16;
  options.phase_timing = 1;
  options.sparse_ffn = s.sparse;
  options.sparse_lm_head = s.sparse != 0 && model.weights().predictor_rank != 0;
  sbr::Session resident(whole, options);
  options.cache_bytes = uint64_t{s.cache} << 20;
  options.cache_policy = s.policy;
  options.io = s.io;
  options.io_direct = s.direct;
  options.io_threads = s.io_threads;
  options.verify = s.verify;
  std::vector<Contender> contenders;
  for (uint32_t prefetch : s.prefetch) {
    options.prefetch = prefetch;
    contenders.push_back({prefetch, std::make_unique<sbr::Session>(model, options), {}, {}, {}});
  }
  const sbr_session_info info = contenders.front().session->info();
  std::printf("cache %u units of %.2f MB (of %u), policy %u, io %u, direct %u\n", info.cache_units,
              static_cast<double>(unit) * 1e-6, model.bundle()->n_units(), info.cache_policy, info.io, info.io_direct);
  const std::vector<int32_t> tokens = token_stream(s.tokens, config.n_vocab);
  // Longer than a round, so that rounds differ.
  const std::vector<uint16_t> routing = uniform_routing(config, s.tokens * (s.rounds + 1));
  const size_t per_token = size_t{config.n_layer} * config.n_expert_used;
  const auto measure = [&](sbr::Session& session, uint32_t round, std::vector<double>* ms) {
    if (s.uniform) session.replay_routing(routing.data() + round * s.tokens * per_token, s.tokens);
    return tokens_per_second(session, tokens, s, ms);
  };
  std::vector<double> resident_ms, warming;
  for (uint32_t r = 0; r <= s.rounds; ++r) {
    const bool counts = r != 0;  // the first one warms up
    const double compute = measure(resident, r, counts ? &resident_ms : &warming);
    if (counts) {
      std::printf("in memory %.2f tokens/s\n", compute);
      print_phases(resident);
    }
    double before = storage_rate(bundle, unit);
    for (Contender& each : contenders) {
      const double speed = measure(*each.session, r, counts ? &each.ms : &warming);
      if (!counts) continue;
      const double after = storage_rate(bundle, unit);
      print_cached(&each, speed, compute, (before + after) / 2, s);
      print_phases(*each.session);
      before = after;
    }
    std::fflush(stdout);
  }
  std::printf("median ms/token: in memory %.2f\n", median(resident_ms));
  for (const Contender& each : contenders)
    std::printf("  prefetch %u: %.2f, waiting %.2f, device %.2f GB/s while busy\n", each.prefetch, median(each.ms),
                median(each.wait_ms), median(each.busy_gb_s));
}

void set(Settings* s, const std::string& option) {
  const size_t at = option.find('=');
  const std::string name = option.substr(0, at), value = at == std::string::npos ? "" : option.substr(at + 1);
  const struct {
    const char* name;
    uint32_t* number;
  } numbers[] = {{"cache", &s->cache},   {"threads", &s->threads},      {"tokens", &s->tokens}, {"sparse", &s->sparse},
                 {"rounds", &s->rounds}, {"policy", &s->policy},        {"io", &s->io},         {"direct", &s->direct},
                 {"verify", &s->verify}, {"io_threads", &s->io_threads}};
  if (name == "routing") {
    s->uniform = value == "uniform";
    return;
  }
  if (name == "prefetch") {
    s->prefetch.clear();
    for (size_t from = 0; from < value.size(); from = value.find(',', from) + 1) {
      s->prefetch.push_back(static_cast<uint32_t>(std::atoi(value.c_str() + from)));
      if (value.find(',', from) == std::string::npos) break;
    }
    return;
  }
  for (const auto& known : numbers) {
    if (name != known.name) continue;
    *known.number = static_cast<uint32_t>(std::atoi(value.c_str()));
    return;
  }
  throw sbr::Error(SBR_ERR_ARGUMENT, option + ": unknown");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s MODEL.gguf BUNDLE [option=value ...]\n", argv[0]);
    return 2;
  }
  try {
    Settings settings;
    for (int i = 3; i < argc; ++i) set(&settings, argv[i]);
    run(argv[1], argv[2], settings);
  } catch (const sbr::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
