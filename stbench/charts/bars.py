"""Grouped horizontal bars: measured ones solid with interval or range, published ones as outlines."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stbench.charts.style import (
    CAPTION_CHARACTERS,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    WIDTH_IN,
    Theme,
    fitted,
    legible,
)

BAR_IN = 0.17
GROUP_GAP = 0.9
_LEFT = 0.335  # of the width, for names
_NAME_IN = (_LEFT - 0.02) * WIDTH_IN
_CAPTION_IN = 0.98 * WIDTH_IN


@dataclass(frozen=True)
class Bar:
    """``value`` None: there is only ``text``, how the runs ended. ``low`` and ``high`` are the interval or
    range of a measured one; ``text`` is its value and marks as its table's cell says them; ``published`` is
    what was published of the same device."""

    label: str
    colour: str
    value: float | None
    low: float | None
    high: float | None
    text: str
    measured: bool
    published: float | None = None


@dataclass(frozen=True)
class Group:
    """Bars that are of one device."""

    title: str
    bars: Sequence[Bar]


def bar_colours(families: Sequence[bool], blue: str) -> list[str]:
    """Blues for SmallThinker and its switches (True), other hues for the models beside it."""
    family, others = [blue, SKY, "#7FA8C9", "#9AA7B2"], [ORANGE, VERMILLION, GREEN, PURPLE]
    colours = []
    used = {True: 0, False: 0}
    for is_family in families:
        choice = family if is_family else others
        colours.append(choice[used[is_family] % len(choice)])
        used[is_family] += 1
    return colours


def caption_lines(sentences: Sequence[str]) -> list[str]:
    """Broken where the figure ends."""
    return [
        fitted(part, 7.5, _CAPTION_IN)
        for sentence in sentences
        for part in textwrap.wrap(sentence, CAPTION_CHARACTERS, subsequent_indent="    ")
    ]


def bar_figure(
    groups: Sequence[Group], title: str, captions: Sequence[str], unit: str, theme: Theme
) -> Figure:
    """``captions`` are :func:`caption_lines`; ``unit`` is the axis' label. To be called under
    :data:`stbench.charts.style.RC`."""
    units = sum(len(group.bars) + 1 + GROUP_GAP for group in groups)
    top_in, bottom_in = 0.55, 0.62 + 0.17 * len(captions)
    height = units * BAR_IN + top_in + bottom_in
    figure = Figure(figsize=(WIDTH_IN, height), facecolor=theme.background)
    axes = figure.add_axes((_LEFT, bottom_in / height, 0.645, units * BAR_IN / height))
    every = [bar for group in groups for bar in group.bars]
    highest = max((max(bar.high or bar.value or 0.0, bar.published or 0.0) for bar in every), default=0.0)
    # Room for the text behind the longest bar.
    limit = (highest or 1.0) * (1.3 if any(bar.published for bar in every) else 1.16)
    axes.set_xlim(0, limit)
    axes.set_ylim(units - GROUP_GAP / 2, -GROUP_GAP / 2)
    y = 0.0
    for group in groups:
        weight = "bold" if any(bar.measured for bar in group.bars) else "normal"
        axes.text(
            -0.012, y, fitted(legible(group.title), 8.5, _NAME_IN, weight),
            transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=8.5, fontweight=weight,
            color=theme.text,
        )  # fmt: skip
        for bar in group.bars:
            y += 1
            _draw_bar(axes, bar, y, limit, theme)
        y += 1 + GROUP_GAP
    _style(axes, unit, theme)
    figure.text(
        0.012, 1 - 0.2 / height, fitted(legible(title), 11, _CAPTION_IN, "bold"), fontsize=11,
        fontweight="bold", color=theme.text, va="center",
    )  # fmt: skip
    for i, line in enumerate(captions):
        below = (0.17 * (len(captions) - i) - 0.05) / height
        figure.text(0.012, below, line, fontsize=7.5, color=theme.muted, va="center")
    return figure


def _draw_bar(axes: Axes, bar: Bar, y: float, limit: float, theme: Theme) -> None:
    indent = bar.label[: len(bar.label) - len(bar.label.lstrip())]
    axes.text(
        -0.012, y, indent + fitted(legible(bar.label), 7.5, _NAME_IN), transform=axes.get_yaxis_transform(),
        ha="right", va="center", fontsize=7.5, color=theme.text if bar.measured else theme.muted,
    )  # fmt: skip
    end = bar.value or 0.0
    if bar.value is not None:
        face = bar.colour if bar.measured else "none"
        axes.barh(y, bar.value, height=0.74, facecolor=face, edgecolor=bar.colour, linewidth=1.0)
    if bar.measured and bar.low is not None and bar.high is not None:
        axes.plot([bar.low, bar.high], [y, y], color=theme.text, linewidth=1.3, solid_capstyle="butt")
        for x in (bar.low, bar.high):
            axes.plot([x, x], [y - 0.22, y + 0.22], color=theme.text, linewidth=1.3)
        end = max(end, bar.high)
    if bar.published is not None:
        axes.barh(
            y, bar.published, height=0.9, facecolor="none", edgecolor=theme.text, linewidth=1.0,
            linestyle=(0, (2, 1.5)),
        )  # fmt: skip
        end = max(end, bar.published)
    axes.text(
        end + limit * 0.008, y, _value_text(bar), ha="left", va="center", fontsize=7,
        color=theme.text if bar.measured else theme.muted,
    )  # fmt: skip


def _value_text(bar: Bar) -> str:
    """The median and the marks; the interval is drawn. Without a value: how the runs ended."""
    beside = f"published {bar.published:.2f}" if bar.published is not None else ""
    if not bar.measured or bar.value is None:
        return ", ".join(part for part in (bar.text, beside) if part)
    marks = bar.text.rpartition(" ")[2] if " " in bar.text else ""
    median = bar.text.split(" ", 1)[0]
    said = f"{median} {marks}" if marks and marks[-1] not in ")]" else median
    return f"{said} ({beside})" if beside else said


def _style(axes: Axes, unit: str, theme: Theme) -> None:
    axes.set_facecolor(theme.background)
    axes.set_xlabel(unit, fontsize=8.5, color=theme.text)
    axes.set_yticks([])
    axes.tick_params(axis="x", labelsize=8, colors=theme.muted, length=0)
    axes.grid(axis="x", color=theme.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(theme.muted)
