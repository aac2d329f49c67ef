"""Decode speed by the tokens that are in the KV cache before."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from matplotlib.figure import Figure

from stbench.charts import ghosts, series
from stbench.charts.kinds import Drawn, Kind, Request
from stbench.charts.lineplot import Drawing, base_captions, draw_line, headroom, line_alt, line_figure, tops
from stbench.charts.series import Line

# A sweep's context is as long as its deepest case asks for.
_FREE = ("n_depth", "n_ctx")


def depth_figure(
    found: list[Line], left_out: list[str], theme: str = "light", ratio_to: Mapping[str, str] | None = None
) -> Figure:
    """Lines of :func:`stbench.charts.series.lines` over depth."""
    marks = ghosts.at(found, dict(ratio_to or {}), lambda line, threads: 0.0)

    def panel(drawing: Drawing) -> None:
        _panel(drawing, marks)

    return line_figure(
        found,
        "Decode speed by depth",
        "tokens in the KV cache before the run",
        "decode, tokens/s",
        theme,
        captions=[*base_captions(found, _FREE), *left_out],
        extra_keys=lambda colours: ghosts.keys(marks, colours),
        draw=panel,
    )


def _panel(drawing: Drawing, marks: ghosts.Ghosts) -> None:
    highest = tops(drawing)
    for line, stroke in drawing.lines:
        draw_line(drawing.axes, line, stroke, drawing.theme)
        highest += ghosts.draw(drawing.axes, marks[id(line)], stroke)
    depths = sorted({point.x for line, _ in drawing.lines for point in line.points})
    drawing.axes.set_xlim(0, max(depths) * 1.03)
    far_apart = all(b - a >= max(depths) / 10 for a, b in pairwise(depths))
    if far_apart:
        drawing.axes.set_xticks(depths)
    drawing.axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    headroom(drawing.axes, highest)


def _draw(request: Request) -> list[Drawn]:
    frame = request.results.frame
    frame = frame[frame["n_gen"] > 0]
    found = series.lines(frame, "decode_tps", lambda rows: float(rows["n_depth"].max()), _FREE, at_least=2)
    found, left_out = series.most(found)
    if not found:
        return []
    alt = line_alt(found, "Lines: decode speed by depth", lambda point: f"depth {point.x:.0f}", "tokens/s")
    figure = depth_figure(found, left_out, request.theme, request.ratio_to)
    return [Drawn("depth", KIND.name, "Decode speed by depth", alt, figure)]


KIND = Kind(
    "depth",
    "decode speed by the tokens in the KV cache before",
    "one case at two depths or more",
    "stbench sweep --models smallthinker-4b -n 64 -d 0,512,1024,2048,4096",
    _draw,
)
