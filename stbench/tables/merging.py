"""Result sets merged by device: which records fill a column, and what is said of those that do not.

A column has one *condition* (:data:`CONDITION`), that which fills most of its rows. Rows that it leaves open
are filled from other campaigns of the same board if these differ in nothing but :data:`MERGEABLE`: limited
rows are measured apart from unlimited ones, by another preset and often by another build. Such cells are
marked, and a sentence says what differs. No cell holds more than one condition, campaign or file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from stbench.comparison.intervals import median_estimate
from stbench.tables import cells, limited_grid
from stbench.wording import clean, count, number

# What all cells of a column share, beside device and engine.
CONDITION = (
    "fingerprint",
    "library",
    "workload",
    "seed",
    "sparse_ffn_auto",
    "isa_requested",
    "n_ctx",
    "n_batch",
    "kv_type",
    "kv_touch",
    "load_requested",
    "populate",
    "requantise_down",
    "lm_head_threshold",
)
# Of these, what may be another in a row that the column's own condition leaves open. Another board, a forced
# instruction set or another way to hold weights is another column's matter.
MERGEABLE = ("library", "workload", "seed", "n_ctx", "n_batch")
_STRICT = tuple(name for name in CONDITION if name not in MERGEABLE)
_WORDS = {"library": "build", "workload": "workload", "seed": "seed", "n_ctx": "context", "n_batch": "batch"}


@dataclass(frozen=True)
class Taken:
    """The records of a cell, none where nothing fills it. ``elsewise``: what differs from the column's
    condition, in words; "" where nothing does. ``others``: what was measured as well and not taken, or ""."""

    rows: pd.DataFrame
    elsewise: str = ""
    others: str = ""


def select_condition(group: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The records of the condition that fills most rows, then has most replicates, then is the newest."""
    best: tuple[Any, ...] | None = None
    chosen = group
    for key, rows in group.groupby(list(CONDITION), sort=True, dropna=False):
        usable = rows[rows["usable"]]
        filled = usable.groupby(
            ["catalogue_model", "sparse_ffn", "sparse_lm_head", limited_grid.is_limited(usable)]
        ).ngroups
        rank = (filled, len(usable), str(rows["started_at"].max()), tuple(map(str, key)))
        if best is None or rank > best:
            best, chosen = rank, rows
    return chosen, {name: plain(chosen.iloc[0][name]) for name in CONDITION}


def plain(value: Any) -> Any:
    """As JSON has it."""
    return value.item() if hasattr(value, "item") else value


def take(candidates: pd.DataFrame, condition: Mapping[str, Any], rule: int | None, *, limited: bool) -> Taken:
    """Of all records of one row (any condition) those that its cell shows. ``rule``: the number of threads as
    published, None for the fastest; ``limited``: the row is of a memory limit."""
    own = _of(candidates, condition, CONDITION)
    if len(own):
        return _taken(own, "", rule, limited)
    alike = _of(candidates, condition, _STRICT)
    if not len(alike):
        return Taken(candidates.iloc[:0])
    groups = [rows for _, rows in alike.groupby(list(MERGEABLE), sort=True, dropna=False)]
    # Without a usable run it is not worth another condition's footnote.
    groups = [rows for rows in groups if rows["usable"].any()]
    if not groups:
        return Taken(candidates.iloc[:0])
    rows = max(groups, key=_rank)
    found = rows.iloc[0]
    differing = [name for name in MERGEABLE if found[name] != condition[name]]
    said = ", ".join(f"{_WORDS[name]} {clean(str(found[name])[:12], 40) or 'unknown'}" for name in differing)
    return _taken(rows, said, rule, limited, alike)


def _taken(
    rows: pd.DataFrame, elsewise: str, rule: int | None, limited: bool, alike: pd.DataFrame | None = None
) -> Taken:
    if limited:
        rows = limited_grid.best_setting(rows)
    chosen = _one_campaign(rows)
    others = [_duplicates(chosen, rows)]
    if alike is not None and (kinds := alike.groupby(list(MERGEABLE), dropna=False).ngroups) > 1:
        others.append(f"of {kinds} conditions that were measured, the one with most undisturbed replicates")
    chosen = _one_thread_setting(chosen, rule)
    return Taken(chosen, elsewise, "; ".join(filter(None, others)))


def _of(rows: pd.DataFrame, condition: Mapping[str, Any], names: Sequence[str]) -> pd.DataFrame:
    mask = pd.Series(True, index=rows.index)
    for name in names:
        mask &= rows[name] == condition[name]
    return rows[mask]


def _rank(group: pd.DataFrame) -> tuple[int, int, str]:
    """Most usable replicates, undisturbed ones first, then the newest."""
    calm = group["usable"] & ~group["disturbed"]
    return int(calm.sum()), int(group["usable"].sum()), str(group["started_at"].max())


def _one_campaign(rows: pd.DataFrame) -> pd.DataFrame:
    return max((group for _, group in rows.groupby(["campaign", "digest"], sort=True)), key=_rank)


def _duplicates(chosen: pd.DataFrame, rows: pd.DataFrame) -> str:
    """What other campaigns, or model files, measured under the same condition, and why that was not taken."""
    parts = []
    for (campaign, _), group in rows.groupby(["campaign", "digest"], sort=True):
        if group.index.equals(chosen.index):
            continue
        calm = cells.undisturbed(group[group["usable"]])["decode_tps"].dropna()
        speed = f"median {number(float(calm.median()))}" if len(calm) else "no usable run"
        fate = _contradiction(chosen, group)
        parts.append(f"{clean(str(campaign), 60) or '-'} ({count(len(group), 'record')}, {speed}{fate})")
    if not parts:
        return ""
    mine, theirs = (
        _rank(chosen),
        max(
            _rank(group)
            for _, group in rows.groupby(["campaign", "digest"])
            if not group.index.equals(chosen.index)
        ),
    )
    reasons = ("most undisturbed replicates", "most usable replicates", "the newest")
    why = next(
        (text for text, a, b in zip(reasons, mine, theirs, strict=True) if a != b), "the first by name"
    )
    name = clean(str(chosen["campaign"].iloc[0]), 60) or "-"
    return f"from campaign {name} ({why}), not averaged with {', '.join(parts)}"


def _contradiction(chosen: pd.DataFrame, other: pd.DataFrame) -> str:
    """Whether intervals (or ranges) of two measurements of one case do not even touch, or outputs differ."""
    words = []
    values = [
        cells.undisturbed(rows[rows["usable"]])["decode_tps"].dropna().tolist() for rows in (chosen, other)
    ]
    if all(values):
        mine, theirs = map(median_estimate, values)
        # Single values never touch, and show nothing by that.
        if min(mine.n, theirs.n) > 1 and (mine.high < theirs.low or theirs.high < mine.low):
            words.append("contradicts: the intervals do not touch")
    hashes = [set(rows["output_hash"]) - {""} for rows in (chosen, other)]
    same_work = chosen["digest"].iloc[0] == other["digest"].iloc[0]
    if all(hashes) and same_work and not hashes[0] & hashes[1]:
        words.append("computed other outputs")
    return "".join(f"; {word}" for word in words)


def _one_thread_setting(rows: pd.DataFrame, rule: int | None) -> pd.DataFrame:
    """``rule`` threads when that was measured, else the setting with the largest median; settings that
    computed wrong output are taken only when no other exists."""
    groups = [group for _, group in rows.groupby(["threads_requested", "cpus"], sort=True)]
    if rule is not None:
        groups = [group for group in groups if (group["threads"] == rule).all()] or groups
    return max(groups, key=cells.thread_rank)
