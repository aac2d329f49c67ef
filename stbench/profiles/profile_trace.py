"""A timeline in Trace Event format, for Perfetto and chrome://tracing (docs/profile.md names the source).

One process of the run: a row per thread with its phases ("X", complete events), reads of storage as async
slices ("b" and "e"), the cache's hits, loads, evictions and guesses so far as counters ("C"). Another of what
its supervisor saw, where there is a record: the phases of the job, clocks, temperatures, memory, power.
``ts`` and ``dur`` are in microseconds of CLOCK_MONOTONIC, from the first of all events on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stbench.agent import timelines
from stbench.agent.sbr import _abi_timeline as kinds
from stbench.agent.wire import RunRecord
from stbench.profiles.profile import CACHE_EVENTS, NONE, PHASES, Timeline

_PID, _DEVICE_PID = 1, 2
_TOKENS_TID = 1000


def trace_events(timeline: Timeline, record: RunRecord | None = None) -> dict[str, Any]:
    """The whole trace as a JSON object; with the ``record`` also what was seen of the device."""
    named = timelines.names()
    events: list[dict[str, Any]] = [_named("process_name", timeline.label, 0)]
    events += [_named("thread_name", f"thread {t}", t) for t in range(timeline.n_threads)]
    events.append(_named("thread_name", "tokens", _TOKENS_TID))
    start = int(timeline.events["begin"].min()) if len(timeline.events) else 0
    began = _process_start(timeline, record)
    if began is not None:
        start = min(start, began[0])
        events += _device(record, (began[0] - start) / 1000)
    counts = dict.fromkeys(CACHE_EVENTS, 0)
    for i, event in enumerate(timeline.events.tolist()):
        begin, end, n_bytes, kind, thread, step, layer, unit, _ = event
        at = (begin - start) / 1000
        name = named.get(kind, f"kind {kind}")
        if kind == kinds.TIMELINE_TOKEN or kind in PHASES:
            token = kind == kinds.TIMELINE_TOKEN
            args = {"step": step} if layer == NONE else {"step": step, "layer": layer}
            events.append(
                {
                    "name": f"{name} {step}" if token else name,
                    "cat": "token" if token else "phase",
                    "ph": "X",
                    "ts": at,
                    "dur": (end - begin) / 1000,
                    "pid": _PID,
                    "tid": _TOKENS_TID if token else thread,
                    "args": args,
                }
            )
        elif kind == kinds.TIMELINE_READ:
            what = f"layer {layer}" if unit == NONE else f"expert {unit} of layer {layer}"
            common = {"name": what, "cat": "storage", "id": i, "pid": _PID, "tid": 0}
            events.append({**common, "ph": "b", "ts": at, "args": {"bytes": n_bytes, "ok": n_bytes > 0}})
            events.append({**common, "ph": "e", "ts": (end - start) / 1000})
        elif kind in counts:
            counts[kind] += 1
            shown = {named[k]: count for k, count in counts.items()}
            events.append({"name": "cache", "ph": "C", "ts": at, "pid": _PID, "args": shown})
    other = {"label": timeline.label, "events_lost": timeline.n_lost, "start_monotonic_ns": start}
    if began is not None:
        other["device_clock_error_ns"] = began[1]
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": other}


def _process_start(timeline: Timeline, record: RunRecord | None) -> tuple[int, int] | None:
    """When the measuring process was started, in ns of the events' clock, and how far its two estimates are
    apart; None where the record does not say.

    The supervisor keeps milliseconds since that start. It saw decoding begin at the first token, and end at
    the last, each a little later than it was: the later of both estimates is the better."""
    seen = record.timeline.phase_ms if record is not None and record.timeline is not None else {}
    tokens = timeline.of(kinds.TIMELINE_TOKEN)
    if not len(tokens) or "results" not in seen:
        return None
    found = [int(tokens["end"].max()) - seen["results"] * 1_000_000]
    if "decode" in seen and not timeline.n_lost:
        found.append(int(tokens["begin"].min()) - seen["decode"] * 1_000_000)
    return max(found), max(found) - min(found)


def _device(record: RunRecord | None, began_us: float) -> Iterator[dict[str, Any]]:
    """The job's phases, and what sensors said at each look."""
    assert record is not None
    assert record.timeline is not None
    seen = record.timeline
    yield {**_named("process_name", f"{record.device}, as its supervisor saw it", 0), "pid": _DEVICE_PID}
    yield {**_named("thread_name", "phases of the job", 0), "pid": _DEVICE_PID}
    phases = sorted(seen.phase_ms.items(), key=lambda item: item[1])
    ends = [at for _, at in phases[1:]] + [max([0, *seen.at_ms, *seen.phase_ms.values()])]
    for (phase, at), end in zip(phases, ends, strict=True):
        yield {
            "name": phase,
            "cat": "job",
            "ph": "X",
            "ts": began_us + 1000 * at,
            "dur": 1000.0 * (end - at),
            "pid": _DEVICE_PID,
            "tid": 0,
        }
    megabytes = {"rss": seen.rss_bytes, "pss": seen.pss_bytes}
    groups = (
        ("MHz", 1e3, seen.cpu_khz),
        ("°C", 1e3, seen.temperature_mc),
        ("MB", 1e6, {name: values for name, values in megabytes.items() if values}),
        ("W", 1e3, {"power": seen.power_mw} if seen.power_mw else {}),
    )
    for name, per_unit, columns in groups:
        for i, at in enumerate(seen.at_ms):
            values = {key: column[i] for key, column in columns.items() if i < len(column)}
            shown = {key: value / per_unit for key, value in values.items() if value is not None}
            if shown:
                at_us = began_us + 1000 * at
                yield {"name": name, "ph": "C", "ts": at_us, "pid": _DEVICE_PID, "args": shown}


def _named(what: str, name: str, tid: int) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": _PID, "tid": tid, "args": {"name": name}}
