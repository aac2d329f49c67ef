"""Published numbers of the very device that was measured, as outlined marks beside its points."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes

from stbench.charts.series import Line
from stbench.charts.sheet import GHOST, Key
from stbench.charts.style import Stroke, Theme
from stbench.tables import limited_grid, published

# Of each line, by its identity: where its ghosts are, (x, tokens/s).
Ghosts = Mapping[int, Sequence[tuple[float, float]]]


def published_speeds(line: Line, ratio_to: Mapping[str, str]) -> dict[float, float]:
    """Limit (infinity: none) -> published tokens/s of the line's model and switches on its device; empty
    where that is none of the published ones."""
    key = ratio_to.get(line.device, line.device)
    model = str(line.first["catalogue_model"])
    out = {}
    for table in published.published_tables():
        for row in table.rows:
            speed = row.speeds.get(key)
            switches = (bool(line.first["sparse_ffn"]), bool(line.first["sparse_lm_head"]))
            if speed is None or row.model != model or (row.sparse_ffn, row.sparse_lm_head) != switches:
                continue
            out[float(limited_grid.published_limit(row.memory)) if row.limited else math.inf] = speed
    return out


def by_limit(found: Sequence[Line], ratio_to: Mapping[str, str]) -> Ghosts:
    """Of lines over memory limits."""
    return {id(line): list(published_speeds(line, ratio_to).items()) for line in found}


def at(
    found: Sequence[Line], ratio_to: Mapping[str, str], place: Callable[[Line, int | None], float]
) -> Ghosts:
    """Of lines of one memory limit each, at an empty KV cache as published: one mark, where ``place`` says;
    it is told how many threads the published number had, None for the fastest number."""
    out: dict[int, list[tuple[float, float]]] = {}
    for line in found:
        limit = float(line.first["memory_limit_bytes"]) or math.inf
        speed = published_speeds(line, ratio_to).get(limit)
        threads = published.published_threads(ratio_to.get(line.device, line.device))
        out[id(line)] = [(place(line, threads), speed)] if speed is not None else []
    return out


def unstated_threads(line: Line, ratio_to: Mapping[str, str]) -> bool:
    """Whether its device was published with the fastest number of threads, whichever that was."""
    return published.published_threads(ratio_to.get(line.device, line.device)) is None


def draw(axes: Axes, marks: Sequence[tuple[float, float]], stroke: Stroke) -> list[float]:
    """Outlined marks; returns their speeds, for the axis' height."""
    for x, speed in marks:
        axes.plot(
            [x], [speed], stroke.marker, markersize=8, markerfacecolor="none", markeredgecolor=stroke.colour,
            markeredgewidth=1.2, clip_on=False, zorder=5,
        )  # fmt: skip
    return [speed for _, speed in marks]


def keys(ghosts: Ghosts, theme: Theme) -> list[Key]:
    """The legend's entry, where there are any."""
    return [Key("published", Stroke(theme.muted, GHOST, ""))] if any(ghosts.values()) else []


def fastest(line: Line) -> float:
    """Where a line is highest."""
    return max(line.points, key=lambda point: point.cell.value or 0.0).x
