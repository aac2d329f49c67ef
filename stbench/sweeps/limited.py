"""The axes of runs whose weights do not all stay in memory: limits, caches, and how units reach a cache.

A *memory limit* is for every engine. A *cache* is our engine's: a budget for units of a model's bundle, of
which "auto" is the largest that fits the limit. Policy, I/O and prefetch say how a cache works and mean
nothing without one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic

from stbench.agent.wire import Settings

AUTO = "auto"
NONE = "none"

POLICIES = (AUTO, "lru", "lfu", "reuse")
IO_KINDS = (AUTO, "pread", "io_uring")
PREFETCHES = (AUTO, "exact", "next-layer", "next-2", "next-4")
COLD = "cold"
STARTS = (COLD, "warm")

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,3})?) ?([kmgt]?)(?:i?b)?", re.IGNORECASE)
_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,2})?) ?%")
# Less than an interpreter takes: certainly a slip of the unit.
SMALLEST_LIMIT = 8 << 20


def parse_bytes(text: str) -> int:
    """``256MiB``, ``1.5G``, ``4096``: K, M, G and T are powers of 1024, whatever follows them. Raises
    ValueError that completes "expected"."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError("a size such as 256MiB or 1GiB")
    size = float(match[1]) * _UNITS[match[2].lower()]
    if size != int(size):
        raise ValueError("a size in whole bytes")
    return int(size)


def bytes_label(size: int) -> str:
    """``1g``, ``768m``, ``4096b``: in the largest unit that divides it."""
    for unit in ("t", "g", "m", "k"):
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return f"{size}b"


def _items(value: Any) -> list[Any]:
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    if not items:
        raise ValueError("at least one value")
    return [item.strip() if isinstance(item, str) else item for item in items]


def _limit(item: Any) -> int:
    if item == NONE:
        return 0
    try:
        size = parse_bytes(item) if isinstance(item, str) else item
    except ValueError:
        size = None
    if type(size) is not int or not SMALLEST_LIMIT <= size < 1 << 50:
        raise ValueError("sizes such as 1GiB or 768MiB (8MiB at least), or none")
    return size


def _limits(value: Any) -> list[int]:
    """``1GiB,8GiB,none`` as typed, or a YAML list; a bare number is bytes."""
    return list(dict.fromkeys(map(_limit, _items(value))))


def _cache(item: Any) -> str:
    """As in Settings.cache: "" for none, "auto", a number of bytes, or a share such as "25%"."""
    if item == NONE:
        return ""
    if item == AUTO:
        return AUTO
    share = _SHARE.fullmatch(item) if isinstance(item, str) else None
    if share is not None and 0 < float(share[1]) <= 100:
        return f"{float(share[1]):g}%"
    try:
        size = parse_bytes(item) if isinstance(item, str) else item
    except ValueError:
        size = None
    if type(size) is not int or not 0 < size < 1 << 50:
        raise ValueError("sizes such as 256MiB, shares of all units such as 25%, auto or none")
    return str(size)


def _caches(value: Any) -> list[str]:
    return list(dict.fromkeys(map(_cache, _items(value))))


def _words(known: Sequence[str]) -> Any:
    def parse(value: Any) -> list[str]:
        items = _items(value)
        if not all(item in known for item in items):
            raise ValueError(f"one or several of {', '.join(known)}")
        return list(dict.fromkeys(items))

    return pydantic.BeforeValidator(parse)


Limits = Annotated[list[int], pydantic.BeforeValidator(_limits)]
Caches = Annotated[list[str], pydantic.BeforeValidator(_caches)]
Policies = Annotated[list[str], _words(POLICIES)]
Ios = Annotated[list[str], _words(IO_KINDS)]
Prefetches = Annotated[list[str], _words(PREFETCHES)]
Starts = Annotated[list[str], _words(STARTS)]
Direct = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class Limited:
    """What limits one case; the default is a run with all weights in memory. Fields are as in Settings."""

    memory_limit: int = 0
    cache: str = ""
    policy: str = AUTO
    io: str = AUTO
    prefetch: str = AUTO
    start: str = COLD

    @property
    def label(self) -> str:
        """``/mem1g/cache256m/lru``: the part of a case's label that says it, "" without limits. What is left
        to the runtime is not named."""
        parts = [f"mem{bytes_label(self.memory_limit)}"] if self.memory_limit else []
        if self.cache:
            size = self.cache if not self.cache.isdigit() else bytes_label(int(self.cache))
            parts.append(f"cache{size}")
        parts += [word for word in (self.policy, self.io, self.prefetch) if word != AUTO]
        parts += [self.start] * (self.start != COLD)
        return "".join(f"/{part}" for part in parts)


UNLIMITED = Limited()


def limited_of(settings: Settings) -> Limited:
    """The same of a job's settings."""
    return Limited(
        settings.memory_limit_bytes,
        settings.cache,
        settings.cache_policy,
        settings.io,
        settings.prefetch,
        settings.start,
    )


def too_large(
    what: str, limited: Limited, limits: Sequence[int], weight_bytes: int, memory_bytes: int
) -> str:
    """Why the unlimited partner of limited cases is not run; "" when it is, and for all other cases. Weights
    that the memory cannot hold would be read from storage again and again: no compute rate."""
    if not any(limits) or limited.memory_limit or limited.cache or not 0 < memory_bytes < weight_bytes * 1.1:
        return ""
    return (
        f"{what} without a limit left out: its {weight_bytes / 1e9:.1f} GB do not fit into "
        f"{memory_bytes / 1e9:.1f} GB of memory"
    )


def combinations(
    limits: Sequence[int],
    caches: Sequence[str],
    policies: Sequence[str],
    ios: Sequence[str],
    prefetches: Sequence[str],
    starts: Sequence[str] = (COLD,),
) -> Iterator[Limited]:
    """Every combination that means something, in reading order, each once: without a cache there is one per
    limit, however many policies are asked for."""
    made = dict.fromkeys(
        Limited(limit, cache, policy, io, prefetch, start) if cache else Limited(limit)
        for limit in limits
        for cache in caches
        for policy in policies
        for io in ios
        for prefetch in prefetches
        for start in starts
    )
    yield from made


def meaningless(
    caches: Sequence[str],
    policies: Sequence[str],
    ios: Sequence[str],
    prefetches: Sequence[str],
    starts: Sequence[str] = (COLD,),
) -> str:
    """What of the axes says nothing to the cases without a cache, as a sentence; "" where nothing does."""
    named = [
        f"{option} {','.join(words)}"
        for option, values in (
            ("--policy", policies),
            ("--io", ios),
            ("--prefetch", prefetches),
            ("--start", starts),
        )
        if (words := [word for word in values if word not in (AUTO, COLD)])
    ]
    if not named or "" not in caches:
        return ""
    return f"{' '.join(named)} left out for cases without a cache, which run once each"


def only_for_caches(
    caches: Sequence[str],
    policies: Sequence[str],
    ios: Sequence[str],
    prefetches: Sequence[str],
    io_direct: str,
    starts: Sequence[str] = (COLD,),
) -> list[str]:
    """A problem for each option that needs a cache where the sweep has none."""
    if any(caches):
        return []
    asked = {
        "policy": list(policies) != [AUTO],
        "io": list(ios) != [AUTO],
        "prefetch": list(prefetches) != [AUTO],
        "io_direct": io_direct != AUTO,
        "start": list(starts) != [COLD],
    }
    return [f"{key} says how a cache works, and this sweep has none" for key, wrong in asked.items() if wrong]
