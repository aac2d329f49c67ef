// The timeline: spans of a thread lie end to end and sum up to the step, storage's events are those that the counters
// count, a full ring keeps the newest and counts the rest, and none of it changes a result.
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "base/timeline.h"
#include "bundled_models.h"
#include "expect.h"

using namespace sbr_test;

namespace {

constexpr uint32_t kTokens = 24;

struct Read {
  std::vector<sbr_timeline_event> events;
  sbr_timeline_info info;
};

Read all_of(const sbr::Timeline& timeline) {
  Read read = {};
  timeline.copy(nullptr, 0, 0, &read.info);
  read.events.resize(read.info.n_events + 64);
  timeline.copy(reinterpret_cast<uint8_t*>(read.events.data()), sizeof(sbr_timeline_event), read.events.size(),
                &read.info);
  read.events.resize(read.info.n_written);
  return read;
}

bool is_phase(const sbr_timeline_event& event) {
  return event.kind >= SBR_TIMELINE_STEP && event.kind <= SBR_TIMELINE_BARRIER;
}

// Of kTokens decoded tokens.
void expect_whole(const char* what, const Read& read, uint32_t n_threads) {
  EXPECT(read.info.n_lost == 0);
  std::vector<double> total, parts(kTokens, 0);  // ns of each token, and of thread 0's spans in it
  for (const sbr_timeline_event& event : read.events) {
    if (event.kind != SBR_TIMELINE_TOKEN) continue;
    EXPECT(event.unit == 1 && event.step == total.size() && event.thread == 0);
    total.push_back(static_cast<double>(event.end_ns - event.begin_ns));
  }
  if (!EXPECT(total.size() == kTokens)) return;
  for (uint32_t thread = 0; thread < n_threads; ++thread) {
    uint64_t before = 0;
    uint32_t step = 0;
    for (const sbr_timeline_event& event : read.events) {
      if (event.thread != thread || !is_phase(event)) continue;
      EXPECT(event.begin_ns <= event.end_ns);
      // No overlap anywhere, and no gap within a step but for thread 0's way to the last barrier.
      EXPECT(event.begin_ns >= before);
      if (thread != 0 && event.step == step && before != 0) EXPECT(event.begin_ns == before);
      before = event.end_ns;
      step = event.step;
      if (thread == 0 && EXPECT(step < kTokens)) parts[step] += static_cast<double>(event.end_ns - event.begin_ns);
    }
  }
  // Of most tokens: a thread may lose its CPU between two spans of a few.
  std::vector<double> other;
  for (uint32_t step = 0; step < kTokens; ++step) {
    EXPECT(parts[step] <= total[step]);
    other.push_back(1 - parts[step] / total[step]);
  }
  std::nth_element(other.begin(), other.begin() + kTokens / 2, other.end());
  const double median = other[kTokens / 2];
  if (!EXPECT(median < 0.02)) std::fprintf(stderr, "  %s: %.1f %% of a token is nobody's\n", what, 100 * median);
}

uint64_t count(const Read& read, uint32_t kind) {
  uint64_t n = 0;
  for (const sbr_timeline_event& event : read.events) n += event.kind == kind;
  return n;
}

std::vector<float> decode(sbr::Session& session, const std::vector<int32_t>& tokens, uint32_t first, uint32_t n) {
  std::vector<float> logits(kVocab);
  const uint32_t last = n - 1;
  sbr_capture capture = {};
  capture.struct_size = sizeof capture;
  capture.n_steps = 1;
  capture.steps = &last;
  capture.logits = logits.data();
  session.decode(tokens.data() + first, n, nullptr, &capture);
  return logits;
}

void test_spans(const char* what, const sbr::Model& model, sbr_session_options options) {
  const std::vector<int32_t> tokens = token_stream(64);
  for (uint32_t n_threads : {1u, 2u, 3u}) {
    options.n_threads = n_threads;
    options.timeline_events = 0;
    sbr::Session plain(model, options);
    options.timeline_events = 10000;
    sbr::Session session(model, options);
    plain.prefill(tokens.data(), 9, SBR_LOGITS_NONE, nullptr, nullptr);
    session.prefill(tokens.data(), 9, SBR_LOGITS_NONE, nullptr, nullptr);
    EXPECT(count(all_of(session.timeline()), SBR_TIMELINE_TOKEN) > 0);
    plain.reset_counters();
    session.reset_counters();
    const std::vector<float> expected = decode(plain, tokens, 9, kTokens), got = decode(session, tokens, 9, kTokens);
    EXPECT(same_bits(got, expected));
    sbr_counters a = plain.counters(), b = session.counters();
    // Times are of two runs.
    for (sbr_counters* each : {&a, &b})
      each->ns_total = each->ns_attention = each->ns_router = each->ns_ffn = each->ns_lm_head = each->ns_barrier = 0;
    EXPECT(std::memcmp(&a, &b, sizeof a) == 0);
    const Read read = all_of(session.timeline());
    expect_whole(what, read, n_threads);

    const sbr_cache_counters cache = session.cache_counters();
    EXPECT(cache.requests == plain.cache_counters().requests);
    if (model.bundle() == nullptr) EXPECT(count(read, SBR_TIMELINE_READ) == 0);
    if (model.bundle() == nullptr || model.bundle()->kind() != SBR_BUNDLE_EXPERTS) continue;
    EXPECT(count(read, SBR_TIMELINE_HIT) == cache.hits);
    EXPECT(count(read, SBR_TIMELINE_EVICT) == cache.evictions);
    EXPECT(count(read, SBR_TIMELINE_GUESS) == cache.guesses);
    // A guess may be on its way when counters are set to 0, or read.
    if (options.prefetch != SBR_PREFETCH_NEXT_LAYER) EXPECT(count(read, SBR_TIMELINE_READ) == cache.loads);
    EXPECT(cache.loads > 0 && cache.hits > 0);
    uint64_t bytes = 0;
    for (const sbr_timeline_event& event : read.events)
      if (event.kind == SBR_TIMELINE_READ) bytes += event.bytes;
    EXPECT(bytes == count(read, SBR_TIMELINE_READ) * model.bundle()->unit_bytes());
  }
}

void test_full_ring() {
  const TinyModel model(tiny_smallthinker(SBR_TYPE_Q4_0, true));
  const std::vector<int32_t> tokens = token_stream(64);
  sbr_session_options options = session_options();
  options.n_threads = 2;
  options.timeline_events = 100;  // 128: a few tokens
  sbr::Session session(model.get(), options);
  decode(session, tokens, 0, 60);
  const Read read = all_of(session.timeline());
  EXPECT(read.info.capacity == 128);
  EXPECT(read.info.n_events == 2 * 128);
  EXPECT(read.info.n_lost > 1000);
  EXPECT(read.events.front().step >= 50);
  EXPECT(read.events[127].kind == SBR_TIMELINE_TOKEN && read.events[127].step == 59);

  session.reset_counters();
  EXPECT(all_of(session.timeline()).info.n_events == 0);
  EXPECT(all_of(session.timeline()).info.n_lost == 0);

  options.timeline_events = 0;
  sbr::Session without(model.get(), options);
  std::string sentence;
  EXPECT(status_of([&] { without.timeline(); }, &sentence) == SBR_ERR_STATE);
  EXPECT(contains(sentence, "timeline_events"));
  options.timeline_events = (1u << 24) + 1;
  EXPECT(status_of([&] { sbr::Session{model.get(), options}; }, &sentence) == SBR_ERR_ARGUMENT);

  // A caller that knows less of an event.
  options.timeline_events = 4;
  EXPECT(sbr::Session::plan(model.get(), options).scratch_bytes ==
         sbr::Session(model.get(), options).info().scratch_bytes);
}

// How often the scheduler took this thread off its CPU.
uint64_t switches() {
  rusage use = {};
  EXPECT(getrusage(RUSAGE_THREAD, &use) == 0);
  return static_cast<uint64_t>(use.ru_nivcsw) + static_cast<uint64_t>(use.ru_nvcsw);
}

// Several threads write to storage's ring while it is read. A writer that is put aside within an event until the others
// have gone round the ring spoils the newer event that lies there by then: one at most each time that it is, and told
// at the next look.
void test_writers_at_once() {
  constexpr uint32_t kWriters = 3, kEvents = 20000;
  sbr::Timeline timeline(1, 64);
  std::atomic<uint32_t> writing{kWriters};
  std::atomic<uint64_t> aside{0};
  std::vector<std::thread> writers;
  for (uint32_t writer = 0; writer < kWriters; ++writer) {
    writers.emplace_back([&timeline, &writing, &aside, writer] {
      const uint64_t before = switches();
      for (uint32_t i = 0; i < kEvents; ++i) timeline.read(writer, writer, i, i, uint64_t{writer} << 32 | i);
      aside += switches() - before;
      --writing;
    });
  }
  std::set<std::tuple<uint32_t, uint32_t, uint64_t, uint64_t, uint64_t>> mixed;
  while (writing != 0) {
    for (const sbr_timeline_event& event : all_of(timeline).events) {
      const bool whole = event.layer == event.unit && event.bytes >> 32 == event.unit &&
                         (event.bytes & UINT32_MAX) == event.begin_ns && event.begin_ns == event.end_ns;
      if (!whole) mixed.emplace(event.layer, event.unit, event.begin_ns, event.end_ns, event.bytes);
    }
  }
  for (std::thread& writer : writers) writer.join();
  // 2: a virtual machine's CPU is taken from all of it, and not told to its scheduler.
  if (!EXPECT(mixed.size() <= aside + 2)) std::fprintf(stderr, "  %zu events\n", mixed.size());
  const Read read = all_of(timeline);
  EXPECT(read.info.n_events >= 60);
  EXPECT(read.info.n_events + read.info.n_lost == uint64_t{kWriters} * kEvents);
}

}  // namespace

int main() {
  {
    const TinyModel model(tiny_smallthinker(SBR_TYPE_Q4_0, true));
    sbr_session_options options = session_options();
    options.sparse_ffn = options.sparse_lm_head = 1;
    test_spans("in memory", model.get(), options);
  }
  for (bool sparse : {false, true}) {
    const Bundled model(tiny_smallthinker(SBR_TYPE_Q4_0, true), sparse);
    sbr_session_options options = cached_options(model, 5);
    options.sparse_ffn = sparse;
    options.prefetch = sparse ? SBR_PREFETCH_NEXT_LAYER : SBR_PREFETCH_EXACT;
    test_spans("cached", model.get(), options);
  }
  {
    const Bundled model(tiny_qwen3moe(SBR_TYPE_Q4_0));
    test_spans("router after attention", model.get(), cached_options(model, 12));
  }
  {
    sbr_synth_spec spec = tiny_spec("qwen3", SBR_TYPE_Q4_0);
    spec.n_layer = 6;
    const Bundled model(spec);
    test_spans("layers", model.get(), cached_options(model, 3));
  }
  test_full_ring();
  test_writers_at_once();
  return finish("test_timeline");
}
