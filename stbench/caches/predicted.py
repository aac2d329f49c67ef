"""What a run should have decoded, by the simulation of its own routing and the rates probed beside it: the
check of the model in docs/simulate.md, which predicts runs that nobody made."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from stbench.agent.wire import RunRecord
from stbench.caches import simulate
from stbench.caches.simulate import Machine, Outcome
from stbench.records import disturbance, storage_bound


def compute_rates(runs: Sequence[tuple[RunRecord, float]]) -> list[float]:
    """Tokens/s with all weights in memory for each run, NaN where nothing tells
    (:mod:`stbench.records.storage_bound`)."""
    records = [record for record, _ in runs]
    speeds = [tps for _, tps in runs]
    found = storage_bound.bounds(records, speeds, disturbance.judge(records))
    return [float(row["compute_tps"]) for row in found]


def machine_of(record: RunRecord, compute_tps: float, shares: Mapping[str, float]) -> Machine | None:
    """The machine that the brackets of a run saw; None without probes of storage. ``shares`` as of
    :func:`stbench.caches.simulate.shares_of`."""
    storage, one_s, cache = disturbance.storage_gb_per_s(record), disturbance.one_unit_s(record), record.cache
    if storage is None or one_s is None or cache is None or not compute_tps > 0:
        return None
    latency_s = max(one_s - cache.unit_bytes / (storage * 1e9), 0.0)
    return Machine(storage * 1e9, 1 / compute_tps, **shares, latency_s=latency_s)


def tokens_per_s(
    record: RunRecord, outcome: Outcome | None, compute_tps: float, shares: Mapping[str, float]
) -> float | None:
    """Of a run whose routing had this ``outcome`` with its cache; None where a rate is not known."""
    machine = machine_of(record, compute_tps, shares)
    if machine is None or outcome is None or record.cache is None or record.shape is None:
        return None
    seconds = simulate.seconds_per_token(outcome, record.shape.n_layer, record.cache.unit_bytes, machine)
    return 1 / seconds


def median(values: Sequence[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
