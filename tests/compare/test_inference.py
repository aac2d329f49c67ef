"""Tests and intervals against published tables, exhaustive counting and their own symmetries."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stbench.comparison import inference
from stbench.comparison.inference import (
    IMPROVED,
    INCONCLUSIVE,
    REGRESSED,
    UNCHANGED,
    Ratio,
    benjamini_hochberg,
    mann_whitney_p,
    paired_ratio,
    repetitions,
    signed_rank_p,
    t_quantile,
    unpaired_ratio,
    verdicts,
)

speeds = st.integers(400, 600).map(lambda n: n / 10)


def with_rank_sum(n: int, total: int) -> list[float]:
    """n differences of distinct sizes whose positive ranks sum to ``total``."""
    signs = []
    for rank in range(n, 0, -1):
        signs.append(float(rank if rank <= total else -rank))
        total -= rank if rank <= total else 0
    return signs


def with_wins(n: int, wins: int) -> tuple[list[float], list[float]]:
    """Two samples of n in which that many pairs have the first above the second (Mann-Whitney's U)."""
    counts = [n] * (wins // n) + [wins % n] + [0] * n
    return [count + 0.001 * i for i, count in enumerate(counts[:n], 1)], [i + 0.5 for i in range(n)]


# Two-sided 5 % critical values as printed in tables of the signed-rank test.
@pytest.mark.parametrize(
    ("n", "critical"), [(6, 0), (7, 2), (8, 3), (9, 5), (10, 8), (12, 13), (15, 25), (20, 52), (25, 89)]
)
def test_signed_rank_has_the_published_critical_values(n: int, critical: int) -> None:
    assert signed_rank_p(with_rank_sum(n, critical)) <= 0.05 < signed_rank_p(with_rank_sum(n, critical + 1))


# The same of Mann-Whitney, equal samples.
@pytest.mark.parametrize(
    ("n", "critical"), [(4, 0), (5, 2), (6, 5), (7, 8), (8, 13), (9, 17), (10, 23), (15, 64), (20, 127)]
)
def test_mann_whitney_has_the_published_critical_values(n: int, critical: int) -> None:
    assert mann_whitney_p(*with_wins(n, critical)) <= 0.05 < mann_whitney_p(*with_wins(n, critical + 1))


def test_small_p_values_by_hand() -> None:
    assert signed_rank_p([1, 2, 3, 4, 5, 6]) == 2 / 2**6
    assert mann_whitney_p([1, 2, 3], [4, 5, 6]) == pytest.approx(2 / 20)
    assert mann_whitney_p([1, 2], [3, 4, 5, 6]) == pytest.approx(2 / 15)
    assert signed_rank_p([0.0, 0.0]) == 1.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_signed_rank_equals_counting_all_signs_with_ties(values: list[int]) -> None:
    kept = [value for value in values if value]
    ordered = sorted(abs(value) for value in kept)
    ranks = [(2 * ordered.index(abs(v)) + ordered.count(abs(v)) + 1) / 2 for v in kept]
    seen = sum(rank for rank, value in zip(ranks, kept, strict=True) if value > 0)
    sums = [
        sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign)
        for signs in itertools.product((0, 1), repeat=len(kept))
    ]
    away = abs(seen - sum(ranks) / 2)
    extreme = sum(abs(total - sum(ranks) / 2) >= away for total in sums)
    assert signed_rank_p([float(value) for value in values]) == pytest.approx(extreme / len(sums))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=5), st.lists(st.integers(0, 4), min_size=1, max_size=5)
)
def test_mann_whitney_equals_counting_all_choices_with_ties(a: list[int], b: list[int]) -> None:
    pool = a + b
    ordered = sorted(pool)
    ranks = [(2 * ordered.index(value) + ordered.count(value) + 1) / 2 for value in pool]
    expected = len(a) * (len(pool) + 1) / 2
    away = abs(sum(ranks[: len(a)]) - expected)
    sums = [sum(chosen) for chosen in itertools.combinations(ranks, len(a))]
    extreme = sum(abs(total - expected) >= away for total in sums)
    assert mann_whitney_p([float(v) for v in a], [float(v) for v in b]) == pytest.approx(extreme / len(sums))


def test_beyond_the_exact_sizes_the_approximations_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=25).round(1), rng.normal(size=25).round(1) + 0.5
    exact = mann_whitney_p(a, b), signed_rank_p(b - a)
    monkeypatch.setattr(inference, "_EXACT_POOLED", 0)
    monkeypatch.setattr(inference, "_EXACT_PAIRS", 0)
    assert (mann_whitney_p(a, b), signed_rank_p(b - a)) == pytest.approx(exact, rel=0.1)
    assert mann_whitney_p([1.0] * 30, [1.0] * 30) == 1.0


def test_empty_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="both sides"):
        mann_whitney_p([], [1.0])


def test_benjamini_hochberg_by_hand() -> None:
    assert benjamini_hochberg([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert benjamini_hochberg([]) == []
    assert benjamini_hochberg([1.0, 1.0]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("degrees", "value"), [(1, 12.706), (2, 4.303), (5, 2.571), (8, 2.306), (11, 2.201), (38, 2.024)]
)
def test_t_has_the_published_quantiles(degrees: int, value: float) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(value, abs=5e-4)


# ---- the ratio ---------------------------------------------------------------------------------------------


def ends(ratio: Ratio) -> tuple[float, float, float]:
    return float(ratio.estimate), float(ratio.low), float(ratio.high)


def mirrored(ratio: Ratio) -> Any:
    estimate, low, high = ends(ratio)
    return pytest.approx((-estimate, -high, -low), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(speeds, speeds), min_size=1, max_size=15), st.randoms())
def test_pairs_are_symmetric_and_their_order_never_matters(
    pairs: list[tuple[float, float]], rng: Any
) -> None:
    a, b = (np.array(values) for values in zip(*pairs, strict=True))
    found = paired_ratio(a, b, draws=200)
    assert ends(paired_ratio(b, a, draws=200)) == mirrored(found)
    rng.shuffle(pairs)
    shuffled = paired_ratio(*(np.array(values) for values in zip(*pairs, strict=True)), draws=200)
    assert ends(shuffled) == ends(found)
    assert found.low <= found.estimate <= found.high or found.kind == "range"


@settings(max_examples=40, deadline=None)
@given(st.lists(speeds, min_size=1, max_size=14), st.lists(speeds, min_size=1, max_size=14), st.randoms())
def test_unpaired_samples_are_symmetric_and_their_order_never_matters(
    a: list[float], b: list[float], rng: Any
) -> None:
    found = unpaired_ratio(np.array(a), np.array(b), draws=200)
    assert ends(unpaired_ratio(np.array(b), np.array(a), draws=200)) == mirrored(found)
    rng.shuffle(a)
    rng.shuffle(b)
    assert ends(unpaired_ratio(np.array(a), np.array(b), draws=200)) == ends(found)


def test_below_six_there_is_a_range_only() -> None:
    a, b = np.array([10.0, 11.0, 12.0]), np.array([11.0, 11.0, 15.0])
    pairs = paired_ratio(a, b)
    assert pairs.kind == "range"
    assert np.exp(ends(pairs)) == pytest.approx((1.0, 1.0, 1.25))
    apart = unpaired_ratio(a, b)
    assert np.exp(ends(apart)) == pytest.approx((1.0, 11 / 12, 1.5))


def test_what_a_pair_shares_cancels() -> None:
    """One machine, ten times slower in half of the rounds: the pairs still see 2 %, the samples do not."""
    a = np.array([50.0, 5.0] * 6) * np.exp(np.linspace(0, 1e-3, 12))
    pairs, apart = paired_ratio(a, 1.02 * a), unpaired_ratio(a, 1.02 * a)
    assert np.exp(ends(pairs))[0] == pytest.approx(1.02)
    assert signed_rank_p(np.log(1.02 * a) - np.log(a)) < 0.001
    assert float(apart.high - apart.low) > 1


# ---- the verdict -------------------------------------------------------------------------------------------


def judged(low: float, high: float, q: float = 0.01, kind: str = "interval", floor: float = 0.0) -> str:
    logs = [np.array(math.log(value)) for value in ((low * high) ** 0.5, low, high)]
    return str(verdicts(Ratio(*logs, kind), np.array(q), 0.02, floor))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.01, 1.05, IMPROVED),
        (0.95, 0.99, REGRESSED),
        (0.99, 1.01, UNCHANGED),
        # A change, but surely one that is too small to matter.
        (1.005, 1.015, UNCHANGED),
        (0.99, 1.05, INCONCLUSIVE),
        (0.95, 1.05, INCONCLUSIVE),
    ],
)
def test_verdicts_by_where_the_interval_lies(low: float, high: float, verdict: str) -> None:
    assert judged(low, high) == verdict


def test_a_change_needs_more_than_its_interval() -> None:
    assert judged(0.90, 0.96, q=0.06) == INCONCLUSIVE
    assert judged(0.90, 0.96, floor=0.10) == INCONCLUSIVE
    assert judged(0.90, 0.96, kind="range") == INCONCLUSIVE
    assert judged(1.0, 1.0, kind="range") == INCONCLUSIVE


def test_repetitions_settle_what_they_promise() -> None:
    """Of inconclusive 2 % changes, those measured again with the stated number are settled in 4 of 5 trials,
    here where the estimate that the number rests on is the truth."""
    rng = np.random.default_rng(11)
    change, noise, n = 0.02, 0.02, 8
    log = noise * rng.standard_normal((2, n))
    log -= np.median(log, axis=1, keepdims=True)
    a, b = np.exp(log[0]), np.exp(log[1] + change)
    needed = repetitions(paired_ratio(a, b), 0.0, n, 1, 0.02, 0.0)
    assert needed is not None
    assert n < needed < 100
    log = noise * rng.standard_normal((2, 400, needed))
    ratio = paired_ratio(np.exp(log[0]), np.exp(log[1] + change), draws=400)
    p = np.array([signed_rank_p(row) for row in log[1] + change - log[0]])
    assert (verdicts(ratio, p, 0.02, 0.0) != INCONCLUSIVE).mean() > 0.7


def test_repetitions_grow_with_spread_and_with_cells_and_have_an_end() -> None:
    estimate = np.array(0.02)

    def needed(half: float, cells: int = 1) -> int | None:
        return repetitions(
            Ratio(estimate, estimate - half, estimate + half, "interval"), 0, 8, cells, 0.02, 0
        )

    few, many = needed(0.02), needed(0.05)
    assert few is not None
    assert many is not None
    assert 9 <= few < many
    assert needed(0.005, cells=1000) == 16
    assert needed(5.0) is None
    from_range = Ratio(estimate, estimate, estimate, "range")
    assert repetitions(from_range, 0.01, 3, 1, 0.02, 0.0) == 6
