"""Lines with error bars on a panel per device, and their alt text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stbench.charts import series
from stbench.charts.series import Line, Point
from stbench.charts.sheet import Key, Panel, name_axes, sheet, short_numbers
from stbench.charts.style import RC, THEMES, Stroke, Theme, legible, strokes

# Lines and points that an alt text reads out.
_ALT_LINES, _ALT_POINTS = 8, 8


@dataclass(frozen=True)
class Drawing:
    """What is drawn where: the axes of one device, its lines with their strokes, the colours."""

    axes: Axes
    device: str
    lines: Sequence[tuple[Line, Stroke]]
    theme: Theme


def line_figure(
    found: Sequence[Line],
    title: str,
    x_name: str,
    y_name: str,
    theme: str,
    *,
    captions: Sequence[str] = (),
    extra_keys: Callable[[Theme], Sequence[Key]] = lambda theme: (),
    draw: Callable[[Drawing], None],
) -> Figure:
    """A panel per device, the legend of all above; ``draw`` puts the lines onto one. ``found`` is not
    empty."""
    colours = THEMES[theme]
    places = series.devices(found)
    looks = looks_of(found, colours)
    several = len(places) > 1
    with matplotlib.rc_context(RC):
        figure, all_axes = sheet(
            title if several else f"{title}: {legible(places[0], 60)}",
            [Panel(place if several else "", 2.1 if several else 2.7) for place in places],
            [*keys_of(found, looks), *extra_keys(colours)],
            captions,
            colours,
            columns=2 if several else 1,
        )
        for i, (place, axes) in enumerate(zip(places, all_axes, strict=True)):
            here = [(line, looks[line.label]) for line in found if line.device == place]
            draw(Drawing(axes, place, here, colours))
            short_numbers(axes)
            name_axes(axes, x_name, y_name if i % 2 == 0 else "", colours)
    return figure


def looks_of(found: Sequence[Line], theme: Theme) -> dict[str, Stroke]:
    """A stroke for every label."""
    labels = series.label_order(found)
    return dict(zip(labels, strokes(len(labels), theme), strict=True))


def keys_of(found: Sequence[Line], looks: Mapping[str, Stroke]) -> list[Key]:
    """The legend: every label once, with the marks of all its lines."""
    keys = []
    for label in series.label_order(found):
        marks = series.marks_of(line for line in found if line.label == label)
        keys.append(Key(f"{label} {marks}".strip(), looks[label]))
    return keys


def draw_line(
    axes: Axes,
    line: Line,
    stroke: Stroke,
    theme: Theme,
    x: Callable[[Point], float] = lambda point: point.x,
) -> None:
    """:func:`draw_points`, and a line through the medians."""
    xs = [x(point) for point in line.points]
    ys = [point.cell.value or 0.0 for point in line.points]
    axes.plot(xs, ys, stroke.dash, color=stroke.colour, linewidth=1.5, zorder=3)
    draw_points(axes, line, stroke, theme, x)


def draw_points(axes: Axes, line: Line, stroke: Stroke, theme: Theme, x: Callable[[Point], float]) -> None:
    """Medians with their error bars; hollow where they do not compare."""
    for point in line.points:
        around = (point.cell.low, point.cell.high)
        draw_point(axes, x(point), point.cell.value or 0.0, around, stroke, theme, hollow=point.doubtful)


def draw_point(
    axes: Axes,
    x: float,
    y: float,
    around: tuple[float | None, float | None],
    stroke: Stroke,
    theme: Theme,
    *,
    hollow: bool,
) -> None:
    """One median with what surrounds it."""
    low, high = around
    if low is not None and high is not None:
        axes.errorbar(
            [x], [y], [[max(y - low, 0)], [max(high - y, 0)]], fmt="none", ecolor=stroke.colour,
            elinewidth=1.2, capsize=2.5, capthick=1.2, zorder=6, clip_on=False,
        )  # fmt: skip
    axes.plot(
        [x], [y], stroke.marker, color=stroke.colour, markersize=5.5, zorder=5, clip_on=False,
        markerfacecolor=theme.background if hollow else stroke.colour,
    )  # fmt: skip


def headroom(axes: Axes, tops: Sequence[float]) -> None:
    """From zero to a little above the largest value."""
    axes.set_ylim(0, (max(tops, default=0.0) or 1.0) * 1.1)


def tops(drawing: Drawing) -> list[float]:
    """The upper ends of all points of a panel."""
    return [p.cell.high or p.cell.value or 0.0 for line, _ in drawing.lines for p in line.points]


def base_captions(found: Sequence[Line], free: Sequence[str]) -> list[str]:
    """What all line charts say: shared conditions, what bars are, what marks mean."""
    said = [sentence for sentence in (series.shared(found, free), series.whisker_sentence(found)) if sentence]
    return [" ".join(said), *series.mark_sentences(found)]


def line_alt(
    found: Sequence[Line], what: str, x_text: Callable[[Point], str], unit: str, digits: int = 1
) -> str:
    """``what``, then the medians of the lines in words."""
    several = len(series.devices(found)) > 1
    parts = []
    for line in found[:_ALT_LINES]:
        name = f"{legible(line.device, 40)}, {line.label}" if several else line.label
        points = [
            f"{point.cell.value or 0.0:.{digits}f} at {x_text(point)}" for point in _spread(line.points)
        ]
        parts.append(f"{name}: {', '.join(points)} {unit}.")
    if len(found) > _ALT_LINES:
        parts.append(f"And {len(found) - _ALT_LINES} further lines.")
    where = "" if several else f" on {legible(found[0].device, 40)}"
    return f"{what}{where}. " + " ".join(parts)


def _spread(points: Sequence[Point]) -> list[Point]:
    """At most _ALT_POINTS, first and last among them."""
    if len(points) <= _ALT_POINTS:
        return list(points)
    last = len(points) - 1
    return [points[round(i * last / (_ALT_POINTS - 1))] for i in range(_ALT_POINTS)]
