/* sbr.h - the C99 interface of libsbr, stbench's CPU inference runtime.
 *
 * Conventions
 * - Handles are opaque. Whoever gets one from a *_load / *_create call owns it and frees it once.
 * - Every struct that the caller allocates starts with `uint32_t struct_size`, set by the caller to
 *   sizeof(the struct) as the caller was compiled. Structs only ever grow at their end.
 *   `reserved` members of what the caller fills must be 0.
 * - Calls return an sbr_status. When it is not SBR_OK and `error` is not NULL, *error holds a full
 *   sentence; the caller owns *error. Output arguments are then unchanged unless stated otherwise.
 * - Strings are UTF-8 and NUL-terminated. Times are nanoseconds of CLOCK_MONOTONIC.
 * - A model may be shared by sessions of several threads; one session is used by one thread at a time
 *   (sbr_session_cancel excepted).
 * - Nothing is read from environment variables and there is no global setting.
 */
#ifndef SBR_SBR_H
#define SBR_SBR_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define SBR_API __attribute__((visibility("default")))
#else
#define SBR_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised when a struct, a constant or the meaning of a call changes. */
#define SBR_ABI_VERSION 2

/* ---- status -------------------------------------------------------------------------------- */
typedef int32_t sbr_status;
enum {
  SBR_OK = 0,
  SBR_ERR_ARGUMENT = 10,    /* the caller passed something impossible */
  SBR_ERR_IO = 20,          /* the operating system refused (open, read, write, disk full) */
  SBR_ERR_FORMAT = 30,      /* the file is not a well-formed GGUF */
  SBR_ERR_UNSUPPORTED = 40, /* well-formed, but this runtime cannot run it */
  SBR_ERR_MEMORY = 50,      /* an allocation failed */
  SBR_ERR_STATE = 60,       /* the call does not fit the session's state (context full, ...) */
  SBR_ERR_CANCELLED = 70,   /* sbr_session_cancel, or a progress callback, asked to stop */
  SBR_ERR_INTERNAL = 90     /* a defect of this library */
};

typedef struct sbr_error {
  uint32_t struct_size;
  int32_t status;
  char message[1016];
} sbr_error;

/* ---- the library --------------------------------------------------------------------------- */
SBR_API uint32_t sbr_abi_version(void);

/* Version, compiler, flags and target as a JSON object. Static storage. */
SBR_API const char* sbr_build_info(void);

/* Instruction sets. Numbers are pinned; gaps are for later members. */
enum {
  SBR_ISA_AUTO = 0, /* the best one that this CPU supports */
  SBR_ISA_SCALAR = 1,
  SBR_ISA_AVX2 = 10,       /* AVX2 + FMA + F16C */
  SBR_ISA_AVXVNNI = 15,    /* AVX2 + AVX-VNNI, for CPUs without AVX-512 */
  SBR_ISA_AVX512VNNI = 20, /* AVX-512 F, BW, VL, DQ, VNNI */
  SBR_ISA_AMX = 30,        /* AVX-512 VNNI + AMX tiles for batches; never SBR_ISA_AUTO: not yet run on hardware */
  SBR_ISA_NEON = 40,
  SBR_ISA_NEON_DOTPROD = 50,
  SBR_ISA_NEON_I8MM = 60 /* dot products + int8 matrix products for batches */
};

typedef struct sbr_isa_info {
  uint32_t struct_size;
  uint32_t isa;
  uint32_t supported; /* 1: this CPU and kernel can run it */
  uint32_t is_auto;   /* 1: SBR_ISA_AUTO means this one here */
  char name[24];      /* what a person types: "avx512vnni" */
  char requires_[72]; /* CPU features, comma separated */
} sbr_isa_info;

/* Instruction sets compiled into this library, best last. */
SBR_API uint32_t sbr_isa_count(void);
SBR_API sbr_status sbr_isa_get(uint32_t index, sbr_isa_info* out, sbr_error* error);

/* ---- GGUF files ---------------------------------------------------------------------------- */
/* Tensor types: the numbers of the GGUF format. */
enum {
  SBR_TYPE_F32 = 0,
  SBR_TYPE_F16 = 1,
  SBR_TYPE_Q4_0 = 2,
  SBR_TYPE_Q4_1 = 3,
  SBR_TYPE_Q8_0 = 8,
  SBR_TYPE_Q4_K = 12,
  SBR_TYPE_Q6_K = 14,
  SBR_TYPE_BF16 = 30
};

/* Parses a GGUF file's header and returns it as a JSON object: {"version", "alignment", "file_bytes", "data_offset",
 *  "metadata": [{"key", "type", "value"}, {"key", "type": "array", "item_type", "length", "value": [first ones]}, ...],
 *  "tensors": [{"name", "type", "shape": [ne0, ...], "offset", "bytes"}, ...]}.
 * Bytes that are not UTF-8 become U+FFFD. Loads no weights; needs no supported architecture.
 * *json is owned by the caller: sbr_string_free. */
SBR_API sbr_status sbr_gguf_describe(const char* path, uint64_t max_array_items, char** json, sbr_error* error);
SBR_API void sbr_string_free(char* string);

/* ---- models -------------------------------------------------------------------------------- */
typedef struct sbr_model sbr_model;

/* What the file's expert down matrices are, and what the model holds. */
enum {
  SBR_DOWN_NONE = 0,       /* the model has no ReLU experts: nothing can be skipped */
  SBR_DOWN_STANDARD = 1,   /* [F,D] per expert: skipping works in gate/up only */
  SBR_DOWN_TRANSPOSED = 2, /* [D,F] per expert, as in the file: skipping works in down too */
  SBR_DOWN_REQUANTISED = 3 /* standard in the file, transposed and re-quantised (lossy) at load */
};

/* How weights reach memory: mapped (shared page cache), read (anonymous memory), or repacked there for the kernels'
 * speed: rows interleaved, except those that sessions will gather: for sparse_ffn, for sparse_lm_head. */
enum { SBR_LOAD_MMAP = 0, SBR_LOAD_READ = 1, SBR_LOAD_REPACK = 2, SBR_GATHER_UP = 1, SBR_GATHER_OUTPUT = 2 };

typedef struct sbr_model_options {
  uint32_t struct_size;
  uint32_t load_mode;       /* SBR_LOAD_* */
  uint32_t requantise_down; /* 1: turn SBR_DOWN_STANDARD into SBR_DOWN_REQUANTISED */
  uint32_t populate;        /* 1: touch every weight page before returning */
  uint32_t gathers;         /* SBR_GATHER_*, with SBR_LOAD_REPACK */
  uint32_t reserved;        /* 0 */
  /* NULL, or the path of a bundle made from this file for these gathers (sbr_bundle_write): its units are then not
   * loaded with the rest, and sessions read them into a cache of bounded size. Needs SBR_LOAD_REPACK. */
  const char* bundle;
  const char* digest; /* with a bundle: what it must say of the model's digest; NULL: anything */
} sbr_model_options;

typedef struct sbr_model_info {
  uint32_t struct_size;
  uint32_t n_layer;
  uint32_t n_embd;
  uint32_t n_head;
  uint32_t n_head_kv;
  uint32_t head_dim;
  uint32_t n_ff;     /* width of the dense FFN, or of one expert */
  uint32_t n_expert; /* 0: dense FFN */
  uint32_t n_expert_used;
  uint32_t n_vocab;
  uint32_t n_ctx_train;
  uint32_t sliding_window;         /* 0: full attention everywhere */
  uint32_t down_layout;            /* SBR_DOWN_* */
  uint32_t lm_head_predictor_rank; /* 0: the file has no predictor */
  uint32_t tied_output;            /* 1: token_embd is the output matrix */
  uint32_t relu;                   /* 1: the FFN's activation is ReLU */
  uint64_t n_params;               /* all */
  /* Used for one token: of the experts only n_expert_used, of token_embd one row unless it is also the output matrix,
   * the whole output matrix, norms and routers; the lm_head predictor is left out. A shape's count: neither sparsity
   * nor skipped lm_head rows lower it. */
  uint64_t n_params_active;
  uint64_t file_bytes;
  uint64_t weight_bytes; /* sum over tensors */
  char architecture[32];
  char name[96];
  uint64_t load_ns;         /* what sbr_model_load took */
  uint64_t anonymous_bytes; /* weights held outside the page cache: read, or re-quantised */
  uint64_t bundle_bytes;    /* all units of the bundle; 0: there is none */
  uint64_t unit_bytes;      /* one unit */
  uint32_t bundle_kind;     /* SBR_BUNDLE_*, 0 */
  uint32_t reserved;
} sbr_model_info;

/* Fills defaults (mmap, no re-quantisation, no populate) and struct_size. */
SBR_API void sbr_model_options_init(sbr_model_options* options);

/* Loads a model. `options` may be NULL. With SBR_LOAD_MMAP the file must stay as it is while the model lives: one that
 * shrinks raises SIGBUS where a lost page is read, and so does one that shrinks while it is loaded. Errors: IO, FORMAT,
 * UNSUPPORTED (architecture or tensor type, naming those supported), MEMORY. */
SBR_API sbr_status sbr_model_load(const char* path, const sbr_model_options* options, sbr_model** model,
                                  sbr_error* error);

/* Frees a model. Its sessions must be gone. NULL is fine. */
SBR_API void sbr_model_free(sbr_model* model);

SBR_API sbr_status sbr_model_get_info(const sbr_model* model, sbr_model_info* out, sbr_error* error);

/* What loading had to assume, one sentence per line, "" when nothing. Lives as long as the model. */
SBR_API const char* sbr_model_warnings(const sbr_model* model);

/* ---- sessions ------------------------------------------------------------------------------ */
typedef struct sbr_session sbr_session;

/* What a skipped lm_head row's logit becomes. */
enum {
  SBR_SKIPPED_EXCLUDED = 0, /* -infinity: never sampled */
  SBR_SKIPPED_ZERO = 1      /* 0, the published framework's behaviour; for reproducing it only */
};

/* The sparse_ffn option beyond 0 and 1: each layer uses whichever was faster when both were tried, during the first six
 * evaluations of a kind (single tokens, batches) and again every 256. The results are the same bits. */
enum { SBR_SPARSE_FFN_AUTO = 2 };

/* How rows are shared out between threads: by the speed that each has shown, or equally. */
enum { SBR_SPLIT_MEASURED = 0, SBR_SPLIT_EQUAL = 1 };

/* How units of a bundle are cached. Numbers are pinned; gaps are for later members. */
enum {
  SBR_CACHE_AUTO = 0,   /* the best known one */
  SBR_CACHE_LRU = 10,   /* least recently used */
  SBR_CACHE_LFU = 20,   /* least frequently used, counts halved now and then */
  SBR_CACHE_REUSE = 30, /* the longest expected time to the next use, from each unit's frequency and its layer's turn */
  SBR_CACHE_STATIC = 50, /* simulation only: the most frequent units of the whole trace, loaded once */
  SBR_CACHE_BELADY = 60  /* simulation only: the next use is known */
};

/* How units are read. */
enum { SBR_IO_AUTO = 0, SBR_IO_PREAD = 10, SBR_IO_URING = 20 };
enum { SBR_DIRECT_AUTO = 0, SBR_DIRECT_ON = 1, SBR_DIRECT_OFF = 2 };

/* Which units are read before they are needed. Experts that the pre-attention router chose are always asked for before
 * attention runs. */
enum {
  SBR_PREFETCH_AUTO = 0,           /* NEXT_2_LAYERS for experts, as far as it pays; EXACT for layers */
  SBR_PREFETCH_EXACT = 10,         /* no more than that */
  SBR_PREFETCH_NEXT_LAYER = 20,    /* also the next layer's likely experts: its router applied to this layer's stream */
  SBR_PREFETCH_NEXT_2_LAYERS = 30, /* the same of the next 2 layers, as far as such guesses have been right */
  SBR_PREFETCH_NEXT_4_LAYERS = 40  /* of the next 4 */
};

/* When a unit's checksum is compared. */
enum { SBR_VERIFY_FIRST = 0, SBR_VERIFY_EVERY = 1, SBR_VERIFY_NEVER = 2 };

typedef struct sbr_session_options {
  uint32_t struct_size;
  uint32_t n_threads;   /* 0: one per CPU that the process may use; else at most 256 */
  const uint32_t* cpus; /* thread i is pinned to cpus[i % n_cpus]; NULL (n_cpus 0): not pinned */
  uint32_t n_cpus;
  uint32_t isa;             /* SBR_ISA_* */
  uint32_t n_ctx;           /* KV cache capacity, tokens */
  uint32_t n_batch;         /* most tokens evaluated together in prefill, at most 4096; lowered to n_ctx if above */
  uint32_t kv_type;         /* SBR_TYPE_F16 or SBR_TYPE_F32 */
  uint32_t kv_touch;        /* 1: write every KV page at creation, so that it is resident */
  uint32_t sparse_ffn;      /* 1: skip neurons whose ReLU output is zero (exact); 2: SBR_SPARSE_FFN_AUTO */
  uint32_t sparse_lm_head;  /* 1: in decode, compute only rows that the predictor keeps */
  float lm_head_threshold;  /* a row is kept when its predictor score is > this */
  uint32_t lm_head_skipped; /* SBR_SKIPPED_* */
  uint32_t phase_timing;    /* 1: fill the ns_* counters */
  uint32_t row_split;       /* SBR_SPLIT_* */
  /* The rest is for models with a bundle; without one they must be 0. */
  uint64_t cache_bytes;    /* memory for units, at most; lowered to what all units take */
  uint32_t cache_policy;   /* SBR_CACHE_* */
  uint32_t io;             /* SBR_IO_* */
  uint32_t io_threads;     /* SBR_IO_PREAD: 0: 4 */
  uint32_t io_direct;      /* SBR_DIRECT_* */
  uint32_t prefetch;       /* SBR_PREFETCH_* */
  uint32_t verify;         /* SBR_VERIFY_* */
  uint32_t record_routing; /* 1: sbr_session_get_routing (needs no bundle) */
  uint32_t reserved;       /* 0 */
  /* Above 0: sbr_session_get_timeline (needs no bundle), with room for so many events of each thread, rounded up to a
   * power of 2; at most 16777216. A token of SmallThinker-4B takes 710 of each, 34 KB. */
  uint64_t timeline_events;
} sbr_session_options;

/* How far the sparse FFN reaches, as effective. */
enum {
  SBR_SPARSE_OFF = 0,
  SBR_SPARSE_GATE_UP = 1, /* up rows are skipped, down is dense */
  SBR_SPARSE_FULL = 2     /* up and down rows are skipped */
};

typedef struct sbr_session_info {
  uint32_t struct_size;
  uint32_t n_threads;
  uint32_t isa;
  uint32_t n_ctx;
  uint32_t n_batch;
  uint32_t kv_type;
  uint32_t sparse_ffn; /* SBR_SPARSE_* */
  uint32_t sparse_lm_head;
  float lm_head_threshold;
  uint32_t n_past;          /* tokens in the KV cache */
  uint64_t kv_bytes;        /* allocated */
  uint64_t scratch_bytes;   /* activations, logits and per-thread buffers, as allocated; without the KV cache, the
                             * experts' plan, counters and thread stacks */
  uint32_t sparse_ffn_auto; /* 1: sparse_ffn says how far it reaches in layers that use it */
  uint32_t row_split;       /* SBR_SPLIT_* */
  uint32_t cache_units;     /* units that the cache holds; 0: no bundle */
  uint32_t reserved;
  uint64_t cache_bytes;     /* their memory, as allocated */
  uint64_t cache_bytes_min; /* the least cache_bytes with which a session can be created */
  uint32_t cache_policy;    /* SBR_CACHE_*, as effective, like the rest */
  uint32_t io;
  uint32_t io_direct; /* SBR_DIRECT_ON or SBR_DIRECT_OFF */
  uint32_t prefetch;
} sbr_session_info;

/* Fills defaults (1 thread, auto ISA, n_ctx 4096, n_batch 64, f16 KV, dense, threshold 0, phase
 * timing on) and struct_size. */
SBR_API void sbr_session_options_init(sbr_session_options* options);

/* Creates a session and its threads. Errors: ARGUMENT (with the option's name), UNSUPPORTED (ISA not
 * available here, sparse_ffn without ReLU experts, sparse_lm_head without predictor), MEMORY. */
SBR_API sbr_status sbr_session_create(const sbr_model* model, const sbr_session_options* options, sbr_session** session,
                                      sbr_error* error);
/* What sbr_session_create would allocate (kv_bytes, scratch_bytes, cache_bytes, cache_bytes_min, n_threads, n_ctx,
 * n_batch), allocating nothing; a cache_bytes below the minimum is no error here. */
SBR_API sbr_status sbr_session_plan(const sbr_model* model, const sbr_session_options* options, sbr_session_info* out,
                                    sbr_error* error);
SBR_API void sbr_session_free(sbr_session* session);
SBR_API sbr_status sbr_session_get_info(const sbr_session* session, sbr_session_info* out, sbr_error* error);

/* Operating-system thread ids of the session's threads, thread 0 being the caller of prefill/decode
 * (reported as the id of the thread that created the session). Writes min(capacity, n_threads). */
SBR_API sbr_status sbr_session_thread_ids(const sbr_session* session, int32_t* ids, uint32_t capacity,
                                          uint32_t* n_threads, sbr_error* error);

/* Forgets tokens from position n_past on; n_past must be <= the present position. */
SBR_API sbr_status sbr_session_rewind(sbr_session* session, uint32_t n_past, sbr_error* error);

/* May be called from any thread or a signal handler: the running call returns SBR_ERR_CANCELLED at
 * the next layer. The flag is cleared when a call returns it. */
SBR_API void sbr_session_cancel(sbr_session* session);

typedef struct sbr_interval {
  uint64_t begin_ns;
  uint64_t end_ns;
} sbr_interval;

/* Which logits prefill writes. */
enum {
  SBR_LOGITS_NONE = 0,
  SBR_LOGITS_LAST = 1, /* logits[n_vocab] */
  SBR_LOGITS_ALL = 2   /* logits[n_tokens][n_vocab] */
};

/* Evaluates n_tokens in batches of n_batch (sbr_session_info's, which may be below the option's), the last one shorter,
 * appending to the KV cache. The lm_head is always
 * dense here and is not run at all with SBR_LOGITS_NONE. `batches` (NULL, or room for
 * ceil(n_tokens / n_batch)) receives when each batch began and ended.
 * On failure the position is where it was before the call; a cancelled call may have written part of `logits` and
 * `batches`.
 * Errors: ARGUMENT (token outside the vocabulary), STATE (context full), CANCELLED. */
SBR_API sbr_status sbr_prefill(sbr_session* session, const int32_t* tokens, uint32_t n_tokens, uint32_t logits_mode,
                               float* logits, sbr_interval* batches, sbr_error* error);

/* Copies made outside the timed intervals while decoding: step steps[i] (ascending, < n_tokens) fills
 * logits[i][n_vocab] and, when not NULL and the lm_head is sparse, scores[i][n_vocab] (the
 * predictor's scores). */
typedef struct sbr_capture {
  uint32_t struct_size;
  uint32_t n_steps;
  const uint32_t* steps;
  float* logits;
  float* scores;
} sbr_capture;

/* Teacher-forced decode: evaluates tokens one by one, each with its logits. times[i] (NULL, or
 * [n_tokens]) is the interval of step i, lm_head included. `capture` may be NULL.
 * A cancelled call may have written part of `times` and of the capture; the position is where it was before the call.
 * Sampling is the caller's: decode one token at a time with a capture of step 0. */
SBR_API sbr_status sbr_decode(sbr_session* session, const int32_t* tokens, uint32_t n_tokens, sbr_interval* times,
                              const sbr_capture* capture, sbr_error* error);

/* ---- counters ------------------------------------------------------------------------------ */
/* Sums since creation or the last reset, prefill and decode together (reset between them to tell
 * them apart). Bytes are what the kernels were asked to read, not what a cache missed.
 * In a batch a weight row counts once, however many of its tokens use it (embedding rows: once per token). */
typedef struct sbr_counters {
  uint32_t struct_size;
  uint32_t n_layer;
  uint64_t tokens;
  uint64_t weight_bytes; /* the sum of the five below */
  uint64_t embedding_bytes;
  uint64_t attention_bytes; /* norms, q, k, v, output */
  uint64_t router_bytes;
  uint64_t ffn_bytes;
  uint64_t lm_head_bytes; /* predictor included */
  uint64_t kv_bytes_read; /* each K and V head once per token, shared by its q heads */
  uint64_t kv_bytes_written;
  uint64_t neurons_examined; /* gate outputs computed */
  uint64_t neurons_active;   /* of these, > 0 (ReLU models; else equal to examined) */
  uint64_t lm_head_rows;     /* output rows computed */
  uint64_t ns_total;         /* the ns_* are of thread 0: wall time of its share of each phase */
  uint64_t ns_attention;
  uint64_t ns_router;
  uint64_t ns_ffn;
  uint64_t ns_lm_head;
  uint64_t ns_barrier; /* waiting for other threads, in whichever phase and at a step's end */
  uint64_t nonfinite;  /* vectors found to hold an infinity or a NaN, which quantising or a ReLU may hide from the
                        * logits: above 0, the results are worthless */
} sbr_counters;

typedef struct sbr_layer_counters {
  uint32_t struct_size;
  uint32_t layer;
  uint64_t neurons_examined;
  uint64_t neurons_active;
  uint32_t sparse_ffn;       /* 1: single tokens skip zero neurons in this layer, by option or by choice */
  uint32_t sparse_ffn_batch; /* 1: batches do */
} sbr_layer_counters;

SBR_API sbr_status sbr_session_get_counters(const sbr_session* session, sbr_counters* out, sbr_error* error);
SBR_API sbr_status sbr_session_get_layer_counters(const sbr_session* session, uint32_t layer, sbr_layer_counters* out,
                                                  sbr_error* error);
/* How often each expert of a layer was selected: counts[n_expert]. */
SBR_API sbr_status sbr_session_get_expert_counts(const sbr_session* session, uint32_t layer, uint64_t* counts,
                                                 uint32_t n_expert, sbr_error* error);

/* Units of a bundle since creation or the last reset. A step asks once for each unit that a layer needs. */
typedef struct sbr_cache_counters {
  uint32_t struct_size;
  uint32_t reserved;
  uint64_t requests;
  uint64_t hits;            /* was there, loaded */
  uint64_t hits_on_the_way; /* a guess was loading it */
  uint64_t loads;           /* units read from storage, guesses included */
  uint64_t bytes_read;      /* from storage */
  uint64_t evictions;
  uint64_t guesses;           /* SBR_PREFETCH_NEXT_*: units that were not there and were asked for early */
  uint64_t guesses_used;      /* acquired before they were evicted */
  uint64_t guesses_cancelled; /* given up before they were read */
  uint64_t predicted;         /* experts that the last guess before a layer named, there or not */
  uint64_t predicted_right;   /* of these, chosen */
  uint64_t late;              /* requests for which a thread had to wait */
  uint64_t ns_wait;    /* thread 0 waiting for units (part of ns_ffn's wall time; for layers of ns_attention's) */
  uint64_t ns_io_busy; /* wall time with at least one read under way */
  uint64_t verified;   /* checksums compared */
} sbr_cache_counters;

SBR_API sbr_status sbr_session_get_cache_counters(const sbr_session* session, sbr_cache_counters* out,
                                                  sbr_error* error);
SBR_API sbr_status sbr_session_reset_counters(sbr_session* session, sbr_error* error);

/* ---- routing ------------------------------------------------------------------------------- */
/* A routing is experts[n_tokens][n_layer][n_expert_used], ascending in each set. */
/* The experts chosen since creation or the last reset of counters, with record_routing. Writes at most `capacity`
 * tokens; *n_tokens (may be NULL) receives how many there are. Errors: STATE (not recorded), ARGUMENT (a dense model).
 */
SBR_API sbr_status sbr_session_get_routing(const sbr_session* session, uint16_t* experts, uint64_t capacity,
                                           uint64_t* n_tokens, sbr_error* error);
/* From now on the token at position p uses experts[p % n_tokens] whatever its router says; the weights are those that
 * the router gives to these experts. Copies the table. NULL: the router chooses again. */
SBR_API sbr_status sbr_session_replay_routing(sbr_session* session, const uint16_t* experts, uint64_t n_tokens,
                                              sbr_error* error);

#ifdef __cplusplus
}
#endif

#include "sbr/tools.h"

#endif /* SBR_SBR_H */
