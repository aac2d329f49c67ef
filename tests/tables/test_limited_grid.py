"""Runs under a memory limit in tables: published limited rows, their marks, and the table of their costs."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from stbench.agent.wire import CacheCounters, CacheUse, LimitProof, RunRecord
from stbench.tables import render
from stbench.tables.grid import build_tables
from stbench.tables.limited_grid import published_limit
from stbench.tables.table import Cell, Table
from tests.tables.factory import record, table_4b

GIB = 1 << 30
ROW = "smallthinker-4b/sparse-ffn+sparse-lm_head+limited"
QWEN = "qwen3-1.7b/limited"
LOCAL = "measured:local:sbr"


def counters(**changes: int) -> CacheCounters:
    zeros = dict.fromkeys((field.name for field in dataclasses.fields(CacheCounters)), 0)
    made = {"requests": 1000, "hits": 450, "loads": 560, "bytes_read": 2_000_000_000, "late": 300}
    guesses = {"guesses": 100, "guesses_used": 60, "hits_on_the_way": 55}
    return CacheCounters(**{**zeros, **made, **guesses, **changes})


def use(**changes: Any) -> CacheUse:
    made = CacheUse(
        kind="experts",
        bundle="/cache/m.bundle",
        bytes=512 << 20,
        bytes_min=2 << 20,
        units=270,
        unit_bytes=1990656,
        total_bytes=1944 << 20,
        policy="reuse",
        io="io_uring",
        direct=True,
        prefetch="exact",
        prefill=counters(),
        decode=counters(ns_wait=40_000_000, ns_io_busy=80_000_000),
    )
    return dataclasses.replace(made, **changes)


def limited(
    tps: float,
    *,
    verdict: str = "held",
    method: str = "cgroup-v1",
    cache: str = "auto",
    limit: int = GIB,
    model: str = "smallthinker-4b",
    switches: bool = True,
    detail: str = "",
    replicate: int = 0,
    **changes: Any,
) -> RunRecord:
    made = record(model, ffn=switches, head=switches, tps=tps, replicate=replicate, campaign="c1")
    settings = dataclasses.replace(made.settings, memory_limit_bytes=limit, cache=cache)
    proof = LimitProof(method, limit, verdict, detail, limit, peak_bytes=limit - 4096, start="cold")
    name = f"{made.case.rpartition('/')[0]}/mem1g/cache{cache or 'none'}/tg4"
    return dataclasses.replace(
        made,
        id=f"{name}-{replicate}-{tps}-{verdict}-{method}",
        case=name,
        label=f"local:{name}",
        settings=settings,
        limit=proof if limit else None,
        cache=use() if cache else None,
        **changes,
    )


def main_cell(records: list[RunRecord], row: str = ROW) -> Cell:
    table = build_tables(records)[0]
    return next(r for r in table.rows if r.key == row).cells[LOCAL]


def limited_table(records: list[RunRecord]) -> Table:
    return next(table for table in build_tables(records) if table.key == "limited")


def test_published_limits_are_read() -> None:
    assert published_limit("limit 8G") == 8 * GIB
    with pytest.raises(ValueError, match="no published limit"):
        published_limit("2.24")


def test_limited_runs_fill_the_limited_row_and_no_other() -> None:
    records = [*table_4b(), *(limited(9.0 + i, replicate=i) for i in range(6))]
    cell = main_cell(records)
    assert cell.value == pytest.approx(11.5)
    assert not set(cell.marks) & set("nxvbm")
    free = main_cell(records, "smallthinker-4b/sparse-ffn+sparse-lm_head")
    assert free.value is not None
    assert free.value > 70
    assert cell.details["limit_verdicts"] == {"held": 6}
    assert cell.details["hit_rate"] == 0.45


def test_a_limited_row_alone_makes_a_column() -> None:
    assert main_cell([limited(8.0)]).value == 8.0


def test_other_limits_do_not_fill_the_row() -> None:
    assert main_cell([*table_4b(), limited(9.0, limit=GIB // 2)]).text == "not run"


def test_the_fastest_that_held_fills_the_row() -> None:
    held = [limited(9.0, cache="268435456"), limited(10.0)]
    assert main_cell([*held, limited(12.0, cache="536870912", verdict="void")]).value == 10.0
    baseline = [limited(2.0, cache="", model="qwen3-1.7b", switches=False)]
    assert main_cell(baseline, QWEN).value == 2.0


@pytest.mark.parametrize(
    ("verdict", "method", "mark"),
    [
        ("not-enforced", "none", "n"),
        ("exceeded", "cgroup-v2", "x"),
        ("void", "cgroup-v1", "v"),
        ("held", "ballast", "b"),
        ("", "", "n"),
    ],
)
def test_what_did_not_hold_is_marked(verdict: str, method: str, mark: str) -> None:
    records = [limited(9.0), limited(9.5, replicate=1, verdict=verdict, method=method, detail="who knows")]
    assert mark in main_cell(records).marks
    notes = " ".join(limited_table(records).notes)
    assert ("who knows" in notes) == (verdict != "held")


def test_a_limited_run_without_a_proof_is_marked() -> None:
    assert "n" in main_cell([dataclasses.replace(limited(9.0), limit=None)]).marks


def test_an_oom_kill_is_a_result() -> None:
    killed = dataclasses.replace(limited(9.0), status="out-of-memory", samples=None)
    assert main_cell([killed]).text == "out-of-memory"


def test_the_table_of_limited_runs_says_what_they_cost() -> None:
    table = limited_table([*table_4b(), limited(10.0), limited(11.0, cache="", limit=GIB)])
    assert len(table.rows) == 2
    cells = next(row.cells for row in table.rows if row.cells["hits"].text)
    assert cells["decode"].value == 10.0
    assert cells["tokens_ms"].text == "100 / 100 / 100"
    assert cells["limit"].text == "1.00 GiB held (cgroup-v1)"
    assert cells["peak"].text == "1024"
    assert cells["cache"].text == "512 of 1944"
    assert cells["hits"].text == "45"
    assert cells["storage"].text == "500.0"
    assert (cells["waiting"].text, cells["reading"].text, cells["late"].text) == ("10", "20", "30")
    assert cells["guesses"].text == "60 / 10"
    assert cells["start"].text == "cold"
    without = next(row.cells for row in table.rows if not row.cells["hits"].text)
    assert without["cache"].text == ""


SHOWN = {
    "decode": "10",
    "tokens_ms": "100 / 100 / 100",
    "peak": "1024",
    "hits": "45",
    "storage": "500.0",
    "waiting": "10",
    "late": "30",
    "guesses": "60 / 10",
    "start": "cold",
}


def test_what_a_limit_cost_is_in_every_format() -> None:
    """Tokens/s, percentiles of token time, peak, hit rate, bytes per token, waiting, lateness, precision and
    recall of guesses, and how it started."""
    table = limited_table([*table_4b(), limited(10.0)])
    lines = [line for line in render.csv_text([table]).splitlines() if "smallthinker-4b" in line]
    (row,) = render.json_data([table])["tables"][0]["rows"]
    unescaped = re.compile(r"(?<!\\)\|")
    header, _, body = [unescaped.split(line) for line in render.markdown([table]).splitlines()[2:5]]
    for key, text in SHOWN.items():
        column = next(column for column in table.columns if column.key == key)
        (of_key,) = [line for line in lines if f",{key}," in line]
        assert text in of_key, key
        assert row["cells"][key]["text"].startswith(text), key
        where = [cell.strip() for cell in header].index(column.header.replace("\n", "<br>"))
        assert text in body[where].replace("\\", ""), key


def test_starts_are_told_apart() -> None:
    cold = limited(10.0)
    warm = dataclasses.replace(cold, settings=dataclasses.replace(cold.settings, start="warm"), id="w")
    warm = dataclasses.replace(warm, case=f"{cold.case}/warm", label=f"{cold.label}/warm")
    table = limited_table([*table_4b(), cold, warm])
    assert sorted(row.cells["start"].text for row in table.rows) == ["cold", "warm"]
    assert cold.limit is not None
    left = dataclasses.replace(cold, limit=dataclasses.replace(cold.limit, start="warm", verdict="void"))
    (row,) = limited_table([*table_4b(), left]).rows
    assert row.cells["start"].text == "page cache warm"


def test_a_published_row_shows_a_cold_start_where_there_is_one() -> None:
    cold = limited(10.0)
    fast = limited(20.0)
    settings = dataclasses.replace(fast.settings, start="warm")
    warm = dataclasses.replace(fast, settings=settings, case=f"{fast.case}/warm")
    assert main_cell([cold, warm]).value == 10.0
    assert main_cell([warm]).value == 20.0


def test_unlimited_records_make_no_table_of_limits() -> None:
    assert all(table.key != "limited" for table in build_tables(table_4b()))
