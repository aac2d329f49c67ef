"""Messages of ``-t auto``: what is tried, what was found, and what a run says of it."""

from dataclasses import dataclass, field
from typing import List


@dataclass(frozen=True)
class Candidate:
    """A thread count and its CPUs, as in Settings; ``name`` is for people: "4 x Cortex-A76"."""

    name: str
    threads: int
    cpus: List[int] = field(default_factory=list)


@dataclass(frozen=True)
class TriedCandidate:
    """``rounds_ns``: the durations of single decoded tokens, a list per round; candidates take turns within
    one. Fewer rounds than others have: it was hopelessly slow in these. ``median_ns`` is the median of
    the rounds' medians, 0 where nothing was measured, and ``detail`` why."""

    candidate: Candidate
    rounds_ns: List[List[int]]
    median_ns: int
    detail: str = ""


@dataclass(frozen=True)
class ThreadSearch:
    """The result of purpose "search". ``chosen`` is an index into ``tried``; ``why`` says all of it in one
    sentence."""

    tried: List[TriedCandidate]
    chosen: int
    why: str


@dataclass(frozen=True)
class ThreadChoice:
    """Of a run whose threads and CPUs ``-t auto`` set. ``search`` is the id of the record with the search, ""
    where none was needed or possible; ``why`` is for people."""

    search: str
    why: str = ""
