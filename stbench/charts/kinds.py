"""What a chart is to those who ask for it: a kind, its figures, and what to say when there are none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from stbench.charts.results import Results


@dataclass(frozen=True)
class Drawn:
    """One figure. ``name`` is its file's name without ending, unique among those of the same records; ``alt``
    says in full sentences what it shows, numbers included, for those who do not see it."""

    name: str
    kind: str
    title: str
    alt: str
    figure: Figure


def file_stem(name: str, theme: str) -> str:
    """The file's name of a figure of that name, without ending."""
    return name if theme == "light" else f"{name}-{theme}"


@dataclass(frozen=True)
class Request:
    """What a kind draws from. ``theme`` is a key of :data:`stbench.charts.style.THEMES`; ``ratio_to`` maps a
    measured device to the published one that it is."""

    results: Results
    theme: str = "light"
    ratio_to: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """``draw`` returns no figure where the records hold nothing of the kind; ``sweep`` is the command whose
    records do, and ``needs`` what it is that they hold."""

    name: str
    summary: str
    needs: str
    sweep: str
    draw: Callable[[Request], list[Drawn]]
