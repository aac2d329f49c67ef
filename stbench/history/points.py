"""Rows of many campaigns -> for every case its speeds in the order of time."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from stbench.comparison.intervals import Estimate, median_estimate
from stbench.comparison.matching import CONDITIONS, NAMES
from stbench.tables import cells
from stbench.wording import case_label, clean


@dataclass(frozen=True)
class Point:
    """One case in one campaign with one build. ``speed``: of its undisturbed replicates, in the metric's
    unit, None where there is none and ``why`` says so. ``disturbed`` and ``failed`` replicates are not in
    it."""

    campaign: str
    started_at: str
    library: str
    speed: Estimate | None
    disturbed: int
    failed: int
    why: str = ""


@dataclass(frozen=True)
class Series:
    """A case under the same conditions throughout: what its points differ in is time and build. ``told``:
    conditions that tell it from another series of the same label, in words."""

    label: str
    metric: str
    points: tuple[Point, ...]
    told: str = ""


def series_of(frame: pd.DataFrame, metric: str, globs: Sequence[str] = ()) -> list[Series]:
    """All cases of a frame (:func:`stbench.records.frame.to_frame`, whole campaigns) with this metric, by
    label, that fit one of ``globs``."""
    rows = frame[frame["n_gen" if metric == "decode_tps" else "n_prompt"] > 0]
    if globs:
        fits = {
            label: any(fnmatch.fnmatchcase(label, glob) for glob in globs) for label in set(rows["label"])
        }
        rows = rows[rows["label"].map(fits).astype(bool)]
    # What failed early never said its conditions, and would be a case of its own.
    known = rows[(rows["fingerprint"] != "") & ((rows["digest"] != "") | rows["usable"])]
    names = [*NAMES, *CONDITIONS]
    groups = [group for _, group in known.groupby(names, sort=True, dropna=False)]
    alike: dict[str, list[pd.DataFrame]] = {}
    for group in groups:
        alike.setdefault(case_label(group["label"].iloc[0]), []).append(group)
    made = []
    for label, same in alike.items():
        firsts = [group.iloc[0] for group in same]
        told = [name for name in CONDITIONS if len({str(first[name]) for first in firsts}) > 1]
        for first, group in zip(firsts, same, strict=True):
            said = ", ".join(f"{name} {clean(str(first[name])[:16], 16) or 'unknown'}" for name in told)
            made.append(Series(label, metric, _points(group, metric), said))
    return sorted(made, key=lambda one: (one.label, one.told))


def _points(group: pd.DataFrame, metric: str) -> tuple[Point, ...]:
    points = [
        _point(str(campaign), str(library), rows, metric)
        for (campaign, library), rows in group.groupby(["campaign", "library"], sort=True)
    ]
    return tuple(sorted(points, key=lambda point: (point.started_at, point.campaign, point.library)))


def _point(campaign: str, library: str, rows: pd.DataFrame, metric: str) -> Point:
    usable = rows[rows["usable"] & rows[metric].notna()]
    calm = usable[~usable["disturbed"]]
    why = ""
    if cells.is_wrong(rows):
        why = "wrong output"
    elif not len(calm):
        why = "all runs disturbed" if len(usable) else "all runs failed"
    return Point(
        clean(campaign, 60),
        clean(str(rows["started_at"].min()), 40),
        clean(library, 64),
        None if why else median_estimate(calm[metric].tolist()),
        len(usable) - len(calm),
        len(rows) - len(usable),
        why,
    )
