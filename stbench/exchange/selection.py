"""Which runs leave, by case, and what is said of those that stay.

Numbers are of usable runs. Runs that were disturbed are left out where others of their case were not, as in
every table; formats that have room for the remark (parquet, JUnit) get all runs. A case is what it is in the
tables (:data:`stbench.tables.grid.CASE`): builds, campaigns and settings that no label tells are never one
number.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stbench.agent.wire import RunRecord
from stbench.comparison.intervals import Estimate, median_estimate
from stbench.errors import CellsFailed
from stbench.records.frame import filled, to_frame
from stbench.records.one_run import finished
from stbench.tables.cells import is_wrong, undisturbed
from stbench.tables.grid import CASE
from stbench.wording import clean

# What makes a case: what tables tell apart, and where its numbers come from. The label comes first, for the
# order in which cases leave.
_PLACE = ("label", "device", "fingerprint", "provenance")
_KEYS = (*_PLACE, *(name for name in CASE if name not in _PLACE))
# Column of the frame, what it is called elsewhere, its unit.
METRICS = (("decode_tps", "decode", "tokens/s"), ("prefill_tps", "prefill", "tokens/s"))


@dataclass(frozen=True)
class Run:
    """A record and its row of :func:`stbench.records.frame.to_frame`."""

    record: RunRecord
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """The replicates that count of one case on one device, in the order in which they began. ``differs``:
    where others have its label, which columns tell them apart, each with its value in short. ``name``: the
    label with these, for formats with one number per name, which would take several cases for one. It changes
    with what else is exported, so a note says where it is more than the label."""

    label: str
    device: str
    runs: tuple[Run, ...]
    name: str
    differs: tuple[tuple[str, str], ...] = ()

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
    kept, claims = finished(records)
    if not kept:
        raise CellsFailed("there is no finished measurement to export")
    frame = to_frame(kept)
    rows = frame.to_dict("records")
    runs = tuple(
        Run(record, {str(k): v for k, v in row.items()}) for record, row in zip(kept, rows, strict=True)
    )
    cases: list[tuple[tuple[Any, ...], Case]] = []
    notes = list(claims)
    ends: Counter[str] = Counter(str(row["status"]) for row in rows if not row["usable"])
    wrong = disturbed = 0
    for key, group in filled(frame).groupby(list(_KEYS), sort=True, dropna=False):
        if is_wrong(group):
            wrong += 1
            continue
        usable = group[group["usable"]]
        if not len(usable):
            continue
        counted = undisturbed(usable)
        disturbed += len(usable) - len(counted)
        label, device = str(key[0]), str(key[1])
        cases.append((key, Case(label, device, tuple(runs[int(i)] for i in counted.index), label)))
    if ends:
        what = ", ".join(f"{count} {status}" for status, count in sorted(ends.items()))
        notes.append(f"{sum(ends.values())} of {len(runs)} runs have no number ({what})")
    if wrong:
        notes.append(f"{wrong} cases computed wrong output and have no number")
    if disturbed:
        notes.append(f"{disturbed} disturbed runs are left out, as in the tables")
    named = _named(cases)
    renamed = [case for case in named if case.differs]
    if renamed:
        columns = dict.fromkeys(name for case in renamed for name, _ in case.differs)
        notes.append(
            f"{len(renamed)} cases share their label with others: names in this export say what tells them "
            f"apart ({', '.join(columns)}), and change with what is exported together; for a dashboard, "
            "which keeps numbers by name, export one campaign of one build at a time"
        )
    return Selection(runs, named, tuple(notes))


def _named(cases: Sequence[tuple[tuple[Any, ...], Case]]) -> tuple[Case, ...]:
    """The cases with what tells those of equal label apart. ``cases``: each behind its values of _KEYS."""
    alike: dict[str, list[tuple[Any, ...]]] = {}
    for key, case in cases:
        alike.setdefault(case.label, []).append(key)
    shown: dict[str, dict[str, dict[str, str]]] = {}
    for label, keys in alike.items():
        columns = ({str(key[i]) for key in keys} for i in range(len(_KEYS)))
        found = zip(_KEYS, columns, strict=True)
        shown[label] = {name: _in_short(values) for name, values in found if len(values) > 1}
    named = []
    for key, case in cases:
        texts = dict(zip(_KEYS, map(str, key), strict=True))
        differs = tuple((name, short[texts[name]]) for name, short in shown[case.label].items())
        words = ", ".join(f"{name} {text}" for name, text in differs)
        named.append(replace(case, name=f"{case.label} [{words}]" if words else case.label, differs=differs))
    return tuple(named)


def _in_short(values: Iterable[str]) -> dict[str, str]:
    """Value -> how a name has it: of a digest the first digits. A digest of the whole follows where several
    would look the same."""
    short = {}
    for value in values:
        text = value[:12] if re.fullmatch("[0-9a-f]{16,64}", value) else value
        short[value] = clean(text, 40) or "unknown"
    often = Counter(short.values())
    return {
        value: f"{text} {hashlib.sha256(value.encode()).hexdigest()[:8]}" if often[text] > 1 else text
        for value, text in short.items()
    }
