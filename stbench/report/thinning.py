"""Long series in few numbers: of each stretch the smallest and the largest, so that no outlier is lost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence


def thinned(values: Sequence[float], points: int) -> tuple[list[float], list[float]]:
    """At most ``points`` numbers in all (``points`` 0: none), three significant digits each: all values and
    an empty list where they are that few, else the least and the largest of ``points // 2`` stretches of
    equal length. What is not finite is left out."""
    finite = [value for value in values if math.isfinite(value)]
    if points < 4 or not finite:
        return [], []
    if len(finite) <= points:
        return [_short(value) for value in finite], []
    n = points // 2
    ends = [len(finite) * i // n for i in range(n + 1)]
    stretches = [finite[a:b] for a, b in itertools.pairwise(ends)]
    return [_short(min(part)) for part in stretches], [_short(max(part)) for part in stretches]


def _short(value: float) -> float:
    """Three significant digits; an integer where it is one, which JSON writes shorter."""
    rounded = float(f"{value:.3g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
