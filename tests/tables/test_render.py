"""One table, four renderings: equal numbers, all marks explained. The Markdown is held to a stored page
(``STBENCH_UPDATE_GOLDEN=1`` rewrites it)."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections import Counter
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console

from stbench.agent.wire import RunRecord
from stbench.tables import render
from stbench.tables.grid import build_tables, render_grid
from stbench.tables.table import MEANINGS
from stbench.wording import clean, number
from tests.tables.factory import record, table_4b

GOLDEN = Path(__file__).parent / "golden_table.md"


def fixed_records() -> list[RunRecord]:
    """Every kind of cell: interval, range, wrong output, failure, partial failure, other workloads."""
    records = table_4b(throttled="unknown")
    out = []
    for r in records:
        if r.model.name == "qwen3-1.7b" and r.replicate >= 3:
            r = record("qwen3-1.7b", status="timeout", detail="no answer after 600 s", replicate=r.replicate)
        if r.model.name == "qwen3-0.6b" and r.replicate == 2:
            r = record("qwen3-0.6b", status="wrong-output", verdict="wrong", replicate=2)
        out.append(r)
    out += [
        record(device="rk3588", fingerprint="rk", threads=t, tps=5.0 * t, throttled="yes") for t in (1, 4)
    ]
    out += [record("tiny-qwen3", n_prompt=512, n_gen=0)]
    return out


def rendered(width: int, records: list[RunRecord]) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    render_grid(records, console)
    return console.export_text()


def test_markdown_equals_the_stored_page() -> None:
    text = render.markdown(build_tables(fixed_records()))
    if os.environ.get("STBENCH_UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_markdown_rows_have_as_many_cells_as_their_header() -> None:
    lines = render.markdown(build_tables(fixed_records())).splitlines()
    width = 0
    for line in lines:
        if not line.startswith("|"):
            width = 0
            continue
        count = line.replace("\\|", "").count("|")
        width = width or count
        assert count == width, line


@pytest.mark.parametrize("marks", ["no", "unknown"])
@pytest.mark.parametrize("width", [60, 78, 79, 80, 81, 82, 83, 84, 85, 90, 100, 160, 220])
def test_terminal_shows_every_cell_at_every_width(width: int, marks: str) -> None:
    records = fixed_records() if width in (60, 80, 220) and marks == "no" else table_4b(throttled=marks)
    text = rendered(width, records)
    assert all(len(line) <= width for line in text.splitlines())
    squeezed = " ".join(text.split())
    expected: Counter[str] = Counter()
    for table in build_tables(records):
        for row in table.rows:
            assert row.label.split()[0][: render.LABEL_WIDTH] in text
            for column in table.columns[2:]:
                shown = row.cells[column.key].shown if column.key in row.cells else ""
                expected[shown] += 1
    for shown, times in expected.items():
        assert squeezed.count(shown) >= times, shown


def test_a_narrow_terminal_gets_two_tables_of_the_same_rows() -> None:
    narrow, wide = rendered(80, table_4b()), rendered(220, table_4b())
    assert "(measured)" in narrow
    assert "(published)" in narrow
    assert "(published)" not in wide
    for line in narrow.splitlines():
        if "72.77 [71.00, 74.55]" in line:
            assert line.strip().startswith("SmallThinker")


def test_csv_holds_the_same_numbers_unrounded() -> None:
    tables = build_tables(fixed_records())
    rows = list(csv.DictReader(io.StringIO(render.csv_text(tables))))
    assert list(rows[0]) == list(render.TIDY)
    full = next(r for r in rows if r["column"] == "measured:local:sbr" and r["value"])
    cell = tables[0].rows[0].cells["measured:local:sbr"]
    assert float(full["value"]) == cell.value
    assert float(full["coverage"]) == 0.96875
    assert full["output_hash"] == "0123456789abcdef"
    assert sum(len(t.rows) * (len(t.columns) - 1) for t in tables) == len(rows)


def test_csv_names_the_profile_of_everything_that_rests_on_synthetic_weights() -> None:
    records = [*table_4b(), *table_4b(device="real", synthetic=False)]
    rows = list(csv.DictReader(io.StringIO(render.csv_text(build_tables(records, {"local": "rk3588"})))))
    numbers = [row for row in rows if row["value"]]
    assert {row["role"] for row in numbers} == {"published", "speed", "ratio", "rss"}
    for row in numbers:
        synthetic = row["device"] == "local"
        assert row["synthetic"] == str(synthetic), row
        assert bool(row["profile"]) == synthetic, row
    full = next(r for r in numbers if r["column"] == "measured:local:sbr")
    assert "ReLU zeros per layer 0.97" in full["profile"]


def test_json_holds_the_proof_and_fits_its_shape() -> None:
    text = render.json_text(build_tables(fixed_records()))
    data = json.loads(text)
    shape = {
        "type": "object",
        "required": ["schema", "tables"],
        "properties": {
            "tables": {
                "items": {
                    "required": [
                        "key",
                        "title",
                        "columns",
                        "rows",
                        "legend",
                        "intervals",
                        "notes",
                        "selection",
                    ],
                    "properties": {"rows": {"items": {"required": ["key", "label", "parent", "cells"]}}},
                }
            }
        },
    }
    jsonschema.validate(data, shape)
    cell = data["tables"][0]["rows"][0]["cells"]["measured:local:sbr"]
    assert cell["details"]["output_hash"] == ["0123456789abcdef"]
    assert len(cell["details"]["records"]) == 6
    assert {item["mark"] for item in data["tables"][0]["legend"]} <= set(MEANINGS)


def test_json_and_csv_say_no_speed_for_wrong_output() -> None:
    data = render.json_data(build_tables(fixed_records()))
    cells = {row["key"]: row["cells"] for row in data["tables"][0]["rows"]}
    wrong = cells["qwen3-0.6b/dense"]["measured:local:sbr"]
    assert (wrong["text"], wrong["value"], wrong["low"], wrong["high"]) == ("wrong-output", None, None, None)


def test_coverage_is_printed() -> None:
    assert "probability 96.88 %" in rendered(200, table_4b())
    assert "probability 98.44 %" in rendered(200, table_4b(n=7))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1, "0.10"), (28.774, "28.77"), (99.99, "99.99"), (99.996, "100.0"), (148.56, "148.6")],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_clean_flattens_and_cuts() -> None:
    assert clean("a\x1b[2J\n\tb\u202ec") == "a [2J b c"
    assert clean("x" * 500, 10) == "x" * 9 + "…"


def test_every_mark_has_a_distinct_meaning() -> None:
    assert len(set(MEANINGS.values())) == len(MEANINGS)
    assert all(len(mark) == 1 for mark in MEANINGS)


def test_names_with_markup_are_printed_as_they_are() -> None:
    made = [dataclasses.replace(r, device="[red]pi[/red]") for r in table_4b()]
    assert "[red]pi[/red]" in rendered(220, made)
