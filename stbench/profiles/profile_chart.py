"""A few tokens of a timeline as lanes: what each thread did, and below what storage read."""

from __future__ import annotations

from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from stbench.agent.sbr import _abi_timeline as kinds
from stbench.charts.style import RC, THEMES, WIDTH_IN, Theme
from stbench.profiles.profile import PHASES, Timeline, Token

# Okabe and Ito's palette and greys: told apart with every common kind of colour blindness. Work that belongs
# together is one colour; waiting is light, and waiting for storage has the loudest colour.
_GROUPS = (
    ("router", "#CC79A7", (kinds.TIMELINE_ROUTER,)),
    ("attention", "#0072B2", (kinds.TIMELINE_ATTENTION,)),
    ("gate", "#009E73", (kinds.TIMELINE_GATE, kinds.TIMELINE_GATE_UP)),
    ("up, down", "#56B4E9", (kinds.TIMELINE_UP, kinds.TIMELINE_DOWN, kinds.TIMELINE_UP_DOWN)),
    ("lm_head", "#F0E442", (kinds.TIMELINE_LM_HEAD,)),
    ("norms, step", "#E69F00", (kinds.TIMELINE_NORM, kinds.TIMELINE_EMBED, kinds.TIMELINE_STEP)),
    ("I/O wait", "#D55E00", (kinds.TIMELINE_IO_WAIT,)),
    ("barrier", "#d9dee3", (kinds.TIMELINE_BARRIER,)),
)

_LANE_IN = 0.36
_READ_LANES = 8


def timeline_figure(timeline: Timeline, tokens: list[Token], title: str, theme: str = "light") -> Figure:
    """``tokens`` (neighbours in time, not empty) on an axis of milliseconds."""
    with matplotlib.rc_context(RC):
        return _draw(timeline, tokens, title, THEMES[theme])


def _draw(timeline: Timeline, tokens: list[Token], title: str, theme: Theme) -> Figure:
    begin, end = tokens[0].begin, tokens[-1].begin + tokens[-1].total
    lanes = _stacked(timeline, begin, end)
    n_lanes = timeline.n_threads + max(len(lanes) * 0.5, 0.0)
    height = 1.35 + _LANE_IN * n_lanes
    figure = Figure(figsize=(WIDTH_IN, height), facecolor=theme.background)
    axes = figure.add_axes((0.1, 0.5 / height, 0.885, _LANE_IN * n_lanes / height))
    axes.set_facecolor(theme.background)
    spans = timeline.of(*PHASES)
    spans = spans[(spans["begin"] < end) & (spans["end"] > begin)]
    used = []
    for name, colour, of in _GROUPS:
        boxes = [
            _box(span, begin, -float(span["thread"]) - 0.42, 0.84)
            for span in spans
            if int(span["kind"]) in of
        ]
        if boxes:
            axes.add_collection(PolyCollection(boxes, facecolors=colour, linewidths=0))
            used.append(Patch(color=colour, label=name))
    top = -timeline.n_threads + 0.5
    for lane, reads in enumerate(lanes):
        boxes = [_box(read, begin, top - 0.5 * (lane + 1) + 0.06, 0.38) for read in reads]
        axes.add_collection(
            PolyCollection(boxes, facecolors=theme.muted, edgecolors=theme.background, linewidths=0.3)
        )
    if lanes:
        used.append(Patch(color=theme.muted, label="read from storage"))
    ticks = [(-float(t), f"thread {t}") for t in range(timeline.n_threads)]
    if lanes:
        ticks.append((top - 0.25 * len(lanes), "storage"))
    _dress(axes, ticks, (end - begin) / 1e6, theme)
    axes.set_ylim(top - 0.5 * len(lanes) - 0.1, 0.5)
    for token in tokens:
        at = (token.begin - begin) / 1e6
        axes.axvline(at, color=theme.text, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.text(at, 0.56, f" token {token.step}", fontsize=7.5, color=theme.muted, va="bottom")
    figure.text(0.012, 1 - 0.2 / height, title, fontsize=11, fontweight="bold", color=theme.text, va="center")
    legend = figure.legend(
        handles=used,
        loc="upper left",
        bbox_to_anchor=(0.005, 1 - 0.32 / height),
        ncols=9,
        fontsize=7,
        frameon=False,
        handlelength=1.0,
        handletextpad=0.4,
        columnspacing=1.0,
    )
    for text in legend.get_texts():
        text.set_color(theme.text)
    return figure


def _box(event: Any, start: int, bottom: float, height: float) -> list[tuple[float, float]]:
    low, high = (int(event["begin"]) - start) / 1e6, (int(event["end"]) - start) / 1e6
    return [(low, bottom), (high, bottom), (high, bottom + height), (low, bottom + height)]


def _stacked(timeline: Timeline, begin: int, end: int) -> list[list[Any]]:
    """Reads in as few lanes as keep them apart; at most _READ_LANES, the rest drawn over each other."""
    reads = timeline.of(kinds.TIMELINE_READ)
    lanes: list[list[Any]] = []
    for read in reads[(reads["begin"] < end) & (reads["end"] > begin)]:
        free = next((lane for lane in lanes if int(lane[-1]["end"]) <= int(read["begin"])), None)
        if free is not None:
            free.append(read)
        elif len(lanes) < _READ_LANES:
            lanes.append([read])
        else:
            min(lanes, key=lambda lane: int(lane[-1]["end"])).append(read)
    return lanes


def _dress(axes: Axes, ticks: list[tuple[float, str]], length: float, theme: Theme) -> None:
    axes.set_xlim(0, length)
    axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
    axes.tick_params(labelsize=8, colors=theme.text, length=2)
    axes.set_xlabel("ms", fontsize=8.5, color=theme.text)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.grid)
