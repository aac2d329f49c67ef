"""One engine against another inside a campaign: ratios of medians, held against bars and goals.

Rows of our engine, whatever its switches, stand against the other engine's row of the same model, workload
and thread count: other engines have no switches. Both ran next to each other in every round, so replicates of
one number are pairs. Bars and goals are data: ``data/bars.csv``, whose origin is in ``bars.notes.md``.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import pandas as pd

from stbench.comparison import bandwidth
from stbench.comparison.compare import Comparison, Prepared, every_pair, judge, prepare
from stbench.comparison.matching import METRICS, ONE_BUILD, mixed, pairing
from stbench.comparison.verdict_table import method_notes, n_text, ratio_text
from stbench.errors import InputError
from stbench.models.catalogue import STANDARD_SUFFIX
from stbench.records.limited_columns import LIMITED
from stbench.records.sides import Side
from stbench.tables.table import Cell, Column, Row, Table
from stbench.wording import case_label, clean, number

MET, NOT_MET, UNDECIDED = "met", "not met", "inconclusive"

# A bar is decided from so many pairs of processes up.
FEWEST_PAIRS = 9

# What names a row for both engines, and what must agree besides. The seed, context, batch and instruction set
# belong to our engine alone. A model and its standard-layout twin are one pair: the other engine runs the
# twin, ours either.
_ROW = ("device", "pair", "workload", "threads", "memory_limit_bytes")
_CONDITIONS = ("fingerprint", "kv_type", "cpus", "n_prompt", "n_gen", "n_depth")


@dataclass(frozen=True)
class Bar:
    """``bar``: what a release must reach; ``goal``: what is thought reachable. Ratios of medians."""

    bar: float
    goal: float


@dataclass(frozen=True)
class EngineRow:
    """``comparison``: A is the other engine, B is ours; of undisturbed pairs, or of all where there is none.
    ``every``: of all pairs, disturbed or not; None where runs are not paired. The verdicts are "met", "not
    met" and "inconclusive", or "" where no bar is set; ``decided_by`` is "every" where they rest on all
    pairs, because fewer than FEWEST_PAIRS are undisturbed, else "undisturbed". ``memory_allows``: what the
    ratio would be if ours decoded as fast as the memory, at the rates probed beside its runs, delivers the
    bytes that it reads; None where that is unknown, and for prefill."""

    device: str
    model: str
    switches: str
    workload: str
    threads: int
    comparison: Comparison
    every: Comparison | None
    bar: Bar | None
    bar_verdict: str
    goal_verdict: str
    decided_by: str
    memory_allows: float | None = None


@dataclass(frozen=True)
class EngineRatios:
    """All rows in the order of the records; ``notes`` are sentences on what has no ratio."""

    rows: tuple[EngineRow, ...]
    notes: tuple[str, ...]


@functools.lru_cache(maxsize=1)
def bars() -> dict[tuple[str, str, str, str, str, str], Bar]:
    """Engine, other engine, model, switches, metric, workload -> what it is held against."""
    text = resources.files("stbench").joinpath("data/bars.csv").read_text(encoding="utf-8")
    return {
        (
            row["engine"],
            row["against"],
            row["model"],
            row["switches"],
            row["metric"],
            row["workload"],
        ): Bar(float(row["bar"]), float(row["goal"]))
        for row in csv.DictReader(text.splitlines())
    }


def engine_ratios(
    side: Side, ours: str, others: str, *, metrics: Sequence[str] | None = None
) -> EngineRatios:
    """Ratios ``ours`` / ``others`` of every model, workload and thread count that both measured.

    ``metrics`` None: decode where tokens are generated, prefill where a prompt alone is evaluated. Raises
    :class:`InputError` where an engine is missing or rows are unlike. A case of several builds has no ratio,
    and a note.
    """
    models = [_model(row) for _, row in side.frame.iterrows()]
    frame = side.frame.assign(model=models, pair=[name.removesuffix(STANDARD_SUFFIX) for name in models])
    there = sorted(set(frame["engine"]))
    for engine in (ours, others):
        if engine not in there:
            raise InputError(
                f"{side.name} has no record of the engine {engine}; it has {', '.join(there)}",
                hint=f"stbench sweep --engines {ours},{others} measures both in one campaign",
            )
    notes = [said for said in (side.chosen, bandwidth.states(side)) if said]
    named: list[tuple[pd.DataFrame, Prepared, Prepared | None, float | None]] = []
    for _, group in frame.groupby(list(_ROW), sort=False):
        theirs = group[group["engine"] == others]
        mine = group[group["engine"] == ours]
        if not len(theirs) or not len(mine):
            missing = others if len(mine) else ours
            notes += [f"{label}: no row of {missing} beside it" for label in sorted(set(group["label"]))]
            continue
        for _, rows in mine.groupby(["model", "switches", *LIMITED], sort=False):
            _check_alike(side.name, rows, theirs)
            label = case_label(rows["label"].iloc[0])
            builds = {others: mixed(theirs), ours: mixed(rows)}
            if any(builds.values()):
                which = " and ".join(f"{name}'s {found}" for name, found in builds.items() if found)
                notes.append(f"{label}: no ratio: {which}: no sample of one build; {ONE_BUILD}")
                continue
            together = pairing(theirs, rows)
            wanted = metrics or (("decode_tps",) if rows["n_gen"].iloc[0] else ("prefill_tps",))
            for metric in wanted:
                if rows["n_gen" if metric == "decode_tps" else "n_prompt"].iloc[0]:
                    every = every_pair(label, theirs, rows, metric, together) if together else None
                    made = prepare(label, theirs, rows, metric, notes, together) or every
                    allowed = memory_allows(theirs, rows, together) if metric == "decode_tps" else None
                    if made is not None:
                        named.append((rows, made, every, allowed))
    if not named:
        raise InputError(f"{side.name}: no case has speeds of both engines; " + "; ".join(notes))
    judged = judge([made for _, made, _, _ in named], None)
    of_all = iter(judge([every for _, _, every, _ in named if every is not None], None))
    return EngineRatios(
        tuple(
            _row(
                ours,
                others,
                rows,
                comparison,
                None if every is None else next(of_all),
                made is every,
                allowed,
            )
            for (rows, made, every, allowed), comparison in zip(named, judged, strict=True)
        ),
        tuple(notes),
    )


def _model(row: pd.Series[Any]) -> str:
    """The catalogue's name where there is one; of other files their own."""
    return str(row["catalogue_model"] or row["model"])


def _check_alike(name: str, mine: pd.DataFrame, theirs: pd.DataFrame) -> None:
    problems = []
    for field in _CONDITIONS:
        values = [sorted({str(v) for v in rows.loc[rows["usable"], field]}) for rows in (mine, theirs)]
        if all(values) and (values[0] != values[1] or len(values[0]) > 1):
            case = case_label(mine["label"].iloc[0])
            problems.append(
                f"{case}: {field} is {', '.join(values[0])} there, {', '.join(values[1])} opposite"
            )
    if problems:
        raise InputError(f"{name}: unlike rows are not compared:\n" + "\n".join(problems))


def _row(
    ours: str,
    others: str,
    rows: pd.DataFrame,
    comparison: Comparison,
    every: Comparison | None,
    only_disturbed: bool,
    allowed: float | None,
) -> EngineRow:
    first = rows.iloc[0]
    key = (
        ours,
        others,
        str(first["pair"]),
        str(first["switches"]),
        comparison.metric,
        str(first["workload"]),
    )
    bar = bars().get(key)
    decides, decided_by = comparison, "every" if only_disturbed else "undisturbed"
    if comparison.n < FEWEST_PAIRS and every is not None and every.n >= FEWEST_PAIRS:
        decides, decided_by = every, "every"
    return EngineRow(
        device=str(first["device"]),
        model=str(first["model"]),
        switches=str(first["switches"]),
        workload=str(first["workload"]),
        threads=int(first["threads"]),
        comparison=comparison,
        every=every,
        bar=bar,
        bar_verdict=held_against(decides, bar.bar) if bar else "",
        goal_verdict=held_against(decides, bar.goal) if bar else "",
        decided_by=decided_by,
        memory_allows=allowed,
    )


def memory_allows(
    theirs: pd.DataFrame, mine: pd.DataFrame, together: Sequence[tuple[int, int]] | None
) -> float | None:
    """The median over pairs of ``mine`` at the memory's limit (:mod:`stbench.records.limit_share`) / theirs;
    None where no pair has both."""
    of_theirs = theirs.loc[theirs["usable"], "decode_tps"]
    of_mine = (mine["decode_tps"] / mine["limit_share"])[mine["usable"]]
    ratios = [
        float(of_mine[j] / of_theirs[i])
        for i, j in together or ()
        if i in of_theirs.index and j in of_mine.index
    ]
    known = [ratio for ratio in ratios if math.isfinite(ratio)]
    return statistics.median(known) if known else None


def held_against(comparison: Comparison, wanted: float) -> str:
    """Met or not met when the whole interval is on that side of ``wanted``, with 9 pairs at least."""
    if comparison.kind != "interval" or not comparison.paired or comparison.n < FEWEST_PAIRS:
        return UNDECIDED
    if comparison.low >= wanted:
        return MET
    return NOT_MET if comparison.high < wanted else UNDECIDED


def ratio_table(found: EngineRatios, ours: str, others: str) -> Table:
    """The table for people."""
    disturbed = any(_has_more(row) for row in found.rows)
    limited = any(row.memory_allows is not None for row in found.rows)
    columns = (
        Column("case", "Case", "label"),
        Column("theirs", f"{others}\ntokens/s", "speed", "tokens/s"),
        Column("ours", f"{ours}\ntokens/s", "speed", "tokens/s"),
        Column("ratio", f"{ours} / {others}", "ratio"),
        Column("n", "n", "text"),
        *((Column("every", "with disturbed\npairs", "ratio"),) if disturbed else ()),
        *((Column("allows", "memory\nallows", "ratio"),) if limited else ()),
        Column("bar", "bar", "text"),
        Column("goal", "goal", "text"),
        Column("isa", f"{ours}\nISA", "text"),
    )
    rows = tuple(Row(f"row:{i}", row.comparison.case, _cells(row)) for i, row in enumerate(found.rows))
    lines = method_notes([row.comparison for row in found.rows], verdicts=False)
    if any(row.bar for row in found.rows):
        lines.append(
            "A bar or goal is met when the whole interval is above it, not met when it is below, and neither "
            f"with fewer than {FEWEST_PAIRS} pairs; where bars come from: "
            "stbench/data/bars.notes.md."
        )
    if disturbed:
        lines.append(
            "With disturbed pairs: all pairs of runs that ended well, each of one round. What comes and goes "
            "hits either run of a pair alike, which widens the interval and does not move it."
        )
    if any(row.decided_by == "every" for row in found.rows):
        lines.append(
            f"d: fewer than {FEWEST_PAIRS} pairs are undisturbed, so that all pairs decide, disturbed ones "
            "included."
        )
    if limited:
        lines.append(
            f"Memory allows: the ratio of a {ours} that reads the same weights at the rates probed beside "
            "its runs and computes in no time (median over all pairs)."
        )
    if any(_out_of_reach(row, *held) for row in found.rows for held in _held(row)):
        lines.append("m: above what the memory allowed beside these runs.")
    lines.append(f"Sparse rows, too, stand against the one row of {others}, which has no such switches.")
    metrics = sorted({METRICS[row.comparison.metric].partition(",")[0] for row in found.rows})
    title = f"{ours} beside {others}: {' and '.join(metrics)}"
    return Table("versus", title, columns, rows, (*lines, *found.notes))


def _has_more(row: EngineRow) -> bool:
    return row.every is not None and row.every.n > row.comparison.n


def _cells(row: EngineRow) -> dict[str, Cell]:
    case = row.comparison
    mark = " d" if row.decided_by == "every" else ""
    only_disturbed = bool(mark) and not _has_more(row)
    text = ratio_text(case.ratio, case.low, case.high, case.kind, case.n) + mark * only_disturbed
    cells = {
        "theirs": Cell(number(case.a.median), value=case.a.median, n=case.a.n),
        "ours": Cell(number(case.b.median), value=case.b.median, n=case.b.n),
        "ratio": Cell(text, value=case.ratio, low=case.low, high=case.high, kind=case.kind, n=case.n),
        "n": Cell(n_text(case)),
        "isa": Cell(clean("/".join(case.b.isa), 40)),
    }
    if row.every is not None and _has_more(row):
        all_of_it = row.every
        text = ratio_text(all_of_it.ratio, all_of_it.low, all_of_it.high, all_of_it.kind, all_of_it.n)
        cells["every"] = Cell(f"{text}, {n_text(all_of_it)}", value=all_of_it.ratio, n=all_of_it.n)
    if row.memory_allows is not None:
        cells["allows"] = Cell(number(row.memory_allows), value=row.memory_allows)
    if row.bar is not None:
        for name, (wanted, verdict) in zip(("bar", "goal"), _held(row), strict=True):
            reach = " m" * _out_of_reach(row, wanted, verdict)
            cells[name] = Cell(f"{wanted:g} {verdict}{mark}{reach}", value=wanted)
    return cells


def _held(row: EngineRow) -> tuple[tuple[float, str], ...]:
    """Bar and goal, each with its verdict."""
    return () if row.bar is None else ((row.bar.bar, row.bar_verdict), (row.bar.goal, row.goal_verdict))


def _out_of_reach(row: EngineRow, wanted: float, verdict: str) -> bool:
    """What was met was in reach, whatever a probe beside it said."""
    return verdict != MET and row.memory_allows is not None and row.memory_allows < wanted


def json_of(found: EngineRatios) -> dict[str, Any]:
    """The ratios, JSON-ready."""
    return {"rows": [dataclasses.asdict(row) for row in found.rows], "notes": list(found.notes)}
