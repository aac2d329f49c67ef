"""Records as figures need them: tidy rows, and beside each row its record for what no row holds."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from stbench.agent.wire import RunRecord
from stbench.records.frame import filled, to_frame
from stbench.records.one_run import finished


@dataclass(frozen=True)
class Results:
    """Row ``i`` of ``frame`` is of ``records[i]``: measuring runs that ended, in an order that does not
    depend on the order given."""

    records: tuple[RunRecord, ...]
    frame: pd.DataFrame

    def of(self, rows: pd.DataFrame) -> list[RunRecord]:
        """The records of rows of the frame."""
        return [self.records[i] for i in rows.index]


def results_of(records: Iterable[RunRecord], pattern: str = "") -> Results:
    """Of whole campaigns: what was disturbed is judged over all of ``records``, of which one per run counts.
    ``pattern``: a glob; only runs whose label fits are kept then."""
    kept, _ = finished(records)
    frame = filled(to_frame(kept))
    if pattern:
        chosen = [i for i, record in enumerate(kept) if fnmatch.fnmatchcase(record.label, pattern)]
        kept = [kept[i] for i in chosen]
        frame = frame.iloc[chosen].reset_index(drop=True)
    return Results(tuple(kept), frame)
