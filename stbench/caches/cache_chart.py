"""Simulated and measured caches -> a matplotlib figure: hit rate and tokens/s against the cache's size."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stbench.caches.measured_caches import Measured
from stbench.caches.simulate import POLICIES, Point
from stbench.charts.style import CAPTION_CHARACTERS, RC, THEMES, WIDTH_IN, Theme

# Colour, line and marker: each alone tells a policy, also in print. The palette is that of charts/style.py.
_STYLES = {
    "lru": ("#E69F00", "-", "o"),
    "lfu": ("#56B4E9", "-", "s"),
    "reuse": ("#009E73", "-", "^"),
    "auto": ("#009E73", "-", "^"),
    "static": ("#7a828a", "--", ""),
    "belady": ("#7a828a", ":", ""),
}
_OWN = ("#D55E00", "-", "D")
_NAMES = {
    "lru": "LRU",
    "lfu": "LFU",
    "reuse": "reuse",
    "static": "static, most frequent (oracle)",
    "belady": "Belady (oracle)",
}
_PANEL_IN = 2.6
_MIB = 1 << 20


def cache_figure(
    points: Sequence[Point],
    measured: Sequence[Measured],
    title: str,
    captions: Sequence[str] = (),
    theme: str = "light",
) -> Figure:
    """Two panels, or the hit rate alone where speeds are not known. Sizes are MiB where an expert's is known,
    else the share of all experts. Lines are simulated, filled marks measured."""
    colours = THEMES[theme]
    with matplotlib.rc_context(RC):
        return _draw(points, measured, title, captions, colours)


def _draw(
    points: Sequence[Point], measured: Sequence[Measured], title: str, captions: Sequence[str], theme: Theme
) -> Figure:
    speeds = any(point.tokens_per_s is not None for point in points)
    lines = [
        "Lines: simulated." + (" Filled marks: measured, in the policy's colour." if measured else ""),
        *captions,
    ]
    wrapped = [part for line in lines for part in textwrap.wrap(line, CAPTION_CHARACTERS)]
    panels = 2 if speeds else 1
    top_in, gap_in, bottom_in = 0.45, 0.25, 0.6 + 0.17 * len(wrapped)
    height = top_in + bottom_in + panels * _PANEL_IN + (panels - 1) * gap_in
    figure = Figure(figsize=(WIDTH_IN, height), facecolor=theme.background)
    for panel in range(panels):
        bottom = bottom_in + (panels - 1 - panel) * (_PANEL_IN + gap_in)
        axes = figure.add_axes((0.08, bottom / height, 0.9, _PANEL_IN / height))
        _panel(axes, points, measured, panel == 1, theme)
        if panel + 1 < panels:
            axes.tick_params(labelbottom=False)
        else:
            axes.set_xlabel(_x_label(points), fontsize=8.5, color=theme.text)
        if panel == 0:
            legend = axes.legend(fontsize=7.5, frameon=False, loc="lower right", handlelength=2.6)
            for text in legend.get_texts():
                text.set_color(theme.text)
    figure.text(0.012, 1 - 0.2 / height, title, fontsize=11, fontweight="bold", color=theme.text, va="center")
    for i, line in enumerate(wrapped):
        below = (0.17 * (len(wrapped) - i) - 0.05) / height
        figure.text(0.012, below, line, fontsize=7.5, color=theme.muted, va="center")
    return figure


def _panel(
    axes: Axes, points: Sequence[Point], measured: Sequence[Measured], speed: bool, theme: Theme
) -> None:
    for policy in _ordered(points):
        colour, dash, marker = _STYLES.get(policy, _OWN)
        line = [point for point in points if point.policy == policy]
        xs = [_x(point) for point in line]
        ys = [(point.tokens_per_s or 0.0) if speed else 100 * point.hit_rate for point in line]
        axes.plot(
            xs, ys, dash, color=colour, marker=marker, markersize=3.5, markerfacecolor=theme.background,
            linewidth=1.3, label=_NAMES.get(policy, policy),
        )  # fmt: skip
    known = points[0].cache_bytes is not None
    if measured and known:
        axes.plot([], [], "o", color=theme.muted, markersize=7, markeredgecolor=theme.text, label="measured")
    for each in measured:
        x = each.cache_bytes / _MIB if known else None
        if x is None:
            continue
        colour, _, marker = _STYLES.get(each.policy, _OWN)
        y = each.tokens_per_s if speed else 100 * each.hit_rate
        # Whole where it lies on an axis, too.
        axes.plot(
            [x], [y], marker or "o", color=colour, markersize=7, markeredgecolor=theme.text, zorder=5,
            clip_on=False,
        )  # fmt: skip
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0, top=None if speed else 102)
    axes.set_ylabel("decode, tokens/s" if speed else "hit rate, %", fontsize=8.5, color=theme.text)
    axes.set_facecolor(theme.background)
    axes.tick_params(labelsize=8, colors=theme.muted, length=0)
    axes.grid(color=theme.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(theme.muted)


def _ordered(points: Sequence[Point]) -> list[str]:
    found = list(dict.fromkeys(point.policy for point in points))
    rank = {name: i for i, name in enumerate(POLICIES)}
    # The user's own first, the oracles last.
    return sorted(found, key=lambda name: rank.get(name, -1))


def _x(point: Point) -> float:
    return 100 * point.share if point.cache_bytes is None else point.cache_bytes / _MIB


def _x_label(points: Sequence[Point]) -> str:
    return "cache, % of all experts" if points[0].cache_bytes is None else "cache, MiB"
