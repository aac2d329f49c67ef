"""The limits that speeds are held against: what a device reads per second, and what a token has to read.

Decoding one token reads every weight that it uses once, so bytes per second over bytes per token is a bound
on speed. Two rates matter. Dense matrices stream at the *read* rate. Rows that a sparse FFN or lm_head picks
lie scattered: at worst they cost what the *gather* rate says, measured on random rows of the same length. KV
cache and activations are left out, so a bound is what an empty context could reach; compute is left out too,
so it may be out of reach on a slow CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stbench.agent.wire import DeviceFacts, LimitProbe, LimitResult, LimitsRequest, SynthSpec
from stbench.campaigns.agentclient import Agent
from stbench.errors import DeviceError, UsageError
from stbench.models import catalogue, gemma3n
from stbench.sweeps.sweep import switches_label

# One row of the 4B model's experts: 1536 weights of Q4_0. The 21B model's are 1440 bytes.
ROW_BYTES = 864
PAGE_BYTES = 4096
# One expert of the 4B model in Q4_0, what a memory-limited run brings with one read; a multiple of 4096.
EXPERT_BYTES = 3 * 663_552
# (bytes of one read, reads at a time; 0: as many as a run ever has under way)
STORAGE_READS = ((PAGE_BYTES, 1), (PAGE_BYTES, 8), (EXPERT_BYTES, 1), (EXPERT_BYTES, 0))

MIN_BUFFER_BYTES = 256 << 20
MAX_BUFFER_BYTES = 2 << 30
CACHE_MULTIPLE = 4


@dataclass(frozen=True)
class Rate:
    """``gb_per_s`` in 1e9 bytes/s; None with the reason in ``detail`` when it could not be measured.
    ``operations_per_s``: rows or reads."""

    threads: int
    row_bytes: int
    gb_per_s: float | None
    operations_per_s: float | None
    direct: bool = False
    detail: str = ""


@dataclass(frozen=True)
class Roofline:
    """What one device can do. ``buffer_bytes``: working set of the memory probes."""

    device: str
    cpu: str
    buffer_bytes: int
    read: tuple[Rate, ...]
    gather: tuple[Rate, ...]
    storage: tuple[Rate, ...]
    storage_path: str


@dataclass(frozen=True)
class TokenBytes:
    """Weight bytes that one decoded token reads: ``stream`` in long runs, ``gather`` in scattered rows."""

    stream: float
    gather: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.stream + self.gather


@dataclass(frozen=True)
class Bound:
    """``tokens_per_s``: no decode is faster, all bytes counted at the read rate, with the thread count that
    reads fastest. ``tokens_per_s_gathered``: the scattered rows counted at the gather rate instead, which is
    what random rows cost; a runtime that takes rows in order and ahead of time lies between the two."""

    model: str
    switches: str
    bytes: TokenBytes
    tokens_per_s: float
    tokens_per_s_gathered: float
    threads: int


def token_bytes(spec: SynthSpec, *, sparse_ffn: bool = False, sparse_lm_head: bool = False) -> TokenBytes:
    """From shapes and statistics alone. Raises ValueError for a switch that the model does not have."""
    size, weights = catalogue.BLOCKS[spec.weight_type]
    q4_size, q4_weights = catalogue.BLOCKS["q4_0"]
    if sparse_ffn and not spec.zero_share:
        raise ValueError(f"{spec.name} has no ReLU experts to skip")
    if sparse_lm_head and not spec.predictor_rank:
        raise ValueError(f"{spec.name} has no lm_head predictor")
    d = spec.n_embd
    if spec.architecture == gemma3n.ARCHITECTURE:
        # Everything once, but of the per-layer table one row; and an embedding row beside the tied output.
        table = gemma3n.PER_LAYER_WIDTH * spec.n_layer * spec.n_vocab * size / weights
        rows = table / spec.n_vocab + d * size / weights
        return TokenBytes(catalogue.sizes(spec).weight_bytes - table + rows, 0.0)
    attention = 2 * d * spec.head_dim * (spec.n_head + spec.n_head_kv) * size / weights
    norms = 4 * (2 * d + (2 * spec.head_dim if spec.architecture in catalogue.QK_NORM else 0))
    router = 4 * d * spec.n_expert
    matrix = max(spec.n_expert_used, 1) * d * spec.n_ff * size / weights
    stream = spec.n_layer * (attention + norms + router) + 4 * d + d * size / weights
    gather = 0.0
    for layer in range(spec.n_layer):
        active = 1 - spec.zero_share[layer] / 1000 if sparse_ffn and spec.zero_share else 1.0
        skipping = (2 if spec.transposed_down else 1) if sparse_ffn else 0
        stream += (3 - skipping) * matrix
        gather += skipping * matrix * active
    head = d * spec.n_vocab * size / weights
    if sparse_lm_head:
        stream += spec.predictor_rank * (d + spec.n_vocab) * q4_size / q4_weights
        gather += head * spec.lm_head_keep / 1000
    else:
        stream += head
    return TokenBytes(stream, gather)


def bounds(roofline: Roofline, entries: Iterable[catalogue.Entry] = catalogue.ENTRIES) -> list[Bound]:
    """For every entry that is not a test model and every combination of switches that it has. Empty when no
    thread count has both rates."""
    gathers = {rate.threads: rate.gb_per_s for rate in roofline.gather if rate.gb_per_s}
    both = {
        r.threads: (r.gb_per_s, gathers[r.threads])
        for r in roofline.read
        if r.gb_per_s and r.threads in gathers
    }
    if not both:
        return []
    threads = max(both, key=lambda n: (both[n][0], -n))
    read, gather = both[threads]
    found = []
    for entry in entries:
        for ffn, head in _switches(entry.spec) if not entry.name.startswith("tiny-") else ():
            needed = token_bytes(entry.spec, sparse_ffn=ffn, sparse_lm_head=head)
            gathered = 1e9 / (needed.stream / read + needed.gather / gather)
            name = switches_label(ffn, head)
            found.append(Bound(entry.name, name, needed, 1e9 * read / needed.total, gathered, threads))
    return found


def _switches(spec: SynthSpec) -> list[tuple[bool, bool]]:
    ffns = (False, True) if spec.zero_share else (False,)
    heads = (False, True) if spec.predictor_rank else (False,)
    return [(ffn, head) for ffn in ffns for head in heads]


def thread_counts(allowed_cpus: int) -> list[int]:
    """1, 2, 4, ... and all."""
    counts = {allowed_cpus}
    n = 1
    while n < allowed_cpus:
        counts.add(n)
        n *= 2
    return sorted(counts)


def buffer_bytes(facts: DeviceFacts) -> int:
    """A working set that no cache holds and that fits: four times the caches, at most a quarter of the free
    memory. Raises :class:`UsageError` when that is too little to mean anything."""
    wanted = min(max(CACHE_MULTIPLE * sum(facts.caches.values()), MIN_BUFFER_BYTES), MAX_BUFFER_BYTES)
    fits = facts.memory_available_bytes // 4
    if fits < MIN_BUFFER_BYTES // 4:
        raise UsageError(
            f"{facts.memory_available_bytes >> 20} MiB of free memory are too few to measure bandwidth",
            hint="end other programs on the device",
        )
    return min(wanted, fits) // PAGE_BYTES * PAGE_BYTES


def measure(
    agent: Agent,
    facts: DeviceFacts,
    *,
    threads: Sequence[int] = (),
    cpus: Sequence[int] = (),
    seconds: float = 0.5,
    storage_path: str = "",
) -> Roofline:
    """Runs all probes on a device, ``seconds`` each. ``storage_path``: an existing file there to read from,
    "" to leave storage out. Storage reads bypass the page cache where the file system allows it. Raises
    :class:`DeviceError` when neither memory probe works."""
    counts = list(threads) or thread_counts(len(facts.allowed_cpus) or facts.n_cpus)
    working_set = buffer_bytes(facts)
    memory = [
        LimitProbe(kind, n, list(cpus), row_bytes, working_set, seconds)
        for kind, row_bytes in (("read", 0), ("gather", ROW_BYTES))
        for n in counts
    ]
    storage = [
        LimitProbe("storage", depth, [], size, 0, seconds, storage_path, True)
        for size, depth in STORAGE_READS
        if storage_path
    ]
    found = agent.limits(LimitsRequest(agent.deployment.library, memory + storage))
    memory_found, storage_found = found[: len(memory)], found[len(memory) :]
    if all(result.status != "ok" for result in memory_found):
        raise DeviceError(f"{agent.name}: no probe worked: {memory_found[0].detail}")
    return Roofline(
        agent.name,
        facts.cpu_model,
        working_set,
        tuple(_rate(result) for result in memory_found if result.probe.kind == "read"),
        tuple(_rate(result) for result in memory_found if result.probe.kind == "gather"),
        tuple(_rate(result) for result in _through_cache(agent, storage_found)),
        storage_path,
    )


def _through_cache(agent: Agent, results: Sequence[LimitResult]) -> list[LimitResult]:
    """Where direct reads are refused (tmpfs, some FUSE file systems): the same through the page cache."""
    if not results or any(result.status == "ok" for result in results):
        return list(results)
    again = [
        LimitProbe("storage", p.threads, [], p.row_bytes, 0, p.duration_s, p.path, False)
        for p in (result.probe for result in results)
    ]
    return agent.limits(LimitsRequest(agent.deployment.library, again))


def _rate(result: LimitResult) -> Rate:
    probe = result.probe
    if result.status != "ok" or result.ns <= 0:
        detail = result.detail or result.status
        return Rate(probe.threads, probe.row_bytes, None, None, probe.direct, detail)
    seconds = result.ns / 1e9
    return Rate(
        result.threads or probe.threads,
        probe.row_bytes,
        result.bytes / seconds / 1e9,
        result.operations / seconds,
        probe.direct,
    )
