"""Decode speed by memory limit, published numbers of the same device beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from matplotlib.figure import Figure

from stbench.charts import ghosts, series
from stbench.charts.kinds import Drawn, Kind, Request
from stbench.charts.lineplot import Drawing, base_captions, draw_points, headroom, line_alt, line_figure, tops
from stbench.charts.series import Line, Point

_FREE = ("memory_limit_bytes", "cache", "cache_policy", "io", "io_direct", "prefetch")
_GHOST_BESIDE = 0.13  # of the distance of two limits


def memory_figure(
    found: list[Line], left_out: list[str], theme: str = "light", ratio_to: Mapping[str, str] | None = None
) -> Figure:
    """Lines of :func:`stbench.charts.series.lines` over limits, infinity being none."""
    marks = ghosts.by_limit(found, dict(ratio_to or {}))
    limits = sorted(
        {x for line in found for x in [p.x for p in line.points] + [limit for limit, _ in marks[id(line)]]}
    )
    captions = base_captions(found, _FREE)
    captions.insert(1, "Of several caches at one limit the fastest. No limit: all weights in memory.")

    def panel(drawing: Drawing) -> None:
        axes = drawing.axes
        highest = tops(drawing)
        for line, stroke in drawing.lines:
            draw_points(axes, line, stroke, drawing.theme, lambda point: limits.index(point.x))
            for left, right in pairwise(line.points):
                xs = limits.index(left.x), limits.index(right.x)
                # No limit is no amount of memory, and limits between were not measured.
                dash = stroke.dash if xs[1] - xs[0] == 1 and math.isfinite(right.x) else ":"
                ys = left.cell.value or 0.0, right.cell.value or 0.0
                axes.plot(xs, ys, dash, color=stroke.colour, linewidth=1.5, zorder=3)
            beside = [(limits.index(limit) + _GHOST_BESIDE, speed) for limit, speed in marks[id(line)]]
            highest += ghosts.draw(axes, beside, stroke)
        axes.set_xticks(range(len(limits)), [_limit_text(limit) for limit in limits])
        axes.set_xlim(-0.5, len(limits) - 0.5)
        headroom(axes, highest)

    return line_figure(
        found,
        "Decode speed by memory limit",
        "memory limit",
        "decode, tokens/s",
        theme,
        captions=[*captions, *left_out],
        extra_keys=lambda colours: ghosts.keys(marks, colours),
        draw=panel,
    )


def _limit_text(limit: float) -> str:
    return "no limit" if math.isinf(limit) else series.gib(limit)


def _x_text(point: Point) -> str:
    return _limit_text(point.x)


def _limit(frame: Sequence[int]) -> float:
    return float(max(frame)) or math.inf


def _draw(request: Request) -> list[Drawn]:
    frame = request.results.frame
    limited = frame["memory_limit_bytes"] > 0
    frame = frame[(frame["n_gen"] > 0) & (limited | (frame["cache"] == "")) & (frame["routing"] == "")]
    found = series.lines(frame, "decode_tps", lambda rows: _limit(list(rows["memory_limit_bytes"])), _FREE)
    found = [line for line in found if any(math.isfinite(point.x) for point in line.points)]
    found, left_out = series.most(found)
    if not found:
        return []
    alt = line_alt(found, "Lines: decode speed by memory limit", _x_text, "tokens/s")
    figure = memory_figure(found, left_out, request.theme, request.ratio_to)
    return [Drawn("memory", KIND.name, "Decode speed by memory limit", alt, figure)]


KIND = Kind(
    "memory",
    "decode speed by memory limit",
    "runs under a memory limit",
    "stbench sweep --models smallthinker-4b --sparse-ffn on --memory-limit 1GiB,2GiB,none --cache auto,none",
    _draw,
)
