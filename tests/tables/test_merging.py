"""Campaigns of one device merged: what fills a column, what is said of the rest, and what is never mixed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from stbench.agent.wire import RunRecord
from stbench.tables.grid import build_tables
from stbench.tables.table import Cell, Table
from tests.tables.factory import record, table_4b
from tests.tables.test_limited_grid import limited

LIMITED = "smallthinker-4b/sparse-ffn+sparse-lm_head+limited"
FULL = "smallthinker-4b/sparse-ffn+sparse-lm_head"
DENSE = "smallthinker-4b/dense"
LOCAL = "measured:local:sbr"


def cell(table: Table, row: str, column: str = LOCAL) -> Cell:
    return {r.key: r for r in table.rows}[row].cells[column]


def elsewhere(campaign: str = "c2", n: int = 2, tps: float = 9.0, **changes: Any) -> list[RunRecord]:
    """Limited runs of another campaign, of another build and workload than table_4b's."""
    made = []
    for i in range(n):
        one = limited(tps + i, replicate=i)
        settings = dataclasses.replace(one.settings, n_ctx=2048)
        versions = dataclasses.replace(one.versions, library_sha256="cd" * 32)
        one = dataclasses.replace(
            one, id=f"{campaign}-{i}", campaign=campaign, settings=settings, versions=versions
        )
        made.append(dataclasses.replace(one, **changes))
    return made


def test_limited_rows_come_from_another_campaign_and_say_so() -> None:
    table = build_tables([*table_4b(), *elsewhere()])[0]
    found = cell(table, LIMITED)
    assert found.value == pytest.approx(9.5)
    assert "o" in found.marks
    assert found.details["campaign"] == ["c2"]
    assert "o" not in cell(table, FULL).marks
    said = next(note for note in table.first_notes() if note.startswith("local: o in "))
    assert "build cdcdcdcdcdcd, context 2048; campaign c2" in said
    assert '"SmallThinker 4B+sparse ffn +sparse lm_head+limited memory"' in said
    # A ratio to a row of another build would be of two things at once.
    row = {r.key: r for r in table.rows}[LIMITED]
    assert row.cells[f"dense:{LOCAL}"] == Cell()


def test_one_condition_needs_no_mark() -> None:
    table = build_tables([*table_4b(), *(limited(9.0 + i, replicate=i) for i in range(2))])[0]
    assert "o" not in cell(table, LIMITED).marks
    assert not any(": o in " in note for note in table.notes)


@pytest.mark.parametrize(
    "changes", [{"isa": "avx2"}, {"kv_type": "f32"}, {"load": "mmap"}, {"populate": False}]
)
def test_other_settings_and_other_boards_fill_no_row(changes: dict[str, Any]) -> None:
    forced = [
        dataclasses.replace(one, settings=dataclasses.replace(one.settings, **changes)) for one in elsewhere()
    ]
    assert cell(build_tables([*table_4b(), *forced])[0], LIMITED).text == "not run"
    other = [
        dataclasses.replace(one, facts=dataclasses.replace(one.facts, fingerprint="beef"))
        for one in elsewhere()
    ]
    assert cell(build_tables([*table_4b(), *other])[0], LIMITED).text == "not run"


def test_a_failed_run_elsewhere_fills_no_row() -> None:
    failed = [dataclasses.replace(one, status="timeout", samples=None) for one in elsewhere()]
    assert cell(build_tables([*table_4b(), *failed])[0], LIMITED).text == "not run"


def dense(n: int, tps: float, campaign: str, **changes: Any) -> list[RunRecord]:
    return [record(tps=tps + 0.1 * i, replicate=i, campaign=campaign, **changes) for i in range(n)]


def test_of_two_campaigns_one_is_taken_and_the_reason_said() -> None:
    table = build_tables([*dense(6, 30.0, "a"), *dense(3, 30.1, "b")])[0]
    assert cell(table, DENSE).n == 6
    (said,) = [note for note in table.notes if "from campaign" in note]
    assert (
        "from campaign a (most undisturbed replicates), not averaged with b (3 records, median 30.20)" in said
    )
    assert "contradicts" not in said
    assert said in table.fine_print


def test_contradictory_campaigns_are_called_so_where_a_reader_looks() -> None:
    table = build_tables([*dense(6, 30.0, "a"), *dense(3, 60.0, "b")])[0]
    assert cell(table, DENSE).value == pytest.approx(30.25)
    (said,) = [note for note in table.first_notes() if "contradicts" in note]
    assert "b (3 records, median 60.10; contradicts: the intervals do not touch)" in said
    lone = build_tables([*dense(6, 30.0, "a"), *dense(1, 60.0, "b")])[0]
    assert not any("contradicts" in note for note in lone.notes)


def test_other_outputs_of_the_same_file_are_a_contradiction() -> None:
    table = build_tables([*dense(6, 30.0, "a"), *dense(3, 30.0, "b", output_hash="feedbeef")])[0]
    assert any("computed other outputs" in note for note in table.first_notes())


def test_the_newer_of_two_equal_campaigns_is_taken() -> None:
    for order in (("a", "b"), ("b", "a")):
        records = [r for i, name in enumerate(order) for r in dense(3, 30.0 + 10 * i, name, minute=i)]
        table = build_tables(records)[0]
        assert cell(table, DENSE).value == pytest.approx(40.1)
        assert any(f"from campaign {order[1]} (the newest)" in note for note in table.notes)


def test_an_edited_copy_of_a_campaign_is_not_averaged_with_it() -> None:
    records = dense(6, 30.0, "a")
    edited = [dataclasses.replace(r, wall_s=r.wall_s + 1) for r in dense(6, 60.0, "a", minute=1)]
    table = build_tables([*records, *edited])[0]
    assert cell(table, DENSE).n == 6
    assert cell(table, DENSE).value == pytest.approx(60.25)
    assert sum("claim to be replicate" in note for note in table.first_notes()) == 6


def test_attempts_of_one_run_need_no_sentence() -> None:
    records = [
        *dense(6, 30.0, "a"),
        *(dataclasses.replace(r, attempt=1) for r in dense(1, 31.0, "a", minute=1)),
    ]
    table = build_tables(records)[0]
    assert cell(table, DENSE).n == 6
    assert not any("claim to be" in note for note in table.notes)


def test_far_spread_replicates_are_too_noisy() -> None:
    calm = build_tables([record(tps=30.0 + i / 10, replicate=i) for i in range(6)])[0]
    noisy = build_tables([record(tps=30.0 + 3 * i, replicate=i) for i in range(6)])[0]
    assert "~" not in cell(calm, DENSE).marks
    assert "~" in cell(noisy, DENSE).marks
    assert "too noisy" in dict(noisy.legend())["~"]


def test_a_device_is_described_once_for_all_its_engines() -> None:
    bench = [dataclasses.replace(r, engine="llama-bench", id=f"b{r.id}") for r in table_4b()]
    notes = build_tables([*table_4b(), *bench])[0].notes
    assert sum("Example CPU" in note for note in notes) == 1


def test_columns_that_say_nothing_are_left_out_of_pages() -> None:
    bench = [record("smallthinker-4b:standard", engine="llama-bench", replicate=i) for i in range(2)]
    table = build_tables([*table_4b(), *bench])[0]
    keys = [column.key for column in table.telling_columns()]
    assert f"dense:{LOCAL}" in keys
    assert "dense:measured:local:llama-bench" not in keys
    # A device that is as fast as published keeps its ratio of 1.00.
    same = build_tables([record("qwen3-0.6b", tps=27.44, device="raspberry-pi-5")])[0]
    assert "ratio:measured:raspberry-pi-5:sbr" in [column.key for column in same.telling_columns()]
