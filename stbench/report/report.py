"""Records -> the report, as one HTML text: :func:`report_html`."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from stbench import charts
from stbench.agent.wire import RunRecord
from stbench.comparison.noise import Noise
from stbench.doctor.findings import Finding
from stbench.records.sides import side_of
from stbench.records.store import UNFINISHED
from stbench.report import boards as boards_
from stbench.report import budget, page, verdict
from stbench.report.details import GROUPS, SUMMARY
from stbench.report.difference import Difference, difference
from stbench.report.markup import Markup
from stbench.report.pictures import Picture, data_uri, page_size, within
from stbench.report.verdict import Verdict
from stbench.tables import grid, notes
from stbench.tables.html import grid_html
from stbench.tables.table import Cell, Column, Row, Table
from stbench.wording import clean, count

# Bytes of the whole page, of which charts may take at most their part.
PAGE_BYTES = 1_950_000
CHART_BYTES = 850_000
# What it says of records that found no room.
SENTENCES_BYTES = 1000

# Of one table; a campaign of a thousand cases is a list to filter, not to read.
MOST_ROWS = 300
MOST_NOTES = 60


@dataclass(frozen=True)
class Given:
    """What a report is made from. ``name`` is how the user called the results; ``problems`` are sentences
    about what could not be read; ``findings`` the doctor's, by device, where they were recorded."""

    name: str
    records: Sequence[RunRecord]
    problems: Sequence[str] = ()
    findings: Mapping[str, Sequence[Finding]] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """``html`` is the page; ``verdict`` what it says at the top; ``limits`` what it does not show; ``failed``
    names the charts that could not be drawn, which are defects."""

    html: str
    verdict: Verdict
    limits: tuple[str, ...]
    difference: Difference | None
    failed: tuple[str, ...] = ()


def report_html(
    given: Given,
    against: Given | None = None,
    ratio_to: Mapping[str, str] | None = None,
    floors: Sequence[Noise] = (),
) -> Report:
    """The report on ``given``; with ``against`` also what changed from ``given`` (A) to it (B). The same
    records give the same bytes. ``ratio_to`` as for :func:`stbench.tables.grid.build_tables`, ``floors`` as
    for :func:`stbench.report.difference.difference`. Raises KeyError for an unknown published device."""
    results = charts.results_of(given.records)
    tables, limits = _fitting(grid.build_tables(given.records, ratio_to))
    facts = notes.device_facts(results.records)
    unfinished = sum(record.status == UNFINISHED for record in given.records)
    drawn = _pictures(results, ratio_to)
    found = verdict.verdict(results.frame, tables, facts, [*given.problems, *drawn.failed], unfinished)

    shown, frames, offset = _newest(results)
    if offset:
        limits.append(f"The table below has the newest {len(shown)} of {count(len(results.records), 'run')}.")
    links = _Links(shown)
    grids = Markup(grid_html(tables, links))
    changed, changed_tables = None, Markup()
    if against is not None:
        changed = difference(
            side_of(given.name, given.records), side_of(against.name, against.records), floors
        )
        changed_tables = Markup(grid_html(changed.tables))
        others = charts.results_of(against.records)
        more, more_frames, _ = _newest(others)
        shown, frames = [*shown, *more], [*frames, *more_frames]
    devices = boards_.boards(results.frame, facts, given.findings)

    def assembled(data: dict[str, Any], sentences: Sequence[str], chart_bytes: int) -> str:
        title = clean(given.name, 120) + (f" against {clean(against.name, 120)}" if against else "")
        pictures, without = drawn.within(chart_bytes)
        return page.page(
            title, found, grids, pictures, without, changed, changed_tables, devices, data, sentences
        )

    empty = {"summary": SUMMARY, "groups": GROUPS, "pool": [], "records": [], "details": []}
    room = PAGE_BYTES - SENTENCES_BYTES - len(assembled(empty, limits, CHART_BYTES).encode())
    fitted = budget.fit(shown, frames, links.used, room)
    limits += fitted.sentences
    data = {**empty, "pool": fitted.pool, "records": fitted.rows, "details": fitted.details}
    html = assembled(data, limits, CHART_BYTES)
    # What few records leave goes to the charts that found no room.
    if drawn.within(CHART_BYTES)[0] != drawn.pictures:
        html = assembled(data, limits, CHART_BYTES + PAGE_BYTES - len(html.encode()))
    return Report(html, found, tuple(limits), changed, drawn.failed)


def _newest(results: charts.Results) -> tuple[list[RunRecord], list[pd.Series[Any]], int]:
    """The records that the page lists with their rows, and how many older ones it does not."""
    offset = max(0, len(results.records) - budget.MOST_RECORDS)
    frames = [row for _, row in results.frame.iloc[offset:].iterrows()]
    return list(results.records[offset:]), frames, offset


def _fitting(tables: Iterable[Table]) -> tuple[list[Table], list[str]]:
    """The tables, long ones cut, and sentences about that."""
    out, said = [], []
    for table in tables:
        if len(table.rows) > MOST_ROWS:
            rest = len(table.rows) - MOST_ROWS
            said.append(f"“{table.title}” shows {MOST_ROWS} rows; {rest} more are in `stbench grid`.")
        kept = table.notes[:MOST_NOTES]
        if len(table.notes) > MOST_NOTES:
            kept += (f"And {len(table.notes) - MOST_NOTES} more sentences, which `stbench grid` prints.",)
        out.append(dataclasses.replace(table, rows=table.rows[:MOST_ROWS], notes=kept))
    return out, said


@dataclass(frozen=True)
class _Drawn:
    """``absent`` are kinds that the records have nothing for, ``failed`` says which ones raised."""

    pictures: list[Picture]
    absent: list[charts.Kind]
    failed: tuple[str, ...]

    def within(self, size: int) -> tuple[list[Picture], list[str]]:
        """The pictures that fit into ``size`` bytes, and sentences on the kinds that are not there."""
        kept, left_out = within(self.pictures, size)
        said = list(self.failed)
        if left_out:
            titles = "; ".join(clean(title, 80) for title in left_out)
            said.append(f"Left out to keep this file small (`stbench chart` draws them): {titles}.")
        if not self.pictures and not self.failed:
            return kept, ["These records hold nothing that a chart could show."]
        return kept, [*said, *([charts.absent_sentence(self.absent)] if self.absent else [])]


def _pictures(results: charts.Results, ratio_to: Mapping[str, str] | None) -> _Drawn:
    """Every chart that the records have. One that raises takes no other with it, nor the page."""
    made: list[Picture] = []
    absent: list[charts.Kind] = []
    failed: list[str] = []
    for kind in charts.KINDS:
        try:
            found = _of_kind(kind, results, dict(ratio_to or {}))
        except Exception as error:
            failed.append(charts.failure_sentence(kind, error))
            continue
        made += found
        if not found:
            absent.append(kind)
    return _Drawn(made, absent, tuple(failed))


def _of_kind(kind: charts.Kind, results: charts.Results, ratio_to: Mapping[str, str]) -> list[Picture]:
    light, dark = (kind.draw(charts.Request(results, theme, ratio_to)) for theme in ("light", "dark"))
    with warnings.catch_warnings():
        # A name may have letters that no font here has: boxes in the picture, letters in the page.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        return [
            Picture(
                clean(a.name, 80),
                a.title,
                a.alt,
                data_uri(a.figure),
                data_uri(b.figure),
                *page_size(a.figure),
            )
            for a, b in zip(light, dark, strict=True)
        ]


class _Links:
    """Where a cell leads: to the numbers of its records in the page, as ``#r=3-5,9``. ``used`` has all of
    them, once links were made."""

    def __init__(self, records: Sequence[RunRecord]) -> None:
        self.used: set[int] = set()
        self._numbers: dict[str, list[int]] = {}
        self._campaigns = [record.campaign for record in records]
        for i, record in enumerate(records):
            self._numbers.setdefault(record.id, []).append(i)

    def __call__(self, table: Table, row: Row, column: Column, cell: Cell) -> str:
        campaigns: Collection[str] = cell.details.get("campaign", ())
        ids = cell.details.get("records", ())
        numbers = sorted(
            i for name in ids for i in self._numbers.get(name, ()) if self._campaigns[i] in campaigns
        )
        self.used.update(numbers)
        return f"#r={_spans(numbers)}" if numbers else ""


def _spans(numbers: Sequence[int]) -> str:
    """``0-2,5`` for 0, 1, 2, 5."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
