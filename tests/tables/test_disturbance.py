"""What counts as disturbed, from made-up brackets; how cells and notes treat it; percent of the limit."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from stbench.agent.wire import Bandwidth, Bracket, RunRecord, Telemetry
from stbench.records.disturbance import OTHER_CPU_LIMIT, judge, level
from stbench.records.frame import to_frame
from stbench.records.limit_share import limit_share
from stbench.records.roofline import token_bytes
from stbench.records.store import Reading
from stbench.tables.grid import build_tables
from stbench.tables.table import Cell, Table
from tests.tables.factory import facts, record

LOCAL = "measured:local:sbr"
DENSE = "smallthinker-4b/dense"
ROW_BYTES = 864


def bandwidth(gb_per_s: float) -> Bandwidth:
    return Bandwidth(int(gb_per_s * 2e8), 200_000_000)


def bracket(before: float, after: float | None = None, gather: float | None = 8.0) -> Bracket:
    gathered = bandwidth(gather) if gather else None
    rates = bandwidth(before), bandwidth(before if after is None else after)
    return Bracket(2, 128 << 20, *rates, gathered, gathered, ROW_BYTES if gather else 0)


def run(before: float, after: float | None = None, replicate: int = 0, **changes: Any) -> RunRecord:
    return record(replicate=replicate, bracket=bracket(before, after), **changes)


def busy(other_s: float | None, window_s: float | None = 2.0, steal_s: float | None = 0.0) -> Telemetry:
    return Telemetry([], [], {}, {}, "no", None, other_s, steal_s, window_s)


def disturbed(records: list[RunRecord]) -> list[bool]:
    return [verdict.disturbed for verdict in judge(records)]


# ---- the level --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_has_its_middle_as_level_and_marks_few(seed: int) -> None:
    chance = random.Random(seed)
    rates = [20 * chance.gauss(1, 0.03) for _ in range(60)]
    assert level(rates) == pytest.approx(20, rel=0.02)
    found = disturbed([run(a, b, i) for i, (a, b) in enumerate(zip(rates[::2], rates[1::2], strict=True))])
    assert sum(found) <= 2


@pytest.mark.parametrize("clean", [7, 15, 24])
def test_a_hog_that_starts_and_stays_is_what_is_marked(clean: int) -> None:
    """Also when it had most of the sweep: the median of all probes would then be the hogged machine."""
    records = [run(20 + i % 3 * 0.2, replicate=i) for i in range(clean)]
    records.append(run(20, 11, clean))
    records += [run(11 + i % 3 * 0.1, replicate=i) for i in range(clean + 1, 30)]
    assert disturbed(records) == [False] * clean + [True] * (30 - clean)


def test_a_machine_that_drifts_has_one_level_and_the_rest_is_marked() -> None:
    records = [run(20 - 0.3 * i, 20 - 0.3 * (i + 1), i) for i in range(30)]
    found = disturbed(records)
    assert found[:3] == [False] * 3
    assert all(found[13:])
    calm = [
        r.bracket.read_before.bytes / 2e8
        for r, bad in zip(records, found, strict=True)
        if not bad and r.bracket
    ]
    assert max(calm) / min(calm) < 1.25


def test_one_wrong_probe_is_not_the_level() -> None:
    records = [run(20, replicate=i) for i in range(6)] + [run(45, 45, 6)]
    assert disturbed(records) == [False] * 6 + [True]
    assert level([20.0]) == 20.0
    with pytest.raises(ValueError, match="no bandwidth"):
        level([])


def test_each_campaign_device_and_thread_count_has_its_own_level() -> None:
    other = dataclasses.replace(bracket(10), threads=1)
    records = [run(20, replicate=i) for i in range(4)]
    records += [record(replicate=i, threads=1, bracket=other) for i in range(4)]
    records += [run(10, replicate=i, campaign="c2") for i in range(4)]
    records += [run(5, replicate=i, device="pi", fingerprint="a1") for i in range(4)]
    assert disturbed(records) == [False] * 16


# ---- verdicts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (20.0, 18.2, ""),
        (20.0, 17.9, "memory bandwidth fell from 20.0 to 17.9 GB/s during the run"),
        (17.0, 20.0, "memory bandwidth rose from 17.0 to 20.0 GB/s during the run"),
        (17.9, 17.9, "memory bandwidth 17.9 GB/s beside the run, 20.0 in the campaign"),
        (22.1, 22.1, "memory bandwidth 22.1 GB/s beside the run, 20.0 in the campaign"),
    ],
)
def test_limits_of_bandwidth(before: float, after: float, reason: str) -> None:
    calm = [run(20, replicate=i) for i in range(1, 8)]
    assert "; ".join(judge([run(before, after), *calm])[0].reasons) == reason


@pytest.mark.parametrize(
    ("telemetry", "said"),
    [
        (busy(1.0), "other processes took 50 % of a CPU"),
        (busy(OTHER_CPU_LIMIT * 2 * 0.99), ""),
        (busy(0.04, 0.06), ""),
        (busy(0.1, None), ""),
        (busy(None, 2.0, None), ""),
        (busy(0.0, 2.0, 0.4), "the hypervisor took 20 % of a CPU"),
    ],
)
def test_limits_of_other_cpu_time(telemetry: Telemetry, said: str) -> None:
    """A busy loop gets half a CPU or more; a daemon some per cent; in 60 ms ticks of 10 ms say nothing."""
    (verdict,) = judge([record(telemetry=telemetry)])
    assert "; ".join(verdict.reasons) == said


def test_old_records_and_failed_runs_are_not_judged() -> None:
    verdicts = judge([record(), record(status="timeout", bracket=bracket(20, 5))])
    assert [(v.judged, v.disturbed) for v in verdicts] == [(False, False)] * 2
    assert judge([run(20)])[0].judged


# ---- frame, cells, notes ----------------------------------------------------------------------------


def dense_cell(table: Table) -> Cell:
    return {row.key: row for row in table.rows}[DENSE].cells[LOCAL]


def test_frame_columns() -> None:
    records = [run(20, 18, telemetry=busy(0.5)), run(20, 10, 1), record(replicate=2)]
    frame = to_frame(records)
    assert frame["read_gb_per_s"].tolist()[:2] == [19.0, 15.0]
    assert frame["gather_gb_per_s"].tolist()[:2] == [8.0, 8.0]
    assert frame["disturbed"].tolist() == [True, True, False]
    assert frame["other_cpu_share"].tolist()[0] == 0.25
    assert frame["read_gb_per_s"].isna().tolist() == [False, False, True]


def test_disturbed_replicates_are_never_averaged_in() -> None:
    records = [run(20, replicate=i, tps=30.0 + i) for i in range(6)]
    hogged = [run(11, replicate=i, tps=12.0) for i in (6, 7)]
    table = build_tables([*records, *hogged])[0]
    calm = dense_cell(build_tables(records)[0])
    cell = dense_cell(table)
    assert (cell.text, cell.value, cell.n) == (calm.text, calm.value, 6)
    assert "d" in cell.marks
    assert "D" not in cell.marks
    assert "d" in dict(table.legend())
    assert any("2 of 8 replicates disturbed and left out (memory bandwidth 11.0" in n for n in table.notes)
    assert cell.details["decode_tps"] == calm.details["decode_tps"]
    assert cell.details["disturbed"] == 2


def test_a_cell_of_disturbed_replicates_alone_shows_their_median_with_a_mark() -> None:
    records = [run(20, 12, i, tps=tps) for i, tps in enumerate((20.0, 22.0, 27.0))]
    table = build_tables(records)[0]
    cell = dense_cell(table)
    assert cell.value == pytest.approx(22)
    assert "D" in cell.marks
    assert "does not compare" in dict(table.legend())["D"]
    assert any("3 of 3 replicates disturbed and shown for want of others" in note for note in table.notes)


def test_records_without_a_bracket_look_as_before() -> None:
    table = build_tables([record(replicate=i) for i in range(6)])[0]
    assert not {"d", "D"} & set(dense_cell(table).marks)
    assert not [column for column in table.columns if column.role == "limit"]
    assert not any("limit:" in note or "% of limit" in note for note in table.notes)


def test_a_later_attempt_counts_unless_it_was_cancelled() -> None:
    first = run(20, 10)
    again = dataclasses.replace(run(20), attempt=1)
    cancelled = dataclasses.replace(record(status="cancelled"), attempt=1)
    assert Reading([first, again], []).latest() == [again]
    assert Reading([first, cancelled], []).latest() == [first]
    assert Reading([cancelled], []).latest() == [cancelled]


# ---- percent of the limit ---------------------------------------------------------------------------


def test_a_dense_run_is_held_against_the_stream_beside_it() -> None:
    found = limit_share(run(20, 18), 30.0)
    assert found.share == pytest.approx(491.5e6 * 30 / 19e9)


def test_gathered_rows_are_counted_at_the_gather_rate() -> None:
    sparse = run(20, ffn=True)
    assert sparse.counters is not None
    decode = sparse.counters.decode
    gathered = 2 * decode.neurons_active / decode.tokens * ROW_BYTES
    streamed = decode.weight_bytes / decode.tokens - gathered
    assert 0 < gathered < streamed
    share = limit_share(sparse, 40.0).share
    assert share == pytest.approx(40 * (streamed / 20e9 + gathered / 8e9))
    half = dataclasses.replace(sparse, effective=dataclasses.replace(sparse.effective, sparse_ffn="gate-up"))  # type: ignore[type-var]
    assert limit_share(half, 40.0).share == pytest.approx(
        40 * ((streamed + gathered / 2) / 20e9 + gathered / 2 / 8e9)
    )


def test_a_program_is_held_against_its_models_shapes() -> None:
    program = run(20, engine="llama-bench", counters=None)
    assert program.model.synthetic is not None
    share = limit_share(program, 30.0).share
    assert share == pytest.approx(30 * token_bytes(program.model.synthetic).total / 20e9)
    real = dataclasses.replace(program, model=dataclasses.replace(program.model, synthetic=None))
    assert limit_share(real, 30.0).why == "its engine does not say what a token reads"


def test_no_percentage_without_its_parts() -> None:
    assert limit_share(record(), 30.0) == limit_share(record(), float("nan"))
    assert limit_share(record(), 30.0).share is None
    rows = record(ffn=True, bracket=dataclasses.replace(bracket(20, gather=None), row_bytes=ROW_BYTES))
    assert limit_share(rows, 30.0).why == "no gather rate was measured for its rows"


def in_cache(core: float, after: float | None = None, memory: float = 20, **changes: Any) -> RunRecord:
    """A run whose weights a cache holds, beside this rate of the cores' own caches."""
    probed = dataclasses.replace(
        bracket(memory), core_before=bandwidth(core), core_after=bandwidth(core if after is None else after)
    )
    return record(bracket=probed, facts=facts(caches={"L3": 4 << 30}), **changes)


def test_what_a_cache_holds_is_judged_by_the_cores() -> None:
    steady = [in_cache(84, memory=20 - 5 * (i % 2), replicate=i) for i in range(8)]
    assert disturbed(steady) == [False] * 8, "memory says nothing"
    (*calm, moved, slow) = judge([*steady, in_cache(84, 49, replicate=8), in_cache(49, replicate=9)])
    assert not any(verdict.disturbed for verdict in calm)
    assert moved.reasons == (
        "the cores' rate in their own caches fell from 84.0 to 49.0 GB/s during the run",
    )
    assert (slow.off_level, slow.disturbed) == (True, True)
    frame = to_frame([steady[1]])
    assert (frame["core_gb_per_s"][0], frame["judged_by"][0]) == (84, "cores")


def test_what_memory_holds_is_judged_by_memory() -> None:
    large = [dataclasses.replace(in_cache(84, 49, replicate=i), facts=facts()) for i in range(6)]
    assert disturbed(large) == [False] * 6
    assert set(to_frame(large)["judged_by"]) == {"memory"}


def test_a_model_that_fits_into_the_cache_has_none_with_the_reason() -> None:
    cached = [run(20, replicate=i, facts=facts(caches={"L2": 1 << 20, "L3": 4 << 30})) for i in range(6)]
    table = build_tables(cached)[0]
    limit = {row.key: row for row in table.rows}[DENSE].cells[f"limit:{LOCAL}"]
    assert (limit.text, limit.marks) == ("n/a", ("c",))
    assert any("fit into the last-level cache of 4096 MiB" in note for note in table.notes)


def test_the_column_shows_it() -> None:
    table = build_tables([run(20, replicate=i, tps=30.0) for i in range(6)])[0]
    assert [column.header for column in table.columns if column.role == "limit"] == ["local\n% of limit"]
    limit = {row.key: row for row in table.rows}[DENSE].cells[f"limit:{LOCAL}"]
    assert limit.text == "74 %"
    assert limit.details["synthetic"]
