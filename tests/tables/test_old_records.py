"""Records of every schema that ever was: read, tabulated, compared, exported."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest

from stbench.exchange import formats
from stbench.exchange.selection import select
from stbench.records.frame import to_frame
from stbench.records.sides import read_side
from stbench.records.store import read_records
from stbench.tables import grid, render

FOLDER = Path(__file__).resolve().parents[1] / "data" / "records"
FILES = sorted(FOLDER.glob("*.jsonl"))


def test_there_is_one_of_each() -> None:
    assert len(FILES) == 11
    fields = [set(json.loads(path.read_text().splitlines()[0])) for path in FILES]
    assert fields[0] < fields[-1]
    assert all(before <= after for before, after in itertools.pairwise(fields))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_old_records_are_read_and_tabulated(path: Path) -> None:
    reading = read_records(path)
    assert reading.problems == []
    frame = to_frame(reading.records)
    assert len(frame) == len(path.read_text().splitlines()) == 3
    ok = frame[frame["status"] == "ok"].iloc[0]
    assert ok["usable"]
    assert 450 < ok["decode_tps"] < 510, "2 ms a token, as asked for"
    assert ok["fingerprint"]
    assert ok["provenance"] == "measured"
    crashed = frame[frame["status"] == "crashed"].iloc[0]
    assert math.isnan(crashed["decode_tps"])
    assert "SIGSEGV" in crashed["detail"]
    assert read_side(str(path)).problems == ()
    text = render.markdown(grid.build_tables(reading.records))
    assert "local" in text
    for form in formats.FORMATS.values():
        assert form.write(select(reading.records))


def test_all_of_them_together_make_one_table() -> None:
    records = [record for path in FILES for record in read_records(path).latest()]
    assert len(to_frame(records)) == 33
    assert render.markdown(grid.build_tables(records))
