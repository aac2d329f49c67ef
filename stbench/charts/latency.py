"""How long tokens take one by one: the share of them that took at most so long."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from stbench.charts import series
from stbench.charts.kinds import Drawn, Kind, Request
from stbench.charts.lineplot import Drawing, line_figure
from stbench.charts.results import Results
from stbench.charts.series import Line
from stbench.charts.style import legible
from stbench.tables import cells

# Shares of tokens at which a line has its points; a figure's size does not grow with the tokens.
SHARES = np.concatenate([np.linspace(0, 0.9, 91), np.linspace(0.9, 1, 51)[1:]])
# From this ratio of the largest to the smallest on, the axis is logarithmic.
_LOG_FROM = 12
_CROWDED = 5


def latency_figure(found: list[Line], left_out: list[str], results: Results, theme: str = "light") -> Figure:
    """``found`` are lines of one point each, whose replicates have samples of single tokens."""
    spread = {id(line): quantiles(line, results) for line in found}
    several = any(len(each) > 1 for each in spread.values())
    band = several and len(found) <= _CROWDED
    edges = [each if band else np.median(each, axis=0, keepdims=True) for each in spread.values()]
    low = min(float(each[:, 0].min()) for each in edges)
    high = max(float(each[:, -1].max()) for each in edges)
    log = high > _LOG_FROM * low
    captions = [
        " ".join(
            part
            for part in (
                series.shared(found, ()),
                "Line: the median over processes of each share.",
                "Band: from the fastest to the slowest process." if band else "",
            )
            if part
        ),
        *series.mark_sentences(found),
        *left_out,
    ]

    def panel(drawing: Drawing) -> None:
        axes = drawing.axes
        for line, stroke in drawing.lines:
            each = spread[id(line)]
            if band and len(each) > 1:
                axes.fill_betweenx(
                    100 * SHARES, each.min(axis=0), each.max(axis=0), color=stroke.colour, alpha=0.18,
                    linewidth=0,
                )  # fmt: skip
            axes.plot(
                np.median(each, axis=0), 100 * SHARES, stroke.dash, color=stroke.colour, linewidth=1.6,
                marker=stroke.marker, markevery=[50, 110], markersize=4.5,
                markerfacecolor=drawing.theme.background if line.points[0].doubtful else stroke.colour,
            )  # fmt: skip
        axes.set_ylim(0, 100.5)
        if log:
            axes.set_xscale("log")
            axes.set_xlim(low / 1.15, high * 1.15)
            ticks = [
                step * 10.0**power
                for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
                for step in ((1, 2, 5) if high < 1000 * low else (1,))
            ]
            axes.set_xticks([tick for tick in ticks if low / 1.15 <= tick <= high * 1.15], minor=False)
            axes.set_xticks([], minor=True)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            axes.set_xlim(0, high * 1.03)

    return line_figure(
        found, "Time per token", "time of one token, ms", "tokens that took at most so long, %", theme,
        captions=captions, draw=panel,
    )  # fmt: skip


def quantiles(line: Line, results: Results) -> npt.NDArray[np.float64]:
    """One row per process that counts, with the ms within which each of :data:`SHARES` of its tokens
    lay."""
    rows = line.points[0].rows
    usable = rows[rows["usable"] & rows["tpot_p50_ms"].notna()]
    rows_of = [
        np.quantile(np.asarray(record.samples.decode_ns) / 1e6, SHARES, method="inverted_cdf")
        for record in results.of(cells.undisturbed(usable))
        if record.samples is not None
    ]
    return np.stack(rows_of)


def _draw(request: Request) -> list[Drawn]:
    frame = request.results.frame
    # Programs that say only sums have no single tokens; a handful of them is no distribution.
    frame = frame[(frame["n_gen"] >= 8) & frame["tpot_p50_ms"].notna()]
    found, left_out = series.most(series.lines(frame, "tpot_p50_ms", lambda rows: 0.0, ()))
    if not found:
        return []
    parts = []
    for line in found[:8]:
        rows = cells.undisturbed(line.points[0].rows[line.points[0].rows["usable"]])
        p50, p95, p99 = (rows[f"tpot_p{share}_ms"].median() for share in (50, 95, 99))
        name = f"{legible(line.device, 40)}, {line.label}"
        parts.append(f"{name}: half within {p50:.1f} ms, 95 % within {p95:.1f}, 99 % within {p99:.1f}.")
    alt = "Cumulative distribution of the time per token. " + " ".join(parts)
    figure = latency_figure(found, left_out, request.results, request.theme)
    return [Drawn("latency", KIND.name, "Time per token", alt, figure)]


KIND = Kind(
    "latency",
    "distribution of the time per token",
    "runs of the runtime's own engine that decode at least 8 tokens",
    "stbench sweep --models smallthinker-4b --sparse-ffn on,off -n 128",
    _draw,
)
