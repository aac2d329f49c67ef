"""Tables of runs under a memory limit, or whose weights did not all stay in memory: which of them a limited
row of the published tables shows, and what the limit cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from stbench.comparison.intervals import median_estimate
from stbench.records import storage_bound
from stbench.records.limited_columns import LIMITED
from stbench.sweeps.limited import COLD
from stbench.tables import cells
from stbench.tables.table import Cell, Column
from stbench.wording import clean, number

GIB = 1 << 30
# Behind a compute rate that the run itself says, for want of an unlimited partner.
OWN_MARK = "*"
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
    one that did not, a cold start before a warm one, then the larger median of decode tokens/s."""
    groups = [group for _, group in rows.groupby(list(LIMITED), sort=True)]

    def rank(group: pd.DataFrame) -> tuple[bool, bool, tuple[Any, ...]]:
        usable = group[group["usable"]]
        held = bool(len(usable)) and bool((usable["limit_verdict"] == HELD).all())
        return held, group["start"].iloc[0] == COLD, cells.thread_rank(group)

    return max(groups, key=rank)


_COLUMNS = (
    Column("row", "Case", "label"),
    Column("decode", "decode\ntokens/s", "speed", "tokens/s"),
    Column("bound", "bound tokens/s\n(compute | storage)", "text", "tokens/s"),
    Column("share", "% of bound", "text", "%"),
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
        "bound": _bound(shown),
        "share": _bound_share(shown),
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
        "start": _start(shown),
    }


def sentences(frame: pd.DataFrame) -> list[str]:
    """What the columns mean, and what proves the limits."""
    out = [
        "Hit rate: units (experts, or layers) that were in the cache when a step asked for them; late: "
        "requests for which a thread had to wait; precision: guesses that were used; recall: misses that a "
        "guess was already loading. All of decoding alone.",
    ]
    if frame["bound_tps"].notna().any():
        out.append(
            "Bound: the smaller of two rates: decoding with all weights in memory, and the storage rate "
            "probed beside the run over the bytes per token that a cache of the same size misses which "
            "always holds the experts that the run used most (of layers: what does not fit); "
            "docs/limited-sweeps.md."
        )
    if (frame["compute_from"] == storage_bound.OWN).any():
        out.append(
            f"{OWN_MARK}: from the run's own time less its waiting for I/O, since the campaign has no run of "
            "the same case without limit and cache (--memory-limit 1GiB,none --cache auto,none)."
        )
    if (frame["memory_limit_bytes"] > 0).any():
        out.append(
            "A limit is held when the kernel's group kept to it and the weights lay in nobody else's page "
            "cache (docs/memory-limits.md); peak is of the whole group, page cache included."
        )
    return out


def _bound(rows: pd.DataFrame) -> Cell:
    """The bound, and the two rates whose smaller one it is."""
    known = rows[rows["bound_tps"].notna()]
    if not len(known):
        return Cell()
    bound, compute = float(known["bound_tps"].median()), float(known["compute_tps"].median())
    read = (1e9 * known["storage_gb_per_s"] / known["static_bytes_per_token"]).median()
    own = OWN_MARK if (known["compute_from"] == storage_bound.OWN).any() else ""
    parts = f"{number(compute)}{own} | {number(float(read)) if math.isfinite(read) else '—'}"
    return Cell(f"{number(bound)} ({parts})", value=bound)


def _bound_share(rows: pd.DataFrame) -> Cell:
    """With its interval; under six replicates with the range."""
    shares = [100 * float(share) for share in rows["bound_share"].dropna()]
    if not shares:
        return Cell()
    found = median_estimate(shares)
    around = f" [{found.low:.0f}, {found.high:.0f}]" if found.kind == "interval" else ""
    if not around and found.n > 1:
        around = f" ({found.low:.0f}…{found.high:.0f})"
    return Cell(f"{found.median:.0f}{around}", value=found.median)


def _start(rows: pd.DataFrame) -> Cell:
    """How the cache of units began, and weights that lay in the page cache all the same."""
    words = {"warm" for start in rows["start"] if start == "warm"}
    words |= {"page cache warm" for start in rows["limit_start"] if start == "warm"}
    return Cell("/".join(sorted(words)) or "/".join(sorted(set(rows["limit_start"]) - {""})))


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
