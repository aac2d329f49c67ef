"""One results directory that holds two builds, or two settings, under one label."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from stbench.errors import InputError
from stbench.gate import taking
from stbench.gate.judging import INCONCLUSIVE, UNCHANGED, Judge
from stbench.gate.thresholds import thresholds_of
from tests.compare.records import another_build, case, noisy, side, write

JUDGE = Judge(thresholds_of([]), [])
BEFORE = case(noisy(12))
# A campaign resumed after an upgrade that made it slower.
RESUMED = [*BEFORE[:6], *another_build(case([0.7 * speed for speed in noisy(12)])[6:])]


def test_a_baseline_of_two_builds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"t2/pp39\+tg4: library is abab\w* and cdcd\w* among its") as error:
        taking.take([write(tmp_path / "c1", RESUMED)])
    assert "--campaign NAME" in error.value.hint


def test_so_is_one_of_two_settings_with_field_and_values(tmp_path: Path) -> None:
    mixed = [
        dataclasses.replace(one, workload=dataclasses.replace(one.workload, seed=7 + i // 6))
        for i, one in enumerate(BEFORE)
    ]
    with pytest.raises(InputError, match="seed is 7 and 8 among its runs"):
        taking.take([write(tmp_path / "c1", mixed)])


def test_a_check_of_two_builds_has_no_verdict_and_one_of_both_by_turns_has() -> None:
    """A second measurement keeps both builds in one campaign, and each side takes its own."""
    (finding,) = JUDGE.findings(side(BEFORE, name="base.json"), side(RESUMED, name="now"))
    assert (finding.verdict, finding.metric) == (INCONCLUSIVE, None)
    assert "library is abababababab and cdcdcdcdcdcd within now" in finding.reason
    again = side(BEFORE, another_build(case(noisy(12, seed=1))))
    ours, theirs = (
        dataclasses.replace(again, frame=again.frame[again.frame["library"] == build * 32])
        for build in ("ab", "cd")
    )
    found = JUDGE.findings(ours, theirs)
    assert {(one.verdict, one.comparison is not None and one.comparison.paired) for one in found} == {
        (UNCHANGED, True)
    }
