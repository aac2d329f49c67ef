"""Simulated and measured caches as tables and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from rich.table import Table

from stbench.caches.clock import Machine
from stbench.caches.measured_caches import Measured
from stbench.caches.simulate import ORACLES, Point

_MIB = 1 << 20
# Of a hit rate: below, a share of the gap says more about 100 requests of 20,000 than about a policy.
LEAST_GAP = 0.005


def heading(about: dict[str, Any]) -> list[str]:
    """What the numbers rest on, in a sentence or two."""
    model = f" of {about['model']}" if about["model"] else ""
    lines = [
        f"{about['trace']}: {about['n_tokens']} tokens{model}, {about['n_layer']} layers, "
        f"{about['n_expert_used']} of {about['n_expert']} experts"
        + (f" ({about['source']})" if about["source"] else "")
        + (f"; the first {about['warmup_tokens']} tokens are not counted" if about["warmup_tokens"] else "")
        + "."
    ]
    machine = about["machine"]
    if machine is not None:
        lines.append(
            f"Predicted from {machine['storage_bytes_per_s'] / 1e9:.2f} GB/s of storage and "
            f"{1 / machine['token_s']:.1f} tokens/s with all weights in memory ({about['rates_from']}), "
            f"{about['prefetch']} prefetch; docs/simulate.md."
        )
    return lines


def tables(
    points: Sequence[Point], measured: Sequence[Measured], foreseen: Mapping[int, float] | None = None
) -> list[Table]:
    """Hit rates; bytes and tokens/s where known; what was measured. ``foreseen``: by units, the hit rate of
    the static oracle without hindsight (:mod:`stbench.caches.frequent`)."""
    found = [_by_size("hit rate, %", points, lambda p: f"{100 * p.hit_rate:.1f}", foreseen or {})]
    if any(point.bytes_per_token is not None for point in points):
        found.append(_by_size("MB from storage per token", points, lambda p: _number(p.bytes_per_token, 1e6)))
    if any(point.tokens_per_s is not None for point in points):
        found.append(_by_size("predicted tokens/s", points, lambda p: _number(p.tokens_per_s)))
    if measured:
        found.append(_measured(measured))
    return found


def notes(points: Sequence[Point], measured: Sequence[Measured], machine: Machine | None) -> list[str]:
    """How to read the tables."""
    lines = []
    policies = {point.policy for point in points}
    if policies & set(ORACLES):
        lines.append("static and belady know the whole trace; no cache can run them.")
    if {"lru", "static"} < policies:
        lines.append(
            "Without hindsight: against the units that the trace's other tokens use most. A gap below "
            f"{100 * LEAST_GAP:.1f} points is not worth a share."
        )
    if machine is not None and machine.outside == 0:
        lines.append(
            "The model's shapes are not known, so reading is taken to overlap a whole token's computing."
        )
    seconds = sum(point.seconds for point in points)
    lines.append(f"Simulated in {seconds:.2f} s.")
    return lines


def csv_text(points: Sequence[Point]) -> str:
    """A line per size and policy; columns are the fields of :class:`stbench.caches.simulate.Point`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [field.name for field in fields(Point)]
    writer.writerow(names)
    for point in points:
        values = (getattr(point, name) for name in names)
        writer.writerow(["" if value is None else value for value in values])
    return out.getvalue()


def gap_closed(row: dict[str, Point], static: float | None = None) -> tuple[str, float, float] | None:
    """The gap in hit rate between LRU and the static oracle: the best other policy, the share of the gap
    that it closes (1.0: all), and the gap. ``static``: that oracle's hit rate, where it is not the simulated
    one. None where one of the three was not simulated; the share is NaN where the gap is below
    :data:`LEAST_GAP`."""
    others = [point for name, point in row.items() if name not in ("lru", *ORACLES)]
    if "lru" not in row or "static" not in row or not others:
        return None
    gap = (row["static"].hit_rate if static is None else static) - row["lru"].hit_rate
    best = max(others, key=lambda point: point.hit_rate)
    closed = (best.hit_rate - row["lru"].hit_rate) / gap if gap >= LEAST_GAP else math.nan
    return best.policy, closed, gap


def _gap_text(gap: tuple[str, float, float] | None) -> str:
    if gap is None:
        return ""
    policy, closed, width = gap
    if math.isnan(closed):
        return f"of {100 * width:.1f} points"
    return f"{closed:.0%} of {100 * width:.1f} points ({policy})"


def _rows(points: Sequence[Point]) -> list[dict[str, Point]]:
    rows: dict[int, dict[str, Point]] = {}
    for point in points:
        rows.setdefault(point.units, {})[point.policy] = point
    return list(rows.values())


def _by_size(
    title: str,
    points: Sequence[Point],
    text: Callable[[Point], str],
    foreseen: Mapping[int, float] | None = None,
) -> Table:
    """``foreseen`` (None: not asked for) adds what is closed of the gaps between LRU and static."""
    table = Table(title=title, title_justify="left", box=None)
    rows = _rows(points)
    for column in ("cache", "experts", "share"):
        table.add_column(column, justify="right", no_wrap=True)
    for policy in rows[0]:
        table.add_column(policy, justify="right", no_wrap=True)
    gaps = [gap_closed(row) for row in rows] if foreseen is not None else []
    if any(gaps):
        table.add_column("gap of LRU to static, closed", justify="right", no_wrap=True)
    if any(gaps) and foreseen:
        table.add_column("without hindsight", justify="right", no_wrap=True)
    for i, row in enumerate(rows):
        first = next(iter(row.values()))
        size = "" if first.cache_bytes is None else f"{first.cache_bytes / _MIB:.0f} MiB"
        cells = [size, str(first.units), f"{first.share:.1%}", *(text(point) for point in row.values())]
        if any(gaps):
            cells.append(_gap_text(gaps[i]))
        if any(gaps) and foreseen:
            cells.append(_gap_text(gap_closed(row, foreseen[first.units])))
        table.add_row(*cells)
    return table


def _number(value: float | None, scale: float = 1.0) -> str:
    return "" if value is None else f"{value / scale:.1f}"


def _measured(measured: Sequence[Measured]) -> Table:
    table = Table(title="simulated and measured with this trace", title_justify="left", box=None)
    for column in (
        "case",
        "policy",
        "cache",
        "experts",
        "hit rate, %",
        "simulated",
        "points",
        "MB per token",
        "tokens/s",
        "predicted",
        "deviation",
        "from probes",
        "deviation",
        "runs",
    ):
        justify: Any = "left" if column in ("case", "policy") else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    for each in measured:
        table.add_row(
            each.label,
            each.policy,
            f"{each.cache_bytes / _MIB:.0f} MiB",
            str(each.units),
            f"{100 * each.hit_rate:.1f}",
            *_points_off(each),
            f"{each.bytes_per_token / 1e6:.1f}",
            f"{each.tokens_per_s:.1f}",
            *_speed_off(each.predicted_tokens_per_s, each.tokens_per_s),
            *_speed_off(each.probed_tokens_per_s, each.tokens_per_s),
            str(each.replicates),
        )
    return table


def _points_off(each: Measured) -> tuple[str, str]:
    """The simulated hit rate in %, and how many points above the measured one."""
    found = each.simulated_hit_rate
    return ("", "") if found is None else (f"{100 * found:.1f}", f"{100 * (found - each.hit_rate):+.1f}")


def _speed_off(found: float | None, measured: float) -> tuple[str, str]:
    """Predicted tokens/s, and how far above the measured ones."""
    return ("", "") if found is None else (f"{found:.1f}", f"{100 * (found / measured - 1):+.0f} %")
