"""A figure of panels: title, legend, axes in a grid, and captions, each with the room that its text takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from stbench.charts.style import (
    CAPTION_PT,
    HEAD_PT,
    TEXT_PT,
    TITLE_PT,
    WIDTH_IN,
    Stroke,
    Theme,
    fitted,
    legible,
    plain,
    width_in,
    wrapped,
)

MARGIN_IN = 0.1
_TEXT_IN = WIDTH_IN - 2 * MARGIN_IN
_TITLE_LINE_IN, _KEY_LINE_IN, _CAPTION_LINE_IN = 0.22, 0.2, 0.175
_SYMBOL_IN, _SYMBOL_GAP_IN, _KEY_GAP_IN = 0.3, 0.07, 0.22
_COLUMN_GAP_IN = 0.62
_HEAD_IN = 0.24
_BELOW_IN = 0.52  # tick labels and the axis' name

BOX, GHOST = "box", "ghost"


@dataclass(frozen=True)
class Key:
    """One entry of the legend: a line with its marker; ``stroke.marker`` :data:`BOX`: a box, :data:`GHOST`:
    an outlined mark."""

    label: str
    stroke: Stroke


@dataclass(frozen=True)
class Panel:
    """``head`` is its title, "" for none; ``height_in`` that of its axes; ``below_in`` the room under them,
    where it is not that of tick labels and the axis' name."""

    head: str = ""
    height_in: float = 2.5
    below_in: float = _BELOW_IN


def sheet(
    title: str,
    panels: Sequence[Panel],
    keys: Sequence[Key],
    captions: Sequence[str],
    theme: Theme,
    *,
    columns: int = 1,
    left_in: float = 0.62,
) -> tuple[Figure, list[Axes]]:
    """The figure and the axes of its panels, row by row. ``left_in`` is the room for what stands left of the
    axes. To be called under :data:`stbench.charts.style.RC`."""
    titles = wrapped(legible(title), TITLE_PT, _TEXT_IN, "bold")
    key_rows = _key_rows(keys)
    lines = [line for sentence in captions for line in wrapped(sentence, CAPTION_PT, _TEXT_IN, indent="    ")]
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    head_in = _HEAD_IN if any(panel.head for panel in panels) else 0.08
    row_in = [head_in + max(p.height_in for p in row) + max(p.below_in for p in row) for row in rows]
    bottom_in = _CAPTION_LINE_IN * len(lines) + 0.08
    top_in = 0.12 + _TITLE_LINE_IN * len(titles) + _KEY_LINE_IN * len(key_rows)
    height = top_in + sum(row_in) + bottom_in
    figure = Figure(figsize=(WIDTH_IN, height), facecolor=theme.background)
    y = height - 0.1
    for line in titles:
        y -= _TITLE_LINE_IN
        _text(figure, MARGIN_IN, y + _TITLE_LINE_IN / 2, line, TITLE_PT, theme.text, height, "bold")
    for key_row in key_rows:
        y -= _KEY_LINE_IN
        _draw_keys(figure, key_row, y + _KEY_LINE_IN / 2, height, theme)
    all_axes = []
    width = (WIDTH_IN - MARGIN_IN - columns * left_in - (columns - 1) * (_COLUMN_GAP_IN - left_in)) / columns
    if columns > 1:
        width = (WIDTH_IN - 2 * MARGIN_IN - left_in - (columns - 1) * _COLUMN_GAP_IN) / columns
    y = height - top_in
    for row, tall in zip(rows, row_in, strict=True):
        for i, panel in enumerate(row):
            x = left_in + i * (width + _COLUMN_GAP_IN)
            bottom = y - head_in - panel.height_in
            axes = figure.add_axes(
                (x / WIDTH_IN, bottom / height, width / WIDTH_IN, panel.height_in / height)
            )
            plain(axes, theme)
            if panel.head:
                head = fitted(legible(panel.head), HEAD_PT, width, "bold")
                _text(figure, x, y - head_in + 0.1, head, HEAD_PT, theme.text, height, "bold")
            all_axes.append(axes)
        y -= tall
    for i, line in enumerate(lines):
        at = _CAPTION_LINE_IN * (len(lines) - i) - 0.04
        _text(figure, MARGIN_IN, at, line, CAPTION_PT, theme.muted, height)
    return figure, all_axes


def name_axes(axes: Axes, x: str, y: str, theme: Theme) -> None:
    """Their names with units, at the size of readable text."""
    axes.set_xlabel(x, fontsize=HEAD_PT, color=theme.text, labelpad=3)
    axes.set_ylabel(y, fontsize=HEAD_PT, color=theme.text, labelpad=4)


def short_numbers(axes: Axes) -> None:
    """Tick labels of the y axis that leave room for its name, however fast a tiny model is."""
    axes.yaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}")


def _key_rows(keys: Sequence[Key]) -> list[list[tuple[Key, str, float]]]:
    """Keys with their fitted labels and widths, in as few rows as they fit in, in order."""
    rows: list[list[tuple[Key, str, float]]] = []
    used = math.inf
    for key in keys:
        longest = _TEXT_IN - _SYMBOL_IN - _SYMBOL_GAP_IN
        label = fitted(legible(key.label), TEXT_PT, longest)
        wide = _SYMBOL_IN + _SYMBOL_GAP_IN + width_in(label, TEXT_PT)
        if used + _KEY_GAP_IN + wide > _TEXT_IN:
            rows.append([])
            used = -_KEY_GAP_IN
        rows[-1].append((key, label, wide))
        used += _KEY_GAP_IN + wide
    return rows


def _draw_keys(
    figure: Figure, row: Sequence[tuple[Key, str, float]], y: float, height: float, theme: Theme
) -> None:
    x = MARGIN_IN
    for key, label, wide in row:
        stroke = key.stroke
        if stroke.marker == BOX:
            figure.add_artist(
                Rectangle(
                    ((x + 0.06) / WIDTH_IN, (y - 0.06) / height), 0.2 / WIDTH_IN, 0.12 / height,
                    facecolor=stroke.colour, transform=figure.transFigure,
                )
            )  # fmt: skip
        else:
            ghost = stroke.marker == GHOST
            figure.add_artist(
                Line2D(
                    [x / WIDTH_IN, (x + _SYMBOL_IN / 2) / WIDTH_IN, (x + _SYMBOL_IN) / WIDTH_IN],
                    [y / height] * 3, color=stroke.colour, linestyle=stroke.dash,
                    marker="o" if ghost else stroke.marker, markevery=[1], markersize=7 if ghost else 5,
                    markerfacecolor="none" if ghost else stroke.colour, linewidth=1.5,
                    transform=figure.transFigure,
                )
            )  # fmt: skip
        _text(figure, x + _SYMBOL_IN + _SYMBOL_GAP_IN, y, label, TEXT_PT, theme.text, height)
        x += wide + _KEY_GAP_IN


def _text(
    figure: Figure,
    x: float,
    y: float,
    text: str,
    points: float,
    colour: str,
    height: float,
    weight: str = "normal",
) -> None:
    figure.text(x / WIDTH_IN, y / height, text, fontsize=points, color=colour, va="center", fontweight=weight)
