"""Comparisons -> a table for people, and JSON for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from stbench.comparison.compare import Comparison, Comparisons, Sample
from stbench.comparison.inference import FEWEST, INCONCLUSIVE, MOST_REPETITIONS
from stbench.comparison.matching import METRICS
from stbench.tables.table import Cell, Column, Row, Table
from stbench.wording import clean, count, number

_COLUMNS = (
    Column("case", "Case", "label"),
    Column("a", "A\ntokens/s", "speed", "tokens/s"),
    Column("b", "B\ntokens/s", "speed", "tokens/s"),
    Column("ratio", "B / A", "ratio"),
    Column("n", "n", "text"),
    Column("q", "q", "text"),
    Column("verdict", "verdict", "text"),
)


def verdict_table(found: Comparisons, name_a: str, name_b: str) -> Table:
    """One row per case; ``name_a`` and ``name_b`` say in the title what A and B are."""
    metric = METRICS[found.cases[0].metric]
    title = f"{metric}: A = {clean(name_a, 80)}, B = {clean(name_b, 80)}"
    rows = tuple(Row(f"case:{i}", case.case, _cells(case)) for i, case in enumerate(found.cases))
    return Table("compare", title, _COLUMNS, rows, (*method_notes(found.cases), *found.failed, *found.notes))


def ratio_text(ratio: float, low: float, high: float, kind: str, n: int) -> str:
    """``1.42 [1.39, 1.45]`` for an interval, ``1.42 (1.39…1.45)`` for a range."""
    if kind == "interval":
        return f"{ratio:.3f} [{low:.3f}, {high:.3f}]"
    return f"{ratio:.3f} ({low:.3f}…{high:.3f})" if n > 1 else f"{ratio:.3f}"


def n_text(case: Comparison) -> str:
    """``9 pairs``, or ``9 + 12`` for samples that were taken apart."""
    return count(case.n, "pair") if case.paired else f"{case.a.n} + {case.b.n}"


def verdict_text(case: Comparison) -> str:
    """The verdict; of an inconclusive one also what would settle it."""
    if case.verdict != INCONCLUSIVE:
        return case.verdict
    if case.repetitions is None:
        return f"{INCONCLUSIVE}, over {MOST_REPETITIONS} replicates would settle it"
    return f"{INCONCLUSIVE}, about {case.repetitions} replicates would settle it"


def _cells(case: Comparison) -> dict[str, Cell]:
    return {
        "a": Cell(number(case.a.median), value=case.a.median, n=case.a.n),
        "b": Cell(number(case.b.median), value=case.b.median, n=case.b.n),
        "ratio": Cell(
            ratio_text(case.ratio, case.low, case.high, case.kind, case.n),
            value=case.ratio,
            low=case.low,
            high=case.high,
            kind=case.kind,
            n=case.n,
        ),
        "n": Cell(n_text(case)),
        "q": Cell(f"{case.q:.2g}", value=case.q),
        "verdict": Cell(verdict_text(case)),
    }


def method_notes(cases: Sequence[Comparison], *, verdicts: bool = True) -> list[str]:
    """How the numbers of these cases came about, and what was left out. ``verdicts``: q and threshold are
    shown, too."""
    lines = []
    if any(case.kind == "interval" for case in cases):
        lines.append("[a, b] contains the true ratio of medians with at least 95 % (docs/methodology.md).")
    if any(case.kind == "range" for case in cases):
        lines.append(
            f"(a…b) is the range of ratios that occurred, no interval: below {FEWEST} replicates nothing is "
            "decided."
        )
    if any(case.paired for case in cases):
        tested = "; q is from the exact signed-rank test of pairs." if verdicts else "."
        lines.append(f"Pairs ran next to each other{tested}")
    apart = [case.case for case in cases if not case.paired]
    if apart:
        lines.append(
            "Not paired: A and B were measured at different times, so that a drift of the machine cannot be "
            "told from a change"
            + ("; q is from the exact Mann-Whitney test" if verdicts else "")
            + (f" ({', '.join(apart)})." if len(apart) < len(cases) else ".")
        )
    if verdicts:
        lines.append(f"q is adjusted for {count(len(cases), 'case')} compared together (Benjamini-Hochberg).")
        lines.append(_threshold_sentence(cases))
    for case in cases:
        lines += [
            f"{case.case}: of {side} {', '.join(said)} left out."
            for side, sample in (("A", case.a), ("B", case.b))
            if (said := _left_out(sample))
        ]
        if case.a.isa != case.b.isa and case.a.isa and case.b.isa:
            lines.append(
                f"{case.case}: instruction set {'/'.join(case.a.isa)} in A, {'/'.join(case.b.isa)} in B."
            )
    return lines


def _threshold_sentence(cases: Sequence[Comparison]) -> str:
    thresholds = sorted({case.threshold for case in cases})
    floors = [case.floor for case in cases if case.floor]
    shown = " to ".join(f"{100 * value:.2g} %" for value in dict.fromkeys((thresholds[0], thresholds[-1])))
    sentence = f"unchanged: the interval is within {shown} of 1."
    if floors:
        noise = " to ".join(f"{100 * value:.2g} %" for value in dict.fromkeys((min(floors), max(floors))))
        return f"{sentence} The device's own noise floor is {noise}; no smaller change is called one."
    return f"{sentence} The device's noise floor is not known for these cases (`stbench noise` measures it)."


def _left_out(sample: Sample) -> list[str]:
    named = (
        (sample.disturbed, "disturbed"),
        (sample.failed, "failed"),
        (sample.unpaired, "unpaired"),
    )
    return [f"{n} {word}" for n, word in named if n]


def json_of(found: Comparisons) -> dict[str, Any]:
    """The comparisons, JSON-ready."""
    return {
        "cases": [{**dataclasses.asdict(case), "test": case.test} for case in found.cases],
        "failed": list(found.failed),
        "notes": list(found.notes),
    }
