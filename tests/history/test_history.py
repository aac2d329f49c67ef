"""Change points over campaigns, on series with levels to order."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from stbench.agent.wire import RunRecord
from stbench.history.changes import breaks, changes_of
from stbench.history.points import series_of
from tests.compare.records import case, disturbed, noisy, side, write
from tests.host.conftest import Sandbox, sandbox

__all__ = ["sandbox"]


def nights(levels: list[float], **common: str) -> list[list[RunRecord]]:
    """A campaign of five replicates for each level, a day apart; the build changes with the level."""
    made = []
    for i, level in enumerate(levels):
        library = f"{int(level):02x}" * 32
        runs = case(noisy(5, seed=i, level=level), campaign=f"night-{i:02}", library=library, **common)
        day = f"2026-03-{i + 1:02}T00:00:"
        made.append(
            [
                dataclasses.replace(one, started_at=f"{day}{n:02}Z", id=f"{i}-{n}")
                for n, one in enumerate(runs)
            ]
        )
    return made


@pytest.mark.parametrize("seed", range(5))
def test_noise_has_no_breaks_and_steps_are_found_where_they_are(seed: int) -> None:
    noise = 0.01 * np.random.default_rng(seed).standard_normal(40)
    assert breaks(noise.tolist()) == []
    stepped = noise.copy()
    stepped[25:] -= 0.08
    assert breaks(stepped.tolist()) == [25]
    assert breaks([3.0] * 12) == []


def test_changes_are_judged_and_say_what_else_changed() -> None:
    frame = side(*nights([50.0] * 8 + [44.0] * 7)).frame
    (series,) = series_of(frame, "decode_tps")
    (change,) = changes_of(series)
    assert (change.point.campaign, change.n_before, change.n_after) == ("night-08", 8, 7)
    assert change.verdict == "regressed"
    assert change.low < 0.88 < change.high
    assert change.differs == ("library 323232323232 → 2c2c2c2c2c2c",)
    few = side(*nights([50.0] * 8 + [44.0] * 3)).frame
    (change,) = changes_of(series_of(few, "decode_tps")[0])
    assert (change.verdict, change.kind) == ("inconclusive", "range")
    assert changes_of(series_of(side(*nights([50.0, 44.0, 50.0])).frame, "decode_tps")[0]) == []


def test_what_does_not_count_is_no_point_and_other_boards_are_other_series() -> None:
    runs = nights([50.0] * 6)
    runs[2] = [disturbed(one) for one in runs[2]]
    runs[3] = [dataclasses.replace(one, status="crashed", samples=None) for one in runs[3]]
    (series,) = series_of(side(*runs).frame, "decode_tps")
    assert [point.why for point in series.points] == ["", "", "all runs disturbed", "all runs failed", "", ""]
    # A job's id holds the board's fingerprint.
    others = [
        [dataclasses.replace(one, id=one.id + "-beef") for one in night]
        for night in nights([90.0] * 6, fingerprint="beef")
    ]
    both = [*nights([50.0] * 6), *others]
    found = series_of(side(*both).frame, "decode_tps")
    assert [one.told for one in found] == ["fingerprint beef", "fingerprint f00d"]
    assert all(changes_of(one) == [] for one in found)


def test_history_as_typed(sandbox: Sandbox) -> None:
    for runs in nights([50.0] * 8 + [44.0] * 7):
        write(sandbox.directory / "results" / runs[0].campaign, runs)
    code, out, err = sandbox.run("history", "results")
    assert (code, err) == (0, "")
    assert "▼ -1" in out
    assert "night-08: slower, ratio 0.8" in out
    code, out, _ = sandbox.run("history", "results/night-00", "results", "--json", "--case", "*/t2/*")
    (found,) = json.loads(out)
    assert len(found["points"]) == 15
    assert [change["campaign"] for change in found["changes"]] == ["night-08"]
    assert sandbox.run("history", "results", "--json", "--case", "*/t2/*")[1] == out
    code, _, err = sandbox.run("history", "results", "--case", "nothing")
    assert (code, "no case fits nothing" in err) == (3, True)
    assert "no such file" in sandbox.run("history", "elsewhere")[2]
