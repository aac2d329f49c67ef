"""One engine, the fastest of each row, and durations that are of many tokens."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from stbench.agent.wire import RunRecord, Samples
from stbench.errors import UsageError
from stbench.records.frame import to_frame
from stbench.tables import engine_view, render
from stbench.tables.grid import build_tables
from tests.tables.factory import record

BENCH = "llama-bench"
FULL = "smallthinker-4b/sparse-ffn+sparse-lm_head"
DENSE = "smallthinker-4b/dense"


def both(n: int = 6) -> list[RunRecord]:
    found = []
    for i in range(n):
        found.append(record(tps=30.0, replicate=i))
        found.append(record(ffn=True, head=True, tps=70.0, replicate=i))
        found.append(record("smallthinker-4b:standard", engine=BENCH, tps=20.0, replicate=i))
        found.append(record("qwen3-0.6b", tps=50.0, replicate=i))
        found.append(record("qwen3-0.6b", engine=BENCH, tps=60.0, replicate=i))
        found.append(record("qwen3-0.6b", engine=BENCH, tps=99.0, replicate=i, device="other"))
    return found


def test_the_fastest_engine_of_each_row_is_named_and_nothing_is_averaged() -> None:
    (table,) = engine_view.fastest(build_tables(both()))
    headers = [column.header for column in table.columns if column.role == "speed"]
    assert headers == ["local (fastest)\ntokens/s", "other (llama-bench)\ntokens/s"]
    key = next(c.key for c in table.columns if c.role == "speed" and c.device == "local")
    rows = {row.key: row.cells for row in table.rows}
    assert rows[DENSE][key].text == "30.00 [30.00, 30.00] sbr"
    assert rows[FULL][key].value == pytest.approx(70.0)
    qwen = next(cells for name, cells in rows.items() if name.startswith("qwen3-0.6b"))
    assert qwen[key].text == "60.00 [60.00, 60.00] llama-bench"
    assert (qwen[key].value, qwen[key].details["engine"]) == (pytest.approx(60.0), BENCH)
    assert rows[FULL][f"dense:{key}"].value == pytest.approx(70 / 30)
    assert sum(c.key.endswith(key) for c in table.columns) == sum(
        c.key.endswith("measured:other:llama-bench") for c in table.columns
    ), "one set of columns"
    assert "Each speed is of the engine that is named with it" in table.notes[-1]
    # Every rendering takes it.
    assert "llama-bench" in render.markdown([table])
    json.loads(render.json_text([table]))
    render.csv_text([table])


def test_an_engine_that_failed_is_never_the_fastest() -> None:
    records = [record(tps=30.0), record("smallthinker-4b:standard", engine=BENCH, status="crashed")]
    (table,) = engine_view.fastest(build_tables(records))
    (key,) = [c.key for c in table.columns if c.role == "speed"]
    cell = {row.key: row.cells for row in table.rows}[DENSE][key]
    assert (cell.value, cell.details["engine"]) == (pytest.approx(30.0), "sbr")


def test_one_engine_alone() -> None:
    records = both(1)
    assert engine_view.of_engine(records, "all") == records
    assert {r.engine for r in engine_view.of_engine(records, BENCH)} == {BENCH}
    with pytest.raises(UsageError, match=r'unknown engine "vllm"; known: llama-bench, sbr'):
        engine_view.of_engine(records, "vllm")
    (table,) = engine_view.fastest(build_tables(engine_view.of_engine(records, BENCH)))
    headers = [c.header for c in table.speed_columns()]
    assert headers == ["local (llama-bench)\ntokens/s", "other (llama-bench)\ntokens/s"]


def test_the_notes_of_a_programs_column_say_what_is_its_own() -> None:
    records = []
    for one in both(1):
        effective = one.effective
        if one.engine == BENCH and effective is not None:
            one = dataclasses.replace(one, effective=dataclasses.replace(effective, weights_repacked=True))
        records.append(one)
    (table,) = build_tables(records)
    bench = next(note for note in table.notes if note.startswith("local (llama-bench): workload"))
    ours = next(note for note in table.notes if note.startswith("local (sbr): workload"))
    assert "(tokens that llama-bench chooses, timed by itself)" in bench
    assert "weights by mmap, repacked into anonymous memory;" in bench
    assert "(teacher-forced stream, seed 7)" in ours
    assert "repacked" not in ours


def test_a_duration_of_many_tokens_is_a_speed_but_no_percentile() -> None:
    made = record(engine=BENCH, n_gen=20)
    totals = Samples(0, [10**9], [39], [10**9], [20])
    row = to_frame([dataclasses.replace(made, samples=totals)]).iloc[0]
    assert (row["decode_tps"], row["prefill_tps"], row["tpot_ms"]) == (20.0, 39.0, 50.0)
    assert math.isnan(row["tpot_p95_ms"])
    assert math.isnan(row["ttft_ms"]), "not known"
    single = dataclasses.replace(totals, decode_ns=[10**9] * 20, decode_tokens=[1] * 20)
    row = to_frame([dataclasses.replace(made, samples=single)]).iloc[0]
    assert (row["decode_tps"], row["tpot_p95_ms"]) == (1.0, 1000.0)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [([19], "19 decode samples for n_gen 20"), ([10, 10], "decode_ns and decode_tokens differ in length")],
)
def test_durations_of_other_numbers_of_tokens_are_no_speed(tokens: list[int], said: str) -> None:
    made = record(engine=BENCH, n_gen=20)
    row = to_frame([dataclasses.replace(made, samples=Samples(0, [], [], [10**9], tokens))]).iloc[0]
    assert not row["usable"]
    assert row["problem"] == said
