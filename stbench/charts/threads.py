"""Decode speed by threads, with what the memory's bandwidth allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping

from matplotlib.figure import Figure

from stbench.charts import ghosts, series
from stbench.charts.kinds import Drawn, Kind, Request
from stbench.charts.lineplot import Drawing, base_captions, draw_line, headroom, line_alt, line_figure, tops
from stbench.charts.series import Line, Point
from stbench.charts.sheet import Key
from stbench.charts.style import Stroke
from stbench.wording import count

_FREE = ("threads_requested", "cpus")


def threads_figure(
    found: list[Line], left_out: list[str], theme: str = "light", ratio_to: Mapping[str, str] | None = None
) -> Figure:
    """Lines of :func:`stbench.charts.series.lines` over threads."""
    bounded = any(_bound(point) for line in found for point in line.points)
    marks = ghosts.at(
        [line for line in found if not line.first["n_depth"]],
        dict(ratio_to or {}),
        lambda line, threads: threads or ghosts.fastest(line),
    )
    captions = base_captions(found, _FREE)
    if bounded:
        captions.insert(
            1,
            "Dotted, in the line's colour: what the memory allowed, bytes that a token reads over the "
            "bandwidth probed beside the runs.",
        )
    if any(marks.get(id(line)) and ghosts.unstated_threads(line, dict(ratio_to or {})) for line in found):
        captions.append("Published with the fastest number of threads, which was not stated: at ours.")

    def panel(drawing: Drawing) -> None:
        _panel(drawing, marks)

    return line_figure(
        found,
        "Decode speed by threads",
        "threads",
        "decode, tokens/s",
        theme,
        captions=[*captions, *left_out],
        extra_keys=lambda colours: [
            *([Key("memory's limit", Stroke(colours.muted, "", ":"))] if bounded else []),
            *ghosts.keys(marks, colours),
        ],
        draw=panel,
    )


def _panel(drawing: Drawing, marks: ghosts.Ghosts) -> None:
    axes = drawing.axes
    highest = tops(drawing)
    for line, stroke in drawing.lines:
        draw_line(axes, line, stroke, drawing.theme)
        bounds = [(point.x, bound) for point in line.points if (bound := _bound(point))]
        if bounds:
            axes.plot(*zip(*bounds, strict=True), ":", color=stroke.colour, linewidth=1.6, zorder=2)
            highest += [bound for _, bound in bounds]
        highest += ghosts.draw(axes, marks.get(id(line), ()), stroke)
    xs = [point.x for line, _ in drawing.lines for point in line.points]
    counts = sorted({*xs, *(x for line, _ in drawing.lines for x, _ in marks.get(id(line), ()))})
    # Every count has its tick as long as they do not touch.
    axes.set_xticks(counts if len(counts) <= 12 else counts[:: math.ceil(len(counts) / 12)])
    # From none on, which shows what is proportional; but two counts of 1 and 2 fill the panel.
    axes.set_xlim(0 if max(counts) > 4 else 0.5, max(counts) + 0.5)
    headroom(axes, highest)


def _bound(point: Point) -> float | None:
    rows = point.rows[point.rows["usable"]]
    bounds = (rows["decode_tps"] / rows["limit_share"]).dropna()
    return float(bounds.median()) if len(bounds) else None


def _draw(request: Request) -> list[Drawn]:
    frame = request.results.frame
    frame = frame[(frame["n_gen"] > 0) & (frame["threads"] > 0)]
    found = series.lines(frame, "decode_tps", lambda rows: float(rows["threads"].max()), _FREE, at_least=2)
    found, left_out = series.most(found)
    if not found:
        return []
    alt = line_alt(
        found, "Lines: decode speed by threads", lambda point: count(int(point.x), "thread"), "tokens/s"
    )
    figure = threads_figure(found, left_out, request.theme, request.ratio_to)
    return [Drawn("threads", KIND.name, "Decode speed by threads", alt, figure)]


KIND = Kind(
    "threads",
    "decode speed by threads, with the memory's limit",
    "one case with at least two thread counts",
    "stbench sweep --models smallthinker-4b --sparse-ffn on --sparse-lm-head on -t 1-8*2 -n 128",
    _draw,
)
