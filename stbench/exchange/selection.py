"""Which runs leave, by case, and what is said of those that stay.

Numbers are of usable runs. Runs that were disturbed are left out where others of their case were not, as in
every table; formats that have room for the remark (parquet, JUnit) get all runs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stbench.agent.wire import RunRecord
from stbench.comparison.intervals import Estimate, median_estimate
from stbench.errors import CellsFailed
from stbench.records.frame import to_frame, unique_records
from stbench.records.lines import UNFINISHED
from stbench.tables.cells import is_wrong, undisturbed

# Column of the frame, what it is called elsewhere, its unit.
METRICS = (("decode_tps", "decode", "tokens/s"), ("prefill_tps", "prefill", "tokens/s"))


@dataclass(frozen=True)
class Run:
    """A record and its row of :func:`stbench.records.frame.to_frame`."""

    record: RunRecord
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """The replicates that count of one case on one device, in the order in which they began. ``name``: its
    label, with the machine's fingerprint where another machine has a case of that label; formats with one
    number per name would take both for one."""

    label: str
    device: str
    runs: tuple[Run, ...]
    name: str

    def values(self, metric: str) -> list[float]:
        """Of the runs that have the metric."""
        found = (float(run.row[metric]) for run in self.runs)
        return [value for value in found if math.isfinite(value)]

    def estimate(self, metric: str) -> Estimate | None:
        """Median with interval or range; None where no run has the metric."""
        values = self.values(metric)
        return median_estimate(values) if values else None


@dataclass(frozen=True)
class Selection:
    """``runs``: every finished measurement; ``cases``: those whose numbers count; ``notes``: what was left
    out of ``cases``, in sentences."""

    runs: tuple[Run, ...]
    cases: tuple[Case, ...]
    notes: tuple[str, ...]


def select(records: Iterable[RunRecord]) -> Selection:
    """The measurements among ``records``, whatever their order.

    A case in which one run computed wrong output has no number at all, as in the tables. Raises
    :class:`CellsFailed` where there is no measurement."""
    kept = [r for r in unique_records(records) if r.purpose == "measure" and r.status != UNFINISHED]
    if not kept:
        raise CellsFailed("there is no finished measurement to export")
    frame = to_frame(kept)
    rows = frame.to_dict("records")
    runs = tuple(
        Run(record, {str(k): v for k, v in row.items()}) for record, row in zip(kept, rows, strict=True)
    )
    cases, notes = [], []
    ends: Counter[str] = Counter(str(row["status"]) for row in rows if not row["usable"])
    wrong = disturbed = 0
    keys = ["label", "device", "fingerprint", "provenance"]
    for (label, device, *_), group in frame.groupby(keys, sort=True):
        if is_wrong(group):
            wrong += 1
            continue
        usable = group[group["usable"]]
        if not len(usable):
            continue
        counted = undisturbed(usable)
        disturbed += len(usable) - len(counted)
        cases.append(Case(str(label), str(device), tuple(runs[int(i)] for i in counted.index), str(label)))
    if ends:
        what = ", ".join(f"{count} {status}" for status, count in sorted(ends.items()))
        notes.append(f"{sum(ends.values())} of {len(runs)} runs have no number ({what})")
    if wrong:
        notes.append(f"{wrong} cases computed wrong output and have no number")
    if disturbed:
        notes.append(f"{disturbed} disturbed runs are left out, as in the tables")
    return Selection(runs, _named(cases), tuple(notes))


def _named(cases: Sequence[Case]) -> tuple[Case, ...]:
    often = Counter(case.label for case in cases)
    named = []
    for case in cases:
        row = case.runs[0].row
        machine = str(row["fingerprint"])[:12] or "unknown machine"
        name = f"{case.label} ({machine}, {row['provenance']})" if often[case.label] > 1 else case.label
        named.append(replace(case, name=name))
    return tuple(named)
