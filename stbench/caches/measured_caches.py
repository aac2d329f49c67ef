"""Measured runs with a cache of experts: points beside a simulation, and the rates for a prediction."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stbench.agent import routing
from stbench.agent.routing import Routing, RoutingError
from stbench.agent.sbr import Clock
from stbench.agent.wire import CacheCounters, RunRecord, SynthSpec
from stbench.caches import predicted, routings
from stbench.caches.clock import PIECES_AT_ONCE, measured_shares, shares_of
from stbench.caches.simulate import Outcome, Simulator, tokens_of_a_run
from stbench.errors import InputError
from stbench.records.disturbance import storage_gb_per_s
from stbench.records.frame import to_frame
from stbench.sweeps.presets import CACHE_WARMUP_TOKENS


@dataclass(frozen=True)
class Measured:
    """One case, over its replicates: medians. ``hit_rate``: see :func:`hit_rate`; ``simulated_hit_rate``: the
    same policy over just the tokens that the run decoded, counted after its prompt, guesses included;
    ``predicted_tokens_per_s``: with those hits and what each run's reads got from storage
    (:mod:`stbench.caches.predicted`), the median; ``probed_tokens_per_s``: the same with what was probed
    before and after it. None where that is not known."""

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
    predicted_tokens_per_s: float | None = None
    probed_tokens_per_s: float | None = None


@dataclass(frozen=True)
class Rates:
    """``source`` says of which records; ``latency_s``: what the first miss of a layer takes beyond its bytes
    (in a rate while any read was under way it is part of the rate); ``pieces_at_once`` as of
    :class:`stbench.caches.clock.Machine`."""

    storage_bytes_per_s: float
    tokens_per_s: float
    source: str
    pieces_at_once: int
    latency_s: float = 0.0


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


def same_choices(records: Iterable[RunRecord], campaign: Path, trace: Path) -> set[str]:
    """SHA-256 of the trace's file and of those that runs of the campaign recorded with the same choices: each
    run's own file says which run it is of, and so no two are the same to the byte. Unreadable ones are left
    out. Raises :class:`InputError` for the trace."""
    directory = campaign if campaign.is_dir() else campaign.parent
    wanted = routings.load(trace).digest()
    found = {routings.file_digest(trace)}
    kept = {r.routing.path: r.routing.sha256 for r in records if r.routing is not None and r.routing.path}
    for path, sha256 in kept.items():
        try:
            same = routing.read(str(directory / path)).digest() == wanted
        except (RoutingError, OSError):
            continue
        if same:
            found.add(sha256)
    return found


def has_routing(record: RunRecord, file_digests: Collection[str]) -> bool:
    """Whether a run replayed a trace of these SHA-256, or recorded it."""
    recorded = record.routing is not None and record.routing.sha256 in file_digests
    return recorded or record.settings.routing_digest in file_digests


# A run, its tokens/s, and those with all weights in memory.
_Run = tuple[RunRecord, float, float]


def measured(
    runs: Sequence[tuple[RunRecord, float]],
    file_digests: Collection[str],
    trace: Routing,
    simulator_of: Callable[[str, Clock | None], Simulator],
    shares: Mapping[str, float] | None = None,
) -> list[Measured]:
    """Points of the runs that had a cache and used a trace of these SHA-256. ``simulator_of`` a policy's name
    and a clock (None: no guesses) gives what it is simulated with; ``shares`` of a token's time, see
    :func:`stbench.caches.clock.shares_of`."""
    cases: dict[tuple[str, str], list[_Run]] = {}
    for (record, tps), compute in zip(runs, predicted.compute_rates(runs), strict=True):
        if record.cache is not None and record.cache.decode.requests and has_routing(record, file_digests):
            cases.setdefault((record.device, record.case), []).append((record, tps, compute))

    def foreseen(
        found: list[_Run], exact: Outcome | None, latency_s: float | None
    ) -> tuple[list[float | None], list[float | None]]:
        """Speeds and hit rates of the runs of one case; only runs that guess are simulated one by one."""
        speeds, hit_rates = [], []
        for record, _, compute in found:
            machine = predicted.machine_of(record, compute, shares or {}, latency_s)
            clock = predicted.clock_of(record, machine)
            outcome = exact
            if clock is not None and record.cache is not None:
                outcome = simulated(record, trace, simulator_of(record.cache.policy, clock))
            speeds.append(predicted.tokens_per_s(record, outcome, machine))
            hit_rates.append(outcome.hit_rate if outcome else None)
        return speeds, hit_rates

    points = []
    latency_s = predicted.first_read_s(record for found in cases.values() for record, _, _ in found)
    for found in cases.values():
        first = found[0][0]
        assert first.cache is not None
        counters = [(record.cache.decode, record.workload.n_gen) for record, _, _ in found if record.cache]
        outcome = simulated(first, trace, simulator_of(first.cache.policy, None))
        speeds, hit_rates = foreseen(found, outcome, None)
        points.append(
            Measured(
                label=first.label,
                policy=first.cache.policy,
                prefetch=first.cache.prefetch,
                cache_bytes=first.cache.bytes,
                units=first.cache.units,
                hit_rate=statistics.median(hit_rate(decode) for decode, _ in counters),
                bytes_per_token=statistics.median(decode.bytes_read / n_gen for decode, n_gen in counters),
                tokens_per_s=statistics.median(tps for _, tps, _ in found),
                replicates=len(found),
                simulated_hit_rate=predicted.median(hit_rates),
                predicted_tokens_per_s=predicted.median(speeds),
                probed_tokens_per_s=predicted.median(foreseen(found, outcome, latency_s)[0])
                if latency_s is not None
                else None,
            )
        )
    return sorted(points, key=lambda point: (point.policy, point.units, point.label))


def hit_rate(counters: CacheCounters) -> float:
    """Requests that no read was for. What a right guess brought was read for its request, in time or not: no
    hit here, as it is none of a simulation, while ``counters.hits`` has those that were in time."""
    vain = counters.guesses - counters.guesses_used - counters.guesses_cancelled
    return 1 - (counters.loads - vain) / counters.requests


def simulated(record: RunRecord, trace: Routing, simulator: Simulator) -> Outcome | None:
    """Of the tokens that this run decoded: the cache is filled by the run's earlier tokens, of which nothing
    is counted. A replay's warm-up is what comes before the trace's beginning; where a record does not say how
    long it was, that of the presets for caches is taken. A run's own recording begins with its prompt, which
    fills the cache here; None where it has none."""
    work, cache = record.workload, record.cache
    if cache is None or not work.n_gen:
        return None
    if not record.settings.routing_digest:
        return simulator(trace, cache.units, work.n_prompt) if 0 < work.n_prompt < trace.n_tokens else None
    warmup, before = cache.warmup_tokens or 2 * CACHE_WARMUP_TOKENS, work.n_depth + work.n_prompt
    tokens = tokens_of_a_run(trace, -warmup, before + work.n_gen)
    return simulator(tokens, cache.units, warmup + before)


def rates(runs: Sequence[tuple[RunRecord, float]]) -> Rates:
    """Storage: what was probed beside runs with a cache; of records without such probes, what the caches'
    reads brought while any was under way. Computing: the speed with all weights in memory of runs with the
    same device, switches and threads as those with a cache. Medians. Raises :class:`InputError` where either
    is missing."""
    cached = [(r, tps) for r, tps in runs if r.cache is not None and r.cache.decode.ns_io_busy > 0]
    if not cached:
        raise InputError(
            "no usable record of this shape with a cache tells how fast units are read",
            hint="--storage-rate GB/s (`stbench roofline` measures it) and --compute-rate TOKENS/S",
        )
    alike = {_conditions(record) for record, _ in cached}
    free = [
        (record, tps)
        for record, tps in runs
        if record.cache is None and not record.settings.memory_limit_bytes and _conditions(record) in alike
    ]
    if not free:
        raise InputError(
            "no usable record with the same switches and threads, but without a cache and a limit, tells how "
            "fast it computes",
            hint="--compute-rate TOKENS/S with all weights in memory; or measure it: --cache none,256MiB",
        )
    source = f"{len(cached)} records with a cache, {len(free)} without"
    io = next((r.cache.io for r, _ in cached if r.cache is not None), "")
    pieces = PIECES_AT_ONCE.get(io, 1)
    compute = statistics.median(tps for _, tps in free)
    probed = [rate for r, _ in cached if (rate := storage_gb_per_s(r)) is not None]
    if not probed:
        busy = [1e9 * r.cache.decode.bytes_read / r.cache.decode.ns_io_busy for r, _ in cached if r.cache]
        return Rates(statistics.median(busy), compute, source, pieces)
    source += ", storage as probed beside them"
    latency_s = predicted.first_read_s(r for r, _ in cached) or 0.0
    return Rates(1e9 * statistics.median(probed), compute, source, pieces, latency_s)


def shares(runs: Sequence[tuple[RunRecord, float]], spec: SynthSpec | None) -> dict[str, float]:
    """Of a token's time: as runs with all weights in memory counted their phases; without such runs by the
    model's shapes; {} where neither is known."""
    found = measured_shares(
        r for r, _ in runs if r.cache is None and not r.settings.memory_limit_bytes and r.limit is None
    )
    return found or (shares_of(spec) if spec is not None else {})


def guessed_right(runs: Sequence[tuple[RunRecord, float]], prefetch: str) -> float | None:
    """Of the experts that runs with this prefetch named ahead, the share that was used, the median; None
    where none did."""
    return predicted.median(
        predicted.guessed_right(r) for r, _ in runs if r.cache is not None and r.cache.prefetch == prefetch
    )


def _conditions(record: RunRecord) -> tuple[object, ...]:
    s = record.settings
    return (record.device, record.engine, s.threads, s.sparse_ffn, s.sparse_lm_head, s.isa)
