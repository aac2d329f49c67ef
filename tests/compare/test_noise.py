"""The noise floor: how large it is, how it is kept, and that comparisons use it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from stbench.comparison.compare import compare
from stbench.comparison.inference import IMPROVED, INCONCLUSIVE
from stbench.comparison.noise import Noise, floor_of, noise_of, read_floors, store
from tests.compare.records import another_build, case, disturbed, noisy, side


def test_the_floor_is_what_medians_of_halves_differ_by() -> None:
    """A median of 20 normal values has the standard deviation 1.2533 / sqrt(20); two of them differ by less
    than 1.96 * sqrt(2) of that in 95 % of cases."""
    floors = []
    for seed in range(12):
        (found,), _ = noise_of(side(case(noisy(40, seed=seed))))
        assert found.half == 20
        assert found.spread == pytest.approx(0.01, rel=0.4)
        floors.append(found.floor)
    assert np.median(floors) == pytest.approx(1.96 * math.sqrt(2) * 1.2533 * 0.01 / math.sqrt(20), rel=0.25)


def test_drift_is_seen_apart() -> None:
    still, _ = noise_of(side(case(noisy(24))))
    moving, _ = noise_of(side(case([speed * (1 + 0.004 * i) for i, speed in enumerate(noisy(24))])))
    assert still[0].drift < 0.01
    assert 0.03 < moving[0].drift < 0.07


def test_drift_is_seen_on_a_board_whose_clock_was_set_back() -> None:
    """Replicates are numbered in the order in which they ran; their times are the board's own."""
    records = case([50.0] * 12 + [55.0] * 12)
    times = [one.started_at for one in records]
    jumped = [
        dataclasses.replace(one, started_at=times[i % 12 * 2 + i // 12]) for i, one in enumerate(records)
    ]
    for order in (records, jumped):
        assert noise_of(side(order))[0][0].drift == pytest.approx(0.1, abs=0.01)


def test_neighbours_are_rarely_called_a_change() -> None:
    alarms = [noise_of(side(case(noisy(24, seed=seed))))[0][0].alarms for seed in range(10)]
    assert np.mean(alarms) < 0.05


def test_few_and_disturbed_replicates_are_said() -> None:
    records = case(noisy(12))
    found, notes = noise_of(side([disturbed(records[0]), *records[1:]]))
    assert not found
    assert notes == [
        "local:smallthinker-4b/dense/t2/pp39+tg4: 11 usable replicates, 1 disturbed; two halves need 12"
    ]


def test_what_two_builds_differ_by_is_no_noise() -> None:
    before, after = noisy(12), [0.7 * speed for speed in noisy(16, seed=1)]
    found, notes = noise_of(side(case(before), another_build(case(after, start=50))))
    assert [(one.library[:2], one.half, one.floor < 0.05) for one in found] == [
        ("ab", 6, True),
        ("cd", 8, True),
    ]
    assert not notes
    found, notes = noise_of(side(case(before), another_build(case(after[:5], start=50))))
    assert [one.library[:2] for one in found] == ["ab"]
    assert notes == [
        "local:smallthinker-4b/dense/t2/pp39+tg4, build cdcdcdcdcdcd: 5 usable replicates, 0 disturbed; two "
        "halves need 12"
    ]


def test_what_is_stored_comes_back_with_its_provenance(tmp_path: Path) -> None:
    path = tmp_path / "noise.jsonl"
    assert read_floors(path) == ([], [])
    found, _ = noise_of(side(case(noisy(12))))
    store(found, path)
    with path.open("a") as file:
        file.write('not json\n{"device": 3}\n')
        file.write(json.dumps({**dataclasses.asdict(found[0]), "floor": -1.0}) + "\n")
    (back,), problems = read_floors(path)
    assert dataclasses.replace(back, stored_at="") == found[0]
    assert (back.campaign, back.fingerprint, len(back.library)) == ("c1", "f00d", 64)
    assert back.stored_at
    assert [text.partition(": no entry")[0] for text in problems] == [f"{path}:{n}" for n in (2, 3, 4)]


def test_a_comparison_uses_the_floor_of_its_own_case() -> None:
    a, b = side(case(noisy(16))), side(case([1.03 * s for s in noisy(16, seed=1)], start=999, campaign="c2"))
    (quiet,), _ = noise_of(side(case(noisy(32, seed=2))))
    loud = dataclasses.replace(quiet, floor=0.05)

    def verdict(*stored: Noise) -> tuple[str, float]:
        floor = floor_of(stored, "decode_tps")
        (found,) = compare(a, b, floor=floor).cases
        (strict,) = compare(a, b, floor=floor, threshold=0.02).cases
        return strict.verdict, found.threshold

    assert verdict() == (IMPROVED, 0.02)
    assert verdict(quiet) == (IMPROVED, 0.02)
    assert verdict(quiet, loud) == (INCONCLUSIVE, pytest.approx(0.05, rel=0.01))
    for elsewhere in (
        {"fingerprint": "beef"},
        {"threads": 1},
        {"metric": "prefill_tps"},
        {"model": "qwen3-0.6b"},
    ):
        assert verdict(dataclasses.replace(loud, **elsewhere)) == (IMPROVED, 0.02)
    # Of other switches the largest; of an older entry nothing.
    assert verdict(dataclasses.replace(loud, switches="sparse"))[0] == INCONCLUSIVE
    assert verdict(loud, quiet) == (IMPROVED, 0.02)


def test_unpaired_comparisons_grant_the_drift_and_paired_ones_do_not() -> None:
    (noise,), _ = noise_of(side(case(noisy(32))))
    floor = floor_of([dataclasses.replace(noise, floor=0.01, drift=0.08)], "decode_tps")
    row = side(case(noisy(1))).frame.iloc[0]
    assert floor(row, False, 16) == pytest.approx(0.08)
    assert floor(row, True, 16) == pytest.approx(0.01)
    assert floor(row, True, 64) == pytest.approx(0.005, rel=0.01)
