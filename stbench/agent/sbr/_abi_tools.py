"""Structs of ``tools.h``: bundles, simulation, synthesis, probes, single kernels."""

import ctypes
from ctypes import (
    POINTER,
    Structure,
    c_char,
    c_double,
    c_float,
    c_int32,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
)

# sbr_progress.
Progress = ctypes.CFUNCTYPE(c_int32, c_void_p, c_uint64, c_uint64)

# ---- bundles ----


class BundleInfo(Structure):
    """sbr_bundle_info."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("version", c_uint32),
        ("kind", c_uint32),
        ("gathers", c_uint32),
        ("n_layer", c_uint32),
        ("units_per_layer", c_uint32),
        ("unit_bytes", c_uint64),
        ("file_bytes", c_uint64),
        ("layout", c_char * 96),
        ("model_digest", c_char * 72),
    ]


# ---- cache what-if ----


class SimulateClock(Structure):
    """sbr_simulate_clock."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("guess_layers", c_uint32),
        ("units_at_once", c_uint32),
        ("reserved", c_uint32),
        ("guess_right", c_double),
        ("ns_head", c_double),
        ("ns_lead", c_double),
        ("ns_rest", c_double),
        ("ns_expert", c_double),
        ("ns_router", c_double),
        ("ns_latency", c_double),
        ("ns_unit", c_double),
    ]


class SimulateOptions(Structure):
    """sbr_simulate_options."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("n_layer", c_uint32),
        ("n_expert", c_uint32),
        ("n_expert_used", c_uint32),
        ("policy", c_uint32),
        ("capacity", c_uint32),
        ("warmup_tokens", c_uint64),
        ("sets_by_misses", POINTER(c_uint64)),
        ("clock", POINTER(SimulateClock)),
    ]


class SimulateResult(Structure):
    """sbr_simulate_result."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("requests", c_uint64),
        ("hits", c_uint64),
        ("ns", c_uint64),
        ("hits_on_the_way", c_uint64),
        ("loads", c_uint64),
        ("guesses", c_uint64),
        ("guesses_used", c_uint64),
        ("ns_decode", c_uint64),
        ("ns_io_busy", c_uint64),
    ]


# ---- synthetic models ----


class SynthSpec(Structure):
    """sbr_synth_spec."""

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
        ("tied_output", c_uint32),
        ("transposed_down", c_uint32),
        ("predictor_rank", c_uint32),
        ("weight_type", c_uint32),
        ("seed", c_uint64),
        ("rope_freq_base", c_float),
        ("rms_eps", c_float),
        ("zero_share", POINTER(c_uint16)),
        ("hot_experts", c_uint32),
        ("hot_share", c_uint32),
        ("lm_head_keep", c_uint32),
        ("architecture", c_char * 32),
        ("name", c_char * 96),
        ("reserved", c_uint32),
    ]


# ---- what the machine can do ----


class ProbeOptions(Structure):
    """sbr_probe_options."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("n_threads", c_uint32),
        ("cpus", POINTER(c_uint32)),
        ("n_cpus", c_uint32),
        ("row_bytes", c_uint32),
        ("buffer_bytes", c_uint64),
        ("duration_ns", c_uint64),
        ("direct", c_uint32),
        ("reserved", c_uint32),
        ("io", c_uint32),
        ("io_threads", c_uint32),
    ]


class ProbeResult(Structure):
    """sbr_probe_result."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("n_threads", c_uint32),
        ("bytes", c_uint64),
        ("ns", c_uint64),
        ("operations", c_uint64),
        ("io", c_uint32),
        ("io_direct", c_uint32),
        ("row_bytes", c_uint64),
    ]


# ---- one kernel at a time ----


class KernelBenchOptions(Structure):
    """sbr_kernel_bench_options."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("isa", c_uint32),
        ("kernel", c_uint32),
        ("weight_type", c_uint32),
        ("n_rows", c_uint32),
        ("n_cols", c_uint32),
        ("n_tokens", c_uint32),
        ("keep", c_uint32),
    ]
