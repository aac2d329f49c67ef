// Experts that stay on storage: whatever the cache's size, policy and reader, and whatever is read ahead, the logits
// are those of the model in memory, to the bit. `test_cached_experts few` tries fewer combinations.
#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"
#include "base/timeline.h"
#include "bundled_models.h"
#include "expect.h"
#include "session_settings.h"

using namespace sbr_test;

namespace {

bool few = false;

// ---- the same bits ----

void expect_same(const char* model, const sbr_session_options& o, uint64_t units, const std::vector<float>& got,
                 const std::vector<float>& expected) {
  if (EXPECT(same_bits(got, expected))) return;
  std::fprintf(stderr, "  %s: %llu units, %u threads, batch %u, sparse %u, policy %u, io %u, prefetch %u\n", model,
               static_cast<unsigned long long>(units), o.n_threads, o.n_batch, o.sparse_ffn, o.cache_policy, o.io,
               o.prefetch);
}

void test_equalities(const char* name, const sbr_synth_spec& spec, bool sparse) {
  const Bundled model(spec, sparse);
  const std::vector<int32_t> tokens = token_stream(40);
  sbr_session_options options = session_options();
  const std::vector<float> expected = prefill_all(model.resident(), options, tokens);
  const std::vector<uint32_t> kinds = readers(model);
  const uint32_t policies[] = {SBR_CACHE_LRU, SBR_CACHE_LFU, SBR_CACHE_REUSE, SBR_CACHE_AUTO};
  const uint32_t verify[] = {SBR_VERIFY_FIRST, SBR_VERIFY_EVERY, SBR_VERIFY_NEVER};
  const uint32_t ahead[] = {SBR_PREFETCH_NEXT_4_LAYERS, SBR_PREFETCH_EXACT, SBR_PREFETCH_NEXT_LAYER,
                            SBR_PREFETCH_NEXT_2_LAYERS, SBR_PREFETCH_AUTO};
  const uint64_t all = model.n_units();
  // Every setting meets many others, if not all.
  uint32_t turn = 0;
  for (uint64_t units : {uint64_t{1}, uint64_t{2}, uint64_t{3}, uint64_t{5}, all / 2, all + 7}) {
    for (uint32_t batch : {1u, 7u, 33u}) {
      for (uint32_t threads : {1u, 2u, 3u}) {
        if (few && (units + batch + threads) % 4 != 0) {
          ++turn;
          continue;
        }
        options = cached_options(model, units);
        options.n_threads = threads;
        options.n_batch = batch;
        options.sparse_ffn = sparse ? 1 + turn % 2 : 0;
        options.cache_policy = policies[turn % 4];
        options.io = kinds[turn / 2 % kinds.size()];
        options.io_threads = turn % 5;
        options.prefetch = ahead[turn / 2 % 5];
        options.verify = verify[turn % 3];
        ++turn;
        expect_same(name, options, units, prefill_all(model.get(), options, tokens), expected);
        if (batch != 1) continue;
        // Decode, from where a prefill in batches has left off, and again after a rewind.
        options.n_batch = 9;
        sbr::Session session(model.get(), options);
        session.prefill(tokens.data(), 10, SBR_LOGITS_NONE, nullptr, nullptr);
        for (int again = 0; again < 2; ++again) {
          const std::vector<float> tail = decode_all(session, {tokens.begin() + 10, tokens.end()});
          expect_same(name, options, units, tail, {expected.begin() + 10 * kVocab, expected.end()});
          session.rewind(10);
        }
      }
    }
  }
}

// Rows of 160 q4_0 weights take 90 bytes, which does not divide a unit. Here, as in the released models, rows of up lie
// whole rows apart, and one gather reaches the slots of several experts.
void test_one_gather() {
  sbr_synth_spec spec = tiny_smallthinker(SBR_TYPE_Q8_0, true);
  spec.n_embd = 512;  // rows of 544 bytes
  spec.n_ff = 128;    // matrices of 69632 = 17 * 4096 bytes
  spec.n_layer = 3;
  const Bundled model(spec, true);
  EXPECT(model.unit_bytes() % 544 == 0);
  const std::vector<int32_t> tokens = token_stream(30);
  const std::vector<float> expected = prefill_all(model.resident(), session_options(), tokens);
  for (uint64_t units : {1, 3, 9, 24}) {
    for (uint32_t threads : {1u, 2u, 3u}) {
      sbr_session_options options = cached_options(model, units);
      options.n_threads = threads;
      options.sparse_ffn = 1;
      sbr::Session session(model.get(), options);
      expect_same("one gather", options, units, decode_all(session, tokens), expected);
      options.n_batch = 16;
      expect_same("one gather", options, units, prefill_all(model.get(), options, tokens), expected);
    }
  }
}

// ---- threads ----

std::set<std::string> threads_of_this_process() {
  std::set<std::string> ids;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) ids.insert(entry.path().filename());
  return ids;
}

// A session that is pinned leaves its readers every CPU: they would take those of the first computing thread.
void test_readers_are_not_pinned() {
  const Bundled model(tiny_smallthinker(SBR_TYPE_Q4_0, true));
  const std::vector<uint32_t> allowed = sbr::allowed_cpus();
  sbr_session_options options = cached_options(model, 3);
  options.n_threads = 1;
  options.cpus = allowed.data();
  options.n_cpus = 1;
  const sbr::Session another(model.get(), options);
  for (const uint32_t kind : readers(model)) {
    options = cached_options(model, 3);
    options.n_threads = 1;
    options.cpus = allowed.data();
    options.n_cpus = 1;
    options.io = kind;
    const std::set<std::string> before = threads_of_this_process();
    const sbr::Session session(model.get(), options);
    int n_readers = 0;
    for (const std::string& id : threads_of_this_process()) {
      if (before.count(id) != 0) continue;
      cpu_set_t set;
      if (sched_getaffinity(std::stoi(id), sizeof set, &set) != 0) continue;  // it has ended
      ++n_readers;
      EXPECT(CPU_COUNT(&set) == static_cast<int>(allowed.size()));
    }
    EXPECT(n_readers > 0);
  }
}

// ---- what is counted and planned ----

void test_counters() {
  const Bundled model(tiny_smallthinker(SBR_TYPE_Q4_0, true));
  const std::vector<int32_t> tokens = token_stream(30);
  const uint64_t n = tokens.size(), L = 2, K = 3;
  for (uint64_t units : {uint64_t{1}, uint64_t{4}, uint64_t{model.n_units()}}) {
    sbr_session_options options = cached_options(model, units);
    options.n_threads = 2;
    sbr::Session session(model.get(), options);
    EXPECT(session.info().cache_units == units && session.info().cache_bytes == units * model.unit_bytes());
    decode_all(session, tokens);
    sbr_cache_counters c = session.cache_counters();
    EXPECT(c.requests == n * L * K);
    EXPECT(c.hits + c.hits_on_the_way + c.loads == c.requests);
    EXPECT(c.bytes_read == c.loads * model.unit_bytes());
    EXPECT(c.guesses == 0 && c.predicted == 0);
    EXPECT(c.late <= c.loads + c.hits_on_the_way);
    EXPECT(c.ns_io_busy > 0 && c.verified == std::min<uint64_t>(c.loads, model.n_units()));
    EXPECT(c.evictions == c.loads - std::min<uint64_t>(c.loads, units));
    session.reset_counters();
    EXPECT(session.cache_counters().requests == 0 && session.cache_counters().ns_wait == 0);
    session.rewind(0);
    decode_all(session, tokens);
    if (units == model.n_units()) EXPECT(session.cache_counters().loads == 0);

    // A batch asks once for each expert that it uses.
    options.n_batch = 30;
    sbr::Session batches(model.get(), options);
    batches.prefill(tokens.data(), 30, SBR_LOGITS_NONE, nullptr, nullptr);
    uint64_t used = 0;
    for (uint32_t l = 0; l < L; ++l) {
      for (uint32_t e = 0; e < 8; ++e) used += batches.expert_counts(l)[e] != 0;
    }
    c = batches.cache_counters();
    EXPECT(c.requests == used && c.loads == used);
  }
}

// What is there is pinned before what is not, which might otherwise evict it.
void test_hits_come_first() {
  sbr_synth_spec spec = tiny_smallthinker(SBR_TYPE_Q4_0, true);
  spec.n_layer = 1;
  const Bundled model(spec);
  sbr_session_options options = cached_options(model, 3);
  options.cache_policy = SBR_CACHE_LRU;
  sbr::Session session(model.get(), options);
  const uint16_t routing[] = {4, 5, 6, 0, 4, 5};
  session.replay_routing(routing, 2);
  session.decode(token_stream(2).data(), 2, nullptr, nullptr);
  const sbr_cache_counters c = session.cache_counters();
  EXPECT(c.requests == 6 && c.hits == 2 && c.loads == 4 && c.evictions == 1);
}

void test_guesses() {
  uint32_t turn = 0;
  for (const uint32_t prefetch :
       {SBR_PREFETCH_NEXT_LAYER, SBR_PREFETCH_NEXT_2_LAYERS, SBR_PREFETCH_NEXT_4_LAYERS, SBR_PREFETCH_NEXT_4_LAYERS}) {
    const bool after_attention = turn++ % 2 != 0;
    sbr_synth_spec spec = after_attention ? tiny_qwen3moe(SBR_TYPE_Q4_0) : tiny_smallthinker(SBR_TYPE_Q4_0, true);
    spec.n_layer = 5;
    const Bundled model(spec);
    const std::vector<int32_t> tokens = token_stream(40);
    sbr_session_options options = cached_options(model, model.n_units() / 2);
    options.prefetch = prefetch;
    sbr::Session session(model.get(), options);
    EXPECT(session.info().prefetch == prefetch);
    decode_all(session, tokens);
    const sbr_cache_counters c = session.cache_counters();
    EXPECT(c.predicted == tokens.size() * 4 * spec.n_expert_used);
    // A layer changes the stream, but its direction only so much: better than chance.
    EXPECT(c.predicted_right * spec.n_expert > c.predicted * spec.n_expert_used && c.predicted_right <= c.predicted);
    EXPECT(c.guesses > 0 && c.guesses <= c.predicted * sbr::layers_ahead(prefetch));
    EXPECT(c.guesses_used + c.guesses_cancelled <= c.guesses);

    // A forced routing is none of the routers' business, and batches are not guessed for.
    std::vector<uint16_t> table(5 * spec.n_expert_used);
    for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<uint16_t>(i % spec.n_expert_used);
    session.reset_counters();
    session.replay_routing(table.data(), 1);
    session.decode(tokens.data(), 1, nullptr, nullptr);
    EXPECT(session.cache_counters().predicted == 0);
    session.replay_routing(nullptr, 0);
    options.n_batch = 8;
    sbr::Session batches(model.get(), options);
    batches.prefill(tokens.data(), 40, SBR_LOGITS_NONE, nullptr, nullptr);
    EXPECT(batches.cache_counters().predicted == 0);
  }
}

void test_limits_of_options() {
  const Bundled model(tiny_smallthinker(SBR_TYPE_Q4_0, true));
  std::string sentence;
  sbr_session_options options = cached_options(model, 1);
  --options.cache_bytes;
  const auto create = [&] { sbr::Session session(model.get(), options); };
  EXPECT(status_of(create, &sentence) == SBR_ERR_ARGUMENT && contains(sentence, "cache_bytes") &&
         contains(sentence, std::to_string(model.unit_bytes())));
  const sbr_session_info planned = sbr::Session::plan(model.get(), options);
  EXPECT(planned.cache_bytes == 0 && planned.cache_bytes_min == model.unit_bytes());
  for (auto member : {&sbr_session_options::cache_policy, &sbr_session_options::io, &sbr_session_options::io_direct,
                      &sbr_session_options::prefetch, &sbr_session_options::verify, &sbr_session_options::io_threads}) {
    options = cached_options(model, 4);
    options.*member = 7777;
    EXPECT(status_of(create, &sentence) == SBR_ERR_ARGUMENT && contains(sentence, "7777"));
    const auto resident = [&] { sbr::Session session(model.resident(), options); };
    options.cache_bytes = 0;
    EXPECT(status_of(resident, &sentence) == SBR_ERR_ARGUMENT && contains(sentence, "stay on storage"));
  }

  // The plan is what is then allocated.
  for (const sbr::Model* each : {&model.resident(), &model.get()}) {
    options = each == &model.get() ? cached_options(model, 5) : session_options();
    options.n_threads = 3;
    options.n_batch = 17;
    options.n_ctx = 99;
    const sbr_session_info plan = sbr::Session::plan(*each, options), made = sbr::Session(*each, options).info();
    EXPECT(plan.kv_bytes == made.kv_bytes && plan.scratch_bytes == made.scratch_bytes);
    EXPECT(plan.cache_bytes == made.cache_bytes && plan.cache_bytes_min == made.cache_bytes_min);
    EXPECT(plan.n_threads == 3 && plan.n_batch == 17 && plan.n_ctx == 99);
  }
}

void test_model() {
  const Bundled model(tiny_smallthinker(SBR_TYPE_Q4_0, false));
  const sbr_model_info info = model.get().info();
  EXPECT(info.bundle_kind == SBR_BUNDLE_EXPERTS && info.unit_bytes == model.unit_bytes());
  EXPECT(info.bundle_bytes == model.n_units() * model.unit_bytes());
  sbr_model_options options = {};
  options.struct_size = sizeof options;
  options.load_mode = SBR_LOAD_REPACK;
  const sbr_model_info whole = sbr::Model(model.path(), options).info();
  EXPECT(whole.bundle_kind == 0 && whole.bundle_bytes == 0);
  EXPECT(info.anonymous_bytes + info.bundle_bytes / 2 < whole.anonymous_bytes);

  std::string sentence;
  const auto load = [&] { const sbr::Model refused(model.path(), options); };
  options.bundle = model.bundle().c_str();
  options.load_mode = SBR_LOAD_MMAP;
  EXPECT(status_of(load, &sentence) == SBR_ERR_ARGUMENT && contains(sentence, "repack"));
  options.load_mode = SBR_LOAD_REPACK;
  options.requantise_down = 1;
  EXPECT(status_of(load, &sentence) == SBR_ERR_ARGUMENT && contains(sentence, "requantise_down"));
  options.requantise_down = 0;
  options.gathers = SBR_GATHER_UP;  // another layout than the bundle's
  EXPECT(status_of(load, &sentence) == SBR_ERR_FORMAT && contains(sentence, "make the bundle again"));
  options.gathers = 0;
  options.digest = "0123";
  EXPECT(status_of(load, &sentence) == SBR_ERR_FORMAT && contains(sentence, "model file"));
}

// ---- routing ----

void test_routing() {
  const Bundled model(tiny_smallthinker(SBR_TYPE_Q4_0, true));
  const std::vector<int32_t> tokens = token_stream(20);
  sbr_session_options options = session_options();
  options.record_routing = 1;
  sbr::Session resident(model.resident(), options);
  const std::vector<float> expected = decode_all(resident, tokens);
  const std::vector<uint16_t> routing = resident.recorded();
  EXPECT(resident.n_recorded() == 20 && routing.size() == 20 * 2 * 3);
  std::vector<uint64_t> counts(2 * 8);
  for (size_t i = 0; i < routing.size(); ++i) ++counts[i / 3 % 2 * 8 + routing[i]];
  EXPECT(std::memcmp(counts.data(), resident.expert_counts(0), 8 * sizeof(uint64_t)) == 0);
  EXPECT(std::memcmp(counts.data() + 8, resident.expert_counts(1), 8 * sizeof(uint64_t)) == 0);

  // In batches, from a cache, and replaying what was recorded: the same.
  options = cached_options(model, 4);
  options.record_routing = 1;
  options.n_batch = 7;
  options.n_threads = 2;
  sbr::Session cached(model.get(), options);
  for (bool replay : {false, true}) {
    if (replay) cached.replay_routing(routing.data(), 20);
    std::vector<float> logits(20 * kVocab);
    cached.prefill(tokens.data(), 20, SBR_LOGITS_ALL, logits.data(), nullptr);
    EXPECT(same_bits(logits, expected) && cached.recorded() == routing);
    cached.rewind(0);
    cached.reset_counters();
    EXPECT(cached.n_recorded() == 0);
  }

  // Another routing than the router's own: position p uses set p modulo their number, in either kind of session.
  std::vector<uint16_t> table;
  for (uint16_t set = 0; set < 3 * 2; ++set) {
    for (uint16_t k = 0; k < 3; ++k) table.push_back(static_cast<uint16_t>(set % 4 + 2 * k - k / 2));
  }
  cached.replay_routing(table.data(), 3);
  resident.replay_routing(table.data(), 3);
  resident.rewind(0);
  resident.reset_counters();
  const std::vector<float> forced = decode_all(resident, tokens);
  EXPECT(!same_bits(forced, expected));
  EXPECT(same_bits(decode_all(cached, tokens), forced) && cached.recorded() == resident.recorded());
  bool as_told = true;
  for (size_t i = 0; i < resident.recorded().size(); ++i) as_told &= resident.recorded()[i] == table[i % table.size()];
  EXPECT(as_told);
  uint64_t used = 0;
  for (uint32_t e = 0; e < 8; ++e) used += resident.expert_counts(0)[e];
  EXPECT(used == 20 * 3);
  resident.replay_routing(nullptr, 0);
  resident.rewind(0);
  EXPECT(same_bits(decode_all(resident, tokens), expected));

  std::string sentence;
  table[4] = table[3];  // the second set no longer ascends
  EXPECT(status_of([&] { resident.replay_routing(table.data(), 3); }, &sentence) == SBR_ERR_ARGUMENT &&
         contains(sentence, "token 0, layer 1"));
  table[4] = 8;
  EXPECT(status_of([&] { resident.replay_routing(table.data(), 3); }, &sentence) == SBR_ERR_ARGUMENT);
  EXPECT(status_of([&] { resident.replay_routing(table.data(), 0); }, &sentence) == SBR_ERR_ARGUMENT);
  sbr::Session mute(model.resident(), session_options());
  EXPECT(status_of([&] { mute.n_recorded(); }, &sentence) == SBR_ERR_STATE && contains(sentence, "record_routing"));
  const TinyModel dense(tiny_spec("llama", SBR_TYPE_Q4_0));
  sbr::Session none(dense.get(), session_options());
  EXPECT(status_of([&] { none.replay_routing(routing.data(), 1); }, &sentence) == SBR_ERR_ARGUMENT);
  options = session_options();
  options.record_routing = 1;
  EXPECT(status_of([&] { sbr::Session refused(dense.get(), options); }, &sentence) == SBR_ERR_ARGUMENT);
}

// A router that reads a layer's input has its experts asked for before q, k and v are computed.
void test_requests_before_attention() {
  const Bundled model(tiny_smallthinker(SBR_TYPE_Q4_0, true), true);
  for (uint32_t threads : {1u, 2u}) {
    sbr_session_options options = cached_options(model, 3);
    options.n_threads = threads;
    options.timeline_events = 4096;
    sbr::Session session(model.get(), options);
    decode_all(session, token_stream(8));
    sbr_timeline_info info = {};
    info.struct_size = sizeof info;
    session.timeline().copy(nullptr, 0, 0, &info);
    std::vector<sbr_timeline_event> events(info.n_events);
    session.timeline().copy(reinterpret_cast<uint8_t*>(events.data()), sizeof events[0], events.size(), &info);
    events.resize(info.n_written);
    uint32_t asked = 0, late = 0;
    for (const sbr_timeline_event& request : events) {
      if (request.kind != SBR_TIMELINE_LOAD && request.kind != SBR_TIMELINE_HIT) continue;
      ++asked;
      late += std::any_of(events.begin(), events.end(), [&](const sbr_timeline_event& span) {
        return span.kind == SBR_TIMELINE_ATTENTION && span.thread == 0 && span.step == request.step &&
               span.layer == request.layer && span.begin_ns < request.begin_ns;
      });
    }
    EXPECT(info.n_lost == 0 && asked != 0 && late == 0);
  }
}

}  // namespace

int main(int argc, char** argv) {
  few = argc > 1 && std::strcmp(argv[1], "few") == 0;
  test_equalities("smallthinker transposed", tiny_smallthinker(SBR_TYPE_Q4_0, true), false);
  test_equalities("smallthinker transposed, sparse", tiny_smallthinker(SBR_TYPE_Q4_0, true), true);
  test_equalities("smallthinker standard", tiny_smallthinker(SBR_TYPE_Q4_0, false), false);
  test_equalities("smallthinker standard, sparse", tiny_smallthinker(SBR_TYPE_Q8_0, false), true);
  test_equalities("qwen3moe", tiny_qwen3moe(SBR_TYPE_Q4_0), false);
  test_one_gather();
  test_readers_are_not_pinned();
  test_counters();
  test_hits_come_first();
  test_guesses();
  test_limits_of_options();
  test_model();
  test_routing();
  test_requests_before_attention();
  return finish("test_cached_experts");
}
