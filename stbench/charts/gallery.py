"""All kinds of charts, and all figures that a set of records has."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path

from stbench.agent.wire import RunRecord
from stbench.charts import (
    breakdown,
    caching,
    depth,
    energy,
    history,
    latency,
    memory,
    sparsity,
    speed,
    threads,
)
from stbench.charts.kinds import Drawn, Kind, Request
from stbench.charts.results import Results, results_of
from stbench.wording import clean

_OURS = str(Path(__file__).parents[1])

# In the order of reports.
KINDS: tuple[Kind, ...] = (
    speed.KIND,
    memory.KIND,
    caching.KIND,
    threads.KIND,
    depth.KIND,
    latency.KIND,
    breakdown.KIND,
    sparsity.KIND,
    energy.KIND,
    history.KIND,
)


def drawable(
    records: Iterable[RunRecord] | Results, theme: str = "light", ratio_to: Mapping[str, str] | None = None
) -> list[Drawn]:
    """Every figure that these records have, in the order of :data:`KINDS`; empty where they have none. Give
    whole campaigns. ``theme`` is a key of :data:`stbench.charts.style.THEMES`; ``ratio_to`` maps a measured
    device to the published one that it is, whose numbers are drawn beside it; devices called like a published
    one need no entry. Raises KeyError for an unknown theme or published device."""
    results = records if isinstance(records, Results) else results_of(records)
    request = Request(results, theme, dict(ratio_to or {}))
    return [drawn for kind in KINDS for drawn in kind.draw(request)]


def absent_sentence(kinds: Iterable[Kind]) -> str:
    """That records have nothing for these kinds, and what each needs."""
    return "Not drawn: " + "; ".join(f"{each.name} (needs {each.needs})" for each in kinds) + "."


def failure_sentence(kind: Kind, error: Exception) -> str:
    """That a kind could not be drawn, why, and in which line of which module."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _OURS in frame.filename]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    said = f"{type(error).__name__}: {clean(str(error))}".removesuffix(": ")
    return f"The chart {kind.name} could not be drawn: {said}{where}."


def kind(name: str) -> Kind:
    """The kind of that name. Raises KeyError."""
    return {each.name: each for each in KINDS}[name]
