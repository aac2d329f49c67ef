"""Where the time of a decoded token goes, by the counters that every run of the runtime keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stbench.agent.wire import RunRecord
from stbench.charts import series
from stbench.charts.kinds import Drawn, Kind, Request
from stbench.charts.results import Results
from stbench.charts.series import Line
from stbench.charts.sheet import BOX, Key, Panel, name_axes, sheet
from stbench.charts.style import (
    BLUE,
    GREEN,
    PURPLE,
    RC,
    TEXT_PT,
    THEMES,
    VERMILLION,
    Stroke,
    Theme,
    fitted,
    legible,
    width_in,
)
from stbench.tables import cells

_LEFT_IN = 2.7
_NAME_IN = _LEFT_IN - 0.18
_BAR_IN, _TALL_BAR_IN = 0.24, 0.36
# From this ratio of the longest token to the shortest on, bars are shares: short ones would show nothing.
_SHARES_FROM = 5


@dataclass(frozen=True)
class Part:
    """``ms`` of a decoded token."""

    name: str
    ms: float


def _colours(theme: Theme) -> Mapping[str, str]:
    # As in a profile's timeline: waiting for storage has the loudest colour, waiting for others the palest.
    return {
        "attention": theme.blue,
        "router": PURPLE,
        "FFN": GREEN,
        "lm_head": "#F0E442",
        "I/O wait": VERMILLION,
        "barrier": "#c4ccd4" if theme.blue == BLUE else "#5b6470",
        "other": theme.muted,
    }


def parts_of(record: RunRecord) -> list[Part]:
    """The parts of a token of thread 0, in ms; they sum up to the time that the runtime counted. Empty where
    no counters of time were kept. Waiting for units of a cache is taken out of what it is counted under."""
    counters = record.counters
    if counters is None or counters.decode.tokens <= 0 or counters.decode.ns_total <= 1:
        return []
    decode = counters.decode
    attention, ffn, wait = decode.ns_attention, decode.ns_ffn, 0
    if record.cache is not None:
        # sbr.h: of experts in the FFN's time, of layers in that of attention.
        if record.cache.kind == "layers":
            wait = min(record.cache.decode.ns_wait, attention)
            attention -= wait
        else:
            wait = min(record.cache.decode.ns_wait, ffn)
            ffn -= wait
    known = {
        "attention": attention,
        "router": decode.ns_router,
        "FFN": ffn,
        "lm_head": decode.ns_lm_head,
        "I/O wait": wait,
        "barrier": decode.ns_barrier,
    }
    known["other"] = max(decode.ns_total - sum(known.values()), 0)
    return [Part(name, ns / decode.tokens / 1e6) for name, ns in known.items()]


def middle_run(line: Line, results: Results) -> list[Part]:
    """Of the process whose token took the median time (of two, the faster one): parts of one run sum up,
    medians of parts do not."""
    rows = line.points[0].rows
    counted = cells.undisturbed(rows[rows["usable"] & rows["tpot_ms"].notna()]).sort_values(
        ["tpot_ms", "record_id"], kind="stable"
    )
    return parts_of(results.of(counted)[(len(counted) - 1) // 2])


def breakdown_figure(
    found: Sequence[Line], left_out: Sequence[str], results: Results, theme: str = "light"
) -> Figure:
    """A stacked bar per line of one point, grouped by device."""
    colours = THEMES[theme]
    parts = {id(line): middle_run(line, results) for line in found}
    totals = {key: sum(part.ms for part in each) for key, each in parts.items()}
    shares = max(totals.values()) > _SHARES_FROM * min(totals.values())
    used = [
        name
        for name in _colours(colours)
        if any(
            part.name == name and part.ms > 0.001 * totals[key]
            for key, each in parts.items()
            for part in each
        )
    ]
    places = series.devices(found)
    several = len(places) > 1
    tall = any("\n" in _bar_name(line) for line in found)
    bar_in = _TALL_BAR_IN if tall else _BAR_IN
    panels = []
    for i, place in enumerate(places):
        n = len([line for line in found if line.device == place])
        below = 0.52 if i + 1 == len(places) else 0.12
        panels.append(Panel(place if several else "", bar_in * n + 0.1, below))
    captions = [
        " ".join(
            part
            for part in (
                series.shared(found, ()),
                "Of thread 0, in the process whose token took the median time. Barrier: waiting for other "
                "threads, which may themselves wait for storage.",
            )
            if part
        ),
        *[sentence for sentence in series.mark_sentences(found) if not sentence.startswith("Hollow")],
        *left_out,
    ]
    title = "Where the time of a token goes"
    longest = 100.0 if shares else max(totals.values())
    with matplotlib.rc_context(RC):
        figure, all_axes = sheet(
            title if several else f"{title}: {legible(places[0], 60)}",
            panels,
            [Key(name, Stroke(_colours(colours)[name], BOX, "")) for name in used],
            captions,
            colours,
            left_in=_LEFT_IN,
        )
        for i, (place, axes) in enumerate(zip(places, all_axes, strict=True)):
            here = [line for line in found if line.device == place]
            for y, line in enumerate(here):
                scale = 100 / totals[id(line)] if shares else 1.0
                _bar(axes, y, parts[id(line)], scale, totals[id(line)], longest, colours)
            _name_bars(axes, here, colours)
            axes.set_xlim(0, longest * 1.12)
            if shares:
                axes.set_xticks(range(0, 101, 20))
            last = i + 1 == len(places)
            axes.tick_params(labelbottom=last)
            name_axes(
                axes,
                ("share of a token's time, %" if shares else "ms per token") if last else "",
                "",
                colours,
            )
    return figure


def _bar(
    axes: Axes, y: int, parts: Sequence[Part], scale: float, total: float, longest: float, theme: Theme
) -> None:
    left = 0.0
    colours = _colours(theme)
    for part in parts:
        axes.barh(
            y, part.ms * scale, left=left, height=0.68, color=colours[part.name], edgecolor=theme.background,
            linewidth=0.6,
        )  # fmt: skip
        left += part.ms * scale
    axes.text(
        left + longest * 0.008, y, f"{total:.3g} ms", fontsize=TEXT_PT - 0.5, color=theme.text, va="center"
    )


def _bar_name(line: Line) -> str:
    """On one line where that fits, else what it is above how it ran."""
    name = f"{line.label} {series.marks_of([line])}".strip()
    if width_in(name, TEXT_PT) <= _NAME_IN or ", " not in name:
        return fitted(name, TEXT_PT, _NAME_IN)
    what, _, how = name.partition(", ")
    return "\n".join(fitted(part, TEXT_PT, _NAME_IN) for part in (what, how))


def _name_bars(axes: Axes, here: Sequence[Line], theme: Theme) -> None:
    axes.set_ylim(len(here) - 0.5, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_yticks(range(len(here)), [_bar_name(line) for line in here], linespacing=1.05)
    axes.tick_params(axis="y", colors=theme.text, pad=4)


def _draw(request: Request) -> list[Drawn]:
    results = request.results
    timed = [i for i, record in enumerate(results.records) if parts_of(record)]
    frame = results.frame.loc[timed]
    frame = frame[frame["tpot_ms"].notna()]
    found, left_out = series.most_bars(series.lines(frame, "tpot_ms", lambda rows: 0.0, ()))
    if not found:
        return []
    said = []
    for line in found[:8]:
        parts = sorted(middle_run(line, results), key=lambda part: -part.ms)
        total = sum(part.ms for part in parts)
        tops = ", ".join(f"{part.name} {100 * part.ms / total:.0f} %" for part in parts[:4] if part.ms > 0)
        said.append(f"{legible(line.device, 40)}, {line.label}: {total:.3g} ms, of it {tops}.")
    alt = "Stacked bars: where the time of a decoded token goes. " + " ".join(said)
    figure = breakdown_figure(found, left_out, results, request.theme)
    return [Drawn("breakdown", KIND.name, "Where the time of a token goes", alt, figure)]


KIND = Kind(
    "breakdown",
    "where the time of a token goes",
    "runs of the runtime's own engine, which counts it",
    "stbench sweep --models smallthinker-4b --sparse-ffn on,off -n 128",
    _draw,
)
