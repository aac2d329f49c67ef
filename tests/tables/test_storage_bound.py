"""The best that a run from storage could have reached, by hand; which of them a restless disk disturbs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from stbench.agent.wire import Bandwidth, Bracket, LimitProof, MemoryAccount, RunRecord
from stbench.records.disturbance import judge
from stbench.records.frame import to_frame
from stbench.records.storage_bound import bound_tps, static_bytes_per_token
from tests.tables.factory import record
from tests.tables.test_limited_grid import counters, limited, limited_table, use

GIB = 1 << 30
# limited() decodes 4 tokens; of 1000 requests 600 are met by the cache that never changes.
MISSED = 400 * 1990656 / 4


def rate(gb_per_s: float) -> Bandwidth:
    return Bandwidth(int(gb_per_s * 2e8), 200_000_000)


def bracket(before: float, after: float | None = None) -> Bracket:
    sides = {"storage_before": rate(before), "storage_after": rate(before if after is None else after)}
    return Bracket(2, 128 << 20, rate(20), rate(20), storage_unit_bytes=1990656, storage_io="pread", **sides)


def cached(tps: float, storage: float = 2.0, after: float | None = None, **changes: Any) -> RunRecord:
    made = limited(tps, bracket=bracket(storage, after), **changes)
    static = use(static_hits=600, decode=counters(ns_wait=40_000_000, ns_io_busy=80_000_000))
    return dataclasses.replace(made, cache=static if made.settings.cache else None)


def partner(tps: float, replicate: int = 0, **changes: Any) -> RunRecord:
    return record(
        "smallthinker-4b", ffn=True, head=True, tps=tps, replicate=replicate, campaign="c1", **changes
    )


def test_the_smaller_of_two_rates_bounds() -> None:
    assert bound_tps(2.0, 1e8, 50.0) == 20.0
    assert bound_tps(2.0, 1e7, 50.0) == 50.0
    assert bound_tps(math.nan, 0.0, 50.0) == 50.0, "what misses nothing needs no storage"
    for unknown in ((math.nan, 1e7, 50.0), (2.0, math.nan, 50.0), (2.0, 1e7, math.nan)):
        assert math.isnan(bound_tps(*unknown))


def test_bytes_that_a_cache_that_never_changes_misses() -> None:
    assert static_bytes_per_token(use(static_hits=600), 4) == MISSED
    layers = use(kind="layers", bytes=300, total_bytes=1000)
    assert static_bytes_per_token(layers, 4) == 700
    assert math.isnan(static_bytes_per_token(use(), 4)), "old records do not say"
    assert math.isnan(static_bytes_per_token(None, 4))


def test_a_run_is_held_against_the_partner_of_its_round() -> None:
    """Rounds 0 and 1 have partners; round 2 takes the median of theirs."""
    runs = [cached(8.0, replicate=i) for i in range(3)]
    frame = to_frame([*runs, partner(40.0, 0), partner(60.0, 1)])
    assert list(frame["compute_tps"][:3]) == pytest.approx([40.0, 60.0, 50.0], rel=1e-3)
    assert set(frame["compute_from"][:3]) == {"unlimited"}
    bound = 2e9 / MISSED
    assert list(frame["bound_tps"][:3]) == pytest.approx([bound] * 3)
    assert list(frame["bound_share"][:3]) == pytest.approx([8.0 / bound] * 3, rel=1e-3)
    assert frame["bound_share"][3:].isna().all(), "nothing bounds a run without a cache this way"


@pytest.mark.parametrize(
    "change",
    [
        {"campaign": "another"},
        {"threads": 1},
        {"library": "0" * 64},
        {"memory_limit_bytes": 4 * GIB},
    ],
)
def test_a_partner_is_the_same_case_but_for_its_limit(change: dict[str, Any]) -> None:
    other = partner(40.0)
    if "campaign" in change:
        other = dataclasses.replace(other, **change)
    elif "library" in change:
        assert other.versions is not None
        other = dataclasses.replace(
            other, versions=dataclasses.replace(other.versions, library_sha256=change["library"])
        )
    else:
        other = dataclasses.replace(other, settings=dataclasses.replace(other.settings, **change))
    frame = to_frame([cached(8.0), other])
    assert frame["compute_from"][0] == "own"


def test_without_a_partner_the_runs_own_time_without_waiting_counts() -> None:
    run = cached(8.0)
    assert run.samples is not None
    computing_s = sum(run.samples.decode_ns) / 1e9 - 0.04
    frame = to_frame([run])
    assert frame["compute_tps"][0] == pytest.approx(4 / computing_s)
    disturbed = partner(40.0, bracket=Bracket(2, 128 << 20, rate(20), rate(10)))
    assert to_frame([run, disturbed])["compute_from"][0] == "own", "a disturbed partner is no yardstick"


def test_the_table_shows_the_share_with_its_interval_and_where_the_bound_is_from() -> None:
    runs = [cached(7.0 + i / 10, replicate=i) for i in range(6)]
    partners = [partner(40.0, i) for i in range(6)]
    table = limited_table([*runs, *partners])
    cells = table.rows[0].cells
    assert cells["bound"].text == "10.05 (40.00 | 10.05)"
    assert cells["share"].text == "72 [70, 75]"
    assert any("docs/limited-sweeps.md" in line for line in table.notes)
    alone = limited_table(runs[:2])
    assert "*" in alone.rows[0].cells["bound"].text
    # By its own account it computes at 7.5 tokens/s.
    assert alone.rows[0].cells["share"].text == "93 (93…93)"
    assert any(line.startswith("*: from the run's own time") for line in alone.notes)
    old = limited_table([limited(8.0)])
    assert (old.rows[0].cells["bound"].text, old.rows[0].cells["share"].text) == ("", "")


# ---- a restless disk ---------------------------------------------------------------------------------


def reasons(run: RunRecord) -> tuple[str, ...]:
    return judge([run])[0].reasons


@pytest.mark.parametrize(("after", "marked"), [(2.0, False), (1.61, False), (1.59, True), (2.6, True)])
def test_a_run_from_storage_is_disturbed_when_its_rate_moved(after: float, marked: bool) -> None:
    found = reasons(cached(8.0, 2.0, after))
    assert bool(found) == marked
    if marked:
        change = "fell" if after < 2 else "rose"
        assert found == (f"the storage rate {change} from 2.00 to {after:.2f} GB/s during the run",)


def test_a_run_that_hardly_read_is_not_disturbed_by_a_disk() -> None:
    """4 tokens at 8/s are half a second: a fifth of it at 2 GB/s is 200 MB."""
    for read, marked in ((150_000_000, False), (250_000_000, True)):
        run = cached(8.0, 2.0, 1.0)
        assert run.cache is not None
        counted = dataclasses.replace(run.cache, decode=counters(bytes_read=read))
        assert bool(reasons(dataclasses.replace(run, cache=counted))) == marked


def test_a_run_without_a_cache_read_what_goes_beyond_two_passes_over_its_file() -> None:
    for read, marked in ((2 * GIB, False), (3 * GIB, True), (None, False)):
        run = cached(8.0, 2.0, 1.0, cache="")
        proof = LimitProof("cgroup-v1", GIB, "held", "", GIB, read_bytes=read)
        account = MemoryAccount(GIB, 0, 0, 0, 0, 0)
        assert bool(reasons(dataclasses.replace(run, limit=proof, account=account))) == marked
    assert reasons(cached(8.0, 2.0, 1.0, cache="")) == (), "nothing tells what it read"


def test_a_run_whose_disk_moved_is_no_pair_for_its_neighbour_at_another_level() -> None:
    """Runs that are only off the campaign's level are compared in pairs; this one was not steady itself."""
    others = [cached(8.0, replicate=i) for i in range(5)]
    for after, off_level in ((2.0, True), (1.0, False)):
        low = cached(8.0, 2.0, after, replicate=9)
        assert low.bracket is not None
        low = dataclasses.replace(
            low, bracket=dataclasses.replace(low.bracket, read_before=rate(15), read_after=rate(15))
        )
        verdict = judge([*others, low])[-1]
        assert verdict.disturbed
        assert verdict.off_level == off_level
