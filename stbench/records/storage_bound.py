"""How close a run whose weights come from storage came to the best that its machine allowed then.

    bound = min(compute rate, storage rate / bytes per token that a static cache misses)

- *Compute rate*: decode tokens/s with all weights in memory. It is measured by the same case without a limit
  and a cache in the same campaign: the replicate that ran in the same round, or the median of all. Without
  such a partner it is what the run itself says, its time less the time in which thread 0 waited for units
  ("own"): its computing was then slowed by its own reads, which makes the bound lower and the share larger.
- *Storage rate*: of the probes just before and after the run, the mean.
- *Bytes missed*: by a cache of the same size that always holds the experts that this run used most
  (``cache.static_hits``). Without experts: the layers' bytes that do not fit, since every token needs all.

A share over 100 % means that the run's policy did better than that cache could.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from stbench.agent.wire import CacheUse, RunRecord
from stbench.records.disturbance import Verdict, storage_gb_per_s

UNLIMITED = "unlimited"
OWN = "own"


@dataclass(frozen=True)
class Compute:
    """``tokens_per_s`` with all weights in memory; ``source`` is UNLIMITED, OWN or ""."""

    tokens_per_s: float
    source: str


UNKNOWN = Compute(math.nan, "")


def static_bytes_per_token(cache: CacheUse | None, n_gen: int) -> float:
    """NaN where that is not known."""
    if cache is None or not n_gen:
        return math.nan
    if cache.kind == "layers":
        return float(max(cache.total_bytes - cache.bytes, 0))
    if cache.static_hits is None:
        return math.nan
    return (cache.decode.requests - cache.static_hits) * cache.unit_bytes / n_gen


def bound_tps(storage_gb_per_s: float, bytes_per_token: float, compute_tps: float) -> float:
    """Tokens/s; NaN where one of the three is not known, but a cache that misses nothing needs no storage."""
    if bytes_per_token == 0:
        return compute_tps
    known = all(math.isfinite(value) for value in (storage_gb_per_s, bytes_per_token, compute_tps))
    return min(compute_tps, storage_gb_per_s * 1e9 / bytes_per_token) if known else math.nan


def bounds(
    records: Sequence[RunRecord], speeds: Sequence[float], verdicts: Sequence[Verdict]
) -> list[dict[str, Any]]:
    """The columns of the bound, a row for each record. ``speeds``: decode tokens/s, NaN for what has none."""
    partners: dict[Hashable, dict[int, float]] = {}
    for record, tps, verdict in zip(records, speeds, verdicts, strict=True):
        if _is_free(record) and tps > 0 and not verdict.disturbed:
            partners.setdefault(_conditions(record), {})[record.replicate] = tps
    return [_bound(record, tps, partners) for record, tps in zip(records, speeds, strict=True)]


def compute_rate(record: RunRecord, partners: dict[int, float]) -> Compute:
    """Of a run with a cache; ``partners``: tokens/s by replicate of the same case without one."""
    if partners:
        same_round = partners.get(record.replicate)
        return Compute(same_round or statistics.median(partners.values()), UNLIMITED)
    samples, cache = record.samples, record.cache
    if samples is None or cache is None:
        return UNKNOWN
    computing_ns = sum(samples.decode_ns) - cache.decode.ns_wait
    return Compute(record.workload.n_gen * 1e9 / computing_ns, OWN) if computing_ns > 0 else UNKNOWN


def _bound(record: RunRecord, tps: float, partners: dict[Hashable, dict[int, float]]) -> dict[str, Any]:
    cached = record.cache is not None and tps > 0
    compute = compute_rate(record, partners.get(_conditions(record), {})) if cached else UNKNOWN
    storage = storage_gb_per_s(record)
    missed = static_bytes_per_token(record.cache, record.workload.n_gen)
    bound = bound_tps(math.nan if storage is None else storage, missed, compute.tokens_per_s)
    return {
        "storage_gb_per_s": math.nan if storage is None else storage,
        "static_bytes_per_token": missed,
        "compute_tps": compute.tokens_per_s,
        "compute_from": compute.source,
        "bound_tps": bound,
        "bound_share": tps / bound if bound > 0 else math.nan,
    }


def _is_free(record: RunRecord) -> bool:
    return record.cache is None and not record.settings.cache and not record.settings.memory_limit_bytes


def _conditions(record: RunRecord) -> Hashable:
    """What decides how fast a token is computed. Not which experts are chosen: each takes as long."""
    s, work = record.settings, record.workload
    return (
        (record.campaign, record.device, record.facts.fingerprint if record.facts else ""),
        (record.engine, record.versions.library_sha256 if record.versions else ""),
        (record.model.name, record.model.digest),
        (work.n_prompt, work.n_gen, work.n_depth),
        (s.threads, tuple(s.cpus), s.isa, s.n_ctx, s.n_batch, s.kv_type),
        (s.sparse_ffn, s.sparse_ffn_auto, s.sparse_lm_head, s.lm_head_threshold, s.requantise_down),
    )
