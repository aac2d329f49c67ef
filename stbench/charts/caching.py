"""Speed and hit rate by the size of the cache of experts or layers, as measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stbench.charts import ghosts, series
from stbench.charts.kinds import Drawn, Kind, Request
from stbench.charts.lineplot import base_captions, draw_line, draw_point, headroom, keys_of, looks_of
from stbench.charts.series import Line, Point
from stbench.charts.sheet import Key, Panel, name_axes, sheet, short_numbers
from stbench.charts.style import RC, THEMES, Stroke, Theme, legible
from stbench.tables import cells

_FREE = ("cache",)
_MIB = 1 << 20
# From this ratio of the largest cache to the smallest on (two models), the axis is logarithmic.
_LOG_FROM = 20


def cache_figure(
    found: list[Line], left_out: list[str], theme: str = "light", ratio_to: Mapping[str, str] | None = None
) -> Figure:
    """Lines of :func:`stbench.charts.series.lines` over the cache's size in MiB: tokens/s on the left, the
    hit rate on the right, a row per device."""
    colours = THEMES[theme]
    places = series.devices(found)
    several = len(places) > 1
    looks = looks_of(found, colours)
    keys = keys_of(found, looks)
    bounded = any(_bound(point) for line in found for point in line.points)
    captions = base_captions(found, _FREE)
    if bounded:
        keys.append(Key("bound", Stroke(colours.muted, "", ":")))
        captions.insert(
            1,
            "Bound (dotted, in the line's colour): the smaller of decoding with all weights in memory and of "
            "what storage gave over the bytes that a static cache of the same size misses.",
        )
    marks = ghosts.at(
        [line for line in found if not line.first["n_depth"]],
        dict(ratio_to or {}),
        lambda line, threads: line.points[-1].x,
    )
    keys += ghosts.keys(marks, colours)
    if any(marks.values()):
        captions.append("Published with a cache whose size was not stated: at the largest of ours.")
    title = "Speed and hit rate by cache size"
    with matplotlib.rc_context(RC):
        figure, all_axes = sheet(
            title if several else f"{title}: {legible(places[0], 60)}",
            [
                Panel(place if several and not right else "", 1.6 if several else 2.3)
                for place in places
                for right in (0, 1)
            ],
            keys,
            [*captions, *left_out],
            colours,
            columns=2,
        )
        for i, place in enumerate(places):
            here = [line for line in found if line.device == place]
            _speeds(all_axes[2 * i], here, looks, marks, colours)
            _hits(all_axes[2 * i + 1], here, looks, colours)
    return figure


def _speeds(
    axes: Axes, here: Sequence[Line], looks: Mapping[str, Stroke], marks: ghosts.Ghosts, theme: Theme
) -> None:
    tops = []
    for line in here:
        stroke = looks[line.label]
        draw_line(axes, line, stroke, theme)
        tops += [point.cell.high or point.cell.value or 0.0 for point in line.points]
        bounds = [(point.x, bound) for point in line.points if (bound := _bound(point))]
        if bounds:
            axes.plot(*zip(*bounds, strict=True), ":", color=stroke.colour, linewidth=1.6, zorder=2)
            tops += [bound for _, bound in bounds]
        tops += ghosts.draw(axes, marks.get(id(line), ()), stroke)
    _across(axes, here)
    headroom(axes, tops)
    short_numbers(axes)
    name_axes(axes, "cache, MiB", "decode, tokens/s", theme)


def _hits(axes: Axes, here: Sequence[Line], looks: Mapping[str, Stroke], theme: Theme) -> None:
    for line in here:
        stroke = looks[line.label]
        points = [(point, cells.speed_cell(point.rows, "hit_rate")) for point in line.points]
        known = [(point, cell, 100 * cell.value) for point, cell in points if cell.value is not None]
        axes.plot(
            [point.x for point, _, _ in known], [rate for _, _, rate in known], stroke.dash,
            color=stroke.colour, linewidth=1.5, zorder=3,
        )  # fmt: skip
        for point, cell, rate in known:
            around = (100 * (cell.low or 0.0), 100 * (cell.high or 0.0))
            draw_point(axes, point.x, rate, around, stroke, theme, hollow=point.doubtful)
    _across(axes, here)
    axes.set_ylim(0, 102)
    name_axes(axes, "cache, MiB", "hit rate, %", theme)


def _across(axes: Axes, here: Sequence[Line]) -> None:
    sizes = [point.x for line in here for point in line.points]
    low, high = max(min(sizes), 1.0), max(sizes)
    if high <= _LOG_FROM * low:
        axes.set_xlim(0, high * 1.06)
        axes.locator_params(axis="x", nbins=6)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        return
    axes.set_xscale("log")
    axes.set_xlim(low / 1.2, high * 1.2)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in ((1, 3) if high < 1000 * low else (1,))]
    axes.set_xticks([tick for tick in ticks if low / 1.2 <= tick <= high * 1.2], minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _bound(point: Point) -> float | None:
    bounds = point.rows.loc[point.rows["usable"], "bound_tps"].dropna()
    return float(bounds.median()) if len(bounds) else None


def _size(rows: pd.DataFrame) -> float:
    return float(rows["cache_bytes"].median()) / _MIB


def _prefetch(frame: pd.DataFrame) -> list[str]:
    """Where "auto" came to something else, both: older builds mean exact by it, today's next-2, and lines of
    either are no replicates of each other. Here alone, since a case is matched by what was asked for."""
    asked, came_to = frame["prefetch"].tolist(), frame["prefetch_effective"].tolist()
    return [a if b in ("", a) else f"{a} ({b})" for a, b in zip(asked, came_to, strict=True)]


def _draw(request: Request) -> list[Drawn]:
    frame = request.results.frame
    frame = frame[(frame["n_gen"] > 0) & frame["cache_bytes"].notna()]
    frame = frame.assign(prefetch=_prefetch(frame))
    found = series.lines(frame, "decode_tps", _size, _FREE)
    # One size of one case says nothing of sizes, but beside others it does.
    if len({point.x for line in found for point in line.points}) < 2:
        return []
    found, left_out = series.most(found)
    parts = []
    for line in found[:8]:
        said = []
        for point in line.points[:8]:
            hits = cells.speed_cell(point.rows, "hit_rate").value
            rate = f" and {100 * hits:.0f} % hits" if hits is not None else ""
            said.append(f"{point.cell.value or 0.0:.1f} tokens/s{rate} at {point.x:.3g} MiB")
        parts.append(f"{legible(line.device, 40)}, {line.label}: {', '.join(said)}.")
    alt = "Lines: decode speed and hit rate by the size of the cache. " + " ".join(parts)
    figure = cache_figure(found, left_out, request.theme, request.ratio_to)
    return [Drawn("cache", KIND.name, "Speed and hit rate by cache size", alt, figure)]


KIND = Kind(
    "cache",
    "decode speed and hit rate by the size of the cache",
    "runs with caches of at least two sizes",
    "stbench sweep --preset cache-sizes-4b",
    _draw,
)
