"""The timeline of a run as a file (docs/profile.md): written on the device, read by ``stbench profile``.

One line of text that names the format and its version, one line of JSON, then the events as the runtime has
them (``sbr_timeline_event``, little endian), compressed with zlib.
"""

import hashlib
import json
import sys
import zlib
from typing import Any, Dict, NamedTuple, Optional

from . import sbr
from .sbr import _abi_timeline
from .wire import TimelineTrace

MAGIC = b"stbench-timeline 1\n"
SUFFIX = ".timeline"
EVENT_BYTES = 48
# Of each thread, and of storage: 3 MiB each. A token of SmallThinker-4B takes 710 of a thread.
EVENTS = 1 << 16
# What a file from elsewhere may ask of its reader. Times differ from event to event, so that what zlib makes
# of them is never smaller by a factor like this one.
MAX_THREADS = 1024
MAX_LOST = 1 << 63
MAX_LAYERS = 4096
_MAX_RATIO = 100


class TimelineFile(NamedTuple):
    """``head``: label and, as integers, n_threads, n_lost, n_events, capacity. ``events``: ``n_events`` times
    48 bytes."""

    head: Dict[str, Any]
    events: bytes


def kept(path: str, found: Optional[sbr.Timeline], n_threads: int, label: str) -> Optional[TimelineTrace]:
    """Writes what a session recorded; None when that is nothing. Raises OSError."""
    if found is None:
        return None
    if sys.byteorder != "little":
        raise ValueError("timelines are written on little-endian machines only")
    raw = bytes(memoryview(found.events).cast("B")[: found.n_events * EVENT_BYTES])
    head: Dict[str, Any] = {
        "label": label,
        "n_threads": n_threads,
        "n_lost": found.n_lost,
        "n_events": found.n_events,
    }
    head["capacity"] = found.capacity
    data = MAGIC + json.dumps(head).encode() + b"\n" + zlib.compress(raw, 1)
    with open(path, "wb") as file:
        file.write(data)
    return TimelineTrace(path, hashlib.sha256(data).hexdigest(), found.n_events, found.n_lost)


def parse(data: bytes) -> TimelineFile:
    """The contents of such a file. Raises ValueError, saying what is wrong with it."""
    if not data.startswith(MAGIC):
        raise ValueError("this is no timeline of stbench, or one of another version")
    line, separator, packed = data[len(MAGIC) :].partition(b"\n")
    try:
        head = json.loads(line)
        counts = {key: int(head[key]) for key in ("n_threads", "n_lost", "n_events", "capacity")}
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise ValueError("the timeline is damaged: its second line is not its head") from None
    # A ring for each thread, and one for storage.
    rings = min(counts["n_threads"], MAX_THREADS) + 1
    limits = {"n_threads": MAX_THREADS, "n_lost": MAX_LOST, "capacity": EVENTS, "n_events": rings * EVENTS}
    for key, most in limits.items():
        if not 0 <= counts[key] <= most:
            raise ValueError("the timeline is damaged: its %s must be 0 to %d" % (key, most))
    size = counts["n_events"] * EVENT_BYTES
    if size > _MAX_RATIO * len(packed) + (1 << 20):
        raise ValueError("the timeline is damaged: %d bytes cannot hold its events" % len(packed))
    unpack = zlib.decompressobj()
    try:
        raw = unpack.decompress(packed, max(1, size)) if separator else b""
    except zlib.error:
        raise ValueError("the timeline is damaged: its events cannot be unpacked") from None
    if len(raw) != size or not unpack.eof:
        raise ValueError("the timeline is damaged: it has other events than it says")
    head.update(counts)
    return TimelineFile(head, raw)


def names() -> Dict[int, str]:
    """What the kinds of events are called."""
    return dict(_abi_timeline.KINDS)
