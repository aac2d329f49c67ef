"""What two samples of a speed say about each other: ratio of medians, its interval, exact tests, a verdict.

Samples are speeds (positive, any unit); effects are ratios B / A, handled as logarithms, so that B against A
is exactly the inverse of A against B. Functions that take arrays ``a`` and ``b`` take replicates along the
last axis and any number of trials before it: the simulation (:mod:`stbench.comparison.simulation`) judges
with this very code.

Why these methods: the plain percentile bootstrap of a ratio of medians covers 93 % at 6 and 7 replicates
instead of 95 %, so its percentiles are moved outwards as the t distribution asks (``_tail``); and no test of
paired replicates can be more certain than ``2 ** (1 - n)``, so fewer than 6 give no verdict at all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = "npt.NDArray[np.float64]"

NOMINAL = 0.95
ALPHA = 1 - NOMINAL
FEWEST = 6

IMPROVED, REGRESSED = "improved", "regressed"
UNCHANGED, INCONCLUSIVE = "unchanged", "inconclusive"
VERDICTS = (IMPROVED, REGRESSED, UNCHANGED, INCONCLUSIVE)

# Resamples for one interval, half of them in each of two orders (see _indices).
DRAWS = 4000

# Exact null distributions up to here: counts stay below 2 ** 53 for the one, and cheap for both.
_EXACT_POOLED = 50
_EXACT_PAIRS = 100

# Never promised: a number of repetitions beyond this.
MOST_REPETITIONS = 1000

# A settled verdict with this probability needs the interval narrower than the distance to what it must
# exclude, by (z of 97.5 % + z of the power) / z of 97.5 %.
POWER = 0.80


# ---- exact tests ------------------------------------------------------------------------------------------


def signed_rank_p(differences: Sequence[float] | Floats) -> float:
    """Two-sided Wilcoxon signed-rank p value of paired differences, that their distribution is symmetric
    about 0. Exact, ties included, up to 100 pairs. Zeros say nothing and are dropped; 1.0 when all are 0."""
    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0]
    n = len(values)
    if n == 0:
        return 1.0
    ranks = _doubled_ranks(np.abs(values))
    total = int(ranks.sum())
    positive = int(ranks[values > 0].sum())
    extreme = min(positive, total - positive)
    if n <= _EXACT_PAIRS:
        counts = _subset_sums(tuple(sorted(ranks.tolist())))
        return min(1.0, 2 * float(counts[: extreme + 1].sum()) / 2.0**n)
    sd = math.sqrt(float((ranks.astype(np.float64) ** 2).sum()) / 4)
    return min(1.0, 2 * NormalDist().cdf((extreme + 1 - total / 2) / sd))


def mann_whitney_p(a: Sequence[float] | Floats, b: Sequence[float] | Floats) -> float:
    """Two-sided Mann-Whitney p value of two independent samples. Exact, ties included (the permutation
    distribution of the rank sum), up to 50 values together; beyond, the normal approximation with
    corrections for ties and continuity. Raises ValueError for an empty sample."""
    if not len(a) or not len(b):
        raise ValueError("a rank test needs values on both sides")
    ranks = _doubled_ranks(np.concatenate([np.asarray(a, float), np.asarray(b, float)]))
    n_a, n = len(a), len(ranks)
    expected = n_a * (n + 1)
    distance = abs(int(ranks[:n_a].sum()) - expected)
    if n <= _EXACT_POOLED:
        counts = _subset_sums(tuple(sorted(ranks.tolist())), n_a)
        away = np.abs(np.arange(len(counts)) - expected) >= distance
        return min(1.0, float(counts[away].sum()) / math.comb(n, n_a))
    spread = float(((ranks - (n + 1)) ** 2).sum())
    sd = math.sqrt(n_a * (n - n_a) * spread / (n * (n - 1)))
    # In doubled ranks the continuity correction of 1/2 is 1.
    return min(1.0, 2 * NormalDist().cdf(-max(distance - 1, 0) / sd)) if sd else 1.0


def _doubled_ranks(values: Floats) -> npt.NDArray[np.int64]:
    """Twice the ranks from 1, so that the mean ranks of ties are whole numbers."""
    ordered = np.sort(values)
    below = np.searchsorted(ordered, values, side="left")
    not_above = np.searchsorted(ordered, values, side="right")
    return np.asarray(below + not_above + 1, dtype=np.int64)


@functools.lru_cache(maxsize=64)
def _subset_sums(ranks: tuple[int, ...], size: int | None = None) -> Floats:
    """How many subsets, of ``size`` ranks or of any, have each sum. Kept: without ties the ranks of all
    samples of one size are the same."""
    counts = np.zeros((1 if size is None else size + 1, sum(ranks) + 1))
    counts[0, 0] = 1.0
    for rank in ranks:
        if size is None:
            counts[:, rank:] += counts[:, :-rank].copy()
        else:
            counts[1:, rank:] += counts[:-1, :-rank].copy()
    return np.asarray(counts[-1])


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values: calling those <= 5 % changed keeps the expected share of false ones among them
    within 5 %."""
    m = len(p_values)
    adjusted = [1.0] * m
    smallest = 1.0
    for rank, index in sorted(enumerate(sorted(range(m), key=lambda i: p_values[i]), 1), reverse=True):
        smallest = min(smallest, p_values[index] * m / rank)
        adjusted[index] = smallest
    return adjusted


# ---- the ratio of medians ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratio:
    """log(median B / median A) per trial, with the interval's ends; ``kind`` is "interval" or, below 6
    replicates, "range": the smallest and largest ratio of replicates, for which no coverage is claimed."""

    estimate: Floats
    low: Floats
    high: Floats
    kind: str


def paired_ratio(a: Floats, b: Floats, draws: int = DRAWS, seed: int = 0) -> Ratio:
    """For replicates that belong together: ``a[..., i]`` with ``b[..., i]``. Whole pairs are resampled, so
    that what hits both sides of a pair cancels."""
    n = a.shape[-1]
    estimate = _log_ratio(np.median(a, axis=-1), np.median(b, axis=-1))
    if n < FEWEST:
        ratios = np.log(b) - np.log(a)
        return Ratio(estimate, ratios.min(axis=-1), ratios.max(axis=-1), "range")
    indices = _indices(n, draws // 2, seed)
    drawn = []
    for first, second in ((a, b), (b, a)):
        order = np.lexsort((second, first), axis=-1)
        drawn.append(
            _log_ratio(
                _medians(np.take_along_axis(a, order, axis=-1), indices),
                _medians(np.take_along_axis(b, order, axis=-1), indices),
            )
        )
    return _interval(estimate, drawn, _tail(n, n - 1))


def unpaired_ratio(a: Floats, b: Floats, draws: int = DRAWS, seed: int = 0) -> Ratio:
    """For two samples whose replicates have nothing to do with each other; each is resampled alone."""
    n_a, n_b = a.shape[-1], b.shape[-1]
    estimate = _log_ratio(np.median(a, axis=-1), np.median(b, axis=-1))
    if min(n_a, n_b) < FEWEST:
        low = _log_ratio(a.max(axis=-1), b.min(axis=-1))
        return Ratio(estimate, low, _log_ratio(a.min(axis=-1), b.max(axis=-1)), "range")
    a, b = np.sort(a, axis=-1), np.sort(b, axis=-1)
    drawn = [
        _log_ratio(
            _medians(a, _indices(n_a, draws // 2, seed + one)),
            _medians(b, _indices(n_b, draws // 2, seed + other)),
        )
        for one, other in ((0, 1), (1, 0))
    ]
    return _interval(estimate, drawn, _tail(min(n_a, n_b), n_a + n_b - 2))


def _log_ratio(a: Any, b: Any) -> Floats:
    return np.asarray(np.log(b) - np.log(a), dtype=np.float64)


def _interval(estimate: Floats, drawn: Sequence[Floats], tail: float) -> Ratio:
    """From both halves of the draws: the two orders of A and B make the interval of B against A the mirror
    image of that of A against B, to the last bit but rounding."""
    low, high = np.quantile(np.concatenate(drawn, axis=0), [tail, 1 - tail], axis=0)
    return Ratio(estimate, np.minimum(low, estimate), np.maximum(high, estimate), "interval")


def _medians(values: Floats, indices: npt.NDArray[np.intp]) -> Floats:
    """The median of every resample, (draws, trials...). Replicates go to the first axis: sorting along it
    is ten times faster than np.median for few replicates and many trials."""
    n = values.shape[-1]
    drawn = np.sort(np.moveaxis(values, -1, 0)[indices], axis=0)
    return np.asarray((drawn[(n - 1) // 2] + drawn[n // 2]) / 2)


@functools.lru_cache(maxsize=256)
def _indices(n: int, draws: int, seed: int) -> npt.NDArray[np.intp]:
    """(n, draws) indices of replicates; the same for the same arguments, whatever the data."""
    made = np.random.default_rng([seed, n]).integers(0, n, (n, draws))
    made.flags.writeable = False
    return made


@functools.lru_cache(maxsize=256)
def _tail(n: int, degrees: int) -> float:
    """The percentile that takes the place of 2.5 %: a bootstrap of n values is narrower than the truth by
    sqrt((n - 1) / n), and like a normal interval ignores that the spread is estimated."""
    return NormalDist().cdf(-math.sqrt(n / (n - 1)) * t_quantile(1 - ALPHA / 2, degrees))


@functools.lru_cache(maxsize=256)
def t_quantile(probability: float, degrees: int) -> float:
    """Student's t with whole degrees of freedom, ``probability`` from 0.5 to 1."""
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_central(middle, degrees) < 2 * probability - 1 else (low, middle)
    return (low + high) / 2


def _t_central(t: float, degrees: int) -> float:
    """P(|T| < t), by its finite series in cos(atan(t / sqrt(degrees)))."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


# ---- the verdict ------------------------------------------------------------------------------------------


def verdicts(ratio: Ratio, q: Floats, threshold: float, floor: float) -> npt.NDArray[np.str_]:
    """One of VERDICTS per trial. ``q``: adjusted p values. ``threshold``: the smallest change that matters;
    ``floor``: the change of medians that the device shows without any cause (both as 0.02 for 2 %).

    improved, regressed: the interval excludes 1, q <= 5 %, the change is above the floor, and one as large
    as the threshold is not excluded. unchanged: the whole interval is within the threshold. Everything else,
    and every range, is inconclusive."""
    shape = np.broadcast(ratio.estimate, q).shape
    if ratio.kind != "interval":
        return np.full(shape, INCONCLUSIVE)
    within = math.log1p(threshold)
    same = (ratio.low >= -within) & (ratio.high <= within)
    proven = (q <= ALPHA) & (np.abs(ratio.estimate) > math.log1p(floor)) & ~same
    return np.select(
        [proven & (ratio.low > 0), proven & (ratio.high < 0), same],
        [IMPROVED, REGRESSED, UNCHANGED],
        INCONCLUSIVE,
    )


def repetitions(
    ratio: Ratio, spread: float, n: int, cells: int, threshold: float, floor: float
) -> int | None:
    """Replicates per side that would settle an inconclusive verdict in 80 % of repetitions, if the estimate
    and the spread observed so far are right. ``spread``: standard deviation of the logarithm of a pair's
    ratio, for less than 6 replicates; ``cells`` compared together. None: more than 1000."""
    estimate = abs(float(ratio.estimate))
    half = (float(ratio.high) - float(ratio.low)) / 2
    if ratio.kind != "interval":
        # The standard error of a median is 1.25 times that of a mean.
        half = NormalDist().inv_cdf(1 - ALPHA / 2) * 1.25 * spread / math.sqrt(n)
    to_unchanged = math.log1p(threshold) - estimate
    to_changed = estimate if estimate > math.log1p(floor) else 0.0
    target = max(to_unchanged, to_changed)
    normal = NormalDist()
    margin = 1 + normal.inv_cdf(POWER) / normal.inv_cdf(1 - ALPHA / 2)
    if target <= 0:
        return None
    # So many that a signed-rank p value can pass even when no other cell changed.
    resolution = math.ceil(1 + math.log2(max(cells, 1) / ALPHA))
    needed = max(FEWEST, n + 1, resolution, math.ceil(n * (margin * half / target) ** 2))
    return needed if needed <= MOST_REPETITIONS else None
