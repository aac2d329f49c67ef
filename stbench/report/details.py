"""A record -> what the page shows of it: settings, proof of limit, check, machine, samples and timeline.

What repeats is kept once (:class:`Pool`): the replicates of a case share their settings, their check, their
limit. The order of a group's values is that of :data:`GROUPS`, which the page holds once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from stbench.agent.wire import RunRecord, Timeline
from stbench.records.frame import affinity_label
from stbench.report.texts import LIMIT, decimal, finite, mib, moment, rate, text
from stbench.report.thinning import thinned
from stbench.wording import clean

# Group -> what its values are called. "Settings" has triples instead: name, requested, effective.
GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "Run",
        (
            "status",
            "why",
            "not counted because",
            "engine",
            "campaign",
            "wall time",
            "attempt",
            "record",
            "warnings",
        ),
    ),
    (
        "Speed",
        (
            "decode tokens/s",
            "prefill tokens/s",
            "time to first token",
            "time per token p50",
            "p95",
            "p99",
            "weights read",
            "energy per token",
        ),
    ),
    ("Model", ("name", "weights", "file digest", "workload", "library", "compiler")),
    ("Settings", ()),
    (
        "Proof of the memory limit",
        (
            "verdict",
            "why",
            "held by",
            "asked for",
            "as the kernel says it",
            "most that the group held",
            "anonymous",
            "page cache",
            "read from storage",
            "pages that came back",
            "OOM kills",
            "may not swap",
            "weights in the page cache before",
            "and after",
            "start",
        ),
    ),
    (
        "Cache of units",
        (
            "of",
            "size",
            "of all units",
            "policy",
            "read by",
            "prefetch",
            "hit rate while decoding",
            "read per token",
            "waiting for I/O",
            "how the size was chosen",
        ),
    ),
    (
        "Check of the output",
        (
            "verdict",
            "why",
            "positions checked",
            "largest error",
            "most likely token equal",
            "bit-equal positions",
            "hash of the logits",
            "reference",
        ),
    ),
    (
        "Machine meanwhile",
        (
            "disturbed",
            "throttled",
            "shown by",
            "load before",
            "other processes",
            "taken by the hypervisor",
            "memory bandwidth before",
            "and after",
            "storage before",
            "and after",
            "wait until cool",
        ),
    ),
    ("Memory", ("peak RSS", "anonymous", "mapped files", "before the library was loaded")),
)


class Pool:
    """JSON values by number, each kept once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._numbers: dict[str, int] = {}

    def put(self, value: Any) -> int:
        """The number of ``value``, which is JSON-ready."""
        key = json.dumps(value, ensure_ascii=False)
        number = self._numbers.setdefault(key, len(self.values))
        if number == len(self.values):
            self.values.append(value)
        return number


def summary(record: RunRecord, row: pd.Series[Any], pool: Pool) -> list[Any]:
    """The record's row in the table of all records, in the order of :data:`SUMMARY`; texts by number."""
    limit = record.limit.verdict if record.limit else ""
    state = [
        "disturbed" if row["disturbed"] else "",
        "throttled" if row["throttled"] == "yes" else "",
        "attempt " + text(record.attempt + 1) if record.attempt else "",
    ]
    return [
        pool.put(clean(record.label, LIMIT)),
        _number(record.replicate),
        pool.put(clean(record.campaign, 60)),
        moment(record.started_at),
        pool.put("unusable" if record.status == "ok" and row["problem"] else clean(record.status, 40)),
        _speed(row["decode_tps"]),
        _speed(row["prefill_tps"]),
        pool.put(clean(str(row["check"]), 40)),
        pool.put(clean(limit, 40)),
        pool.put(", ".join(word for word in state if word)),
    ]


# What :func:`summary` holds: title, and what kind of value: text (by number), plain text, number.
SUMMARY = (
    ("Run", "text"),
    ("replicate", "number"),
    ("Campaign", "text"),
    ("Started (UTC)", "plain"),
    ("Status", "text"),
    ("decode tokens/s", "number"),
    ("prefill tokens/s", "number"),
    ("Output", "text"),
    ("Memory limit", "text"),
    ("Machine", "text"),
)


def detail(record: RunRecord, row: pd.Series[Any], pool: Pool, samples: int, looks: int) -> list[Any]:
    """``[groups, decode, prefill, timeline]``. Groups by number, 0 for one that the record lacks, in the
    order of :data:`GROUPS`. ``samples`` and ``looks`` say how many numbers a series may have."""
    made = (
        _run(record, row),
        _speeds(record, row),
        _model(record),
        _settings(record),
        _limit(record),
        _cache(record, row),
        _check(record),
        _machine(record, row),
        _memory(record),
    )
    return [
        [pool.put(group) if any(group) else 0 for group in made],
        *_samples(record, samples),
        _timeline(record.timeline, looks) if record.timeline else 0,
    ]


def _run(record: RunRecord, row: pd.Series[Any]) -> list[str]:
    return [
        text(record.status),
        text(record.detail),
        text(row["problem"]),
        text(record.engine),
        text(record.campaign),
        _unit(decimal(record.wall_s, 1), "s"),
        text(record.attempt + 1) if record.attempt else "",
        text(record.id),
        text("; ".join(record.warnings[:20])),
    ]


def _speeds(record: RunRecord, row: pd.Series[Any]) -> list[str]:
    per_token = decimal(row["weight_bytes_per_token"], 1, 1e6)
    per_s = decimal(row["weight_gb_per_s"], 2)
    return [
        decimal(row["decode_tps"]),
        decimal(row["prefill_tps"]),
        _unit(decimal(row["ttft_ms"], 1), "ms"),
        _unit(decimal(row["tpot_p50_ms"]), "ms"),
        _unit(decimal(row["tpot_p95_ms"]), "ms"),
        _unit(decimal(row["tpot_p99_ms"]), "ms"),
        f"{per_token} MB/token, {per_s} GB/s" if per_token and per_s else "",
        _unit(decimal(row["joules_per_token"], 3), "J"),
    ]


def _model(record: RunRecord) -> list[str]:
    synthetic = record.model.synthetic is not None
    compiler = record.versions.runtime.get("compiler", "") if record.versions else ""
    tokens = record.workload
    depth = f" after {text(tokens.n_depth)} in the KV cache" if tokens.n_depth else ""
    return [
        text(record.model.name),
        f"synthetic, profile {text(record.model.profile) or 'unnamed'}" if synthetic else "as in the file",
        text(record.model.digest),
        f"{text(tokens.n_prompt)} prompt and {text(tokens.n_gen)} generated tokens{depth}, "
        f"seed {text(tokens.seed)}",
        text(record.versions.library_sha256) if record.versions else "",
        text(compiler),
    ]


def _settings(record: RunRecord) -> list[list[str]]:
    """Name, requested, effective; what a failed run never reached is "". Settings of limited runs only where
    they say something."""
    asked, real, cache = record.settings, record.effective, record.cache
    ffn = ("automatic" if asked.sparse_ffn_auto else "on") if asked.sparse_ffn else "off"
    limit = record.limit.limit_bytes if record.limit else None
    rows: list[tuple[str, object, object]] = [
        ("threads", asked.threads or "all CPUs", real and real.threads),
        ("CPUs", _cpus(asked.cpus) or "not pinned", real and affinity_label(real.affinity[:64])),
        ("instruction set", asked.isa, real and real.isa),
        ("sparse FFN", ffn, real and real.sparse_ffn),
        ("sparse lm_head", asked.sparse_lm_head, real and real.sparse_lm_head),
        ("context", asked.n_ctx, real and real.n_ctx),
        ("batch", asked.n_batch, real and real.n_batch),
        ("KV cache", asked.kv_type, real and f"{text(real.kv_type)}, {mib(real.kv_bytes)}"),
        ("weights by", asked.load, real and real.load),
        ("down layout", "requantised" if asked.requantise_down else "as stored", real and real.down_layout),
    ]
    if asked.memory_limit_bytes or asked.cache or asked.routing:
        rows += [
            ("memory limit", mib(asked.memory_limit_bytes) or "none", mib(limit)),
            ("cache", asked.cache or "none", mib(cache.bytes) if cache else ""),
            ("policy", asked.cache_policy, cache.policy if cache else ""),
            ("I/O", asked.io, cache.io if cache else ""),
            ("past the page cache", asked.io_direct, cache.direct if cache else None),
            ("prefetch", asked.prefetch, cache.prefetch if cache else ""),
            ("start", asked.start, record.limit.start if record.limit else ""),
            ("routing", asked.routing_digest[:16] or "the model's own", None),
        ]
    return [[name, text(requested), text(effective)] for name, requested, effective in rows]


def _limit(record: RunRecord) -> list[str]:
    proof = record.limit
    if proof is None:
        return []
    sampled = " (largest of regular looks)" if proof.peak_sampled else ""
    peak = mib(proof.peak_bytes)
    return [
        text(proof.verdict),
        text(proof.detail),
        text(proof.method),
        mib(proof.requested_bytes),
        mib(proof.limit_bytes),
        f"{peak}{sampled}" if peak else "",
        mib(proof.anon_bytes),
        mib(proof.file_bytes),
        mib(proof.read_bytes),
        text(proof.refaults),
        text(proof.oom_kills),
        text(proof.swap_off),
        mib(proof.cached_before_bytes),
        mib(proof.cached_after_bytes),
        text(proof.start),
    ]


def _cache(record: RunRecord, row: pd.Series[Any]) -> list[str]:
    use = record.cache
    if use is None:
        return []
    return [
        text(use.kind),
        mib(use.bytes),
        mib(use.total_bytes),
        text(use.policy),
        text(use.io) + (", past the page cache" if use.direct else ""),
        text(use.prefetch),
        _unit(decimal(row["hit_rate"], 1, 0.01), "%"),
        _unit(decimal(row["storage_bytes_per_token"], 2, 1e6), "MB"),
        _unit(decimal(row["io_wait_share"], 1, 0.01), "% of the time"),
        text(use.chosen),
    ]


def _check(record: RunRecord) -> list[str]:
    check = record.check
    if check is None:
        return []
    worst = decimal(check.worst, 4)
    return [
        text(check.verdict),
        text(check.detail),
        text(check.positions),
        _unit(worst, "standard deviations of the logits"),
        text(check.argmax_equal),
        text(check.bit_equal),
        text(check.output_hash),
        text(check.reference),
    ]


def _machine(record: RunRecord, row: pd.Series[Any]) -> list[str]:
    seen, bracket, gate = record.telemetry, record.bracket, record.gate
    probes = ["", "", "", ""]
    if bracket is not None:
        found = (bracket.read_before, bracket.read_after, bracket.storage_before, bracket.storage_after)
        probes = [rate(probe.bytes, probe.ns) if probe else "" for probe in found]
    waited = decimal(gate.waited_s, 0) if gate else ""
    return [
        (text(row["disturbance"]) or "yes") if row["disturbed"] else ("no" if any(probes) else "not known"),
        text(row["throttled"]),
        text(row["throttled_by"]),
        decimal(seen.load_average) if seen else "",
        _unit(decimal(seen.other_cpu_s, 2), "s of CPU") if seen else "",
        _unit(decimal(seen.steal_s, 2), "s of CPU") if seen else "",
        *probes,
        f"{text(gate.outcome)} after {waited} s" if gate and gate.outcome != "absent" else "",
    ]


def _memory(record: RunRecord) -> list[str]:
    used = record.memory
    if used is None:
        return []
    sizes = (used.peak_rss_bytes, used.rss_anon_bytes, used.rss_file_bytes, used.baseline_rss_bytes)
    return [mib(size) for size in sizes]


def _samples(record: RunRecord, points: int) -> list[Any]:
    """Decode, then prefill: ``[count, lows, highs]`` in ms per token and per batch; 0 where there are fewer
    than two. Programs say totals, which are of many tokens each."""
    taken = record.samples
    if taken is None:
        return [0, 0]
    decode: Sequence[float] = [_ms(ns) for ns in taken.decode_ns]
    if taken.decode_tokens:
        pairs = zip(decode, taken.decode_tokens, strict=False)
        decode = [ms / n for ms, n in pairs if finite(n) and n > 0]
    prefill = [_ms(ns) for ns in taken.prefill_ns]
    return [_series(decode, points), _series(prefill, points // 2)]


def _ms(ns: int) -> float:
    value = finite(ns)
    return value / 1e6 if value is not None else float("nan")


def _series(values: Sequence[float], points: int) -> Any:
    low, high = thinned(values, points)
    return [len(values), low, high] if len(low) > 1 else 0


def _timeline(timeline: Timeline, points: int) -> Any:
    """``[looks, seconds, phases, series]``: phases as name and second, series as name, unit, lows, highs; 0
    where nothing was seen. Of several frequency domains and zones the first eight."""
    found: list[tuple[str, str, Sequence[int | None], float]] = [
        (f"{text(name)[:24]} frequency", "GHz", values, 1e6)
        for name, values in sorted(timeline.cpu_khz.items())[:8]
    ]
    found += [
        (f"{text(name)[:24]} temperature", "°C", values, 1e3)
        for name, values in sorted(timeline.temperature_mc.items())[:8]
    ]
    found += [
        ("resident memory", "MiB", timeline.rss_bytes, 2**20),
        ("power", "W", timeline.power_mw, 1e3),
    ]
    series = []
    for name, unit, values, scale in found:
        known = [number / scale for value in values if (number := finite(value)) is not None]
        low, high = thinned(known, points)
        if len(low) > 1:
            series.append([name, unit, low, high])
    if not series:
        return 0
    phases = [
        [text(name)[:24], round(ms / 1e3, 2)]
        for name, value in sorted(timeline.phase_ms.items(), key=lambda item: item[1])[:12]
        if (ms := finite(value)) is not None
    ]
    end = finite(timeline.at_ms[-1]) if timeline.at_ms else None
    return [_number(timeline.looks), round((end or 0) / 1e3, 2), phases, series]


def _cpus(cpus: Sequence[int]) -> str:
    return ",".join(text(cpu) for cpu in cpus[:64])


def _unit(number: str, unit: str) -> str:
    return f"{number} {unit}" if number else ""


def _number(value: int) -> int:
    """An integer that JavaScript can hold."""
    return value if abs(value) < 2**53 else 0


def _speed(value: float) -> float | None:
    number = finite(value)
    return None if number is None else float(f"{number:.5g}")
