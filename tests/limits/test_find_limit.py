"""Bisection over limits, with outcomes that are made up, and what records say as outcomes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from stbench.agent.wire import Check, LimitProof, RunRecord
from stbench.caches import limit_answers
from stbench.caches.find_limit import MIB, Found, Outcome, Resolution, find, middle
from stbench.caches.limit_answers import Answer
from stbench.caches.limit_probe import enough_bytes, outcome_of
from stbench.errors import CellsFailed
from tests.tables.factory import record

FINE = Resolution(16 * MIB, 0.0)


def went(limit: int, *speeds: float, why: str = "too little") -> Outcome:
    """Without speeds: it did not run."""
    if not speeds:
        return Outcome(limit, False, why, 0, 1)
    return Outcome(limit, True, "", len(speeds), len(speeds), tuple(speeds))


class Machine:
    """Measures by a rule, and counts."""

    def __init__(self, rule: Callable[[int], Outcome]) -> None:
        self.rule = rule
        self.asked: list[int] = []

    def __call__(self, limit: int) -> Outcome:
        assert limit not in self.asked, "nothing is measured twice"
        self.asked.append(limit)
        return self.rule(limit)


def from_on(least: int, *speeds: float) -> Machine:
    return Machine(lambda limit: went(limit, *(speeds or (5.0,))) if limit >= least else went(limit))


def edge_of(found: Found) -> tuple[int | None, int | None]:
    enough, below = found.runs.enough, found.runs.below
    return enough.limit_bytes if enough else None, below.limit_bytes if below else None


# ---- the bisection ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("least", [65 * MIB, 423 * MIB, 424 * MIB, 777_777_777, 2047 * MIB, 2048 * MIB])
def test_the_smallest_limit_lies_within_the_resolution(least: int) -> None:
    machine = from_on(least)
    found = find(machine, 64 * MIB, 2048 * MIB, FINE)
    enough, below = edge_of(found)
    assert enough is not None
    assert below is not None
    assert below < least <= enough
    assert enough - below <= 16 * MIB
    assert len(machine.asked) <= 2 + 7
    assert not found.contradictions


def test_a_share_of_the_limit_is_a_resolution_too() -> None:
    found = find(from_on(6000 * MIB), 64 * MIB, 8192 * MIB, Resolution())
    enough, below = edge_of(found)
    assert enough is not None
    assert below is not None
    assert 16 * MIB < enough - below <= enough // 50
    for limit in (enough, below):
        assert limit % (16 * MIB) == 0


def test_where_the_smallest_one_is_enough_nothing_else_is_measured() -> None:
    machine = from_on(1)
    found = find(machine, 64 * MIB, 2048 * MIB, FINE)
    assert machine.asked == [64 * MIB]
    assert edge_of(found) == (64 * MIB, None)


def test_where_the_largest_one_is_too_little_there_is_no_answer() -> None:
    machine = from_on(1 << 40)
    found = find(machine, 64 * MIB, 2048 * MIB, FINE)
    assert machine.asked == [64 * MIB, 2048 * MIB]
    assert edge_of(found) == (None, 2048 * MIB)


def test_a_guessed_largest_one_is_doubled_as_far_as_the_machine_goes() -> None:
    found = find(from_on(900 * MIB), 64 * MIB, 300 * MIB, FINE, most=1000 * MIB)
    enough, below = edge_of(found)
    assert enough is not None
    assert below is not None
    assert below < 900 * MIB <= enough
    assert found.high == 1000 * MIB
    assert find(from_on(1001 * MIB), 64 * MIB, 300 * MIB, FINE, most=1000 * MIB).runs.enough is None


def test_what_is_known_is_not_measured_again() -> None:
    first = find(from_on(423 * MIB), 64 * MIB, 2048 * MIB, FINE)
    machine = from_on(423 * MIB)
    again = find(machine, 64 * MIB, 2048 * MIB, FINE, known=first.outcomes)
    assert machine.asked == []
    assert edge_of(again) == edge_of(first)
    finer = find(machine, 64 * MIB, 2048 * MIB, Resolution(4 * MIB, 0.0), known=first.outcomes)
    assert len(machine.asked) == 2
    assert finer.runs.enough is not None
    assert finer.runs.enough.limit_bytes == 424 * MIB


def test_middles_are_round_and_strictly_between() -> None:
    chance = random.Random(0)
    for _ in range(500):
        below = chance.randrange(8 * MIB, 1 << 33)
        near = chance.randrange(4096, 1 << 30)
        above = below + near + chance.randrange(1, 1 << 33)
        assert below < middle(below, above, near) < above
    assert middle(64 * MIB, 2048 * MIB, 16 * MIB) == 1056 * MIB
    assert middle(400 * MIB, 417 * MIB, 16 * MIB) == 408 * MIB


# ---- what contradicts itself -----------------------------------------------------------------------------


def test_an_island_is_told_and_not_named() -> None:
    """It ran in 128 MiB, by chance, and not in 300: the answer is the limit from which on all were enough."""

    def rule(limit: int) -> Outcome:
        return went(limit, 5.0) if limit >= 600 * MIB else went(limit)

    known = [went(128 * MIB, 5.0), went(300 * MIB)]
    found = find(Machine(rule), 64 * MIB, 2048 * MIB, FINE, known=known)
    enough, below = edge_of(found)
    assert enough is not None
    assert below is not None
    assert below < 600 * MIB <= enough
    assert found.contradictions[0] == "not monotone: it ran in 128 MiB, but not in 300 MiB"
    assert "every larger one" in " ".join(limit_answers.sentences(Answer("c", found, FINE, None, None)))


def test_a_hole_above_moves_the_answer_above_it() -> None:
    found = find(from_on(200 * MIB), 64 * MIB, 2048 * MIB, FINE, known=[went(1000 * MIB)])
    enough, below = edge_of(found)
    assert enough is not None
    assert below is not None
    assert 1000 * MIB <= below < enough
    assert enough - below <= 16 * MIB


def test_a_limit_at_which_only_some_replicates_ran_is_not_enough() -> None:
    def rule(limit: int) -> Outcome:
        if 400 * MIB <= limit < 500 * MIB:
            return Outcome(limit, False, "out-of-memory", 2, 3)
        return went(limit, 5.0) if limit >= 500 * MIB else went(limit)

    found = find(Machine(rule), 64 * MIB, 2048 * MIB, FINE)
    enough, _ = edge_of(found)
    assert enough is not None
    assert 500 * MIB <= enough <= 516 * MIB
    assert any("2 of 3 runs ended well, which counts as none" in told for told in found.contradictions)


def test_a_coin_ends_too() -> None:
    for seed in range(30):
        chance = random.Random(seed)

        def toss(limit: int, chance: random.Random = chance) -> Outcome:
            speeds = [chance.uniform(1, 20) for _ in range(3)]
            return went(limit, *speeds) if chance.random() < 0.5 else went(limit)

        machine = Machine(toss)
        found = find(machine, 8 * MIB, 4096 * MIB, FINE, speed=10.0, most=1 << 36)
        assert len(machine.asked) < 100
        for one in (found.runs, found.reached):
            if one is not None and one.enough is not None:
                above = [o for o in found.outcomes if o.limit_bytes >= one.enough.limit_bytes]
                assert all(o.ran for o in above)


# ---- speeds ----------------------------------------------------------------------------------------------


def faster(limit: int, spread: float) -> Outcome:
    """A token/s for every 100 MiB, from 100 MiB on."""
    middle_speed = limit / (100 * MIB)
    if middle_speed < 1:
        return went(limit)
    return went(limit, middle_speed - spread, middle_speed, middle_speed + spread)


def test_a_speed_is_found_where_replicates_agree() -> None:
    found = find(Machine(lambda limit: faster(limit, 0.0)), 64 * MIB, 2048 * MIB, FINE, speed=8.0)
    assert not found.inconclusive
    assert found.reached is not None
    assert found.reached.enough is not None
    assert found.reached.below is not None
    assert found.reached.below.limit_bytes < 800 * MIB <= found.reached.enough.limit_bytes
    answer = Answer("c", found, FINE, 8.0, None)
    assert "c: 8 tokens/s are reached in 808 MiB (8.08 (8.08…8.08)), and not in 792 MiB (7.92" in "\n".join(
        limit_answers.sentences(answer)
    )
    assert limit_answers.exit_code([answer]) == 0
    assert limit_answers.as_json(answer)["reach"]["verdict"] == "reached"


def test_replicates_that_straddle_a_speed_name_no_limit() -> None:
    """Within 1 token/s of it nobody can say: from 700 to 900 MiB."""
    found = find(Machine(lambda limit: faster(limit, 1.0)), 64 * MIB, 2048 * MIB, FINE, speed=8.0)
    assert found.inconclusive
    answer = Answer("c", found, FINE, 8.0, None)
    reach = limit_answers.as_json(answer)["reach"]
    assert reach["verdict"] == "inconclusive"
    assert reach["limit_bytes"] is None
    assert 684 * MIB <= reach["missed_bytes"] < 700 * MIB
    assert 900 * MIB <= reach["reached_bytes"] <= 916 * MIB
    assert limit_answers.exit_code([answer]) == 5
    (sentence,) = [text for text in limit_answers.sentences(answer) if "8 tokens/s" in text]
    assert "inconclusive: replicates straddle it; surely missed in 6" in sentence
    assert "-r 9" in sentence


def test_a_speed_that_only_may_be_reached_at_the_end_is_inconclusive() -> None:
    found = find(Machine(lambda limit: faster(limit, 1.0)), 64 * MIB, 800 * MIB, FINE, speed=8.0)
    assert found.inconclusive
    answer = Answer("c", found, FINE, 8.0, None)
    assert limit_answers.as_json(answer)["reach"]["reached_bytes"] is None
    assert limit_answers.exit_code([answer]) == 5


def test_a_speed_out_of_reach_is_said_with_the_best_one() -> None:
    found = find(Machine(lambda limit: faster(limit, 0.0)), 64 * MIB, 1024 * MIB, FINE, speed=30.0)
    free = record(tps=12.0)
    answer = Answer("c", found, FINE, 30.0, free)
    assert limit_answers.exit_code([answer]) == 3
    text = "\n".join(limit_answers.sentences(answer))
    assert "30 tokens/s are not reached in 1024 MiB; the best median was 10.24, without a limit 12.00" in text


def test_a_speed_that_falls_with_more_memory_is_told() -> None:
    def rule(limit: int) -> Outcome:
        return went(limit, 20.0 if 200 * MIB <= limit < 600 * MIB or limit >= 1500 * MIB else 5.0)

    known = [went(300 * MIB, 20.0), went(1000 * MIB, 5.0)]
    found = find(Machine(rule), 64 * MIB, 2048 * MIB, FINE, speed=10.0, known=known)
    assert "not monotone: it reached 10 tokens/s in 300 MiB, but not in" in found.contradictions[0]
    assert found.reached is not None
    assert found.reached.enough is not None
    assert found.reached.enough.limit_bytes >= 1500 * MIB


def test_a_speed_that_is_lost_again_is_inconclusive() -> None:
    """Seen with a cold cache: a few tokens were slower in 2480 MiB than in 1232."""

    def rule(limit: int) -> Outcome:
        return went(limit, 14.0 if 200 * MIB <= limit < 1500 * MIB else 7.0)

    known = [went(1232 * MIB, 14.0), went(2048 * MIB, 7.0)]
    found = find(Machine(rule), 64 * MIB, 2048 * MIB, FINE, speed=8.0, known=known)
    answer = Answer("c", found, FINE, 8.0, None)
    assert limit_answers.exit_code([answer]) == 5
    reach = limit_answers.as_json(answer)["reach"]
    assert (reach["verdict"], reach["reached_bytes"], reach["missed_bytes"]) == (
        "inconclusive",
        1232 * MIB,
        2048 * MIB,
    )
    text = "\n".join(limit_answers.sentences(answer))
    assert "inconclusive: reached in 1232 MiB (14.00, one run), but not in 2048 MiB (7.00, one run)" in text


# ---- records ---------------------------------------------------------------------------------------------

HELD = LimitProof("cgroup-v1", 64 * MIB, "held", peak_bytes=60 * MIB)


def limited(**changes: object) -> RunRecord:
    values = {"limit": HELD, **changes}
    return record(**values)  # type: ignore[arg-type]


def test_records_are_one_outcome() -> None:
    found = outcome_of(
        64 * MIB, [limited(tps=tps, replicate=i) for i, tps in enumerate((9, 11, 10))], reused=True
    )
    assert found.ran
    assert (found.good, found.tried, found.peak_bytes, found.reused) == (3, 3, 60 * MIB, True)
    assert found.speed is not None
    assert (found.speed.low, found.speed.median, found.speed.high) == pytest.approx((9, 10, 11))


@pytest.mark.parametrize(
    ("status", "detail"),
    [
        ("out-of-memory", "killed by the kernel's out-of-memory killer during decode"),
        ("timeout", "not done after 20 s, during decode"),
        ("failed", "a cache of 0.1 MiB is too small: 0.2 MiB is the smallest that works here"),
    ],
)
def test_too_little_memory_is_an_outcome(status: str, detail: str) -> None:
    found = outcome_of(64 * MIB, [limited(), limited(status=status, detail=detail)], reused=False)
    assert not found.ran
    assert detail in found.why
    assert (found.good, found.tried) == (1, 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"status": "crashed", "detail": "killed by SIGSEGV"}, "crashed, which says nothing about its limit"),
        ({"status": "failed", "detail": "no such file"}, "failed, which says nothing about its limit"),
        ({"status": "wrong-output", "detail": "argmax"}, "wrong-output, which says nothing"),
        ({"check": Check("unchecked", "", 0)}, "its output is unchecked"),
        ({"limit": replace(HELD, verdict="void", detail="swap")}, r"was not held \(void\)"),
        ({"limit": replace(HELD, verdict="exceeded")}, r"was not held \(exceeded\)"),
        (
            {"limit": replace(HELD, verdict="not-enforced", detail="no controller")},
            "cannot enforce .*no contr",
        ),
        (
            {"status": "out-of-memory", "limit": replace(HELD, verdict="not-enforced")},
            "cannot enforce a memory limit",
        ),
    ],
)
def test_runs_that_show_nothing_end_the_search(changes: dict[str, object], said: str) -> None:
    with pytest.raises(CellsFailed, match=said):
        outcome_of(64 * MIB, [limited(), limited(**changes)], reused=False)


def test_what_a_run_without_a_limit_took_is_rounded_up() -> None:
    size = enough_bytes(record())
    assert size % (16 * MIB) == 0
    assert size > 32 * MIB
