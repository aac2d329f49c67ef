"""What travels between host and device, as JSON: one line per message.

Plain frozen dataclasses; :mod:`.wirejson` turns them into JSON and back by their annotations, so a message is
described in one place.

Units are in the names: ``_ns`` nanoseconds, ``_bytes`` bytes, ``_s`` seconds, ``_khz``, ``_mc`` (1/1000 deg
C).
"""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

from .wirecounters import Counters as Counters
from .wirecounters import Memory as Memory
from .wirecounters import PhaseCounters as PhaseCounters
from .wirejson import WireError as WireError
from .wirejson import dumps as dumps
from .wirejson import from_json as from_json
from .wirejson import loads as loads
from .wirejson import to_json as to_json
from .wirelimits import LIMIT_METHODS as LIMIT_METHODS
from .wirelimits import LIMIT_VERDICTS as LIMIT_VERDICTS
from .wirelimits import CacheCounters as CacheCounters
from .wirelimits import CacheUse as CacheUse
from .wirelimits import LimitProof as LimitProof
from .wirelimits import MemoryAccount as MemoryAccount
from .wirelimits import RoutingTrace as RoutingTrace
from .wirelimits import TimelineTrace as TimelineTrace
from .wiresearch import Candidate as Candidate
from .wiresearch import ThreadChoice as ThreadChoice
from .wiresearch import ThreadSearch as ThreadSearch
from .wirespec import SynthSpec as SynthSpec
from .wirespool import Alive as Alive
from .wirespool import Receipt as Receipt
from .wirespool import SpoolEntry as SpoolEntry
from .wirespool import spool_key as spool_key
from .wiretelemetry import GATE_OUTCOMES as GATE_OUTCOMES
from .wiretelemetry import Bandwidth as Bandwidth
from .wiretelemetry import Bracket as Bracket
from .wiretelemetry import Energy as Energy
from .wiretelemetry import Gate as Gate
from .wiretelemetry import Telemetry as Telemetry
from .wiretelemetry import ThermalState as ThermalState
from .wiretelemetry import Timeline as Timeline
from .wiretools import BundleRequest as BundleRequest
from .wiretools import LimitProbe as LimitProbe
from .wiretools import LimitResult as LimitResult
from .wiretools import LimitsRequest as LimitsRequest
from .wiretools import MakeRequest as MakeRequest
from .wiretools import ModelFile as ModelFile
from .wiretools import Progress as Progress

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
    "lost",
)

# Engines that are programs: llama.cpp's own benchmark, and any command line.
PROGRAM_KINDS = ("llama-bench", "external")

# Verdicts of a check against a reference: "unchecked" when no reference was given.
CHECK_VERDICTS = ("ok", "wrong", "unchecked")

# Who measured: our agent, or another program whose output was imported (docs/exchange.md).
PROVENANCES = ("measured", "imported")

# Three-valued: "unknown" where the device has no sensor that could tell.
THROTTLE_VERDICTS = ("no", "yes", "unknown")


# ---- in: what to do --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelRef:
    """A model on the device. ``digest`` is the SHA-256 of the file, "" until it is known. ``profile`` names
    the set statistics of a synthetic one."""

    name: str
    path: str
    digest: str = ""
    synthetic: Optional[SynthSpec] = None
    profile: str = ""


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
    """How it is computed, as requested. ``threads`` 0: one per CPU; ``cpus`` empty: not pinned.
    ``populate``: every page of the weights is touched before anything is timed. ``load``: mmap, read,
    repack, or auto: repack where memory allows. ``sparse_ffn_auto``: a sparse FFN is chosen per layer.

    ``memory_limit_bytes`` 0: none. ``cache``: "" (all weights in memory), "auto" (the largest that fits the
    limit), a number of bytes, or a share of all units such as "25%"; units come from ``bundle``, a path on
    the device; ``start``: "cold", an empty cache before the warm-up tokens, or "warm": more untimed tokens,
    until it is full. ``routing``: path of a trace whose experts are used in place of the router's choice, and
    ``routing_digest`` its SHA-256; ``record_routing``: path to write the run's own to;
    ``timeline``: path to write what each thread did to (docs/profile.md)."""

    threads: int = 0
    cpus: List[int] = field(default_factory=list)
    isa: str = "auto"
    n_ctx: int = 4096
    n_batch: int = 64
    kv_type: str = "f16"
    kv_touch: bool = True
    sparse_ffn: bool = False
    sparse_ffn_auto: bool = False
    sparse_lm_head: bool = False
    lm_head_threshold: float = 0.0
    requantise_down: bool = False
    load: str = "auto"
    populate: bool = True
    memory_limit_bytes: int = 0
    cache: str = ""
    bundle: str = ""
    cache_policy: str = "auto"
    io: str = "auto"
    io_direct: str = "auto"
    prefetch: str = "auto"
    start: str = "cold"
    routing: str = ""
    routing_digest: str = ""
    record_routing: str = ""
    timeline: str = ""


@dataclass(frozen=True)
class ReferencePosition:
    """One decode step of a slow reference run; step -1 is the end of the prompt (of a workload that
    generates nothing). ``rows``/``logits`` are a fixed sample of the vocabulary (top rows included), ``sd``
    is over all finite logits, ``margin`` is the distance of the two largest. ``logits_hash`` is over all raw
    logits. ``kept_hash`` is over the rows that the lm_head predictor kept, without ``borderline`` ones (score
    within rounding of the threshold)."""

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
    """Expected outputs of one model, workload and set of switches, computed with scalar kernels.
    ``key`` is what :func:`stbench.agent.verify.reference_key` says of the job."""

    key: str
    model_digest: str
    positions: List[ReferencePosition]


@dataclass(frozen=True)
class Reading:
    """How tokens/s is read from what a program printed (stdout, then stderr): ``regex`` has one group, the
    number, and its last match counts; ``json`` is a path such as ``timings.predicted_per_second`` into the
    last line (or the whole output) that is JSON. One of the two is set."""

    regex: str = ""
    json: str = ""


@dataclass(frozen=True)
class Program:
    """An engine that is a program and times itself. ``kind`` is one of PROGRAM_KINDS.

    ``command`` is the argument list. Words in braces are filled in on the device: {model}, {threads}, {cpus},
    {n_prompt}, {n_gen}, {n_depth}, {n_ctx}, {n_batch}, {seed}. For llama-bench it is the binary, then
    arguments that are added to ours. ``environment`` is added to the agent's.
    ``decode`` and ``prefill`` are for external programs; llama-bench's output is known."""

    kind: str
    command: List[str]
    environment: Dict[str, str] = field(default_factory=dict)
    decode: Optional[Reading] = None
    prefill: Optional[Reading] = None


@dataclass(frozen=True)
class OfJob:
    """Which job a message is of. ``id`` is content-addressed; ``label`` is what a person types:
    ``local:smallthinker-4b/sparse+lmhead/t2/tg256``."""

    id: str
    label: str
    campaign: str
    device: str
    case: str
    replicate: int
    engine: str


@dataclass(frozen=True)
class JobSpec(OfJob):
    """One process invocation on a device. ``purpose`` is "measure", "reference" or "search" (of the fastest
    of ``candidates``). ``choice``: -t auto set the threads and CPUs.
    ``library`` is the path of libsbr.so on the device, "" for the fake engine; engines that are programs
    have a ``program``, and the library for the bandwidth probes. ``bracket_ms`` is how long each of these
    takes (0: none). ``attempt`` counts the runs of one job that was disturbed, from 0; ``id`` is the same
    for all. ``cool_down_s`` is the longest wait of the thermal gate (0: no gate) and ``idle`` the coolest
    state that it has seen on this device; ``sample_hz`` is how often the machine is looked at during the run
    (0: never); ``limit_method`` how a memory limit is held, of LIMIT_METHODS, or "auto"."""

    library: str
    model: ModelRef
    workload: Workload
    settings: Settings
    purpose: str = "measure"
    warmup_tokens: int = 4
    timeout_s: float = 600.0
    reference: Optional[Reference] = None
    program: Optional[Program] = None
    bracket_ms: int = 0
    attempt: int = 0
    candidates: List[Candidate] = field(default_factory=list)
    choice: Optional[ThreadChoice] = None
    cool_down_s: float = 0.0
    idle: Optional[ThermalState] = None
    sample_hz: float = 1.0
    limit_method: str = "auto"
    schema: int = SCHEMA_VERSION


# ---- out: what was found ---------------------------------------------------------------------------


@dataclass(frozen=True)
class CpuCluster:
    """CPUs of one kind. ``max_khz`` None: the device does not say. ``capacity`` is the kernel's measure of
    speed (1024: its fastest CPU), ``kind`` is "core" or "atom" on hybrid x86 CPUs, ``cores`` has the first
    CPU of every physical core where several CPUs share one (empty: none do, or the device does not say)."""

    cpus: List[int]
    model: str
    max_khz: Optional[int] = None
    governor: Optional[str] = None
    capacity: Optional[int] = None
    kind: str = ""
    cores: List[int] = field(default_factory=list)


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
    board: Optional[str] = None


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
    """What was really in force. ``affinity`` is per thread, from /proc, as read during the run. Of an
    engine that is a program only what it says or /proc shows is known: other texts are "", other numbers 0.
    ``weights_repacked``: weights were copied into another layout in anonymous memory; ``load_ns``: how long
    loading took, repacking included. ``last_cpus`` is where each thread was after the last token;
    ``affinity_kept``: threads were allowed, and last seen on, the CPUs asked for and no others. None: not
    known, or not asked."""

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
    weights_repacked: Optional[bool] = None
    load_ns: Optional[int] = None
    last_cpus: List[int] = field(default_factory=list)
    affinity_kept: Optional[bool] = None


@dataclass(frozen=True)
class Samples:
    """Raw durations. TTFT is from the start of the prompt's prefill to its logits (0: no prompt, or not
    known); ``prefill_ns[i]`` is the i-th batch, of ``prefill_tokens[i]`` tokens; ``decode_ns`` is per
    token, lm_head included. Programs that say only totals have one item for many tokens:
    ``decode_tokens[i]`` tokens took ``decode_ns[i]``; empty: one each."""

    ttft_ns: int
    prefill_ns: List[int]
    prefill_tokens: List[int]
    decode_ns: List[int]
    decode_tokens: List[int] = field(default_factory=list)


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
    """What computed: agent version, ``sbr_build_info`` (compiler, flags, target), digest of the library."""

    agent: str
    runtime: Dict[str, Any]
    library_sha256: str


@dataclass(frozen=True)
class RunRecord(OfJob):
    """One process invocation. Parts that a failed run never reached are None. Samples of a run that is not
    "ok" are kept for diagnosis and are no speed. ``reference`` is the result of purpose "reference" and
    ``search`` that of "search", which have no samples; ``choice``: -t auto set the threads and CPUs.
    ``gate`` None: the job asked for none; ``timeline`` None: it was not sampled; ``energy`` None: no sensor,
    or not told apart from the rest of a program's run. ``limit`` None: no memory limit was asked for;
    ``cache`` None: all weights were in memory. ``provenance`` "imported": the numbers are another program's
    word, and what it did not say is unknown."""

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
    purpose: str = "measure"
    program: Optional[Program] = None
    bracket: Optional[Bracket] = None
    attempt: int = 0
    reference: Optional[Reference] = None
    search: Optional[ThreadSearch] = None
    choice: Optional[ThreadChoice] = None
    gate: Optional[Gate] = None
    timeline: Optional[Timeline] = None
    energy: Optional[Energy] = None
    limit: Optional[LimitProof] = None
    cache: Optional[CacheUse] = None
    account: Optional[MemoryAccount] = None
    routing: Optional[RoutingTrace] = None
    profile: Optional[TimelineTrace] = None
    provenance: str = "measured"
