"""What a run should have decoded, by the simulation of its own routing, the phases of its unlimited partner
and what storage gave: the check of the model in docs/simulate.md, which predicts runs that nobody made."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from stbench.agent import sbr
from stbench.agent.wire import RunRecord
from stbench.caches import clock, simulate
from stbench.caches.clock import Machine
from stbench.caches.simulate import Outcome
from stbench.records import disturbance, storage_bound


def compute_rates(runs: Sequence[tuple[RunRecord, float]]) -> list[float]:
    """Tokens/s with all weights in memory for each run, NaN where nothing tells
    (:mod:`stbench.records.storage_bound`)."""
    records = [record for record, _ in runs]
    speeds = [tps for _, tps in runs]
    found = storage_bound.bounds(records, speeds, disturbance.judge(records))
    return [float(row["compute_tps"]) for row in found]


def machine_of(
    record: RunRecord, compute_tps: float, shares: Mapping[str, float], latency_s: float | None = None
) -> Machine | None:
    """The machine that a run saw; None where a rate is not known. ``shares`` as of
    :func:`stbench.caches.clock.measured_shares`. Storage is what the run got while any read was under way;
    with a ``latency_s`` (:func:`first_read_s`) it is what was probed before and after the run."""
    cache = record.cache
    if cache is None or not compute_tps > 0:
        return None
    pieces = clock.PIECES_AT_ONCE.get(cache.io, 1)
    if latency_s is not None:
        probed = disturbance.storage_gb_per_s(record)
        if probed is None:
            return None
        return Machine(probed * 1e9, 1 / compute_tps, **shares, latency_s=latency_s, pieces_at_once=pieces)
    if not cache.decode.ns_io_busy or not cache.decode.bytes_read:
        return None
    busy = 1e9 * cache.decode.bytes_read / cache.decode.ns_io_busy
    return Machine(busy, 1 / compute_tps, **shares, pieces_at_once=pieces)


def first_read_s(records: Iterable[RunRecord]) -> float | None:
    """What the first read after a pause takes beyond its bytes at the probed rate: by the time in which runs
    with exact prefetch had reads under way, over the times that they waited, the median; None without any.
    A probe of one unit at a time does not tell: it was 0.9 to 1.2 ms where this was 0.2, since nothing else
    keeps a virtual machine's CPUs awake."""
    found = []
    for record in records:
        probed, cache = disturbance.storage_gb_per_s(record), record.cache
        if probed is None or cache is None or cache.prefetch != "exact" or not cache.decode.late:
            continue
        found.append(
            (cache.decode.ns_io_busy / 1e9 - cache.decode.bytes_read / (probed * 1e9)) / cache.decode.late
        )
    return max(statistics.median(found), 0.0) if found else None


def guessed_right(record: RunRecord) -> float | None:
    """Of the experts that a run named just before their layer, the share that was chosen; None: it named
    none."""
    counted = record.cache.decode if record.cache is not None else None
    return counted.predicted_right / counted.predicted if counted is not None and counted.predicted else None


def clock_of(record: RunRecord, machine: Machine | None) -> sbr.Clock | None:
    """For simulating a run that guesses, as often right as it was; None for one that does not, or where the
    machine is not known."""
    cache, shape, right = record.cache, record.shape, guessed_right(record)
    if machine is None or cache is None or shape is None or right is None:
        return None
    if not clock.GUESS_LAYERS.get(cache.prefetch):
        return None
    return clock.clock_of(
        machine, shape.n_layer, shape.n_expert_used, cache.unit_bytes, cache.prefetch, right
    )


def tokens_per_s(record: RunRecord, outcome: Outcome | None, machine: Machine | None) -> float | None:
    """Of a run whose routing had this ``outcome`` with its cache; None where that or a rate is not known."""
    if machine is None or outcome is None or record.cache is None or record.shape is None:
        return None
    return 1 / simulate.seconds_per_token(outcome, record.shape.n_layer, record.cache.unit_bytes, machine)


def median(values: Iterable[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
