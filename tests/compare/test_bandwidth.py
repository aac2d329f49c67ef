"""Runs chosen by the memory bandwidth beside them."""

from __future__ import annotations

import math

import pytest

from stbench.comparison import bandwidth
from stbench.comparison.bandwidth import Range
from stbench.comparison.compare import compare
from stbench.comparison.versus import engine_ratios
from stbench.errors import InputError, UsageError
from stbench.records.sides import Side
from tests.compare.records import beside, side
from tests.compare.test_versus import decode, llama


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("60:", Range(60, math.inf)), (":45", Range(0, 45)), ("32.5:45", Range(32.5, 45))],
)
def test_a_range_has_one_end_or_two(text: str, wanted: Range) -> None:
    assert bandwidth.parse(text) == wanted


@pytest.mark.parametrize("text", ["", ":", "60", "60:50", "-1:", "a:b", "1:2:3", "nan:", "5:5", "inf:"])
def test_anything_else_is_no_range(text: str) -> None:
    with pytest.raises(UsageError, match="LOW:HIGH"):
        bandwidth.parse(text)


def two_states() -> Side:
    """Twenty rounds; where memory is slow ours is as fast as the other engine, where it is fast twice."""
    rates = [40.0] * 10 + [70.0] * 10
    theirs = llama("smallthinker-4b", [20.0] * 20)
    ours = decode([20.0] * 10 + [40.0] * 10)
    return side([beside(one, rate) for runs in (theirs, ours) for one, rate in zip(runs, rates, strict=True)])


@pytest.mark.parametrize(("chosen", "ratio"), [("60:", 2.0), (":45", 1.0)])
def test_the_ratio_of_one_state_of_the_memory(chosen: str, ratio: float) -> None:
    found = engine_ratios(bandwidth.within(two_states(), bandwidth.parse(chosen)), "sbr", "llama-bench")
    (row,) = found.rows
    assert (row.comparison.n, row.comparison.ratio) == (10, pytest.approx(ratio))
    assert row.comparison.low == pytest.approx(row.comparison.high)
    assert any("20 of 40" in note for note in found.notes)
    assert not any("--bandwidth" in note for note in found.notes)


def test_the_states_are_said_where_none_was_chosen() -> None:
    (note,) = engine_ratios(two_states(), "sbr", "llama-bench").notes
    assert "40 to 70 GB/s" in note
    assert "--bandwidth 53:" in note
    steady = bandwidth.within(two_states(), Range(60, math.inf))
    assert bandwidth.states(Side("steady", steady.frame)) == ""


def test_other_threads_are_no_other_state() -> None:
    frame = two_states().frame
    fast = frame["read_gb_per_s"] > 60
    assert bandwidth.states(Side("both", frame.assign(threads=fast + 1))) == ""


@pytest.mark.parametrize(
    ("text", "said"), [("0:", "0 GB/s or more"), (":45", "45 GB/s or less"), ("32:45", "32 to 45 GB/s")]
)
def test_a_range_in_words(text: str, said: str) -> None:
    assert str(bandwidth.parse(text)) == said


def test_two_campaigns_can_be_chosen_from_as_well() -> None:
    a, b = (bandwidth.within(two_states(), Range(60, math.inf)) for _ in "ab")
    found = compare(a, b)
    assert [case.a.n for case in found.cases] == [10, 10]
    assert found.notes == (a.chosen,)


def test_no_run_in_the_range_is_an_error_that_says_what_there_is() -> None:
    with pytest.raises(InputError, match="100 GB/s or more beside it; it was 40 to 70"):
        bandwidth.within(two_states(), Range(100, math.inf))
    unprobed = side(decode([20.0] * 3))
    with pytest.raises(InputError, match="none was probed"):
        bandwidth.within(unprobed, Range(0, 45))
