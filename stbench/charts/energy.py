"""Joules per decoded token, where a board can measure them."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from stbench.charts import series
from stbench.charts.bars import Bar, Group, bar_colours, bar_figure, caption_lines
from stbench.charts.kinds import Drawn, Kind, Request
from stbench.charts.series import Line
from stbench.charts.style import RC, THEMES, legible


def energy_figure(found: Sequence[Line], left_out: Sequence[str], theme: str = "light") -> Figure:
    """Bars of lines of one point each."""
    colours = THEMES[theme]
    labels = series.label_order(found)
    families = [
        next(line for line in found if line.label == label).first["model"].startswith("smallthinker")
        for label in labels
    ]
    palette = dict(zip(labels, bar_colours(families, colours.blue), strict=True))
    groups = []
    for device in series.devices(found):
        bars = []
        for line in found:
            if line.device == device:
                cell = line.points[0].cell
                marks = series.marks_of([line])
                text = f"{cell.value or 0.0:.3g} {marks}".strip()
                colour = palette[line.label]
                bars.append(Bar(line.label, colour, cell.value, cell.low, cell.high, text, True))
        groups.append(Group(device, bars))
    sensors = sorted({str(name) for line in found for name in line.points[0].rows["energy_sensor"]} - {""})
    said = [
        " ".join([series.shared(found, ()), series.whisker_sentence(found)]).strip(),
        "Energy of decoding over its tokens, nothing subtracted for an idle machine. Sensors: "
        + "; ".join(legible(name, 80) for name in sensors)
        + ". They see different parts of a board: compare devices by the same sensor alone.",
        *[sentence for sentence in series.mark_sentences(found) if not sentence.startswith("Hollow")],
        *left_out,
    ]
    with matplotlib.rc_context(RC):
        return bar_figure(groups, "Energy per decoded token", caption_lines(said), "J/token", colours)


def _draw(request: Request) -> list[Drawn]:
    frame = request.results.frame
    frame = frame[frame["joules_per_token"].notna()]
    found, left_out = series.most_bars(series.lines(frame, "joules_per_token", lambda rows: 0.0, ()))
    if not found:
        return []
    parts = [
        f"{legible(line.device, 40)}, {line.label}: {line.points[0].cell.value or 0.0:.3g} J."
        for line in found
    ]
    alt = "Bars: energy per decoded token. " + " ".join(parts)
    figure = energy_figure(found, left_out, request.theme)
    return [Drawn("energy", KIND.name, "Energy per decoded token", alt, figure)]


KIND = Kind(
    "energy",
    "joules per decoded token",
    "runs on a device with an energy sensor that may be read (RAPL, hwmon, or a Raspberry Pi 5's PMIC)",
    "stbench sweep --device BOARD --models smallthinker-4b -n 256 --sample-hz 2",
    _draw,
)
