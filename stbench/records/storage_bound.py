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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

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


@dataclass(frozen=True)
class Evidence:
    """What a record itself says. ``free``: it ran with all weights in memory and so says how fast that is,
    of ``conditions``; ``cached``: it has a bound; ``own_tps`` is its rate less its waits, NaN if unknown."""

    free: bool
    cached: bool
    conditions: str
    own_tps: float
    storage_gb_per_s: float
    missed: float


def evidence_of(record: RunRecord) -> Evidence:
    """Of one record, without its campaign."""
    samples, cache, own = record.samples, record.cache, math.nan
    if samples is not None and cache is not None:
        computing_ns = sum(samples.decode_ns) - cache.decode.ns_wait
        own = record.workload.n_gen * 1e9 / computing_ns if computing_ns > 0 else math.nan
    storage = storage_gb_per_s(record)
    return Evidence(
        _is_free(record),
        cache is not None,
        _conditions(record),
        own,
        math.nan if storage is None else storage,
        static_bytes_per_token(cache, record.workload.n_gen),
    )


Partners: TypeAlias = "dict[str, dict[int, float]]"


def bounds(
    records: Sequence[RunRecord], speeds: Sequence[float], verdicts: Sequence[Verdict]
) -> list[dict[str, Any]]:
    """The columns of the bound, a row for each record. ``speeds``: decode tokens/s, NaN for what has none."""
    partners: Partners = {}
    found = [evidence_of(record) for record in records]
    for one, record, tps, verdict in zip(found, records, speeds, verdicts, strict=True):
        add_partner(partners, one, record.replicate, tps, disturbed=verdict.disturbed)
    return [
        {**own_columns(one), **bound(one, record.replicate, tps, partners)}
        for one, record, tps in zip(found, records, speeds, strict=True)
    ]


def add_partner(partners: Partners, one: Evidence, replicate: int, tps: float, *, disturbed: bool) -> None:
    """Keeps what a run without a cache says of the rate of computing."""
    if one.free and tps > 0 and not disturbed:
        partners.setdefault(one.conditions, {})[replicate] = tps


def own_columns(one: Evidence) -> dict[str, float]:
    """The columns that need no other record."""
    return {"storage_gb_per_s": one.storage_gb_per_s, "static_bytes_per_token": one.missed}


def compute_rate(one: Evidence, replicate: int, partners: dict[int, float]) -> Compute:
    """Of a run with a cache; ``partners``: tokens/s by replicate of the same case without one."""
    if partners:
        same_round = partners.get(replicate)
        return Compute(same_round or statistics.median(partners.values()), UNLIMITED)
    return Compute(one.own_tps, OWN) if one.own_tps > 0 else UNKNOWN


def bound(one: Evidence, replicate: int, tps: float, partners: Partners) -> dict[str, Any]:
    """The columns that need the rest of the campaign."""
    known = one.cached and tps > 0
    compute = compute_rate(one, replicate, partners.get(one.conditions, {})) if known else UNKNOWN
    found = bound_tps(one.storage_gb_per_s, one.missed, compute.tokens_per_s)
    return {
        "compute_tps": compute.tokens_per_s,
        "compute_from": compute.source,
        "bound_tps": found,
        "bound_share": tps / found if found > 0 else math.nan,
    }


def _is_free(record: RunRecord) -> bool:
    return record.cache is None and not record.settings.cache and not record.settings.memory_limit_bytes


def _conditions(record: RunRecord) -> str:
    """What decides how fast a token is computed. Not which experts are chosen: each takes as long."""
    s, work = record.settings, record.workload
    return repr(
        (
            (record.campaign, record.device, record.facts.fingerprint if record.facts else ""),
            (record.engine, record.versions.library_sha256 if record.versions else ""),
            (record.model.name, record.model.digest),
            (work.n_prompt, work.n_gen, work.n_depth),
            (s.threads, tuple(s.cpus), s.isa, s.n_ctx, s.n_batch, s.kv_type),
            (s.sparse_ffn, s.sparse_ffn_auto, s.sparse_lm_head, s.lm_head_threshold, s.requantise_down),
        )
    )
