"""Coverage of the median's interval, against exhaustive counting and against simulation."""

from __future__ import annotations

import itertools
import math
import random
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stbench.comparison.intervals import NOMINAL, coverage, median_estimate


@pytest.mark.parametrize("n", range(1, 13))
def test_coverage_equals_counting_all_sign_patterns(n: int) -> None:
    """Each of n values is below (0) or above (1) the true median, all 2^n patterns equally likely. The k-th
    smallest is below it when at least k values are."""
    for k in range(1, (n + 1) // 2 + 1):
        inside = sum(
            1 for signs in itertools.product((0, 1), repeat=n) if k <= signs.count(0) and k <= signs.count(1)
        )
        assert coverage(n, k) == inside / 2**n


@pytest.mark.parametrize("draw", ["normal", "exponential", "two humps"])
@pytest.mark.parametrize("n", [6, 7, 9, 12, 20])
def test_simulated_coverage_is_the_stated_one(n: int, draw: str) -> None:
    rng = random.Random(n)
    true_median, sample = {
        "normal": (0.0, lambda: rng.gauss(0, 1)),
        "exponential": (math.log(2), lambda: rng.expovariate(1)),
        "two humps": (0.0, lambda: rng.gauss(rng.choice((-3, 3)), 1)),
    }[draw]
    trials = 4000
    hits = 0
    for _ in range(trials):
        found = median_estimate([sample() for _ in range(n)])
        hits += found.low <= true_median <= found.high
    stated = median_estimate(range(n)).coverage
    assert stated is not None
    spread = math.sqrt(stated * (1 - stated) / trials)
    assert abs(hits / trials - stated) < 4.5 * spread


def test_from_six_replicates_up_there_is_an_interval_and_it_covers() -> None:
    for n in range(1, 6):
        found = median_estimate(range(n))
        assert (found.kind, found.coverage, found.low, found.high) == ("range", None, 0, n - 1)
    for n in range(6, 200):
        found = median_estimate(range(n))
        assert found.kind == "interval"
        assert found.coverage is not None
        assert found.coverage >= NOMINAL
        # The next narrower one would not cover: no interval is wider than it must be.
        k = int(found.low) + 1
        assert 2 * (k + 1) > n + 1 or coverage(n, k + 1) < NOMINAL


def test_six_replicates_in_numbers() -> None:
    found = median_estimate([30.0, 31.0, 29.0, 35.0, 30.5, 30.2])
    assert (found.median, found.low, found.high, found.coverage) == (30.35, 29.0, 35.0, 0.96875)


@settings(deadline=None)
@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=40), st.randoms())
def test_order_never_matters_and_the_median_is_inside(values: list[float], rng: random.Random) -> None:
    found = median_estimate(values)
    shuffled = values[:]
    rng.shuffle(shuffled)
    assert median_estimate(shuffled) == found
    assert found.low <= found.median <= found.high
    assert found.median == median(values)
    assert found.n == len(values)


@pytest.mark.parametrize("values", [[], [float("nan")], [1.0, float("inf")]])
def test_impossible_values_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        median_estimate(values)


@pytest.mark.parametrize(("n", "k"), [(5, 0), (5, 4), (0, 1)])
def test_impossible_intervals_are_refused(n: int, k: int) -> None:
    with pytest.raises(ValueError, match="no interval"):
        coverage(n, k)
