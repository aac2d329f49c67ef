"""Series with their changes as tables for people, and as JSON for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from stbench.comparison.matching import METRICS
from stbench.comparison.verdict_table import ratio_text
from stbench.history.changes import FEWEST_POINTS, Change, measured
from stbench.history.points import Point, Series
from stbench.tables.table import Cell, Column, Row, Table
from stbench.wording import clean, count, number

_COLUMNS = (
    Column("campaign", "Campaign", "label"),
    Column("date", "date", "text"),
    Column("library", "library", "text"),
    Column("speed", "tokens/s", "speed", "tokens/s"),
    Column("n", "n", "text"),
    Column("change", "change", "text"),
)
_MARKS = {True: "▲", False: "▼"}


def history_table(series: Series, changes: Sequence[Change]) -> Table:
    """One row per campaign and build, those where the level changed with a mark."""
    by_point = {id(change.point): change for change in changes}
    rows = tuple(
        Row(f"point:{i}", point.campaign, _cells(point, by_point.get(id(point))))
        for i, point in enumerate(series.points)
    )
    title = f"{series.label}: {METRICS[series.metric]}"
    notes = [sentence(change) for change in changes]
    if series.told:
        notes.append(f"This series has {series.told}; others of the same name have not.")
    if len(measured(series)) < FEWEST_POINTS:
        notes.append(f"Fewer than {FEWEST_POINTS} campaigns with a speed: no change is looked for.")
    return Table("history", f"{title}, {series.told}" if series.told else title, _COLUMNS, rows, tuple(notes))


def sentence(change: Change) -> str:
    """A change in words."""
    moved = "faster" if change.ratio > 1 else "slower"
    ratio = ratio_text(change.ratio, change.low, change.high, change.kind, 2)
    of = f"{count(change.n_before, 'campaign')} before, {change.n_after} from there on"
    why = f"; {', '.join(change.differs)}" if change.differs else "; the build is the same"
    return clean(
        f"{change.point.started_at[:10]} {change.point.campaign}: {moved}, ratio {ratio} ({of}), "
        f"{change.verdict}{why}.",
        400,
    )


def _cells(point: Point, change: Change | None) -> dict[str, Cell]:
    speed, mark = point.speed, ""
    if change is not None:
        mark = f"{_MARKS[change.ratio > 1]} {100 * (change.ratio - 1):+.1f} %, {change.verdict}"
    left = ", ".join(
        f"{n} {word}" for n, word in ((point.disturbed, "disturbed"), (point.failed, "failed")) if n
    )
    return {
        "date": Cell(point.started_at[:10]),
        "library": Cell(point.library[:12]),
        "speed": Cell(number(speed.median), value=speed.median) if speed else Cell(point.why),
        "n": Cell(f"{speed.n if speed else 0}" + (f" ({left})" if left else "")),
        "change": Cell(mark),
    }


def json_of(found: Sequence[tuple[Series, Sequence[Change]]]) -> list[dict[str, Any]]:
    """JSON-ready, a series each."""
    return [
        {
            "case": series.label,
            "metric": series.metric,
            "told": series.told,
            "points": [dataclasses.asdict(point) for point in series.points],
            "changes": [
                {
                    **{
                        key: value
                        for key, value in dataclasses.asdict(change).items()
                        if key not in ("point", "at")
                    },
                    "campaign": change.point.campaign,
                    "started_at": change.point.started_at,
                    "library": change.point.library,
                }
                for change in changes
            ],
        }
        for series, changes in found
    ]
