"""The lines of several devices on a terminal: bounded, those that run first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

# More lines than this are read by nobody, and redrawn four times a second.
MOST_ROWS = 12
# Of the screen's height, for the bar, the summary and the last results above them.
_KEPT_LINES = 6


@dataclass
class Row:
    """What is known of one device; texts are safe to show. ``eta``: when it is expected to be done, by
    :func:`time.monotonic`; None: not known. ``lost``: why it ended before its time."""

    name: str
    activity: str = "connected"
    index: int = 0
    total: int = 0
    tokens_per_s: float | None = None
    temperature_c: float | None = None
    eta: float | None = None
    failures: int = 0
    ended: bool = False
    lost: str = ""


def rows_table(rows: Sequence[Row], height: int) -> RenderableType:
    """Running devices, as many as fit, and a line about all others."""
    room = max(1, min(MOST_ROWS, height - _KEPT_LINES))
    ordered = sorted(rows, key=lambda row: row.name)
    shown = ordered if len(rows) <= room else sorted(ordered, key=lambda row: row.ended)[:room]
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=24)
    table.add_column(no_wrap=True, justify="right", min_width=7)
    table.add_column(no_wrap=True, overflow="ellipsis")
    # Speed, temperature and time stay whole where a long case has to give way.
    for width in (15, 6, 11):
        table.add_column(no_wrap=True, justify="right", min_width=width)
    for row in shown:
        table.add_row(*(Text(cell) for cell in _cells(row)))
    names = {row.name for row in shown}
    rest = [row for row in rows if row.name not in names]
    if not rest:
        return table
    return Group(table, Text(f"and {len(rest)} more: {_summary(rest)}", no_wrap=True, overflow="ellipsis"))


def _cells(row: Row) -> list[str]:
    count = f"{row.index}/{row.total}" if row.total else ""
    activity = row.activity
    if row.ended:
        activity = f"ended early: {row.lost}" if row.lost else "done"
    if row.failures:
        activity += f" ({row.failures} failed)"
    speed = f"{row.tokens_per_s:.1f} tokens/s" if row.tokens_per_s is not None and not row.ended else ""
    heat = f"{row.temperature_c:.0f} \N{DEGREE SIGN}C" if row.temperature_c is not None else ""
    return [row.name, count, activity, speed, heat, _left(row)]


def _left(row: Row) -> str:
    if row.eta is None or row.ended:
        return ""
    return f"{duration(max(row.eta - time.monotonic(), 0.0))} left"


def _summary(rows: Sequence[Row]) -> str:
    lost = sum(bool(row.lost) for row in rows)
    done = sum(row.ended for row in rows) - lost
    running = len(rows) - done - lost
    parts = [f"{n} {what}" for n, what in ((running, "running"), (done, "done"), (lost, "ended early")) if n]
    last = max((row for row in rows if row.eta and not row.ended), key=lambda row: row.eta or 0, default=None)
    if last is not None:
        parts.append(f"the last is {last.name}, {_left(last)}")
    failures = sum(row.failures for row in rows)
    if failures:
        parts.append(f"{failures} jobs failed")
    return "; ".join(parts)


def duration(seconds: float) -> str:
    """``45 s``, ``3 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
