"""Tables of runs under a memory limit, or whose weights did not all stay in memory: which of them a limited
row of the published tables shows, and what the limit cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from stbench import cells
from stbench.limited_columns import LIMITED
from stbench.table import Cell, Column, clean, number

GIB = 1 << 30
HELD = "held"


def is_limited(frame: pd.DataFrame) -> pd.Series[bool]:
    """Rows with a memory limit, a cache, or another routing than the model's own."""
    return (frame["memory_limit_bytes"] > 0) | (frame["cache"] != "") | (frame["routing"] != "")


def published_limit(memory: str) -> int:
    """Bytes of a published limit, as in "limit 8G". Raises ValueError for other texts."""
    words = memory.split()
    if len(words) != 2 or words[0] != "limit" or not words[1].endswith("G"):
        raise ValueError(f'"{memory}" is no published limit')
    return int(words[1][:-1]) * GIB


def best_setting(rows: pd.DataFrame) -> pd.DataFrame:
    """Of limited rows of one model those of one cache size, policy and so on: a limit that held goes before
    one that did not, then the larger median of decode tokens/s."""
    groups = [group for _, group in rows.groupby(list(LIMITED), sort=True)]

    def rank(group: pd.DataFrame) -> tuple[bool, tuple[Any, ...]]:
        usable = group[group["usable"]]
        held = bool(len(usable)) and bool((usable["limit_verdict"] == HELD).all())
        return held, cells.thread_rank(group)

    return max(groups, key=rank)


_COLUMNS = (
    Column("row", "Case", "label"),
    Column("decode", "decode\ntokens/s", "speed", "tokens/s"),
    Column("tokens_ms", "token time\np50 / p95 / p99 ms", "text"),
    Column("limit", "limit\nverdict", "text"),
    Column("peak", "peak\nMiB", "text", "MiB"),
    Column("cache", "cache MiB\nof all", "text"),
    Column("hits", "hit rate\n%", "text", "%"),
    Column("storage", "MB/token\nfrom storage", "text", "MB"),
    Column("waiting", "waiting\nfor I/O %", "text", "%"),
    Column("reading", "time with a\nread under way %", "text", "%"),
    Column("late", "late\n%", "text", "%"),
    Column("guesses", "guesses: precision\n/ recall %", "text"),
    Column("start", "start", "text"),
)


def columns() -> list[Column]:
    """Of the table of limited runs."""
    return list(_COLUMNS)


def case_cells(group: pd.DataFrame) -> Mapping[str, Cell]:
    """The cells of one case (at least one row): medians over the replicates that count."""
    decode = cells.speed_cell(group, "decode_tps")
    shown = cells.undisturbed(group[group["usable"]])
    if cells.is_wrong(group) or not len(shown):
        shown = group.iloc[:0]
    first = group.iloc[0]
    limit = int(first["memory_limit_bytes"])
    verdicts = "/".join(sorted(set(shown["limit_verdict"]) - {""})) or "none"
    methods = "/".join(sorted(set(shown["limit_method"]) - {""}))
    return {
        "decode": decode,
        "tokens_ms": _joined(shown, ("tpot_p50_ms", "tpot_p95_ms", "tpot_p99_ms"), 1),
        "limit": Cell(f"{number(limit / GIB)} GiB {verdicts}" + (f" ({methods})" if methods else ""))
        if limit
        else Cell("none"),
        "peak": _median(shown, "limit_peak_bytes", lambda value: f"{value / 2**20:.0f}"),
        "cache": _cache(shown),
        "hits": _median(shown, "hit_rate", _percent),
        "storage": _median(shown, "storage_bytes_per_token", lambda value: f"{value / 1e6:.1f}"),
        "waiting": _median(shown, "io_wait_share", _percent),
        "reading": _median(shown, "io_busy_share", _percent),
        "late": _median(shown, "late_share", _percent),
        "guesses": _joined(shown, ("prefetch_precision", "prefetch_recall"), 100),
        "start": Cell("/".join(sorted(set(shown["limit_start"]) - {""}))),
    }


def sentences(frame: pd.DataFrame) -> list[str]:
    """What the columns mean, and what proves the limits."""
    out = [
        "Hit rate: units (experts, or layers) that were in the cache when a step asked for them; late: "
        "requests for which a thread had to wait; precision: guesses that were used; recall: misses that a "
        "guess was already loading. All of decoding alone.",
    ]
    if (frame["memory_limit_bytes"] > 0).any():
        out.append(
            "A limit is held when the kernel's group kept to it and the weights lay in nobody else's page "
            "cache (docs/memory-limits.md); peak is of the whole group, page cache included."
        )
    return out


def _percent(value: float) -> str:
    return f"{100 * value:.0f}"


def _median(rows: pd.DataFrame, name: str, text: Callable[[float], str]) -> Cell:
    values = rows[name].dropna()
    if not len(values):
        return Cell()
    median = float(values.median())
    return Cell(text(median), value=median)


def _joined(rows: pd.DataFrame, names: Sequence[str], factor: float) -> Cell:
    medians = [rows[name].dropna().median() for name in names]
    if not len(rows) or all(pd.isna(value) for value in medians):
        return Cell()
    return Cell(" / ".join("—" if pd.isna(value) else f"{factor * value:.0f}" for value in medians))


def _cache(rows: pd.DataFrame) -> Cell:
    held, every = rows["cache_bytes"].dropna(), rows["cache_total_bytes"].dropna()
    if not len(held):
        return Cell()
    return Cell(f"{held.median() / 2**20:.0f} of {every.median() / 2**20:.0f}", value=float(held.median()))


def verdict_sentences(frame: pd.DataFrame) -> list[str]:
    """Why limits did not hold, each reason once."""
    failed = frame[frame["usable"] & (frame["memory_limit_bytes"] > 0) & (frame["limit_verdict"] != HELD)]
    out = []
    for (case, verdict, detail), rows in failed.groupby(
        ["label", "limit_verdict", "limit_detail"], sort=True
    ):
        said = clean(str(detail), 400) or "the record has no proof"
        out.append(f"{clean(str(case), 120)}: limit {verdict or 'not proved'} in {len(rows)} runs: {said}")
    return out
