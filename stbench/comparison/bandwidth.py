"""Comparing runs of one state of the memory: by the read bandwidth that was probed beside them.

Memory that others share has states, which last for seconds or minutes. Ratios of decode speeds depend on
them, because a faster memory leaves more to the kernels; so runs can be chosen by the probe, whatever their
own speed was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from stbench.errors import InputError, UsageError
from stbench.records.sides import Side
from stbench.wording import count

# Probes whose extremes differ by more than this factor are of several states.
_STATES_APART = 1.5


@dataclass(frozen=True)
class Range:
    """Read bandwidths from ``low`` to ``high``, GB/s, both included."""

    low: float
    high: float

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"{self.low:g} GB/s or more"
        return f"{self.low:g} to {self.high:g} GB/s" if self.low > 0 else f"{self.high:g} GB/s or less"


def parse(text: str) -> Range:
    """``60:``, ``:45`` or ``32:45``. Raises :class:`UsageError` for anything else."""
    ends = text.split(":")
    try:
        low, high = (
            float(end) if end.strip() else default for end, default in zip(ends, (0, math.inf), strict=True)
        )
    except ValueError:
        low, high = math.nan, math.nan
    if not 0 <= low < high or text.strip() == ":":
        raise UsageError(
            f"--bandwidth {text}: expected LOW:HIGH in GB/s", hint="--bandwidth 60: or --bandwidth 32:45"
        )
    return Range(low, high)


def within(side: Side, wanted: Range) -> Side:
    """The runs of ``side`` beside which memory was read that fast (mean of before and after). Raises
    :class:`InputError` where there is none."""
    rates = side.frame["read_gb_per_s"]
    kept = side.frame[rates.between(wanted.low, wanted.high)]
    if not len(kept):
        seen = f"it was {rates.min():.0f} to {rates.max():.0f}" if rates.notna().any() else "none was probed"
        raise InputError(f"{side.name}: no run with a bandwidth of {wanted} beside it; {seen}")
    said = f"Only runs beside which memory was read at {wanted}: {len(kept)} of {len(rates)} of {side.name}."
    return replace(side, frame=kept, chosen=said)


def states(side: Side) -> str:
    """A sentence where runs of as many threads saw memory in more than one state; else ""."""
    if side.chosen:
        return ""
    probed = side.frame[side.frame["usable"] & side.frame["read_gb_per_s"].notna()]
    for threads, rates in probed.groupby("threads")["read_gb_per_s"]:
        if rates.max() > _STATES_APART * rates.min():
            between = math.sqrt(rates.min() * rates.max())
            return (
                f"Memory was read at {rates.min():.0f} to {rates.max():.0f} GB/s beside "
                f"runs of {count(int(str(threads)), 'thread')}; ratios depend on it: "
                f"--bandwidth {between:.0f}: and --bandwidth :{between:.0f} compare either part."
            )
    return ""
