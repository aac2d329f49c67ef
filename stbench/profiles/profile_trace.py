"""A timeline in Trace Event format, for Perfetto and chrome://tracing (docs/profile.md names the source).

One process per record: a row per thread with its phases ("X", complete events), reads of storage as async
slices ("b" and "e"), the cache's hits, loads, evictions and guesses so far as counters ("C"). ``ts`` and
``dur`` are in microseconds of CLOCK_MONOTONIC, from the first event on.
"""

from __future__ import annotations

from typing import Any

from stbench.agent import timelines
from stbench.agent.sbr import _abi_timeline as kinds
from stbench.profiles.profile import CACHE_EVENTS, NONE, PHASES, Timeline

_PID = 1
_TOKENS_TID = 1000


def trace_events(timeline: Timeline) -> dict[str, Any]:
    """The whole trace as a JSON object."""
    named = timelines.names()
    events: list[dict[str, Any]] = [_named("process_name", timeline.label, 0)]
    events += [_named("thread_name", f"thread {t}", t) for t in range(timeline.n_threads)]
    events.append(_named("thread_name", "tokens", _TOKENS_TID))
    start = int(timeline.events["begin"].min()) if len(timeline.events) else 0
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
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": other}


def _named(what: str, name: str, tid: int) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": _PID, "tid": tid, "args": {"name": name}}
