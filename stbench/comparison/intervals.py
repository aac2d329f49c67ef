"""The median of few replicates, with an interval whose coverage is known exactly.

For independent replicates of any continuous distribution the number of them below the true median is
Binomial(n, 1/2). So the k-th smallest and the k-th largest value enclose the median with probability
``1 - 2 P(Binomial(n, 1/2) < k)``, whatever the distribution. With ties the coverage can only be larger.
Five replicates reach 93.75 % at most; from six on, a 95 % interval exists. Below that only the range is
given, under that name.
"""

import functools
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

NOMINAL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A median and what surrounds it, in the values' unit. ``kind`` is "interval" (``coverage`` is its exact
    probability of containing the true median, at least :data:`NOMINAL`) or "range" (``coverage`` None:
    smallest and largest value, no probability claimed)."""

    median: float
    low: float
    high: float
    n: int
    kind: str
    coverage: float | None


def coverage(n: int, k: int) -> float:
    """The exact probability that the k-th smallest and k-th largest of n values (k counted from 1) enclose
    the median. Raises ValueError unless 1 <= k <= (n + 1) / 2."""
    if k < 1 or 2 * k > n + 1:
        raise ValueError(f"no interval between the {k}-th smallest and {k}-th largest of {n} values")
    return float(Fraction(2**n - 2 * _below(n, k), 2**n))


@functools.lru_cache(maxsize=256)
def _below(n: int, k: int) -> int:
    """The sum of the first k binomials of n, each made from the one before: thousands of replicates must take
    milliseconds."""
    term, total = 1, 0
    for i in range(k):
        total += term
        term = term * (n - i) // (i + 1)
    return total


def median_estimate(values: Iterable[float], nominal: float = NOMINAL) -> Estimate:
    """The median with the narrowest symmetric order-statistic interval of at least ``nominal`` coverage, or
    with the range where none exists. Raises ValueError for no values or values that are not finite."""
    ordered = sorted(values)
    if not ordered or not all(map(math.isfinite, ordered)):
        raise ValueError("the median needs at least one value, and finite ones")
    n = len(ordered)
    median = statistics.median(ordered)
    best = _widest_k(n, nominal)
    if best == 0:
        return Estimate(median, ordered[0], ordered[-1], n, "range", None)
    return Estimate(median, ordered[best - 1], ordered[n - best], n, "interval", coverage(n, best))


@functools.lru_cache(maxsize=256)
def _widest_k(n: int, nominal: float) -> int:
    """The largest k whose coverage is at least ``nominal``, 0 where none is. Coverage falls with k."""
    most = (Fraction(1) - Fraction(nominal)) * 2**n
    term, outside, best = 1, 0, 0
    for k in range(1, (n + 1) // 2 + 1):
        outside += 2 * term
        if outside > most:
            break
        best = k
        term = term * (n - k + 1) // k
    return best
