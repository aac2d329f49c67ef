"""Tidy cells -> matplotlib figures; no files, no global state. The same cells give the same bytes."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from stbench.tables.table import MEANINGS

# Okabe and Ito's palette: told apart with every common kind of colour blindness; bars carry names.
_ORANGE, _SKY, _GREEN, _BLUE, _VERMILLION, _PURPLE = (
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)

WIDTH_IN = 8.3  # a README column is about 830 px wide
PNG_DPI = 144
BAR_IN = 0.17
GROUP_GAP = 0.9
CAPTION_CHARACTERS = 125  # of 7.5 point text in the width

# Texts of measured cells that rest on no record.
_NOTHING = ("", "—", "not run")


@dataclass(frozen=True)
class Theme:
    """Colours of everything that is not a bar, and of the first kind of bar."""

    background: str
    text: str
    muted: str
    grid: str
    blue: str


# The palette's blue is too dark for thin outlines on a dark page.
THEMES = {
    "light": Theme("#ffffff", "#1f2328", "#59636e", "#d9dee3", _BLUE),
    "dark": Theme("#0d1117", "#e6edf3", "#9198a1", "#30363d", "#2F8FD0"),
}

# Everything that could make two renderings of one figure differ, or depend on the user's matplotlibrc.
RC = {
    "svg.hashsalt": "stbench",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "path.simplify": False,
    "text.usetex": False,
    "axes.unicode_minus": False,
}


@dataclass(frozen=True)
class _Bar:
    label: str
    colour: str
    value: float | None
    low: float | None
    high: float | None
    text: str
    measured: bool


@dataclass(frozen=True)
class _Group:
    title: str
    bars: Sequence[_Bar]


def speed_figure(
    cells: pd.DataFrame, title: str, theme: str = "light", profiles: Sequence[str] = ()
) -> Figure:
    """Decode speed of every device, one group of bars per device: measured solid with interval or range,
    published as outlines. ``cells`` is :func:`stbench.tables.render.tidy` of one table, ``profiles`` are that
    table's, for the caption; ``theme`` is a key of :data:`THEMES`. Rows that no device measured are left out,
    unless nothing was measured at all."""
    colours = THEMES[theme]
    measured = cells[cells["role"] == "speed"]
    published = cells[cells["role"] == "published"]
    shown = set(measured.loc[~measured["text"].isin(_NOTHING), "row"])
    rows = [row for row in _rows(cells) if row["row"] in shown or not shown]
    left_out = [row["label"] for row in _rows(cells) if row["row"] not in shown] if shown else []
    palette = _palette(rows, colours.blue)
    groups = [_group(rows, palette, column, True) for _, column in measured.groupby("column", sort=False)] + [
        _group(rows, palette, column, False) for _, column in published.groupby("column", sort=False)
    ]
    with matplotlib.rc_context(RC):  # type: ignore[arg-type]
        return _draw(groups, title, _captions(measured, left_out, profiles), colours)


def svg_bytes(figure: Figure) -> bytes:
    """The figure as SVG; text as outlines, so that it looks the same without the font."""
    return _bytes(FigureCanvasSVG(figure), "svg", {"Date": None, "Creator": "stbench"})


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG at :data:`PNG_DPI`."""
    return _bytes(FigureCanvasAgg(figure), "png", {"Software": "stbench"})


def _bytes(canvas: Any, kind: str, metadata: Mapping[str, str | None]) -> bytes:
    out = io.BytesIO()
    with matplotlib.rc_context(RC):  # type: ignore[arg-type]
        face = canvas.figure.get_facecolor()
        canvas.figure.savefig(out, format=kind, dpi=PNG_DPI, metadata=metadata, facecolor=face)
    return out.getvalue()


def _rows(cells: pd.DataFrame) -> list[dict[str, str]]:
    return [
        {"row": str(row), "label": str(group["label"].iloc[0]), "parent": str(group["parent"].iloc[0])}
        for row, group in cells.groupby("row", sort=False)
    ]


def _palette(rows: Sequence[Mapping[str, str]], blue: str) -> dict[str, str]:
    """Blues for SmallThinker and its switches, other hues for the models beside it."""
    family, others = [blue, _SKY, "#7FA8C9", "#9AA7B2"], [_ORANGE, _VERMILLION, _GREEN, _PURPLE]
    colours = {}
    used = {"family": 0, "others": 0}
    for row in rows:
        kind = "family" if row["row"].startswith("smallthinker") else "others"
        choice = family if kind == "family" else others
        colours[row["row"]] = choice[used[kind] % len(choice)]
        used[kind] += 1
    return colours


def _group(
    rows: Sequence[Mapping[str, str]], palette: Mapping[str, str], column: pd.DataFrame, measured: bool
) -> _Group:
    by_row = {str(cell["row"]): cell for _, cell in column.iterrows()}
    header = str(column["header"].iloc[0]).removesuffix(" tokens/s")
    bars = []
    for row in rows:
        cell = by_row.get(row["row"])
        if cell is None or (not measured and _number(cell["value"]) is None):
            continue
        text, marks = str(cell["text"]), str(cell["marks"])
        label = _short(row["label"]) if not row["parent"] else f"  {row['label']}"
        value, low, high = (_number(cell[name]) for name in ("value", "low", "high"))
        bars.append(_Bar(label, palette[row["row"]], value, low, high, f"{text} {marks}".strip(), measured))
    return _Group(f"{header} (measured)" if measured else header, bars)


def _short(label: str) -> str:
    if "+" in label and label.endswith("limited memory"):
        return label.partition("+")[0] + ", limited memory"
    return label.replace("B+", "B +")


def _number(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)


def _captions(measured: pd.DataFrame, left_out: Sequence[str], profiles: Sequence[str]) -> list[str]:
    lines = []
    if measured["value"].notna().any():
        kinds = {str(kind) for kind in measured["kind"] if kind}
        whisker = {
            frozenset({"interval"}): "line: interval of the median",
            frozenset({"range"}): "line: range of the replicates, no interval",
        }.get(frozenset(kinds), "line: interval of the median, or range where marked r")
        lines.append(f"Solid: measured, {whisker}. Outlined: published.")
    else:
        lines.append("Outlined: published. Nothing measured.")
    drawn = set("".join(measured.loc[~measured["text"].isin(_NOTHING), "marks"]))
    lines += [f"{mark}  {meaning}" for mark, meaning in MEANINGS.items() if mark in drawn]
    lines += [sentence.replace(" %", "\u00a0%") for sentence in profiles]
    if left_out:
        lines.append("Not measured, left out: " + "; ".join(left_out) + ".")
    return [
        part for line in lines for part in textwrap.wrap(line, CAPTION_CHARACTERS, subsequent_indent="    ")
    ]


def _draw(groups: Sequence[_Group], title: str, captions: Sequence[str], theme: Theme) -> Figure:
    units = sum(len(group.bars) + 1 + GROUP_GAP for group in groups)
    top_in, bottom_in = 0.55, 0.62 + 0.17 * len(captions)
    height = units * BAR_IN + top_in + bottom_in
    figure = Figure(figsize=(WIDTH_IN, height), facecolor=theme.background)
    axes = figure.add_axes((0.335, bottom_in / height, 0.645, units * BAR_IN / height))
    tops = [bar.high or bar.value or 0.0 for group in groups for bar in group.bars]
    limit = max([*tops, 1.0]) * 1.16
    axes.set_xlim(0, limit)
    axes.set_ylim(units - GROUP_GAP / 2, -GROUP_GAP / 2)
    y = 0.0
    for group in groups:
        weight = "bold" if any(bar.measured for bar in group.bars) else "normal"
        axes.text(
            -0.012, y, group.title, transform=axes.get_yaxis_transform(), ha="right", va="center",
            fontsize=8.5, fontweight=weight, color=theme.text,
        )  # fmt: skip
        for bar in group.bars:
            y += 1
            _draw_bar(axes, bar, y, limit, theme)
        y += 1 + GROUP_GAP
    _style(axes, theme)
    figure.text(0.012, 1 - 0.2 / height, title, fontsize=11, fontweight="bold", color=theme.text, va="center")
    for i, line in enumerate(captions):
        below = (0.17 * (len(captions) - i) - 0.05) / height
        figure.text(0.012, below, line, fontsize=7.5, color=theme.muted, va="center")
    return figure


def _draw_bar(axes: Axes, bar: _Bar, y: float, limit: float, theme: Theme) -> None:
    axes.text(
        -0.012, y, bar.label, transform=axes.get_yaxis_transform(), ha="right", va="center",
        fontsize=7.5, color=theme.text if bar.measured else theme.muted,
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
    axes.text(
        end + limit * 0.008, y, _value_text(bar), ha="left", va="center", fontsize=7,
        color=theme.text if bar.measured else theme.muted,
    )  # fmt: skip


def _value_text(bar: _Bar) -> str:
    """The median and the marks; the interval is drawn. Without a value: how the runs ended."""
    if not bar.measured or bar.value is None:
        return bar.text
    marks = bar.text.rpartition(" ")[2] if " " in bar.text else ""
    median = bar.text.split(" ", 1)[0]
    return f"{median} {marks}" if marks and marks[-1] not in ")]" else median


def _style(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor(theme.background)
    axes.set_xlabel("decode speed, tokens/s", fontsize=8.5, color=theme.text)
    axes.set_yticks([])
    axes.tick_params(axis="x", labelsize=8, colors=theme.muted, length=0)
    axes.grid(axis="x", color=theme.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(theme.muted)
