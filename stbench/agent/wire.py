"""What travels between host and device, as JSON: one line per message.

Plain frozen dataclasses. :func:`to_json` and :func:`from_json` walk their annotations, so a message is
described in one place; what comes from the other side is checked field by field, and an error names the
path (``RunRecord.samples.decode_ns[3]: expected an integer, got "x"``). Unknown fields are ignored, so an
older host reads a newer record; missing fields take their default or are an error.

Units are in the names: ``_ns`` nanoseconds, ``_bytes`` bytes, ``_s`` seconds, ``_khz``, ``_mc`` (1/1000 deg C).
"""

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

SCHEMA_VERSION = 1

# How a run ended. Only "ok" has a speed.
STATUSES = (
    "ok",
    "unsupported",
    "out-of-memory",
    "timeout",
    "crashed",
    "wrong-output",
    "cancelled",
    "failed",
)

# Verdicts of a check against a reference: "unchecked" when no reference was given.
CHECK_VERDICTS = ("ok", "wrong", "unchecked")

# Three-valued: "unknown" where the device has no sensor that could tell.
THROTTLE_VERDICTS = ("no", "yes", "unknown")


class WireError(ValueError):
    """A message that does not have the shape it should have."""


# ---- in: what to do --------------------------------------------------------------------------------


@dataclass(frozen=True)
class SynthSpec:
    """A synthetic model: shapes, seed and statistics (``sbr_synth_spec`` in sbr.h; shares in 1/1000)."""

    architecture: str
    name: str
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_vocab: int
    n_ctx_train: int
    weight_type: str
    seed: int
    rope_freq_base: float
    rms_eps: float = 1e-6
    n_expert: int = 0
    n_expert_used: int = 0
    sliding_window: int = 0
    tied_output: bool = True
    transposed_down: bool = False
    predictor_rank: int = 0
    zero_share: Optional[List[int]] = None
    hot_experts: int = 0
    hot_share: int = 0
    lm_head_keep: int = 0


@dataclass(frozen=True)
class ModelRef:
    """A model on the device. ``digest`` is the SHA-256 of the file, "" until it is known."""

    name: str
    path: str
    digest: str = ""
    synthetic: Optional[SynthSpec] = None


@dataclass(frozen=True)
class Workload:
    """What is computed: a seeded, teacher-forced token stream. ``n_depth`` tokens are in the KV cache
    before the prompt and are not timed."""

    n_prompt: int
    n_gen: int
    n_depth: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Settings:
    """How it is computed, as requested. ``threads`` 0: one per CPU; ``cpus`` empty: not pinned."""

    threads: int = 0
    cpus: List[int] = field(default_factory=list)
    isa: str = "auto"
    n_ctx: int = 4096
    n_batch: int = 64
    kv_type: str = "f16"
    kv_touch: bool = True
    sparse_ffn: bool = False
    sparse_lm_head: bool = False
    lm_head_threshold: float = 0.0
    requantise_down: bool = False
    load: str = "mmap"


@dataclass(frozen=True)
class ReferencePosition:
    """One decode step of a slow reference run. ``rows``/``logits`` are a fixed sample of the
    vocabulary (top rows included). ``kept_hash`` is over the rows that the lm_head predictor kept, without
    ``borderline`` ones (score within rounding of the threshold)."""

    step: int
    sd: float
    argmax: int
    margin: float
    rows: List[int]
    logits: List[float]
    logits_hash: str
    n_kept: int = 0
    kept_hash: str = ""
    borderline: List[int] = field(default_factory=list)


@dataclass(frozen=True)
class Reference:
    """Expected outputs of one model, workload and set of switches, computed with scalar kernels."""

    key: str
    model_digest: str
    positions: List[ReferencePosition]


@dataclass(frozen=True)
class JobSpec:
    """One process invocation on a device. ``purpose`` is "measure" or "reference"; ``id`` is
    content-addressed; ``label`` is what a person types: ``local:smallthinker-4b/sparse+lmhead/t2/tg256``."""

    id: str
    label: str
    campaign: str
    device: str
    case: str
    replicate: int
    engine: str
    library: str
    model: ModelRef
    workload: Workload
    settings: Settings
    purpose: str = "measure"
    warmup_tokens: int = 4
    timeout_s: float = 600.0
    reference: Optional[Reference] = None
    schema: int = SCHEMA_VERSION


# ---- out: what was found ---------------------------------------------------------------------------


@dataclass(frozen=True)
class CpuCluster:
    """CPUs of one kind. ``max_khz`` None: the device does not say."""

    cpus: List[int]
    model: str
    max_khz: Optional[int] = None
    governor: Optional[str] = None


@dataclass(frozen=True)
class DeviceFacts:
    """What the board reports about itself. None: absent or denied; ``notes`` says which and why."""

    hostname: str
    machine: str
    kernel: str
    os: str
    python: str
    cpu_model: str
    n_cpus: int
    allowed_cpus: List[int]
    clusters: List[CpuCluster]
    features: List[str]
    isas: List[str]
    page_bytes: int
    memory_bytes: int
    memory_available_bytes: int
    swap_bytes: int
    storage: Optional[str] = None
    storage_free_bytes: Optional[int] = None
    read_ahead_kb: Optional[int] = None
    caches: Dict[str, int] = field(default_factory=dict)
    virtualisation: Optional[str] = None
    boot_id: Optional[str] = None
    fingerprint: str = ""
    notes: List[str] = field(default_factory=list)


@dataclass(frozen=True)
class ModelShape:
    """What the runtime read from the file (``sbr_model_info``)."""

    architecture: str
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_expert: int
    n_expert_used: int
    n_vocab: int
    down_layout: str
    lm_head_predictor_rank: int
    n_params: int
    n_params_active: int
    file_bytes: int
    weight_bytes: int


@dataclass(frozen=True)
class Effective:
    """What was really in force. ``affinity`` is per thread, from /proc, as read during the run."""

    threads: int
    affinity: List[List[int]]
    isa: str
    n_ctx: int
    n_batch: int
    kv_type: str
    kv_bytes: int
    scratch_bytes: int
    sparse_ffn: str
    sparse_lm_head: bool
    down_layout: str
    load: str


@dataclass(frozen=True)
class Samples:
    """Raw durations. TTFT is from the start of the prompt's prefill to its logits."""

    ttft_ns: int
    prefill_ns: List[int]
    prefill_tokens: List[int]
    decode_ns: List[int]


@dataclass(frozen=True)
class PhaseCounters:
    """Sums over one phase (``sbr_counters``)."""

    tokens: int
    weight_bytes: int
    embedding_bytes: int
    attention_bytes: int
    router_bytes: int
    ffn_bytes: int
    lm_head_bytes: int
    kv_bytes_read: int
    kv_bytes_written: int
    neurons_examined: int
    neurons_active: int
    lm_head_rows: int
    ns_total: int
    ns_attention: int
    ns_router: int
    ns_ffn: int
    ns_lm_head: int
    ns_barrier: int


@dataclass(frozen=True)
class Counters:
    prefill: PhaseCounters
    decode: PhaseCounters
    layer_neurons_examined: List[int]
    layer_neurons_active: List[int]


@dataclass(frozen=True)
class Memory:
    """``peak_rss_bytes`` is VmHWM of the measuring process, mapped weights included."""

    peak_rss_bytes: int
    rss_anon_bytes: Optional[int] = None
    rss_file_bytes: Optional[int] = None


@dataclass(frozen=True)
class Telemetry:
    """Frequencies and temperatures before and after; empty where there are no sensors."""

    khz_before: List[int]
    khz_after: List[int]
    temperature_mc_before: Dict[str, int]
    temperature_mc_after: Dict[str, int]
    throttled: str
    load_average: Optional[float] = None


@dataclass(frozen=True)
class Check:
    """The outcome of the comparison with the reference. ``output_hash`` is over the logits of the
    checked steps and is equal on every machine that computes correctly (docs/arithmetic.md).
    ``worst`` is the largest |delta logit| in standard deviations of the logits."""

    verdict: str
    output_hash: str
    positions: int
    worst: Optional[float] = None
    argmax_equal: Optional[int] = None
    kept_equal: Optional[int] = None
    bit_equal: Optional[int] = None
    reference: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Versions:
    agent: str
    runtime: Dict[str, Any]
    library_sha256: str


@dataclass(frozen=True)
class RunRecord:
    """One process invocation. Parts that a failed run never reached are None."""

    id: str
    label: str
    campaign: str
    device: str
    case: str
    replicate: int
    engine: str
    status: str
    detail: str
    started_at: str
    wall_s: float
    model: ModelRef
    workload: Workload
    settings: Settings
    facts: Optional[DeviceFacts] = None
    shape: Optional[ModelShape] = None
    effective: Optional[Effective] = None
    samples: Optional[Samples] = None
    counters: Optional[Counters] = None
    memory: Optional[Memory] = None
    telemetry: Optional[Telemetry] = None
    check: Optional[Check] = None
    versions: Optional[Versions] = None
    warnings: List[str] = field(default_factory=list)
    schema: int = SCHEMA_VERSION


# ---- JSON --------------------------------------------------------------------------------------------

T = typing.TypeVar("T")


def to_json(message: Any) -> Any:
    """A dataclass as JSON-ready dicts and lists, in field order."""
    return dataclasses.asdict(message)


def dumps(message: Any) -> str:
    """One line. NaN and infinities are refused: they are not JSON."""
    return json.dumps(to_json(message), separators=(",", ":"), allow_nan=False)


def loads(cls: "typing.Type[T]", line: str) -> T:
    """The inverse of :func:`dumps`. Raises :class:`WireError`."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise WireError("%s: not JSON: %s" % (cls.__name__, error))
    return from_json(cls, data)


def from_json(cls: "typing.Type[T]", data: Any) -> T:
    """Checks ``data`` against the annotations of ``cls``. Raises :class:`WireError` naming the path."""
    return typing.cast(T, _decode(cls, data, cls.__name__))


def _decode(kind: Any, data: Any, path: str) -> Any:
    if kind is Any:
        return data
    origin = typing.get_origin(kind)
    if origin is typing.Union:
        if data is None:
            return None
        return _decode(typing.get_args(kind)[0], data, path)
    if origin is list:
        if not isinstance(data, list):
            raise _mismatch(path, "a list", data)
        item = typing.get_args(kind)[0]
        return [_decode(item, value, "%s[%d]" % (path, i)) for i, value in enumerate(data)]
    if origin is dict:
        if not isinstance(data, dict):
            raise _mismatch(path, "an object", data)
        item = typing.get_args(kind)[1]
        return {key: _decode(item, value, "%s.%s" % (path, key)) for key, value in data.items()}
    if dataclasses.is_dataclass(kind):
        return _decode_object(kind, data, path)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise _mismatch(path, _NAMES[kind], data)
    return data


def _decode_object(kind: Any, data: Any, path: str) -> Any:
    if not isinstance(data, dict):
        raise _mismatch(path, "an object", data)
    hints = typing.get_type_hints(kind)
    values = {}
    for spec in dataclasses.fields(kind):
        if spec.name in data:
            values[spec.name] = _decode(hints[spec.name], data[spec.name], "%s.%s" % (path, spec.name))
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise WireError("%s.%s: missing" % (path, spec.name))
    return kind(**values)


_NAMES = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}


def _mismatch(path: str, expected: str, data: Any) -> WireError:
    shown = json.dumps(data)
    if len(shown) > 60:
        shown = shown[:57] + "..."
    return WireError("%s: expected %s, got %s" % (path, expected, shown))
