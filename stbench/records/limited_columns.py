"""Columns of :mod:`stbench.records.frame` about runs under a memory limit or with a cache.

========================  ================================================================================
``memory_limit_bytes``    as asked for, 0: none; with ``cache``, ``cache_policy``, ``io``, ``io_direct``,
                          ``prefetch``, ``start`` and ``routing`` (digest of a replayed trace, "" for
                          none) it is part of what a case is: :data:`LIMITED`
``prefetch_effective``    what "auto" came to, which is not the same in every build; "" without a cache
``limit_verdict``         of the limit's proof: "held" and so on; "" where no limit was asked for
``limit_detail``          why it is not "held"
``limit_method``          how it was enforced; ``limit_start``: "cold" or "warm"
``limit_peak_bytes``      most that the group held
``cache_bytes``           what the cache took, of ``cache_total_bytes`` for all units
``hit_rate``              requests that found their unit loaded / requests, decode
``storage_bytes_per_token``  bytes of units read from storage / decoded tokens
``io_wait_share``         time that thread 0 waited for units / time of decoding
``io_busy_share``         time with a read under way / time of decoding
``late_share``            requests for which a thread had to wait / requests
``prefetch_precision``    guesses that were used / guesses
``prefetch_recall``       misses that a guess was already loading / misses
``storage_gb_per_s``      what storage gave beside the run, mean of before and after, 1e9 bytes/s
``static_bytes_per_token``  bytes per decoded token that a cache of the same size misses that always holds the
                          experts that the run used most; of layers: what does not fit
``compute_tps``           decode tokens/s with all weights in memory (:mod:`stbench.records.storage_bound`)
``compute_from``          where that is from: "unlimited" or "own"; "" where it is not known
``bound_tps``             min(compute_tps, storage rate / static_bytes_per_token)
``bound_share``           decode_tps / bound_tps
========================  ================================================================================
"""

from __future__ import annotations

import math
from typing import Any

from stbench.agent.wire import CacheCounters, RunRecord

# Settings that make another case; with all weights in memory each has its default.
LIMITED = ("memory_limit_bytes", "cache", "cache_policy", "io", "io_direct", "prefetch", "start", "routing")

COLUMNS: dict[str, str] = {
    "memory_limit_bytes": "int64",
    "cache": "object",
    "cache_policy": "object",
    "io": "object",
    "io_direct": "object",
    "prefetch": "object",
    "prefetch_effective": "object",
    "start": "object",
    "routing": "object",
    "limit_verdict": "object",
    "limit_detail": "object",
    "limit_method": "object",
    "limit_start": "object",
    "limit_peak_bytes": "float64",
    "cache_bytes": "float64",
    "cache_total_bytes": "float64",
    "hit_rate": "float64",
    "storage_bytes_per_token": "float64",
    "io_wait_share": "float64",
    "io_busy_share": "float64",
    "late_share": "float64",
    "prefetch_precision": "float64",
    "prefetch_recall": "float64",
    "storage_gb_per_s": "float64",
    "static_bytes_per_token": "float64",
    "compute_tps": "float64",
    "compute_from": "object",
    "bound_tps": "float64",
    "bound_share": "float64",
}
# Of the counters of a cache.
_RATES = (
    "hit_rate",
    "storage_bytes_per_token",
    "io_wait_share",
    "io_busy_share",
    "late_share",
    "prefetch_precision",
    "prefetch_recall",
)


def limited_row(record: RunRecord, *, usable: bool) -> dict[str, Any]:
    """These columns of one record; rates are of ``usable`` records alone."""
    settings, proof, cache = record.settings, record.limit, record.cache
    row: dict[str, Any] = {
        "memory_limit_bytes": settings.memory_limit_bytes,
        "cache": settings.cache,
        "cache_policy": settings.cache_policy,
        "io": settings.io,
        "io_direct": settings.io_direct,
        "prefetch": settings.prefetch,
        "prefetch_effective": cache.prefetch if cache else "",
        "start": settings.start,
        "routing": settings.routing_digest,
        "limit_verdict": proof.verdict if proof else "",
        "limit_detail": proof.detail if proof else "",
        "limit_method": proof.method if proof else "",
        "limit_start": proof.start if proof else "",
        "limit_peak_bytes": math.nan if proof is None or proof.peak_bytes is None else proof.peak_bytes,
        "cache_bytes": cache.bytes if cache else math.nan,
        "cache_total_bytes": cache.total_bytes if cache else math.nan,
    }
    decode_ns = sum(record.samples.decode_ns) if record.samples else 0
    return row | _rates(cache.decode if cache and usable else None, record.workload.n_gen, decode_ns)


def _rates(counters: CacheCounters | None, tokens: int, decode_ns: int) -> dict[str, float]:
    if counters is None or not tokens:
        return dict.fromkeys(_RATES, math.nan)
    return {
        "hit_rate": _share(counters.hits, counters.requests),
        "storage_bytes_per_token": counters.bytes_read / tokens,
        "io_wait_share": _share(counters.ns_wait, decode_ns),
        "io_busy_share": _share(counters.ns_io_busy, decode_ns),
        "late_share": _share(counters.late, counters.requests),
        "prefetch_precision": _share(counters.guesses_used, counters.guesses),
        "prefetch_recall": _share(counters.hits_on_the_way, counters.requests - counters.hits),
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole > 0 else math.nan
