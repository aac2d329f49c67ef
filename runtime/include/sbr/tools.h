/* tools.h - what stands beside models and sessions: bundles, simulated caches, synthetic models, probes, single
 * kernels. Part of the interface of sbr.h, whose conventions hold here, and which includes this file.
 */
#ifndef SBR_TOOLS_H
#define SBR_TOOLS_H

#include "sbr/sbr.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- progress of long calls --------------------------------------------------------------------- */
/* Return non-zero to stop; the unfinished file is then removed. */
typedef int32_t (*sbr_progress)(void* user, uint64_t done_bytes, uint64_t total_bytes);

/* ---- bundles: weights that stay on storage ---------------------------------------------------- */
/* What one read brings: an expert's gate, up and down, or (models without experts) a layer's matrices. */
enum { SBR_BUNDLE_EXPERTS = 1, SBR_BUNDLE_LAYERS = 2 };

typedef struct sbr_bundle_info {
  uint32_t struct_size;
  uint32_t version;
  uint32_t kind;    /* SBR_BUNDLE_* */
  uint32_t gathers; /* SBR_GATHER_UP when made for a sparse FFN, else 0 */
  uint32_t n_layer;
  uint32_t units_per_layer; /* experts, or 1 */
  uint64_t unit_bytes;      /* of one unit, a multiple of 4096 */
  uint64_t file_bytes;
  char layout[96];       /* what a unit holds, as text: part of what makes two bundles differ */
  char model_digest[72]; /* as given to sbr_bundle_write */
} sbr_bundle_info;

/* What sbr_bundle_write would write; touches no weights. model_digest is "". */
SBR_API sbr_status sbr_bundle_plan(const char* model_path, uint32_t gathers, sbr_bundle_info* out, sbr_error* error);
/* Writes `path` atomically (through a temporary file beside it), after checking that there is room. `digest` (NULL: "")
 * is kept in the header. `progress` may be NULL. Errors: those of sbr_model_load, IO, CANCELLED. */
SBR_API sbr_status sbr_bundle_write(const char* model_path, const char* digest, uint32_t gathers, const char* path,
                                    sbr_progress progress, void* user, sbr_error* error);
/* Reads and checks the header. Errors: IO, FORMAT, UNSUPPORTED, saying what differs. */
SBR_API sbr_status sbr_bundle_describe(const char* path, sbr_bundle_info* out, sbr_error* error);
/* Checks every unit's checksum as well. Errors: as describe; FORMAT names the first unit that differs; CANCELLED. */
SBR_API sbr_status sbr_bundle_verify(const char* path, sbr_progress progress, void* user, sbr_error* error);

/* ---- timeline ------------------------------------------------------------------------------ */
/* What a session did and when, with timeline_events. Spans of one thread do not overlap and leave no gap within a step,
 * so that thread 0's sum up to the token. Storage's overlap with everything. Numbers are pinned; gaps are for later
 * members. */
enum {
  SBR_TIMELINE_TOKEN = 1,      /* a step: one token of decode, or a batch of prefill; unit: its tokens */
  SBR_TIMELINE_STEP = 10,      /* begin and end of a step: threads are woken, units are given back */
  SBR_TIMELINE_EMBED = 11,     /* a row of embeddings, rotary angles */
  SBR_TIMELINE_NORM = 12,      /* residuals and mixtures added, norms */
  SBR_TIMELINE_ATTENTION = 13, /* q, k, v, cache, heads, output projection */
  SBR_TIMELINE_ROUTER = 14,    /* scores, choice, asking for experts, dealing out work */
  SBR_TIMELINE_IO_WAIT = 15,   /* for units of a bundle */
  SBR_TIMELINE_GATE = 16,
  SBR_TIMELINE_UP = 17,      /* rows of active neurons */
  SBR_TIMELINE_GATE_UP = 18, /* both in turn: dense FFNs, batches, experts far apart */
  SBR_TIMELINE_DOWN = 19,
  SBR_TIMELINE_LM_HEAD = 20, /* final norm and predictor included */
  SBR_TIMELINE_BARRIER = 21, /* waiting for other threads */
  SBR_TIMELINE_UP_DOWN = 22, /* both in one pass: one token, sparse, experts in memory */
  SBR_TIMELINE_READ = 30,    /* a unit's read, from asked for to arrived; bytes 0: it failed */
  SBR_TIMELINE_HIT = 40,     /* a unit that was there when it was asked for; these have no duration */
  SBR_TIMELINE_LOAD = 41,    /* one that was not */
  SBR_TIMELINE_EVICT = 42,
  SBR_TIMELINE_GUESS = 43 /* asked for before anyone needs it */
};

/* Members that do not apply are UINT32_MAX. */
typedef struct sbr_timeline_event {
  uint64_t begin_ns;
  uint64_t end_ns;
  uint64_t bytes;  /* of a read */
  uint32_t kind;   /* SBR_TIMELINE_* */
  uint32_t thread; /* of the session */
  uint32_t step;   /* since creation or the last reset; a read's: in which it ended */
  uint32_t layer;
  uint32_t unit; /* expert */
  uint32_t reserved;
} sbr_timeline_event;

typedef struct sbr_timeline_info {
  uint32_t struct_size;
  uint32_t n_threads;
  uint64_t capacity; /* events of each thread, and of storage */
  uint64_t n_events; /* there are */
  uint64_t n_written;
  uint64_t n_lost; /* overwritten by later ones, since creation or the last reset */
} sbr_timeline_info;

/* Copies at most `capacity` events since creation or the last reset of counters, each thread's in their order, then
 * storage's. `event_bytes` is sizeof(sbr_timeline_event) as the caller was compiled. Errors: STATE (not recorded). */
SBR_API sbr_status sbr_session_get_timeline(const sbr_session* session, sbr_timeline_event* events,
                                            uint32_t event_bytes, uint64_t capacity, sbr_timeline_info* info,
                                            sbr_error* error);

/* ---- what a cache would have done -------------------------------------------------------------- */
/* When things happen, in nanoseconds: with it, the time of the tokens is simulated too, and guesses (sbr_simulate). */
typedef struct sbr_simulate_clock {
  uint32_t struct_size;
  uint32_t guess_layers;  /* experts are named for so many layers ahead, 0 to 64; SBR_PREFETCH_NEXT_4_LAYERS: 4 */
  uint32_t units_at_once; /* units whose reads the device has at the same time, 1 or more: they arrive together */
  uint32_t reserved;
  double guess_right; /* of the experts that are named, the share that is used */
  double ns_head;     /* of a token, in which no expert is awaited */
  double ns_lead;     /* of a layer, until its experts are asked for */
  double ns_rest;     /* from there until its first expert can be computed */
  double ns_expert;   /* computing one */
  double ns_router;   /* more of ns_rest for each layer that is guessed at */
  double ns_latency;  /* what the first read after a pause takes longer */
  double ns_unit;     /* reading one */
} sbr_simulate_clock;

typedef struct sbr_simulate_options {
  uint32_t struct_size;
  uint32_t n_layer;
  uint32_t n_expert;
  uint32_t n_expert_used;
  uint32_t policy;        /* SBR_CACHE_* */
  uint32_t capacity;      /* units */
  uint64_t warmup_tokens; /* the first ones fill the cache and are not counted */
  /* [n_expert_used + 1], or NULL. Element m receives how many of the counted sets (one token, one layer) missed m. */
  uint64_t* sets_by_misses;
  const sbr_simulate_clock* clock; /* NULL: no times. Not with SBR_CACHE_STATIC and SBR_CACHE_BELADY */
} sbr_simulate_options;

typedef struct sbr_simulate_result {
  uint32_t struct_size;
  uint32_t reserved;
  uint64_t requests;
  uint64_t hits;
  uint64_t ns; /* what the simulation took */
  /* With a clock; like the first two of the tokens that count. */
  uint64_t hits_on_the_way; /* of what was no hit: a guess was loading it */
  uint64_t loads;           /* units read, guesses included */
  uint64_t guesses;         /* asked for early */
  uint64_t guesses_used;
  uint64_t ns_decode;  /* the tokens' time */
  uint64_t ns_io_busy; /* of the device */
} sbr_simulate_result;

/* What a cache of that size and policy would have done, token by token. Errors: ARGUMENT. */
SBR_API sbr_status sbr_simulate(const uint16_t* experts, uint64_t n_tokens, const sbr_simulate_options* options,
                                sbr_simulate_result* out, sbr_error* error);

/* ---- synthetic models ---------------------------------------------------------------------- */
/* A model at given shapes with random weights and set statistics. The same spec gives the same bytes
 * on every machine. Shares are in 1/1000. */
typedef struct sbr_synth_spec {
  uint32_t struct_size;
  uint32_t n_layer;
  uint32_t n_embd;
  uint32_t n_head;
  uint32_t n_head_kv;
  uint32_t head_dim;
  uint32_t n_ff;
  uint32_t n_expert; /* 0: dense FFN (qwen3, llama, gemma3n) */
  uint32_t n_expert_used;
  uint32_t n_vocab;
  uint32_t n_ctx_train;
  uint32_t sliding_window; /* smallthinker: 0 or the window; gemma3n: the window */
  uint32_t tied_output;
  uint32_t transposed_down; /* 1: expert down matrices as [D,F] */
  uint32_t predictor_rank;  /* smallthinker: 0 or the lm_head predictor's rank */
  uint32_t weight_type;     /* SBR_TYPE_* of the matrices */
  uint64_t seed;
  float rope_freq_base;
  float rms_eps;
  const uint16_t* zero_share; /* [n_layer] ReLU zeros per layer; NULL for models without ReLU */
  uint32_t hot_experts;       /* this many experts of each layer are preferred ... */
  uint32_t hot_share;         /* ... so that they take about this share of selections; 0: no skew */
  uint32_t lm_head_keep;      /* share of rows that the predictor keeps at threshold 0 */
  char architecture[32];      /* "smallthinker", "qwen3", "qwen3moe", "llama"; "gemma3n" is written, not run */
  char name[96];
  uint32_t reserved; /* 0 */
} sbr_synth_spec;

/* The size of the file that sbr_synth_write would write. */
SBR_API sbr_status sbr_synth_size(const sbr_synth_spec* spec, uint64_t* bytes, sbr_error* error);

/* Writes `path` atomically (through `path`.part). `progress` may be NULL. */
SBR_API sbr_status sbr_synth_write(const sbr_synth_spec* spec, const char* path, sbr_progress progress, void* user,
                                   sbr_error* error);

/* ---- what the machine can do (roofline) ------------------------------------------------------ */
typedef struct sbr_probe_options {
  uint32_t struct_size;
  uint32_t n_threads;
  const uint32_t* cpus; /* as in sbr_session_options */
  uint32_t n_cpus;
  uint32_t row_bytes;    /* gather: bytes of one row; storage: bytes of one read */
  uint64_t buffer_bytes; /* memory probes: working set over all threads; more than the caches hold, for memory's rate */
  uint64_t duration_ns;  /* how long to measure */
  uint32_t direct;       /* storage: 1 to bypass the page cache (O_DIRECT) */
  uint32_t reserved;
  uint32_t io;         /* reads: SBR_IO_* */
  uint32_t io_threads; /* reads: as in sbr_session_options */
} sbr_probe_options;

typedef struct sbr_probe_result {
  uint32_t struct_size;
  uint32_t n_threads;
  uint64_t bytes;
  uint64_t ns;
  uint64_t operations; /* rows gathered, or reads done */
  uint32_t io;         /* reads: SBR_IO_* that brought this */
  uint32_t io_direct;  /* reads: SBR_DIRECT_ON or SBR_DIRECT_OFF */
  uint64_t row_bytes;  /* reads: bytes of a unit */
} sbr_probe_result;

/* Streaming reads of a private buffer by all threads at once. */
SBR_API sbr_status sbr_probe_read(const sbr_probe_options* options, sbr_probe_result* out, sbr_error* error);
/* Reads of whole rows in random order, addresses known in advance (as a sparse FFN's are). */
SBR_API sbr_status sbr_probe_gather(const sbr_probe_options* options, sbr_probe_result* out, sbr_error* error);
/* Random aligned reads of row_bytes from an existing file by n_threads threads. */
SBR_API sbr_status sbr_probe_storage(const char* path, const sbr_probe_options* options, sbr_probe_result* out,
                                     sbr_error* error);
/* Random units by the reader of a session, `n_threads` of them at a time, or with 0 as many as keep its queue full,
 * which no session can exceed. `row_bytes` (a multiple of 4096) of any file, or 0 for the units of the bundle `path`.
 * SBR_IO_AUTO: half of the time io_uring where it may be used, half of it pread, and the faster one counts. `direct` 1:
 * past the page cache where the file system can; otherwise the file's pages are dropped from it before and after. Takes
 * 32 MiB, or 8 MiB at most for each of `n_threads`; `n_threads` of the result is the most reads that the kernel has.
 */
SBR_API sbr_status sbr_probe_reads(const char* path, const sbr_probe_options* options, sbr_probe_result* out,
                                   sbr_error* error);

/* ---- one kernel at a time (benchmarks) -------------------------------------------------------- */
typedef struct sbr_kernel_bench sbr_kernel_bench;

enum {
  SBR_KERNEL_GEMV = 0,        /* all rows times one token */
  SBR_KERNEL_GATHER_GEMV = 1, /* the kept rows times one token */
  SBR_KERNEL_GEMM = 2,        /* all rows times n_tokens */
  SBR_KERNEL_AXPY_ROWS = 3,   /* sum of the kept rows */
  SBR_KERNEL_QUANTISE = 4,    /* n_cols activations of one token; no weights */
  SBR_KERNEL_UP_DOWN = 5      /* up and down of the kept neurons in one pass, n_rows pairs of rows side by side */
};

typedef struct sbr_kernel_bench_options {
  uint32_t struct_size;
  uint32_t isa;         /* SBR_ISA_* */
  uint32_t kernel;      /* SBR_KERNEL_* */
  uint32_t weight_type; /* SBR_TYPE_*; of GEMV and GEMM also that + 32: interleaved */
  uint32_t n_rows;      /* interleaved: a multiple of 16 */
  uint32_t n_cols;      /* a multiple of 32, and of the type's block */
  uint32_t n_tokens;    /* GEMM only */
  uint32_t keep;        /* GATHER_GEMV, AXPY_ROWS and UP_DOWN: 1/1000 of the rows, scattered */
} sbr_kernel_bench_options;

/* Makes weights (at most 4 GiB) and inputs for one kernel of one instruction set. Errors: ARGUMENT, UNSUPPORTED
 * (ISA not available here, or a type without that kernel), MEMORY. */
SBR_API sbr_status sbr_kernel_bench_create(const sbr_kernel_bench_options* options, sbr_kernel_bench** bench,
                                           sbr_error* error);
/* Calls the kernel `calls` times on the calling thread: `bytes` of weight rows read (QUANTISE: of floats), `ns` for all
 * calls together, `operations` multiply-adds (QUANTISE: values). */
SBR_API sbr_status sbr_kernel_bench_run(sbr_kernel_bench* bench, uint32_t calls, sbr_probe_result* out,
                                        sbr_error* error);
SBR_API void sbr_kernel_bench_free(sbr_kernel_bench* bench);

#ifdef __cplusplus
}
#endif

#endif /* SBR_TOOLS_H */
