"""Measured runs with a cache of experts: points beside a simulation, and the rates for a prediction."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stbench.agent.routing import Routing
from stbench.agent.wire import CacheCounters, RunRecord
from stbench.errors import InputError
from stbench.frame import to_frame
from stbench.presets import CACHE_WARMUP_TOKENS
from stbench.simulate import Simulator, tokens_of_a_run


@dataclass(frozen=True)
class Measured:
    """One case, over its replicates: medians. ``simulated_hit_rate``: the same policy over just the tokens
    that the run decoded, counted after its prompt; None where that is not known."""

    label: str
    policy: str
    prefetch: str
    cache_bytes: int
    units: int
    hit_rate: float
    bytes_per_token: float
    tokens_per_s: float
    replicates: int
    simulated_hit_rate: float | None = None


@dataclass(frozen=True)
class Rates:
    """``source`` says of which records."""

    storage_bytes_per_s: float
    tokens_per_s: float
    source: str


def usable_runs(records: Sequence[RunRecord], model: str, trace: Routing) -> list[tuple[RunRecord, float]]:
    """Records of a model with the routing's shape that ended well, and their decode speed in tokens/s. The
    model is ``model`` where that is not ""."""
    shape = (trace.n_layer, trace.n_expert, trace.n_expert_used)
    table = to_frame(records)
    return [
        (record, float(tps))
        for record, tps in zip(records, table["decode_tps"], strict=True)
        if tps > 0  # NaN for what did not end well
        and record.shape is not None
        and (record.shape.n_layer, record.shape.n_expert, record.shape.n_expert_used) == shape
        and model in ("", record.model.name)
    ]


def has_routing(record: RunRecord, file_digest: str) -> bool:
    """Whether a run replayed the trace of that SHA-256, or recorded it."""
    recorded = record.routing is not None and record.routing.sha256 == file_digest
    return recorded or record.settings.routing_digest == file_digest


def measured(
    runs: Sequence[tuple[RunRecord, float]],
    file_digest: str,
    trace: Routing,
    simulator_of: Callable[[str], Simulator],
) -> list[Measured]:
    """Points of the runs that had a cache and used the trace whose file has that SHA-256. ``simulator_of`` a
    policy's name gives what it is simulated with."""
    cases: dict[tuple[str, str], list[tuple[RunRecord, float]]] = {}
    for record, tps in runs:
        if record.cache is not None and record.cache.decode.requests and has_routing(record, file_digest):
            cases.setdefault((record.device, record.case), []).append((record, tps))
    points = []
    for found in cases.values():
        first = found[0][0]
        assert first.cache is not None
        counters = [(record.cache.decode, record.workload.n_gen) for record, _ in found if record.cache]
        points.append(
            Measured(
                label=first.label,
                policy=first.cache.policy,
                prefetch=first.cache.prefetch,
                cache_bytes=first.cache.bytes,
                units=first.cache.units,
                hit_rate=statistics.median(hit_rate(decode) for decode, _ in counters),
                bytes_per_token=statistics.median(decode.bytes_read / n_gen for decode, n_gen in counters),
                tokens_per_s=statistics.median(tps for _, tps in found),
                replicates=len(found),
                simulated_hit_rate=simulated_hit_rate(first, trace, simulator_of(first.cache.policy)),
            )
        )
    return sorted(points, key=lambda point: (point.policy, point.units, point.label))


def hit_rate(counters: CacheCounters) -> float:
    """What was there when it was asked for; a unit that a guess was still loading was not."""
    return counters.hits / counters.requests


def simulated_hit_rate(record: RunRecord, trace: Routing, simulator: Simulator) -> float | None:
    """Of the tokens that this run decoded with the replayed trace: the cache is filled by the run's earlier
    tokens and nothing of them is counted. Records do not say how long the warm-up was, which replays what
    comes before the trace's beginning: that of the presets for caches is taken."""
    work, cache = record.workload, record.cache
    if cache is None or not record.settings.routing_digest or not work.n_gen:
        return None
    warmup, before = 2 * CACHE_WARMUP_TOKENS, work.n_depth + work.n_prompt
    tokens = tokens_of_a_run(trace, -warmup, before + work.n_gen)
    return simulator(tokens, cache.units, warmup + before).hit_rate


def rates(runs: Sequence[tuple[RunRecord, float]]) -> Rates:
    """Storage: what the caches' reads brought while any was under way. Computing: the speed with all weights
    in memory of runs with the same device, switches and threads as those with a cache. Medians. Raises
    :class:`InputError` where either is missing."""
    cached = [(r, tps) for r, tps in runs if r.cache is not None and r.cache.decode.ns_io_busy > 0]
    if not cached:
        raise InputError(
            "no usable record of this shape with a cache tells how fast units are read",
            hint="--storage-rate GB/s (`stbench roofline` measures it) and --compute-rate TOKENS/S",
        )
    alike = {_conditions(record) for record, _ in cached}
    free = [
        tps
        for record, tps in runs
        if record.cache is None and not record.settings.memory_limit_bytes and _conditions(record) in alike
    ]
    if not free:
        raise InputError(
            "no usable record with the same switches and threads, but without a cache and a limit, tells how "
            "fast it computes",
            hint="--compute-rate TOKENS/S with all weights in memory; or measure it: --cache none,256MiB",
        )
    storage = statistics.median(
        1e9 * r.cache.decode.bytes_read / r.cache.decode.ns_io_busy for r, _ in cached if r.cache is not None
    )
    return Rates(storage, statistics.median(free), f"{len(cached)} records with a cache, {len(free)} without")


def _conditions(record: RunRecord) -> tuple[object, ...]:
    s = record.settings
    return (record.device, record.engine, s.threads, s.sparse_ffn, s.sparse_lm_head, s.isa)
