from __future__ import annotations

import numpy as np
import pytest

from stbench.errors import UsageError
from stbench.text.sampling import Sampler, Sampling, probabilities

LOGITS = np.array([2.0, 1.0, -1.0, 1.0, 0.0, -np.inf], dtype=np.float32)

PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}


def softmax(values: np.ndarray) -> np.ndarray:
    weights = np.exp(values.astype(np.float64) - values.max())
    return weights / weights.sum()


def test_without_cuts_it_is_softmax() -> None:
    assert np.allclose(probabilities(LOGITS, Sampling(**PLAIN)), softmax(LOGITS), atol=1e-12)


def test_temperature_divides_logits() -> None:
    warm = Sampling(**{**PLAIN, "temperature": 2.0})
    assert np.allclose(probabilities(LOGITS, warm), softmax(LOGITS / 2), atol=1e-12)


def test_top_k_keeps_the_best_and_prefers_the_lower_id() -> None:
    found = probabilities(LOGITS, Sampling(**{**PLAIN, "top_k": 2}))
    assert np.flatnonzero(found).tolist() == [0, 1]
    assert np.allclose(found[:2], softmax(LOGITS[:2]))


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.01, [0]), (0.6, [0, 1]), (0.8, [0, 1, 3]), (0.999, [0, 1, 2, 3, 4])]
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: list[int]) -> None:
    """softmax(LOGITS) is about 0.52, 0.19, 0.03, 0.19, 0.07, 0."""
    found = probabilities(LOGITS, Sampling(**{**PLAIN, "top_p": top_p}))
    assert np.flatnonzero(found).tolist() == kept
    assert found.sum() == pytest.approx(1)


def test_top_p_counts_after_top_k() -> None:
    found = probabilities(LOGITS, Sampling(temperature=1.0, top_k=2, top_p=0.7))
    assert np.flatnonzero(found).tolist() == [0]  # 0.73 of the two


def test_skipped_rows_are_never_drawn() -> None:
    sampler = Sampler(Sampling(temperature=100.0, top_k=0, top_p=1.0, seed=1))
    only_two = np.array([-np.inf, 0.0, -np.inf, 0.0], dtype=np.float32)
    assert {sampler.pick(only_two) for _ in range(200)} == {1, 3}


def test_draws_follow_the_probabilities() -> None:
    sampling = Sampling(temperature=0.9, top_k=4, top_p=0.95, seed=11)
    sampler, draws = Sampler(sampling), 20_000
    counts = np.bincount([sampler.pick(LOGITS) for _ in range(draws)], minlength=len(LOGITS))
    expected = probabilities(LOGITS, sampling) * draws
    drawn = expected > 0
    assert (counts[~drawn] == 0).all()
    # Chi-square with at most 3 degrees of freedom: 16.3 is exceeded by chance once in a thousand; the seed is
    # fixed.
    assert ((counts - expected)[drawn] ** 2 / expected[drawn]).sum() < 16.3


def test_zero_temperature_takes_the_best() -> None:
    assert Sampler(Sampling(temperature=0)).pick(LOGITS) == 0
    assert np.flatnonzero(probabilities(LOGITS, Sampling(temperature=0))).tolist() == [0]


def test_seed_decides() -> None:
    def draw(seed: int) -> list[int]:
        sampler = Sampler(Sampling(**PLAIN, seed=seed))
        return [sampler.pick(LOGITS) for _ in range(50)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": -1.0}, "--temperature"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"top_k": -1}, "--top-k"),
        ({"top_p": 0.0}, "--top-p"),
        ({"top_p": 1.5}, "--top-p"),
    ],
)
def test_impossible_values_are_refused_by_name(options: dict[str, float], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Sampling(**options)  # type: ignore[arg-type]
