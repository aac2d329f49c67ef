"""A run's timeline as numbers: where a token's time goes, and what storage did meanwhile (docs/profile.md).

Parts of a token are the spans of thread 0, which lie end to end: they sum up to the token but for ``other``,
what lies between them. Times are nanoseconds unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stbench.agent import timelines
from stbench.agent.sbr import _abi_timeline as kinds
from stbench.errors import InputError, unreadable

NONE = 0xFFFFFFFF
_DTYPE = np.dtype(
    [
        *(("begin", "<u8"), ("end", "<u8"), ("bytes", "<u8"), ("kind", "<u4")),
        *(("thread", "<u4"), ("step", "<u4"), ("layer", "<u4"), ("unit", "<u4"), ("reserved", "<u4")),
    ]
)
# What one thread does, in the order of a layer.
PHASES = (
    kinds.TIMELINE_STEP,
    kinds.TIMELINE_EMBED,
    kinds.TIMELINE_NORM,
    kinds.TIMELINE_ROUTER,
    kinds.TIMELINE_ATTENTION,
    kinds.TIMELINE_IO_WAIT,
    kinds.TIMELINE_GATE,
    kinds.TIMELINE_UP,
    kinds.TIMELINE_GATE_UP,
    kinds.TIMELINE_DOWN,
    kinds.TIMELINE_UP_DOWN,
    kinds.TIMELINE_LM_HEAD,
    kinds.TIMELINE_BARRIER,
)
# Of these, what is no work.
IDLE = (kinds.TIMELINE_STEP, kinds.TIMELINE_IO_WAIT, kinds.TIMELINE_BARRIER)
CACHE_EVENTS = (kinds.TIMELINE_HIT, kinds.TIMELINE_LOAD, kinds.TIMELINE_EVICT, kinds.TIMELINE_GUESS)


@dataclass(frozen=True)
class Timeline:
    """``events``: a numpy array with the members of ``sbr_timeline_event``, by their beginning; of each
    thread, and of storage, at most ``capacity``, the newest."""

    label: str
    n_threads: int
    n_lost: int
    capacity: int
    events: Any

    def of(self, *wanted: int) -> Any:
        """The events of some kinds."""
        return self.events[np.isin(self.events["kind"], wanted)]


@dataclass(frozen=True)
class Token:
    """One decoded token. ``parts``: thread 0's time by kind of event, which with ``other`` is ``total``.
    ``compute``: at least one thread worked; ``io_busy``: at least one read was asked for and had not arrived;
    ``overlap``: both; ``wait``: thread 0 waited for storage; ``idle``: neither compute nor reads."""

    step: int
    begin: int
    total: int
    parts: dict[int, int]
    other: int
    compute: int
    io_busy: int
    overlap: int
    idle: int
    reads: int
    bytes_read: int

    @property
    def wait(self) -> int:
        """Thread 0's, for units of a bundle."""
        return self.parts.get(kinds.TIMELINE_IO_WAIT, 0)


def load(path: Path) -> Timeline:
    """Reads a file that a run wrote. Raises :class:`InputError`."""
    try:
        found = timelines.parse(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    events = np.frombuffer(found.events, dtype=_DTYPE)
    if np.any(events["end"] < events["begin"]):
        raise InputError(f"{path}: the timeline is damaged: an event ends before it begins")
    layers = events["layer"]
    if np.any((layers >= timelines.MAX_LAYERS) & (layers != NONE)):
        raise InputError(
            f"{path}: the timeline is damaged: an event is of a layer above {timelines.MAX_LAYERS - 1}"
        )
    order = np.argsort(events["begin"], kind="stable")
    head = found.head
    return Timeline(
        str(head.get("label", "")), head["n_threads"], head["n_lost"], head["capacity"], events[order]
    )


def union(intervals: Iterable[tuple[int, int]], begin: int, end: int) -> list[tuple[int, int]]:
    """Intervals joined where they touch, within [begin, end)."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted((max(a, begin), min(b, end)) for a, b in intervals if a < end and b > begin):
        if low >= high:
            continue
        if joined and low <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], high))
        else:
            joined.append((low, high))
    return joined


def common(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> int:
    """How long two unions overlap."""
    total = i = j = 0
    while i < len(first) and j < len(second):
        total += max(0, min(first[i][1], second[j][1]) - max(first[i][0], second[j][0]))
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1
    return total


def _length(joined: list[tuple[int, int]]) -> int:
    return sum(high - low for low, high in joined)


def _pairs(events: Any) -> list[tuple[int, int]]:
    return list(zip(events["begin"].tolist(), events["end"].tolist(), strict=True))


def tokens(timeline: Timeline) -> list[Token]:
    """The tokens of which every event is there. Raises :class:`InputError` when there is none."""
    spans, reads = _Within(timeline.of(*PHASES)), _Within(timeline.of(kinds.TIMELINE_READ))
    complete_from = _complete_from(timeline)
    found = []
    for event in timeline.of(kinds.TIMELINE_TOKEN):
        if event["unit"] == 1 and event["begin"] >= complete_from:
            found.append(_token(event, spans, reads))
    if not found:
        raise InputError(
            "the timeline holds no whole token: "
            + ("all were overwritten by later events" if timeline.n_lost else "nothing was decoded"),
            hint="profile decoding: -n 16",
        )
    return found


def _complete_from(timeline: Timeline) -> int:
    """When the last of the rings begins that lost events: from then on everything is there."""
    latest = 0
    for thread in (*range(timeline.n_threads), NONE):
        ring = timeline.events[timeline.events["thread"] == thread]
        if len(ring) < timeline.capacity:
            continue
        # A thread's events are in their order; storage's are in that of their ends.
        left = ring["end"] if thread == NONE else ring["begin"][ring["kind"] != kinds.TIMELINE_TOKEN]
        latest = max(latest, int(left.min()) if len(left) else 0)
    return latest


class _Within:
    """Events in the order of their beginnings, for asking which of them are in a span of time."""

    def __init__(self, events: Any) -> None:
        self._events = events
        self._begins = np.ascontiguousarray(events["begin"])
        # The latest of each event and of all before it, so that it only grows.
        self._latest_ends = np.maximum.accumulate(events["end"])

    def during(self, begin: int, end: int) -> Any:
        """Those that overlap [begin, end)."""
        # As the columns' own type: anything else has the whole column converted for each token.
        low = np.searchsorted(self._latest_ends, np.uint64(begin), side="right")
        some = self._events[low : np.searchsorted(self._begins, np.uint64(end))]
        return some[some["end"] > begin]


def _token(event: Any, spans: _Within, reads: _Within) -> Token:
    begin, end = int(event["begin"]), int(event["end"])
    mine = spans.during(begin, end)
    mine = mine[(mine["begin"] >= begin) & (mine["end"] <= end)]
    first = mine[mine["thread"] == 0]
    lengths = (first["end"] - first["begin"]).astype(np.int64)
    parts = {kind: int(lengths[first["kind"] == kind].sum()) for kind in PHASES}
    parts = {kind: length for kind, length in parts.items() if length}
    work = union(_pairs(mine[~np.isin(mine["kind"], IDLE)]), begin, end)
    during = reads.during(begin, end)
    storage = union(_pairs(during), begin, end)
    compute, io_busy, overlap = _length(work), _length(storage), common(work, storage)
    total = end - begin
    ended = during[during["end"] <= end]
    return Token(
        step=int(event["step"]),
        begin=begin,
        total=total,
        parts=parts,
        other=total - sum(parts.values()),
        compute=compute,
        io_busy=io_busy,
        overlap=overlap,
        idle=total - (compute + io_busy - overlap),
        reads=len(ended),
        bytes_read=int(ended["bytes"].sum()),
    )


@dataclass(frozen=True)
class Summary:
    """Means over tokens, in ns per token. ``layers[l]``: thread 0's time in layer l by kind of event; what
    belongs to no layer is left out. ``top``: the dearest (kind, layer) pairs."""

    n_tokens: int
    total: float
    parts: dict[int, float]
    other: float
    compute: float
    io_busy: float
    overlap: float
    wait: float
    idle: float
    reads: float
    bytes_read: float
    layers: list[dict[int, float]]
    top: list[tuple[int, int, float]]
    cache: dict[int, float]
    n_lost: int


def summarise(timeline: Timeline, found: list[Token]) -> Summary:
    """What tokens have in common. ``found`` is not empty."""
    n = len(found)
    parts = {kind: sum(t.parts.get(kind, 0) for t in found) / n for kind in PHASES}
    begin, end = found[0].begin, found[-1].begin + found[-1].total
    inside = timeline.events[(timeline.events["begin"] >= begin) & (timeline.events["end"] <= end)]
    first = inside[(inside["thread"] == 0) & (inside["layer"] != NONE) & np.isin(inside["kind"], PHASES)]
    lengths = (first["end"] - first["begin"]).astype(np.int64)
    sums = np.zeros((int(first["layer"].max()) + 1 if len(first) else 0, max(PHASES) + 1), dtype=np.int64)
    np.add.at(sums, (first["layer"], first["kind"]), lengths)
    layers = [{k: s / n for k in PHASES if (s := int(row[k]))} for row in sums]
    top = sorted(
        ((kind, layer, ns) for layer, row in enumerate(layers) for kind, ns in row.items()),
        key=lambda item: -item[2],
    )

    def mean(name: str) -> float:
        return float(sum(getattr(t, name) for t in found) / n)

    return Summary(
        n_tokens=n,
        total=mean("total"),
        parts={kind: ns for kind, ns in parts.items() if ns},
        other=mean("other"),
        compute=mean("compute"),
        io_busy=mean("io_busy"),
        overlap=mean("overlap"),
        wait=mean("wait"),
        idle=mean("idle"),
        reads=mean("reads"),
        bytes_read=mean("bytes_read"),
        layers=layers,
        top=top[:10],
        cache={kind: int((inside["kind"] == kind).sum()) / n for kind in CACHE_EVENTS},
        n_lost=timeline.n_lost,
    )


def as_json(summary: Summary, found: list[Token]) -> dict[str, Any]:
    """For ``--json``: names of kinds in place of their numbers; ns."""
    named = timelines.names()
    tokens_ = [
        {
            "step": t.step,
            "total_ns": t.total,
            "parts_ns": {named[k]: ns for k, ns in t.parts.items()},
            "other_ns": t.other,
            "compute_ns": t.compute,
            "io_busy_ns": t.io_busy,
            "overlap_ns": t.overlap,
            "wait_ns": t.wait,
            "idle_ns": t.idle,
            "reads": t.reads,
            "bytes_read": t.bytes_read,
        }
        for t in found
    ]
    return {
        "n_tokens": summary.n_tokens,
        "n_lost": summary.n_lost,
        "token_ns": summary.total,
        "parts_ns": {named[k]: ns for k, ns in summary.parts.items()},
        "other_ns": summary.other,
        "compute_ns": summary.compute,
        "io_busy_ns": summary.io_busy,
        "overlap_ns": summary.overlap,
        "wait_ns": summary.wait,
        "idle_ns": summary.idle,
        "reads": summary.reads,
        "bytes_read": summary.bytes_read,
        "cache_events": {named[k]: count for k, count in summary.cache.items()},
        "layers_ns": [{named[k]: ns for k, ns in row.items()} for row in summary.layers],
        "top": [{"part": named[k], "layer": layer, "ns": ns} for k, layer, ns in summary.top],
        "tokens": tokens_,
    }
