"""Where a series of speeds changed its level.

Change points are of the logarithm of the campaigns' medians: the partition with the least squared distance to
the levels of its parts plus a penalty for each part (ruptures, PELT on the exact cost). The penalty is 6
variances times log(n), the variance being what neighbours in time differ by: of series of 6 to 40 campaigns
without a change 5 % or fewer then have one (150 simulated of each length; with a penalty of 3 it was up to
16 %), and a step of 5 standard deviations is found in 80 % and more.

What a change is worth is judged as everywhere, by :mod:`stbench.comparison.inference`, the campaigns' medians
on either side being the samples; fewer than 6 campaigns on a side decide nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stbench.comparison import inference
from stbench.comparison.compare import THRESHOLD
from stbench.history.points import Point, Series

# A part of one campaign would make every outlier two changes; of fewer points nothing tells noise.
FEWEST = 2
FEWEST_POINTS = 6
_PENALTY = 6.0
# A standard deviation of medians below this is luck: 0.1 % is less than any device repeats.
_STEADIEST = 0.001
# Of a normal distribution the median of absolute differences of neighbours, over its standard deviation.
_NEIGHBOURS = 0.6745 * math.sqrt(2)


@dataclass(frozen=True)
class Change:
    """A level begins at the point with number ``at`` of those with a speed. ``ratio`` is the level's median
    over the one before, ``low`` and ``high`` as in a comparison; ``n_before`` and ``n_after`` are campaigns.
    ``differs``: what besides time changed there."""

    at: int
    point: Point
    ratio: float
    low: float
    high: float
    kind: str
    n_before: int
    n_after: int
    p: float
    verdict: str
    differs: tuple[str, ...]


def measured(series: Series) -> list[tuple[Point, float]]:
    """The points with a speed."""
    return [(point, point.speed.median) for point in series.points if point.speed is not None]


def changes_of(series: Series) -> list[Change]:
    """The changes of a series, in the order of time. Needs the package ``ruptures``."""
    points = measured(series)
    if len(points) < FEWEST_POINTS:
        return []
    speeds = np.array([speed for _, speed in points])
    begins = breaks(np.log(speeds).tolist())
    edges = [0, *begins, len(points)]
    found = []
    for i, at in enumerate(begins):
        before, after = speeds[edges[i] : at], speeds[at : edges[i + 2]]
        ratio = inference.unpaired_ratio(before, after)
        p = inference.mann_whitney_p(before, after)
        verdict = str(inference.verdicts(ratio, np.array(p), THRESHOLD, 0.0))
        found.append(
            Change(
                at,
                points[at][0],
                math.exp(ratio.estimate),
                math.exp(ratio.low),
                math.exp(ratio.high),
                ratio.kind,
                len(before),
                len(after),
                p,
                verdict,
                _differs(points[at - 1][0], points[at][0]),
            )
        )
    return found


def breaks(logarithms: Sequence[float]) -> list[int]:
    """Where parts begin, the first aside."""
    import ruptures

    values = np.asarray(logarithms, dtype=np.float64)
    spread = float(np.median(np.abs(np.diff(values)))) / _NEIGHBOURS
    penalty = _PENALTY * max(spread, _STEADIEST) ** 2 * math.log(len(values))
    search = ruptures.KernelCPD(kernel="linear", min_size=FEWEST).fit(values.reshape(-1, 1))
    return [int(end) for end in search.predict(pen=penalty)[:-1]]


def _differs(before: Point, after: Point) -> tuple[str, ...]:
    if before.library != after.library:
        return (f"library {before.library[:12] or 'unknown'} → {after.library[:12] or 'unknown'}",)
    return ()
