"""Rows of the frame -> lines: points are cells of one case each, and a line is what differs in x alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from stbench.charts.style import legible
from stbench.sweeps.sweep import ENGINE
from stbench.tables import cells
from stbench.tables.grid import CASE
from stbench.tables.table import (
    BALLAST,
    DISTURBED,
    EXCEEDED,
    FEW,
    MEANINGS,
    NO_SENSORS,
    NOT_ENFORCED,
    THROTTLED,
    VOID,
    Cell,
)
from stbench.wording import count

# A case's key columns, with the workload in its parts.
KEYS = (*(key for key in CASE if key != "workload"), "n_prompt", "n_gen", "n_depth")

# What a number with one of these marks is not to be compared by: its point is hollow.
DOUBTFUL = (DISTURBED, NOT_ENFORCED, EXCEEDED, VOID, BALLAST, THROTTLED)

_BROKEN = (NOT_ENFORCED, EXCEEDED, VOID)

# Boards without sensors are the tables' matter, and what an error bar is, is said of all together.
_UNSAID = {NO_SENSORS, FEW}

# So many lines are told apart.
MOST_LINES = 12
MOST_BARS = 40
MOST_PANELS = 12

_GIB = 1 << 30


@dataclass(frozen=True)
class Point:
    """``rows`` are the replicates behind ``cell``."""

    x: float
    cell: Cell
    rows: pd.DataFrame

    @property
    def doubtful(self) -> bool:
        """Whether one of its marks says that it does not compare."""
        return any(mark in DOUBTFUL for mark in self.cell.marks)


@dataclass(frozen=True)
class Line:
    """``first`` is a row of the frame that it is of; ``label`` says what tells it from the other lines."""

    device: str
    label: str
    first: pd.Series[Any]
    points: tuple[Point, ...]


def lines(
    frame: pd.DataFrame,
    metric: str,
    x: Callable[[pd.DataFrame], float],
    free: Iterable[str],
    at_least: int = 1,
) -> list[Line]:
    """The lines of ``frame`` that have ``at_least`` different x. ``free`` are the key columns that may differ
    along a line; ``x`` says a case's. Of several cases at one x (CPU sets, say) the one with the largest
    median counts, one whose memory limit held before others. Lines are in the order of device, SmallThinker
    before others, then label."""
    free = set(free)
    fixed = [key for key in KEYS if key not in free]
    inner = [key for key in KEYS if key in free]
    found = []
    for _, group in frame.groupby(fixed, sort=True, dropna=False):
        best: dict[float, Point] = {}
        for rows in [rows for _, rows in group.groupby(inner, sort=True)] if inner else [group]:
            cell = cells.speed_cell(rows, metric)
            if cell.value is None:
                continue
            point = Point(x(rows), cell, rows)
            known = best.get(point.x)
            if known is None or _worth(point) > _worth(known):
                best[point.x] = point
        if len(best) >= at_least:
            found.append((group.iloc[0], tuple(best[at] for at in sorted(best))))
    labels = _labels([first for first, _ in found], fixed)
    made = [
        Line(str(first["device"]), label, first, points)
        for (first, points), label in zip(found, labels, strict=True)
    ]
    return sorted(made, key=lambda line: (line.device, _order(line)))


def _worth(point: Point) -> tuple[bool, float]:
    return not any(mark in _BROKEN for mark in point.cell.marks), point.cell.value or 0.0


def _order(line: Line) -> tuple[Any, ...]:
    """SmallThinker before others, sparse before dense, amounts by their size."""
    first = line.first
    limit, cache = int(first["memory_limit_bytes"]), str(first["cache"])
    return (
        not str(first["model"]).startswith("smallthinker"),
        str(first["model"]),
        not bool(first["sparse_ffn"]),
        not bool(first["sparse_lm_head"]),
        str(first["engine"]) != ENGINE,
        *(int(first[key]) for key in ("n_prompt", "n_gen", "n_depth", "threads_requested")),
        limit or math.inf,
        (not cache, int(cache) if cache.isascii() and cache.isdigit() else math.inf),
        line.label,
    )


def devices(found: Sequence[Line]) -> list[str]:
    """Each once, in order."""
    return list(dict.fromkeys(line.device for line in found))


def label_order(found: Sequence[Line]) -> list[str]:
    """Each label once: those of one label on several devices look alike."""
    return list(dict.fromkeys(line.label for line in sorted(found, key=_order)))


# Key columns in words, in the order of labels. Those of the first kind are said wherever lines differ in
# them, the others where nothing else tells two lines of one device apart.
_OFTEN: dict[str, Callable[[Any], str]] = {
    "n_prompt": lambda n: f"pp{n}" if n else "",
    "n_gen": lambda n: f"tg{n}",
    "n_depth": lambda n: f"d{n}" if n else "",
    "threads_requested": lambda n: count(int(n), "thread") if n else "all threads",
    "memory_limit_bytes": lambda n: f"{gib(n)} limit" if n else "no limit",
    "cache": lambda text: f"cache {_size(text)}" if text else "no cache",
    "cache_policy": lambda text: str(text),
    "prefetch": lambda text: f"prefetch {text}",
    "start": lambda text: str(text),
    "sparse_ffn_auto": lambda on: "auto ffn" if on else "",
}
_SELDOM: dict[str, Callable[[Any], str]] = {
    "campaign": lambda text: str(text),
    "cpus": lambda text: f"CPUs {text}" if text else "not pinned",
    "fingerprint": lambda text: f"board {str(text)[:6]}",
    "library": lambda text: f"build {str(text)[:6]}",
    "digest": lambda text: f"file {str(text)[:6]}",
    "routing": lambda text: f"routing {str(text)[:6]}" if text else "own routing",
}


def _labels(firsts: Sequence[pd.Series[Any]], fixed: Sequence[str]) -> list[str]:
    often = [key for key in _OFTEN if key in fixed and len({_plain(first[key]) for first in firsts}) > 1]
    base = [_base(first, often) for first in firsts]
    rare = [key for key in fixed if key not in _OFTEN and key not in ("device", "engine", "model")]
    order = [*(key for key in _SELDOM if key in rare), *(key for key in rare if key not in _SELDOM)]
    # As plain values: a campaign of a thousand cases is compared in pairs otherwise.
    values = [{key: _plain(first[key]) for key in order} for first in firsts]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for first, label, value in zip(firsts, base, values, strict=True):
        groups.setdefault((label, str(first["device"])), []).append(value)
    out = []
    for first, label, value in zip(firsts, base, values, strict=True):
        alike = groups[label, str(first["device"])]
        for key in order if len(alike) > 1 else ():
            if len({other[key] for other in alike}) > 1:
                text = _SELDOM[key](value[key]) if key in _SELDOM else f"{key} {value[key]}"
                label = f"{label}, {legible(text, 30)}"
                alike = [other for other in alike if other[key] == value[key]]
        out.append(label)
    return out


def _base(first: pd.Series[Any], often: Sequence[str]) -> str:
    switches = str(first["switches"])
    words = [legible(str(first["model"]), 60) + ("" if switches == "dense" else f" {switches}")]
    if first["engine"] != ENGINE:
        words.append(legible(str(first["engine"]), 30))
    words += [legible(text, 40) for key in often if (text := _OFTEN[key](first[key]))]
    return ", ".join(words)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def shared(found: Sequence[Line], free: Iterable[str]) -> str:
    """A sentence of the conditions that all lines share; "" where they share none worth a word."""
    free = set(free)
    words = []
    for key, write in _OFTEN.items():
        if key in free or key in ("cache_policy", "prefetch", "start", "sparse_ffn_auto", "cache"):
            continue
        values = {_plain(line.first[key]) for line in found}
        if len(values) == 1 and (text := write(next(iter(values)))):
            words.append(legible(text, 40))
    return "All: " + ", ".join(words) + "." if words else ""


def mark_sentences(found: Sequence[Line]) -> list[str]:
    """The meanings of the marks that occur; hollow points first."""
    return mark_meanings({mark for line in found for point in line.points for mark in point.cell.marks})


def mark_meanings(present: Iterable[str]) -> list[str]:
    """Of marks that stand in a figure."""
    present = set(present) - _UNSAID
    sentences = [f"{mark}  {meaning}." for mark, meaning in MEANINGS.items() if mark in present]
    if doubtful := [mark for mark in DOUBTFUL if mark in present]:
        sentences.insert(0, f"Hollow points do not compare: {', '.join(doubtful)}.")
    return sentences


def marks_of(found: Iterable[Line]) -> str:
    """The marks of all their points, each once, in the legend's order."""
    present = {mark for line in found for point in line.points for mark in point.cell.marks} - _UNSAID
    return "".join(mark for mark in MEANINGS if mark in present)


def whisker_sentence(found: Sequence[Line]) -> str:
    """What the error bars are; "" where none is drawn."""
    kinds = {point.cell.kind for line in found for point in line.points if point.cell.n > 1}
    if not kinds:
        return "Single runs, no interval."
    return {
        frozenset({"interval"}): "Bars: interval of the median.",
        frozenset({"range"}): "Bars: range of the replicates, no interval.",
    }.get(frozenset(kinds), "Bars: interval of the median; of fewer than 6 replicates their range.")


def most_bars(found: Sequence[Line]) -> tuple[list[Line], list[str]]:
    """As :func:`most`, of lines that are a bar each: as many as fit on a page."""
    labels = label_order(found)
    counts = [sum(line.label == label for line in found) for label in labels]
    fitting = sum(sum(counts[: i + 1]) <= MOST_BARS for i in range(len(labels)))
    return most(found, max(fitting, 1))


def most(found: Sequence[Line], labels_shown: int = MOST_LINES) -> tuple[list[Line], list[str]]:
    """As many lines and devices as can be told apart, and sentences on what is left out: first the labels
    with fewest points, then the last devices."""
    labels = label_order(found)
    points = {label: sum(len(line.points) for line in found if line.label == label) for label in labels}
    kept = sorted(labels, key=lambda label: (-points[label], labels.index(label)))[:labels_shown]
    places = devices([line for line in found if line.label in kept])
    shown = [line for line in found if line.label in kept and line.device in places[:MOST_PANELS]]
    said = []
    if len(labels) > len(kept):
        said.append(f"Left out: {len(labels) - len(kept)} further lines (--filter GLOB chooses).")
    if len(places) > MOST_PANELS:
        said.append(f"Left out: {len(places) - MOST_PANELS} further devices (--filter 'DEVICE:*' chooses).")
    return shown, said


def gib(size: float) -> str:
    """Bytes as people write limits: 1 GiB, 768 MiB."""
    return f"{size / _GIB:g} GiB" if size >= _GIB else f"{size / 2**20:.0f} MiB"


def _size(text: Any) -> str:
    return gib(int(text)) if str(text).isascii() and str(text).isdigit() else str(text)
