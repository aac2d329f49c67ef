"""``sbr.h`` and ``tools.h`` in ctypes, in the headers' order. A test compiles a C99 program from these
classes and compares.

Structs that have nothing to do with models and sessions are in :mod:`._abi_tools`.
``sbr_error`` is :class:`Error`, ``SBR_ERR_IO`` is :data:`ERR_IO`; constants are grouped as in the header.
"""

from ctypes import (
    POINTER,
    Structure,
    c_char,
    c_char_p,
    c_float,
    c_int32,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any, FrozenSet, List, Tuple

from . import _abi_timeline as timeline
from . import _abi_tools as tools

ABI_VERSION = 2

# ---- status ----

OK = 0
ERR_ARGUMENT = 10
ERR_IO = 20
ERR_FORMAT = 30
ERR_UNSUPPORTED = 40
ERR_MEMORY = 50
ERR_STATE = 60
ERR_CANCELLED = 70
ERR_INTERNAL = 90


class Error(Structure):
    """sbr_error."""

    _fields_ = [("struct_size", c_uint32), ("status", c_int32), ("message", c_char * 1016)]


# ---- the library ----

ISA_AUTO = 0
ISA_SCALAR = 1
ISA_AVX2 = 10
ISA_AVXVNNI = 15
ISA_AVX512VNNI = 20
ISA_AMX = 30
ISA_NEON = 40
ISA_NEON_DOTPROD = 50
ISA_NEON_I8MM = 60


class IsaInfo(Structure):
    """sbr_isa_info."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("isa", c_uint32),
        ("supported", c_uint32),
        ("is_auto", c_uint32),
        ("name", c_char * 24),
        ("requires_", c_char * 72),
    ]


# ---- GGUF files ----

TYPE_F32 = 0
TYPE_F16 = 1
TYPE_Q4_0 = 2
TYPE_Q4_1 = 3
TYPE_Q8_0 = 8
TYPE_Q4_K = 12
TYPE_Q6_K = 14
TYPE_BF16 = 30

# ---- models ----

DOWN_NONE = 0
DOWN_STANDARD = 1
DOWN_TRANSPOSED = 2
DOWN_REQUANTISED = 3

LOAD_MMAP = 0
LOAD_READ = 1
LOAD_REPACK = 2

GATHER_UP = 1
GATHER_OUTPUT = 2


class ModelOptions(Structure):
    """sbr_model_options."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("load_mode", c_uint32),
        ("requantise_down", c_uint32),
        ("populate", c_uint32),
        ("gathers", c_uint32),
        ("reserved", c_uint32),
        ("bundle", c_char_p),
        ("digest", c_char_p),
    ]


class ModelInfo(Structure):
    """sbr_model_info."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("n_layer", c_uint32),
        ("n_embd", c_uint32),
        ("n_head", c_uint32),
        ("n_head_kv", c_uint32),
        ("head_dim", c_uint32),
        ("n_ff", c_uint32),
        ("n_expert", c_uint32),
        ("n_expert_used", c_uint32),
        ("n_vocab", c_uint32),
        ("n_ctx_train", c_uint32),
        ("sliding_window", c_uint32),
        ("down_layout", c_uint32),
        ("lm_head_predictor_rank", c_uint32),
        ("tied_output", c_uint32),
        ("relu", c_uint32),
        ("n_params", c_uint64),
        ("n_params_active", c_uint64),
        ("file_bytes", c_uint64),
        ("weight_bytes", c_uint64),
        ("architecture", c_char * 32),
        ("name", c_char * 96),
        ("load_ns", c_uint64),
        ("anonymous_bytes", c_uint64),
        ("bundle_bytes", c_uint64),
        ("unit_bytes", c_uint64),
        ("bundle_kind", c_uint32),
        ("reserved", c_uint32),
    ]


# ---- bundles ----

BUNDLE_EXPERTS = 1
BUNDLE_LAYERS = 2

# ---- sessions ----

SKIPPED_EXCLUDED = 0
SKIPPED_ZERO = 1

SPARSE_FFN_AUTO = 2

SPLIT_MEASURED = 0
SPLIT_EQUAL = 1

CACHE_AUTO = 0
CACHE_LRU = 10
CACHE_LFU = 20
CACHE_REUSE = 30
CACHE_STATIC = 50
CACHE_BELADY = 60

IO_AUTO = 0
IO_PREAD = 10
IO_URING = 20

DIRECT_AUTO = 0
DIRECT_ON = 1
DIRECT_OFF = 2

PREFETCH_AUTO = 0
PREFETCH_EXACT = 10
PREFETCH_NEXT_LAYER = 20
PREFETCH_NEXT_2_LAYERS = 30
PREFETCH_NEXT_4_LAYERS = 40

VERIFY_FIRST = 0
VERIFY_EVERY = 1
VERIFY_NEVER = 2


class SessionOptions(Structure):
    """sbr_session_options."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("n_threads", c_uint32),
        ("cpus", POINTER(c_uint32)),
        ("n_cpus", c_uint32),
        ("isa", c_uint32),
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("kv_type", c_uint32),
        ("kv_touch", c_uint32),
        ("sparse_ffn", c_uint32),
        ("sparse_lm_head", c_uint32),
        ("lm_head_threshold", c_float),
        ("lm_head_skipped", c_uint32),
        ("phase_timing", c_uint32),
        ("row_split", c_uint32),
        ("cache_bytes", c_uint64),
        ("cache_policy", c_uint32),
        ("io", c_uint32),
        ("io_threads", c_uint32),
        ("io_direct", c_uint32),
        ("prefetch", c_uint32),
        ("verify", c_uint32),
        ("record_routing", c_uint32),
        ("reserved", c_uint32),
        ("timeline_events", c_uint64),
    ]


SPARSE_OFF = 0
SPARSE_GATE_UP = 1
SPARSE_FULL = 2


class SessionInfo(Structure):
    """sbr_session_info."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("n_threads", c_uint32),
        ("isa", c_uint32),
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("kv_type", c_uint32),
        ("sparse_ffn", c_uint32),
        ("sparse_lm_head", c_uint32),
        ("lm_head_threshold", c_float),
        ("n_past", c_uint32),
        ("kv_bytes", c_uint64),
        ("scratch_bytes", c_uint64),
        ("sparse_ffn_auto", c_uint32),
        ("row_split", c_uint32),
        ("cache_units", c_uint32),
        ("reserved", c_uint32),
        ("cache_bytes", c_uint64),
        ("cache_bytes_min", c_uint64),
        ("cache_policy", c_uint32),
        ("io", c_uint32),
        ("io_direct", c_uint32),
        ("prefetch", c_uint32),
    ]


class Interval(Structure):
    """sbr_interval: nanoseconds of CLOCK_MONOTONIC, which is time.monotonic_ns() on Linux."""

    _fields_ = [("begin_ns", c_uint64), ("end_ns", c_uint64)]


LOGITS_NONE = 0
LOGITS_LAST = 1
LOGITS_ALL = 2


class Capture(Structure):
    """sbr_capture."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("n_steps", c_uint32),
        ("steps", POINTER(c_uint32)),
        ("logits", POINTER(c_float)),
        ("scores", POINTER(c_float)),
    ]


# ---- counters ----


class Counters(Structure):
    """sbr_counters."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("n_layer", c_uint32),
        ("tokens", c_uint64),
        ("weight_bytes", c_uint64),
        ("embedding_bytes", c_uint64),
        ("attention_bytes", c_uint64),
        ("router_bytes", c_uint64),
        ("ffn_bytes", c_uint64),
        ("lm_head_bytes", c_uint64),
        ("kv_bytes_read", c_uint64),
        ("kv_bytes_written", c_uint64),
        ("neurons_examined", c_uint64),
        ("neurons_active", c_uint64),
        ("lm_head_rows", c_uint64),
        ("ns_total", c_uint64),
        ("ns_attention", c_uint64),
        ("ns_router", c_uint64),
        ("ns_ffn", c_uint64),
        ("ns_lm_head", c_uint64),
        ("ns_barrier", c_uint64),
        ("nonfinite", c_uint64),
    ]


class LayerCounters(Structure):
    """sbr_layer_counters."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("layer", c_uint32),
        ("neurons_examined", c_uint64),
        ("neurons_active", c_uint64),
        ("sparse_ffn", c_uint32),
        ("sparse_ffn_batch", c_uint32),
    ]


class CacheCounters(Structure):
    """sbr_cache_counters."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("requests", c_uint64),
        ("hits", c_uint64),
        ("hits_on_the_way", c_uint64),
        ("loads", c_uint64),
        ("bytes_read", c_uint64),
        ("evictions", c_uint64),
        ("guesses", c_uint64),
        ("guesses_used", c_uint64),
        ("guesses_cancelled", c_uint64),
        ("predicted", c_uint64),
        ("predicted_right", c_uint64),
        ("late", c_uint64),
        ("ns_wait", c_uint64),
        ("ns_io_busy", c_uint64),
        ("verified", c_uint64),
    ]


# ---- one kernel at a time ----

KERNEL_GEMV = 0
KERNEL_GATHER_GEMV = 1
KERNEL_GEMM = 2
KERNEL_AXPY_ROWS = 3
KERNEL_QUANTISE = 4
KERNEL_UP_DOWN = 5

# ---- functions: name, result, arguments; handles and strings that the caller frees are void pointers -

_ERROR = POINTER(Error)
_HANDLE = c_void_p

FUNCTIONS: List[Tuple[str, Any, List[Any]]] = [
    ("sbr_abi_version", c_uint32, []),
    ("sbr_build_info", c_char_p, []),
    ("sbr_isa_count", c_uint32, []),
    ("sbr_isa_get", c_int32, [c_uint32, POINTER(IsaInfo), _ERROR]),
    ("sbr_gguf_describe", c_int32, [c_char_p, c_uint64, POINTER(c_void_p), _ERROR]),
    ("sbr_string_free", None, [c_void_p]),
    ("sbr_model_options_init", None, [POINTER(ModelOptions)]),
    ("sbr_model_load", c_int32, [c_char_p, POINTER(ModelOptions), POINTER(_HANDLE), _ERROR]),
    ("sbr_model_free", None, [_HANDLE]),
    ("sbr_model_get_info", c_int32, [_HANDLE, POINTER(ModelInfo), _ERROR]),
    ("sbr_model_warnings", c_char_p, [_HANDLE]),
    ("sbr_session_options_init", None, [POINTER(SessionOptions)]),
    ("sbr_session_create", c_int32, [_HANDLE, POINTER(SessionOptions), POINTER(_HANDLE), _ERROR]),
    ("sbr_session_plan", c_int32, [_HANDLE, POINTER(SessionOptions), POINTER(SessionInfo), _ERROR]),
    ("sbr_session_free", None, [_HANDLE]),
    ("sbr_session_get_info", c_int32, [_HANDLE, POINTER(SessionInfo), _ERROR]),
    ("sbr_session_thread_ids", c_int32, [_HANDLE, POINTER(c_int32), c_uint32, POINTER(c_uint32), _ERROR]),
    ("sbr_session_rewind", c_int32, [_HANDLE, c_uint32, _ERROR]),
    ("sbr_session_cancel", None, [_HANDLE]),
    (
        "sbr_prefill",
        c_int32,
        [_HANDLE, POINTER(c_int32), c_uint32, c_uint32, POINTER(c_float), POINTER(Interval), _ERROR],
    ),
    (
        "sbr_decode",
        c_int32,
        [_HANDLE, POINTER(c_int32), c_uint32, POINTER(Interval), POINTER(Capture), _ERROR],
    ),
    ("sbr_session_get_counters", c_int32, [_HANDLE, POINTER(Counters), _ERROR]),
    ("sbr_session_get_layer_counters", c_int32, [_HANDLE, c_uint32, POINTER(LayerCounters), _ERROR]),
    ("sbr_session_get_expert_counts", c_int32, [_HANDLE, c_uint32, POINTER(c_uint64), c_uint32, _ERROR]),
    ("sbr_session_get_cache_counters", c_int32, [_HANDLE, POINTER(CacheCounters), _ERROR]),
    ("sbr_session_reset_counters", c_int32, [_HANDLE, _ERROR]),
    (
        "sbr_session_get_routing",
        c_int32,
        [_HANDLE, POINTER(c_uint16), c_uint64, POINTER(c_uint64), _ERROR],
    ),
    ("sbr_session_replay_routing", c_int32, [_HANDLE, POINTER(c_uint16), c_uint64, _ERROR]),
    ("sbr_bundle_plan", c_int32, [c_char_p, c_uint32, POINTER(tools.BundleInfo), _ERROR]),
    (
        "sbr_bundle_write",
        c_int32,
        [c_char_p, c_char_p, c_uint32, c_char_p, tools.Progress, c_void_p, _ERROR],
    ),
    ("sbr_bundle_describe", c_int32, [c_char_p, POINTER(tools.BundleInfo), _ERROR]),
    ("sbr_bundle_verify", c_int32, [c_char_p, tools.Progress, c_void_p, _ERROR]),
    (
        "sbr_session_get_timeline",
        c_int32,
        [
            *(_HANDLE, POINTER(timeline.TimelineEvent), c_uint32, c_uint64),
            *(POINTER(timeline.TimelineInfo), _ERROR),
        ],
    ),
    (
        "sbr_simulate",
        c_int32,
        [POINTER(c_uint16), c_uint64, POINTER(tools.SimulateOptions), POINTER(tools.SimulateResult), _ERROR],
    ),
    ("sbr_synth_size", c_int32, [POINTER(tools.SynthSpec), POINTER(c_uint64), _ERROR]),
    ("sbr_synth_write", c_int32, [POINTER(tools.SynthSpec), c_char_p, tools.Progress, c_void_p, _ERROR]),
    ("sbr_probe_read", c_int32, [POINTER(tools.ProbeOptions), POINTER(tools.ProbeResult), _ERROR]),
    ("sbr_probe_gather", c_int32, [POINTER(tools.ProbeOptions), POINTER(tools.ProbeResult), _ERROR]),
    (
        "sbr_probe_storage",
        c_int32,
        [c_char_p, POINTER(tools.ProbeOptions), POINTER(tools.ProbeResult), _ERROR],
    ),
    (
        "sbr_probe_reads",
        c_int32,
        [c_char_p, POINTER(tools.ProbeOptions), POINTER(tools.ProbeResult), _ERROR],
    ),
    ("sbr_kernel_bench_create", c_int32, [POINTER(tools.KernelBenchOptions), POINTER(_HANDLE), _ERROR]),
    ("sbr_kernel_bench_run", c_int32, [_HANDLE, c_uint32, POINTER(tools.ProbeResult), _ERROR]),
    ("sbr_kernel_bench_free", None, [_HANDLE]),
]

# Younger than ABI version 2: an older build of that ABI lacks them and is measured beside a newer one all the
# same. Whoever calls one of these on such a library gets a LoadError.
LATER: FrozenSet[str] = frozenset({"sbr_session_get_timeline"})
