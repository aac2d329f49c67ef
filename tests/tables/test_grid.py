"""Which records become which cell, and what is said about them."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stbench.agent.wire import RunRecord, Samples
from stbench.tables import render
from stbench.tables.grid import build_tables
from stbench.tables.published import published_table
from stbench.tables.table import TIMES, Cell, Table
from tests.tables.factory import facts, record, shape, table_4b

FULL = "smallthinker-4b/sparse-ffn+sparse-lm_head"
DENSE = "smallthinker-4b/dense"
LOCAL = "measured:local:sbr"


def main_table(records: list[RunRecord], **options: Any) -> Table:
    return build_tables(records, **options)[0]


def cell(table: Table, row: str = DENSE, column: str = LOCAL) -> Cell:
    return {r.key: r for r in table.rows}[row].cells[column]


def dense(n: int = 6, **common: Any) -> list[RunRecord]:
    return [record(replicate=i, tps=30.0 + i, **common) for i in range(n)]


def test_published_shape_is_kept_and_switches_are_inserted() -> None:
    table = main_table(table_4b())
    published = published_table("4B")
    assert [row.label for row in table.rows if not row.parent] == [row.label for row in published.rows]
    assert [c.header for c in table.columns if c.role == "published"] == [d.header for d in published.devices]
    assert [row.label for row in table.rows if row.parent] == [
        "+sparse ffn only",
        "+sparse lm_head only",
        "neither (dense)",
    ]
    assert table.rows[0].cells["published:rk3566"].text == "6.33"
    assert table.rows[-3].cells["published:rk3588"].text == "20.29"


def test_median_interval_ratio_and_memory() -> None:
    table = main_table(table_4b())
    found = cell(table, FULL)
    assert found.value == pytest.approx(71.0 * 1.025)
    assert (found.low, found.high) == (pytest.approx(71.0), pytest.approx(71.0 * 1.05))
    assert (found.kind, found.coverage, found.n) == ("interval", 0.96875, 6)
    assert found.text == "72.77 [71.00, 74.55]"
    row = table.rows[0]
    assert row.cells[f"dense:{LOCAL}"].text == "1.84"
    assert row.cells[f"rss:{LOCAL}"].text == "2.41"
    assert row.cells["memory"].text == "2.24"
    qwen = {r.key: r for r in table.rows}["qwen3-0.6b/dense"]
    assert qwen.cells[f"dense:{LOCAL}"] == Cell()


def test_fewer_than_six_are_a_range_and_say_so() -> None:
    table = main_table(dense(3))
    found = cell(table)
    assert found.text == "31.00 (30.00…32.00)"
    assert "r" in found.marks
    assert found.coverage is None
    assert any("not a confidence interval" in meaning for _, meaning in table.legend())
    single = cell(main_table(dense(1)))
    assert single.text == "30.00"
    assert "r" in single.marks


@pytest.mark.parametrize("how", [{"status": "wrong-output", "verdict": "wrong"}, {"verdict": "wrong"}])
def test_one_wrong_output_takes_the_speed_of_the_cell(how: dict[str, str]) -> None:
    records = dense(6)
    records[3] = record(replicate=3, tps=99.0, **how)  # type: ignore[arg-type]
    table = main_table(records)
    found = cell(table)
    assert found.text == "wrong-output"
    assert found.value is None
    assert found.low is None
    assert "✗" in found.marks
    assert found.details["decode_tps"] is None
    assert found.details["weight_gb_per_s"] is None
    assert found.details["check"]["wrong"] == 1
    dense_row = {r.key: r for r in table.rows}[DENSE]
    assert dense_row.cells[f"dense:{LOCAL}"] == Cell()
    for text in (render.markdown([table]), render.csv_text([table])):
        line = next(
            line for line in text.splitlines() if "neither (dense)" in line and "wrong-output" in line
        )
        assert "30." not in line
        assert "99" not in line


def test_typed_failures_stand_in_the_cell() -> None:
    for status in ("timeout", "out-of-memory", "crashed", "unsupported", "failed"):
        table = main_table([record(status=status, detail="why not", replicate=i) for i in range(2)])
        assert cell(table).text == status
        assert cell(table).value is None
        assert any(f"2 of 2 replicates: {status} (why not)" in note for note in table.notes)


def test_cancelled_runs_are_no_results() -> None:
    stopped = [record(replicate=i, status="cancelled", detail="stopped by the user") for i in (6, 7)]
    assert render.json_text(build_tables([*dense(6), *stopped])) == render.json_text(build_tables(dense(6)))
    assert build_tables(stopped)[0].speed_columns() == []


def test_a_partial_failure_keeps_the_number_and_is_marked() -> None:
    records = [*dense(6), record(replicate=6, status="timeout", detail="no answer")]
    table = main_table(records)
    found = cell(table)
    assert found.n == 6
    assert "!" in found.marks
    assert any("1 of 7 replicates: timeout (no answer)" in note for note in table.notes)


@pytest.mark.parametrize(
    ("changes", "mark"),
    [
        ({"verdict": "unchecked"}, "‡"),
        ({"throttled": "yes"}, "T"),
        ({"throttled": "unknown"}, "?"),
        ({"synthetic": True}, "†"),
    ],
)
def test_each_mark_appears_when_and_only_when_it_is_so(changes: dict[str, Any], mark: str) -> None:
    plain = main_table(dense(6, synthetic=False))
    assert mark not in cell(plain).marks
    assert mark not in dict(plain.legend())
    marked = main_table([*dense(5, synthetic=False), *dense(6, **{"synthetic": False, **changes})[5:]])
    assert mark in cell(marked).marks
    assert mark in dict(marked.legend())


def test_different_outputs_of_one_case_are_marked() -> None:
    table = main_table([*dense(5), record(replicate=5, output_hash="fedcba9876543210")])
    assert "≠" in cell(table).marks


def test_legend_lists_only_what_occurs() -> None:
    table = main_table(dense(6, synthetic=False))
    assert [mark for mark, _ in table.legend()] == ["m", "e"]


def test_rows_that_cannot_be_measured_say_why() -> None:
    table = main_table(table_4b())
    limited = cell(table, "smallthinker-4b/sparse-ffn+sparse-lm_head+limited")
    gemma = cell(table, "gemma3n-e2b/dense")
    assert (limited.text, limited.marks) == ("not run", ("m",))
    assert (gemma.text, gemma.marks) == ("—", ("e",))
    meanings = dict(table.legend())
    assert "--preset limited-4b" in meanings["m"]
    assert "llama-bench" in meanings["e"]


def test_gemma_s_row_is_filled_by_llama_bench() -> None:
    table = main_table([*table_4b(), dataclasses.replace(record("gemma3n-e2b"), engine="llama-bench")])
    row = next(r for r in table.rows if r.key == "gemma3n-e2b/dense")
    assert row.cells["measured:local:sbr"].marks == ("e",)
    assert row.cells["measured:local:llama-bench"].value is not None
    smallthinker = next(r for r in table.rows if r.key == "qwen3-0.6b/dense")
    assert smallthinker.cells["measured:local:llama-bench"].text == "not run"


def test_rows_of_the_21b_table_say_what_fills_them() -> None:
    table = build_tables([record("smallthinker-21b", ffn=True)])[1]
    row = {r.label: r.cells[LOCAL] for r in table.rows}
    assert (row["Qwen3 30B A3B"].text, row["Qwen3 30B A3B"].marks) == ("not run", ())
    assert row["Qwen3 30B A3Blimited memory"].marks == ("m",)
    assert row["Gemma 3n E4B"].marks == ("e",)
    assert row["neither (dense)"].text == "not run"
    assert "--engines sbr,llama-bench" in dict(table.legend())["e"]


def test_not_run_is_told_from_failed() -> None:
    table = main_table(dense(6))
    assert cell(table, FULL).text == "not run"
    assert cell(table, FULL).details == {}


def test_fastest_threads_elsewhere_and_four_on_the_published_machines() -> None:
    for device, expected in (
        ("local", 40.0),
        ("rk3588", 40.0),
        ("i9-14900", 30.0),
        ("snapdragon-8-elite", 30.0),
    ):
        records = [
            record(device=device, threads=threads, tps=tps, replicate=i)
            for threads, tps in ((1, 20.0), (4, 30.0), (8, 40.0))
            for i in range(6)
        ]
        table = main_table(records)
        found = cell(table, DENSE, f"measured:{device}:sbr")
        assert found.value == pytest.approx(expected, rel=1e-6)
        assert found.n == 6
    assert any("threads 4 in every cell (4 as published)" in note for note in table.notes)


def test_wrong_output_at_the_fastest_thread_count_is_not_chosen_but_listed() -> None:
    records = [
        *dense(6, threads=2),
        *[record(threads=4, replicate=i, status="wrong-output", verdict="wrong") for i in range(6)],
    ]
    table, other = build_tables(records)
    assert cell(table).value == pytest.approx(32.5)
    assert other.rows[0].cells["decode"].text == "wrong-output"


@pytest.mark.parametrize(
    "changes",
    [
        {"n_gen": 8},
        {"n_prompt": 512},
        {"library": "cd" * 32},
        {"fingerprint": "beef"},
        {"settings": dataclasses.replace(record().settings, isa="avx2")},
        {"settings": dataclasses.replace(record().settings, n_ctx=512)},
        {"settings": dataclasses.replace(record().settings, kv_type="f32")},
        {"workload": dataclasses.replace(record().workload, seed=8)},
        {"settings": dataclasses.replace(record().settings, sparse_ffn_auto=True)},
        {"campaign": "c2"},
        {"threads": 1},
    ],
)
def test_cells_never_mix(changes: dict[str, Any]) -> None:
    """Six replicates of one kind and three much faster ones of another: the cell holds the six, and the three
    are listed apart."""
    others = [record(tps=10.0, replicate=10 + i, **changes) for i in range(3)]
    table, other = build_tables([*dense(6), *others])
    found = cell(table)
    assert found.n == 6
    assert found.value == pytest.approx(32.5)
    assert set(found.details["records"]).isdisjoint({r.id for r in others})
    assert [row.cells["decode"].n for row in other.rows] == [3]


def test_the_condition_that_fills_most_rows_is_selected_for_all_of_them() -> None:
    full = table_4b(n=3)
    many = [record(n_gen=8, replicate=i, tps=99.0) for i in range(12)]
    table = main_table([*full, *many])
    assert table.selection[0]["condition"]["workload"] == "pp39+tg4"
    assert cell(table).n == 3
    assert any("12 records of other workloads" in note for note in table.notes)


def test_failed_records_without_digest_belong_to_their_case() -> None:
    records = [*dense(6), record(replicate=6, status="crashed", detail="SIGILL")]
    assert records[-1].model.digest == ""
    assert len(build_tables(records)) == 1
    assert cell(main_table(records)).details["statuses"] == {"crashed": 1, "ok": 6}


def test_two_devices_have_two_columns_and_footnotes() -> None:
    board = dataclasses.replace
    records = [*table_4b(), *table_4b(device="raspberry-pi-5", fingerprint="pi")]
    records = [
        board(r, facts=facts("pi", cpu_model="Cortex-A76", machine="aarch64")) if r.device != "local" else r
        for r in records
    ]
    table = main_table(records)
    assert [c.header for c in table.speed_columns()] == ["local\ntokens/s", "raspberry-pi-5\ntokens/s"]
    assert any("Cortex-A76" in note for note in table.notes)
    ratios = [c.header for c in table.columns if c.role == "ratio"]
    assert f"raspberry-pi-5\n{TIMES} published" in ratios
    row = table.rows[0]
    assert row.cells["ratio:measured:raspberry-pi-5:sbr"].value == pytest.approx(72.775 / 28.77)


def test_ratio_to_a_named_published_device() -> None:
    table = main_table(table_4b(), ratio_to={"local": "rk3588"})
    assert table.rows[0].cells[f"ratio:{LOCAL}"].value == pytest.approx(72.775 / 39.76)
    assert f"local\n{TIMES} published rk3588 (16G)" in [c.header for c in table.columns]
    with pytest.raises(KeyError):
        main_table(table_4b(), ratio_to={"local": "rk9999"})


def test_engines_are_columns_never_averaged() -> None:
    records = [
        *dense(6),
        *[record("smallthinker-4b:standard", engine="llama-bench", tps=20.0, replicate=i) for i in range(6)],
    ]
    table = main_table(records)
    assert [c.header for c in table.speed_columns()] == [
        "local (sbr)\ntokens/s",
        "local (llama-bench)\ntokens/s",
    ]
    assert cell(table).value == pytest.approx(32.5)
    assert cell(table, DENSE, "measured:local:llama-bench").value == pytest.approx(20.0)


def test_the_21b_table_appears_with_its_records() -> None:
    assert [t.key for t in build_tables(table_4b())] == ["4B"]
    tables = build_tables([*table_4b(), record("smallthinker-21b", ffn=True, tps=9.0)])
    assert [t.key for t in tables] == ["4B", "21B"]
    assert tables[1].rows[0].cells[LOCAL].value == pytest.approx(9.0)
    assert [row.label for row in tables[1].rows if row.parent] == ["neither (dense)"]


def test_no_records_and_unknown_models() -> None:
    (table,) = build_tables([])
    assert table.speed_columns() == []
    assert table.legend() == []
    tables = build_tables([record("my-own", synthetic=False)])
    assert [t.key for t in tables] == ["4B", "other"]
    assert tables[1].rows[0].label == "local:my-own/dense/t2/pp39+tg4"
    assert tables[1].rows[0].cells["decode"].text == "30.00"


def test_only_failed_records() -> None:
    table = main_table(
        [record(status="crashed", detail="SIGSEGV", ffn=f, head=h) for f in (0, 1) for h in (0, 1)]
    )  # type: ignore[arg-type]
    assert cell(table).text == "crashed"
    assert "no device facts" in " ".join(table.notes)
    assert render.markdown([table])


def test_equal_labels_of_different_cases_are_told_apart() -> None:
    tables = build_tables(
        [
            record("my-own", synthetic=False),
            record("my-own", synthetic=False, campaign="c2", library="cd" * 32),
        ]
    )
    labels = [row.label for row in tables[1].rows]
    assert len(set(labels)) == 2
    assert all("campaign c" in label and "library" in label for label in labels)


def test_reference_runs_are_not_measurements() -> None:
    assert build_tables([record(purpose="reference")])[0].speed_columns() == []


def test_real_weights_fill_the_row_unmarked() -> None:
    known = shape(record().model.synthetic)
    real = [record("4b-real", synthetic=False, shape=known, replicate=i) for i in range(6)]
    found = cell(main_table(real))
    assert found.value == pytest.approx(30.0)
    assert "†" not in found.marks


def test_synthetic_and_real_weights_are_two_cases() -> None:
    known = shape(record().model.synthetic)
    real = [
        record("4b-real", synthetic=False, shape=known, replicate=i, tps=20.0, minute=1) for i in range(6)
    ]
    real = [dataclasses.replace(r, model=dataclasses.replace(r.model, digest="ee" * 32)) for r in real]
    table, other = build_tables([*dense(6), *real])
    assert cell(table).n == 6
    assert [row.cells["decode"].n for row in other.rows] == [6]


def test_details_prove_the_cell() -> None:
    found = cell(main_table(table_4b()), FULL)
    assert found.details["output_hash"] == ["0123456789abcdef"]
    assert found.details["affinity"] == ["0|1"]
    assert found.details["threads"] == [2]
    assert found.details["isa"] == ["avx512vnni"]
    assert found.details["check"] == {"ok": 6}
    assert len(found.details["records"]) == 6
    assert found.details["active_share"] == pytest.approx(0.294, abs=1e-5)


def test_synthetic_profile_with_what_was_measured() -> None:
    notes = " ".join(main_table(table_4b()).notes)
    assert "smallthinker-4b is synthetic" in notes
    assert "measured zeros 70.6 %" in notes
    assert "measured lm_head rows 10.0 %" in notes


def test_hostile_text_stays_text() -> None:
    evil = "x|</td><script>alert(1)</script>\x1b[31m\u202e[a](http://b)\n# head"
    made = [record("my-own", synthetic=False, device=evil, status="failed", detail=evil, campaign=evil)]
    text = render.markdown(build_tables(made))
    assert "<script" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "](http" not in text
    assert "\n# head" not in text


DEVICES = st.sampled_from(["local", "pi", "i9-14900"])
RECORDS = st.lists(
    st.builds(
        record,
        model=st.sampled_from(["smallthinker-4b", "qwen3-0.6b", "my-own", "smallthinker-21b", "tiny-qwen3"]),
        tps=st.floats(0.1, 500),
        ffn=st.booleans(),
        head=st.booleans(),
        replicate=st.integers(0, 9),
        device=DEVICES,
        engine=st.sampled_from(["sbr", "llama-bench"]),
        threads=st.sampled_from([1, 2, 4]),
        n_gen=st.sampled_from([0, 4, 8]),
        campaign=st.sampled_from(["c1", "c2"]),
        status=st.sampled_from(["ok", "ok", "ok", "timeout", "wrong-output"]),
        verdict=st.sampled_from(["ok", "ok", "wrong", "unchecked"]),
        throttled=st.sampled_from(["no", "yes", "unknown"]),
        synthetic=st.booleans(),
        library=st.sampled_from(["aa", "bb"]),
        minute=st.integers(0, 59),
    ),
    max_size=14,
)


@settings(max_examples=40, deadline=None)
@given(RECORDS, st.randoms())
def test_order_of_records_never_matters(records: list[RunRecord], rng: random.Random) -> None:
    shuffled = records[:]
    rng.shuffle(shuffled)
    assert render.json_text(build_tables(shuffled)) == render.json_text(build_tables(records))


@settings(max_examples=40, deadline=None)
@given(RECORDS)
def test_every_record_is_in_exactly_one_case_and_wrong_ones_have_no_speed(records: list[RunRecord]) -> None:
    records = [dataclasses.replace(r, id=f"{i}") for i, r in enumerate(records)]
    seen: dict[str, list[int]] = {}
    for number, table in enumerate(build_tables(records)):
        for row in table.rows:
            for name, found in row.cells.items():
                for one in found.details.get("records", []):
                    seen.setdefault(one, []).append(number)
                if any(status == "wrong-output" for status in found.details.get("statuses", {})):
                    assert found.value is None, (row.key, name)
    assert set(seen) == {r.id for r in records if r.workload.n_gen or r.workload.n_prompt}
    assert all(len(set(tables)) == 1 for tables in seen.values())


def test_nonsense_samples_never_become_a_speed() -> None:
    records = dense(6)
    records[0] = dataclasses.replace(records[0], samples=Samples(1, [1], [39], [1, 1, -1, 1]))
    found = cell(main_table(records))
    assert found.n == 5
    assert "!" in found.marks
