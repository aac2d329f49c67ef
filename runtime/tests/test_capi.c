/* The C interface as a careless caller uses it: NULLs, wrong sizes, impossible values. Every refusal has a status and a
 * sentence that names the argument, leaves outputs alone, and nothing crashes. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sbr/sbr.h"

static int failures = 0;
static sbr_error error;

#define EXPECT(condition)                                                                          \
  do {                                                                                             \
    if (!(condition)) {                                                                            \
      ++failures;                                                                                  \
      fprintf(stderr, "%s:%d: expected %s [%s]\n", __FILE__, __LINE__, #condition, error.message); \
    }                                                                                              \
  } while (0)

/* The call fails with this status, and the sentence contains the word. */
#define REFUSED(call, expected, word)              \
  do {                                             \
    clear_error();                                 \
    EXPECT((call) == (expected));                  \
    EXPECT(error.status == (expected));            \
    EXPECT(strstr(error.message, (word)) != NULL); \
  } while (0)

#define ACCEPTED(call)        \
  do {                        \
    clear_error();            \
    EXPECT((call) == SBR_OK); \
  } while (0)

enum { VOCAB = 100, CONTEXT = 16 };
static const char path[] = "capi-tiny.gguf";

static void clear_error(void) {
  memset(&error, 0, sizeof error);
  error.struct_size = sizeof error;
}

static sbr_synth_spec tiny_spec(void) {
  sbr_synth_spec spec;
  memset(&spec, 0, sizeof spec);
  spec.struct_size = sizeof spec;
  spec.n_layer = 2;
  spec.n_embd = 64;
  spec.n_head = 2;
  spec.n_head_kv = 1;
  spec.head_dim = 32;
  spec.n_ff = 32;
  spec.n_expert = 4;
  spec.n_expert_used = 2;
  spec.n_vocab = VOCAB;
  spec.n_ctx_train = 128;
  spec.tied_output = 1;
  spec.transposed_down = 1;
  spec.predictor_rank = 64;
  spec.lm_head_keep = 500;
  spec.weight_type = SBR_TYPE_Q4_0;
  spec.seed = 3;
  spec.rope_freq_base = 10000.0f;
  spec.rms_eps = 1e-6f;
  strcpy(spec.architecture, "smallthinker");
  strcpy(spec.name, "capi");
  return spec;
}

static int32_t stop_at_once(void* user, uint64_t done, uint64_t total) {
  (void)done;
  (void)total;
  ++*(int*)user;
  return 1;
}

static void test_library(void) {
  sbr_isa_info isa;
  memset(&isa, 0, sizeof isa);
  REFUSED(sbr_isa_get(0, &isa, &error), SBR_ERR_ARGUMENT, "struct_size");
  isa.struct_size = sizeof isa;
  REFUSED(sbr_isa_get(sbr_isa_count(), &isa, &error), SBR_ERR_ARGUMENT, "index");
  REFUSED(sbr_isa_get(0, NULL, &error), SBR_ERR_ARGUMENT, "out");
  EXPECT(sbr_isa_get(0, NULL, NULL) == SBR_ERR_ARGUMENT);

  uint32_t autos = 0, i;
  for (i = 0; i < sbr_isa_count(); ++i) {
    ACCEPTED(sbr_isa_get(i, &isa, &error));
    autos += isa.is_auto;
    EXPECT(!isa.is_auto || isa.supported);
  }
  EXPECT(autos == 1);

  /* An old caller's shorter struct: nothing behind it is written. */
  struct {
    uint32_t struct_size, isa, guard;
  } old = {8, 0, 77};
  ACCEPTED(sbr_isa_get(0, (sbr_isa_info*)&old, &error));
  EXPECT(old.struct_size == 8 && old.isa == SBR_ISA_SCALAR && old.guard == 77);

  /* An error struct with little room: the sentence is cut, not overrun. */
  struct {
    uint32_t struct_size;
    int32_t status;
    char message[4];
    char guard[4];
  } small = {12, 0, "", "abc"};
  EXPECT(sbr_isa_get(0, NULL, (sbr_error*)&small) == SBR_ERR_ARGUMENT);
  EXPECT(small.status == SBR_ERR_ARGUMENT && strlen(small.message) == 3 && strcmp(small.guard, "abc") == 0);
}

static void test_synth_and_describe(void) {
  sbr_synth_spec spec = tiny_spec();
  uint64_t bytes = 0;
  int calls = 0;
  char* json = NULL;
  REFUSED(sbr_synth_size(NULL, &bytes, &error), SBR_ERR_ARGUMENT, "spec");
  REFUSED(sbr_synth_size(&spec, NULL, &error), SBR_ERR_ARGUMENT, "bytes");
  ACCEPTED(sbr_synth_size(&spec, &bytes, &error));
  REFUSED(sbr_synth_write(&spec, path, stop_at_once, &calls, &error), SBR_ERR_CANCELLED, "");
  EXPECT(calls > 0 && fopen(path, "rb") == NULL);
  memset(spec.name, 'x', sizeof spec.name);
  REFUSED(sbr_synth_size(&spec, &bytes, &error), SBR_ERR_ARGUMENT, "spec->name");
  spec = tiny_spec();
  spec.reserved = 1;
  REFUSED(sbr_synth_size(&spec, &bytes, &error), SBR_ERR_ARGUMENT, "spec->reserved");
  spec.reserved = 0;
  ACCEPTED(sbr_synth_write(&spec, path, NULL, NULL, &error));

  REFUSED(sbr_gguf_describe(NULL, 3, &json, &error), SBR_ERR_ARGUMENT, "path");
  REFUSED(sbr_gguf_describe(path, 3, NULL, &error), SBR_ERR_ARGUMENT, "json");
  REFUSED(sbr_gguf_describe("no-such-file.gguf", 3, &json, &error), SBR_ERR_IO, "no-such-file.gguf");
  EXPECT(json == NULL);
  ACCEPTED(sbr_gguf_describe(path, 3, &json, &error));
  EXPECT(json != NULL && strstr(json, "token_embd.weight") != NULL);
  sbr_string_free(json);
  sbr_string_free(NULL);
}

static void test_model(sbr_model** model) {
  sbr_model_options options;
  sbr_model_info info;
  sbr_model_options_init(NULL);
  sbr_model_options_init(&options);
  EXPECT(options.struct_size == sizeof options && options.load_mode == SBR_LOAD_MMAP);
  REFUSED(sbr_model_load(NULL, &options, model, &error), SBR_ERR_ARGUMENT, "path");
  REFUSED(sbr_model_load(path, &options, NULL, &error), SBR_ERR_ARGUMENT, "model");
  REFUSED(sbr_model_load("no-such-file.gguf", NULL, model, &error), SBR_ERR_IO, "no-such-file.gguf");
  options.load_mode = 9;
  REFUSED(sbr_model_load(path, &options, model, &error), SBR_ERR_ARGUMENT, "load_mode");
  options.load_mode = SBR_LOAD_MMAP;
  options.reserved = 5;
  REFUSED(sbr_model_load(path, &options, model, &error), SBR_ERR_ARGUMENT, "options->reserved is 5");
  options.reserved = 0;
  options.struct_size = 3;
  REFUSED(sbr_model_load(path, &options, model, &error), SBR_ERR_ARGUMENT, "struct_size");
  EXPECT(*model == NULL);

  /* A newer caller's longer struct: fine as long as what we do not know is zero. */
  struct {
    sbr_model_options known;
    uint32_t later;
  } longer;
  memset(&longer, 0, sizeof longer); /* its padding, too */
  sbr_model_options_init(&longer.known);
  longer.known.struct_size = sizeof longer;
  longer.later = 1;
  REFUSED(sbr_model_load(path, &longer.known, model, &error), SBR_ERR_ARGUMENT, "does not know");
  longer.later = 0;
  ACCEPTED(sbr_model_load(path, &longer.known, model, &error));

  memset(&info, 0, sizeof info);
  REFUSED(sbr_model_get_info(*model, &info, &error), SBR_ERR_ARGUMENT, "struct_size");
  info.struct_size = sizeof info;
  REFUSED(sbr_model_get_info(NULL, &info, &error), SBR_ERR_ARGUMENT, "model");
  ACCEPTED(sbr_model_get_info(*model, &info, &error));
  EXPECT(info.n_vocab == VOCAB && info.n_expert == 4 && info.lm_head_predictor_rank == 64 && info.relu == 1);
  EXPECT(info.down_layout == SBR_DOWN_TRANSPOSED && strcmp(info.architecture, "smallthinker") == 0);
  EXPECT(info.n_params_active < info.n_params && info.file_bytes > info.weight_bytes);
  EXPECT(strcmp(sbr_model_warnings(*model), "") == 0 && strcmp(sbr_model_warnings(NULL), "") == 0);
  sbr_model_free(NULL);
}

static void test_session_options(const sbr_model* model) {
  sbr_session* session = NULL;
  sbr_session_options good, o;
  const uint32_t cpus[] = {4000000};
  sbr_session_options_init(NULL);
  sbr_session_options_init(&good);
  EXPECT(good.n_threads == 1 && good.n_ctx == 4096 && good.n_batch == 64 && good.kv_type == SBR_TYPE_F16 &&
         good.phase_timing == 1);
  good.n_ctx = CONTEXT;
  REFUSED(sbr_session_create(NULL, &good, &session, &error), SBR_ERR_ARGUMENT, "model");
  REFUSED(sbr_session_create(model, &good, NULL, &error), SBR_ERR_ARGUMENT, "session");
#define BAD(member, value, status, word)                                    \
  do {                                                                      \
    o = good;                                                               \
    o.member = (value);                                                     \
    REFUSED(sbr_session_create(model, &o, &session, &error), status, word); \
    EXPECT(session == NULL);                                                \
  } while (0)
  BAD(struct_size, 0, SBR_ERR_ARGUMENT, "struct_size");
  BAD(n_threads, 100000, SBR_ERR_ARGUMENT, "n_threads");
  BAD(cpus, cpus, SBR_ERR_ARGUMENT, "n_cpus");
  BAD(n_cpus, 2, SBR_ERR_ARGUMENT, "cpus is NULL");
  BAD(isa, 12345, SBR_ERR_UNSUPPORTED, "isa");
  BAD(n_ctx, 0, SBR_ERR_ARGUMENT, "n_ctx");
  BAD(n_batch, 0, SBR_ERR_ARGUMENT, "n_batch");
  BAD(n_batch, 4097, SBR_ERR_ARGUMENT, "n_batch");
  BAD(kv_type, SBR_TYPE_Q8_0, SBR_ERR_ARGUMENT, "kv_type");
  BAD(lm_head_threshold, NAN, SBR_ERR_ARGUMENT, "lm_head_threshold");
  BAD(lm_head_skipped, 2, SBR_ERR_ARGUMENT, "lm_head_skipped");
  BAD(reserved, 1, SBR_ERR_ARGUMENT, "options->reserved");
  o = good;
  o.cpus = cpus;
  o.n_cpus = 1;
  REFUSED(sbr_session_create(model, &o, &session, &error), SBR_ERR_ARGUMENT, "4000000");
  sbr_session_free(NULL);
}

static void test_session(const sbr_model* model) {
  static float logits[CONTEXT * VOCAB], again[VOCAB];
  const int32_t tokens[CONTEXT] = {1, 5, 9, 2, 7, 11, 3, 8, 1, 1, 4, 6, 99, 0, 2, 3};
  const int32_t outside[2] = {3, VOCAB}, negative[1] = {-1};
  const uint32_t step = 0, wrong_steps[2] = {1, 1};
  int32_t ids[2] = {0, 0};
  uint32_t n_threads = 0;
  sbr_interval intervals[CONTEXT];
  sbr_session* session = NULL;
  sbr_session_options options;
  sbr_session_info info;
  sbr_counters counters;
  sbr_layer_counters layer;
  sbr_capture capture;
  uint64_t experts[4];

  sbr_session_options_init(&options);
  options.n_ctx = CONTEXT;
  options.n_batch = 4;
  options.n_threads = 2;
  ACCEPTED(sbr_session_create(model, &options, &session, &error));
  memset(&info, 0, sizeof info);
  info.struct_size = sizeof info;
  ACCEPTED(sbr_session_get_info(session, &info, &error));
  EXPECT(info.n_threads == 2 && info.n_ctx == CONTEXT && info.isa != SBR_ISA_AUTO &&
         info.kv_bytes == 2 * 2 * CONTEXT * 32 * 2);
  ACCEPTED(sbr_session_thread_ids(session, ids, 1, &n_threads, &error));
  EXPECT(n_threads == 2 && ids[0] != 0 && ids[1] == 0);
  REFUSED(sbr_session_thread_ids(session, NULL, 2, &n_threads, &error), SBR_ERR_ARGUMENT, "ids");

  REFUSED(sbr_prefill(NULL, tokens, 1, SBR_LOGITS_NONE, NULL, NULL, &error), SBR_ERR_ARGUMENT, "session");
  REFUSED(sbr_prefill(session, NULL, 1, SBR_LOGITS_NONE, NULL, NULL, &error), SBR_ERR_ARGUMENT, "tokens");
  REFUSED(sbr_prefill(session, tokens, 0, SBR_LOGITS_NONE, NULL, NULL, &error), SBR_ERR_ARGUMENT, "n_tokens");
  REFUSED(sbr_prefill(session, tokens, 1, SBR_LOGITS_LAST, NULL, NULL, &error), SBR_ERR_ARGUMENT, "logits");
  REFUSED(sbr_prefill(session, tokens, 1, 7, logits, NULL, &error), SBR_ERR_ARGUMENT, "logits_mode");
  REFUSED(sbr_prefill(session, outside, 2, SBR_LOGITS_NONE, NULL, NULL, &error), SBR_ERR_ARGUMENT, "tokens[1]");
  REFUSED(sbr_decode(session, negative, 1, NULL, NULL, &error), SBR_ERR_ARGUMENT, "tokens[0]");
  REFUSED(sbr_decode(session, tokens, 0, NULL, NULL, &error), SBR_ERR_ARGUMENT, "n_tokens");

  /* Ten tokens are three batches of at most four, one after the other. */
  ACCEPTED(sbr_prefill(session, tokens, 10, SBR_LOGITS_ALL, logits, intervals, &error));
  EXPECT(intervals[0].begin_ns < intervals[0].end_ns && intervals[0].end_ns <= intervals[1].begin_ns);
  EXPECT(intervals[1].end_ns <= intervals[2].begin_ns && intervals[2].begin_ns < intervals[2].end_ns);

  /* A full context refuses and changes nothing. */
  REFUSED(sbr_prefill(session, tokens, 7, SBR_LOGITS_NONE, NULL, NULL, &error), SBR_ERR_STATE, "full");
  REFUSED(sbr_decode(session, tokens, 7, NULL, NULL, &error), SBR_ERR_STATE, "full");
  ACCEPTED(sbr_session_get_info(session, &info, &error));
  EXPECT(info.n_past == 10);

  /* A cancelled call leaves the position alone, once. */
  sbr_session_cancel(session);
  sbr_session_cancel(NULL);
  REFUSED(sbr_prefill(session, tokens, 5, SBR_LOGITS_NONE, NULL, NULL, &error), SBR_ERR_CANCELLED, "cancelled");
  ACCEPTED(sbr_session_get_info(session, &info, &error));
  EXPECT(info.n_past == 10);

  /* Rewind and repeat: the same logits. */
  REFUSED(sbr_session_rewind(session, 11, &error), SBR_ERR_ARGUMENT, "n_past");
  ACCEPTED(sbr_session_rewind(session, 6, &error));
  memset(&capture, 0, sizeof capture);
  capture.struct_size = sizeof capture;
  capture.n_steps = 1;
  capture.logits = again;
  REFUSED(sbr_decode(session, tokens + 6, 1, NULL, &capture, &error), SBR_ERR_ARGUMENT, "capture->steps");
  capture.steps = wrong_steps;
  REFUSED(sbr_decode(session, tokens + 6, 1, NULL, &capture, &error), SBR_ERR_ARGUMENT, "steps[0]");
  capture.n_steps = 2;
  REFUSED(sbr_decode(session, tokens + 6, 2, NULL, &capture, &error), SBR_ERR_ARGUMENT, "steps[1]");
  capture.n_steps = 1;
  capture.steps = &step;
  ACCEPTED(sbr_decode(session, tokens + 6, 1, intervals, &capture, &error));
  EXPECT(memcmp(again, logits + 6 * VOCAB, sizeof again) == 0);

  memset(&counters, 0, sizeof counters);
  counters.struct_size = sizeof counters;
  ACCEPTED(sbr_session_get_counters(session, &counters, &error));
  EXPECT(counters.tokens == 11 && counters.n_layer == 2 && counters.ns_total > 0);
  memset(&layer, 0, sizeof layer);
  layer.struct_size = sizeof layer;
  REFUSED(sbr_session_get_layer_counters(session, 2, &layer, &error), SBR_ERR_ARGUMENT, "layer");
  ACCEPTED(sbr_session_get_layer_counters(session, 1, &layer, &error));
  EXPECT(layer.layer == 1 && layer.neurons_examined == 11 * 2 * 32);
  REFUSED(sbr_session_get_expert_counts(session, 0, experts, 5, &error), SBR_ERR_ARGUMENT, "n_expert");
  REFUSED(sbr_session_get_expert_counts(session, 2, experts, 4, &error), SBR_ERR_ARGUMENT, "layer");
  REFUSED(sbr_session_get_expert_counts(session, 0, NULL, 4, &error), SBR_ERR_ARGUMENT, "counts");
  ACCEPTED(sbr_session_get_expert_counts(session, 0, experts, 4, &error));
  EXPECT(experts[0] + experts[1] + experts[2] + experts[3] == 22);
  ACCEPTED(sbr_session_reset_counters(session, &error));
  sbr_session_free(session);
}

static void test_probes(void) {
  sbr_probe_options options;
  sbr_probe_result result;
  memset(&options, 0, sizeof options);
  memset(&result, 0, sizeof result);
  options.struct_size = sizeof options;
  REFUSED(sbr_probe_read(&options, &result, &error), SBR_ERR_ARGUMENT, "out");
  result.struct_size = sizeof result;
  REFUSED(sbr_probe_read(NULL, &result, &error), SBR_ERR_ARGUMENT, "options");
  options.reserved = 1;
  REFUSED(sbr_probe_read(&options, &result, &error), SBR_ERR_ARGUMENT, "options->reserved");
  options.reserved = 0;
  REFUSED(sbr_probe_storage(NULL, &options, &result, &error), SBR_ERR_ARGUMENT, "path");
}

int main(void) {
  sbr_model* model = NULL;
  test_library();
  test_synth_and_describe();
  test_model(&model);
  if (model != NULL) {
    test_session_options(model);
    test_session(model);
  }
  sbr_model_free(model);
  remove(path);
  test_probes();
  if (failures == 0) puts("test_capi: ok");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
