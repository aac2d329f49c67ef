"""The same cases over campaigns, in the order of their dates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from stbench.charts import ghosts, series
from stbench.charts.kinds import Drawn, Kind, Request
from stbench.charts.lineplot import Drawing, base_captions, draw_line, headroom, line_alt, line_figure, tops
from stbench.charts.series import Line, Point
from stbench.charts.style import TEXT_PT, fitted, legible

# What is new in another campaign of the same case: the build above all.
_FREE = ("campaign", "library", "seed")
_MOST_NAMES = 8
_PUBLISHED_AT = -0.25


def history_figure(
    found: list[Line],
    left_out: list[str],
    campaigns: Sequence[tuple[str, str]],
    theme: str = "light",
    ratio_to: Mapping[str, str] | None = None,
) -> Figure:
    """Lines over the places of ``campaigns``, (name, date) each; what was published stands before all."""
    marks = ghosts.at(
        [line for line in found if not line.first["n_depth"]],
        dict(ratio_to or {}),
        lambda line, threads: _PUBLISHED_AT,
    )
    builds = {str(row) for line in found for point in line.points for row in point.rows["library"]} - {""}
    captions = base_captions(found, _FREE)
    captions.insert(1, f"Equally far apart, whatever lay between them. Builds of the runtime: {len(builds)}.")
    step = math.ceil(len(campaigns) / _MOST_NAMES)
    wide = 7.2 if len(series.devices(found)) == 1 else 3.3
    room = wide / max(math.ceil(len(campaigns) / step), 1) - 0.12

    def panel(drawing: Drawing) -> None:
        axes = drawing.axes
        highest = tops(drawing)
        for line, stroke in drawing.lines:
            draw_line(axes, line, stroke, drawing.theme)
            highest += ghosts.draw(axes, marks.get(id(line), ()), stroke)
        texts = [f"{fitted(legible(name, 80), TEXT_PT, room)}\n{date}" for name, date in campaigns]
        # The last one always has its name: it is the one that people ask about.
        named = list(range(len(campaigns) - 1, -1, -step))[::-1]
        axes.set_xticks(named, [texts[i] for i in named])
        axes.set_xlim(-0.4, len(campaigns) - 0.6)
        headroom(axes, highest)

    return line_figure(
        found, "Decode speed over campaigns", "", "decode, tokens/s", theme,
        captions=[*captions, *left_out], extra_keys=lambda colours: ghosts.keys(marks, colours), draw=panel,
    )  # fmt: skip


def campaign_dates(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """(name, date of its first run), the oldest first."""
    first = frame[frame["started_at"] != ""].groupby("campaign", sort=True)["started_at"].min()
    ordered = sorted((str(at), str(name)) for name, at in first.items())
    return [(name, legible(at[:10])) for at, name in ordered]


def _draw(request: Request) -> list[Drawn]:
    frame = request.results.frame
    frame = frame[(frame["n_gen"] > 0) & (frame["started_at"] != "")]
    places: Mapping[str, int] = {name: i for i, (name, _) in enumerate(campaign_dates(frame))}
    found = series.lines(
        frame, "decode_tps", lambda rows: float(places[str(rows["campaign"].iloc[0])]), _FREE, at_least=2
    )
    found, left_out = series.most(found)
    if not found:
        return []
    # Campaigns without any of these cases have no place in the figure.
    shown = sorted({point.x for line in found for point in line.points})
    dates = campaign_dates(frame)
    campaigns = [dates[int(x)] for x in shown]
    found = [
        Line(
            line.device, line.label, line.first,
            tuple(Point(float(shown.index(p.x)), p.cell, p.rows) for p in line.points),
        )
        for line in found
    ]  # fmt: skip
    alt = line_alt(
        found, "Lines: decode speed over campaigns", lambda p: legible(campaigns[int(p.x)][0], 40), "tokens/s"
    )
    figure = history_figure(found, left_out, campaigns, request.theme, request.ratio_to)
    return [Drawn("history", KIND.name, "Decode speed over campaigns", alt, figure)]


KIND = Kind(
    "history",
    "decode speed of the same cases over campaigns",
    "at least two campaigns with the same case on the same device",
    "stbench sweep --campaign NAME (today's cases once more; then name both directories)",
    _draw,
)
