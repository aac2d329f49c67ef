"""Rows without pandas: the same answers as a DataFrame gives, and the same tables of hostile records."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stbench.agent import wire
from stbench.agent.wire import RunRecord
from stbench.history.points import series_of
from stbench.records import columnar, index_reading
from stbench.records.columnar import Damaged, assemble, encode
from stbench.records.frame import COLUMNS
from stbench.records.one_run import finished
from stbench.records.rows import Rows, joined
from stbench.tables import cells, grid, render
from tests.compare.records import beside, case, disturbed, noisy, prompt_only
from tests.conftest import require
from tests.history.test_record_index import REAL, assert_same, read
from tests.host.conftest import Sandbox, sandbox
from tests.tables.factory import facts, record
from tests.tables.test_limited_grid import limited

__all__ = ["sandbox"]

_WORDS = [
    "",
    "a",
    "b",
    "<script>alert(1)</script>",
    "\u202eright to left",
    "x" * 9000,
    "|`*_\\n",
    "\u00e9\U0001f600",
]


def _columns(n: int, chance: random.Random) -> dict[str, tuple[str, list[Any]]]:
    return {
        "few": ("object", [chance.choice(_WORDS) for _ in range(n)]),
        "many": ("object", [f"{chance.getrandbits(40):x}" for _ in range(n)]),
        "one": ("object", ["same"] * n),
        "flag": ("bool", [chance.random() < 0.5 for _ in range(n)]),
        "whole": (
            "int64",
            [chance.choice([0, 1, -1, 300, 1 << 40, -(1 << 63), (1 << 63) - 1]) for _ in range(n)],
        ),
        "real": ("float64", [chance.choice([0.5, -1.0, float("nan"), 1e300]) for _ in range(n)]),
        "nothing": ("float64", [float("nan")] * n),
    }


def _both(n: int, sizes: list[int]) -> tuple[pd.DataFrame, Rows]:
    """A frame, and rows from its columns in parts of these sizes, every second one of a longer whole."""
    chance = random.Random(n)
    made = _columns(n, chance)
    frame = pd.DataFrame({name: pd.Series(values, dtype=dtype) for name, (dtype, values) in made.items()})
    columns = {}
    for name, (dtype, values) in made.items():
        parts, begin = [], 0
        for size in sizes:
            parts.append((*encode(values[begin : begin + size], dtype), size))
            begin += size
        columns[name] = assemble(parts, dtype)
    return frame, Rows(columns, np.arange(n), n)


@pytest.mark.parametrize("many", [0, 1 << 16])
def test_columns_and_selections_are_those_of_pandas(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columnar, "_MANY", many)
    frame, rows = _both(500, [100, 1, 399])
    pd.testing.assert_frame_equal(rows.frame(), frame)
    mask = frame["flag"] & (frame["few"] != "")
    pd.testing.assert_frame_equal(rows[mask].frame(), frame[mask])
    pd.testing.assert_series_equal(rows.loc[mask, "real"], frame.loc[mask, "real"])
    assert rows[mask].iloc[0]["whole"] == frame[mask].iloc[0]["whole"]
    assert len(rows.iloc[:0]) == 0
    pd.testing.assert_frame_equal(
        joined([rows[mask].as_frame(), rows[~mask].as_frame()]).frame(),
        pd.concat([frame[mask], frame[~mask]]),
    )
    other = rows[mask].assign(new=frame.loc[mask, "few"].str.upper(), flag=False)
    pd.testing.assert_frame_equal(
        other.frame(), frame[mask].assign(new=frame.loc[mask, "few"].str.upper(), flag=False)
    )
    # What is not made for it is asked of a frame.
    assert rows.nunique()["few"] == frame.nunique()["few"]


@pytest.mark.parametrize(
    "by",
    [
        "few",
        ["few"],
        ["one"],
        ["flag", "few"],
        ["real", "nothing", "whole"],
        ["many", "whole", "real", "few"],
    ],
    ids=str,
)
@pytest.mark.parametrize("dropna", [True, False])
@pytest.mark.parametrize("largest", [1 << 62, 4])
def test_groups_are_those_of_pandas(
    by: Any, dropna: bool, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stbench.records.rows._LARGEST", largest)
    frame, rows = _both(300, [300])
    for wanted, found in (
        (frame, rows),
        (frame[frame["flag"]], rows[frame["flag"]]),
        (frame[:0], rows.at(slice(0))),
    ):
        theirs = list(wanted.groupby(by, sort=True, dropna=dropna))
        ours = list(found.groupby(by, sort=True, dropna=dropna))
        assert [str(key) for key, _ in _plain(ours)] == [str(key) for key, _ in _plain(theirs)]
        for (_, group), (_, other) in zip(theirs, ours, strict=True):
            pd.testing.assert_frame_equal(other.frame(), group)
        assert found.groupby(by, dropna=dropna).ngroups == wanted.groupby(by, dropna=dropna).ngroups


def _plain(groups: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    return [(tuple(map(str, key)) if isinstance(key, tuple) else str(key), group) for key, group in groups]


def test_groups_by_values_that_are_no_column() -> None:
    frame, rows = _both(50, [50])
    wanted = frame.groupby(["few", frame["whole"] > 0]).ngroups
    assert rows.groupby(["few", frame["whole"] > 0]).ngroups == wanted


@pytest.mark.parametrize(
    ("kind", "data", "dtype"),
    [
        ("texts", b"\x02\0\0\0[]", "object"),
        ("texts", b'\x05\0\0\0["a"]\x01', "object"),
        ("texts", b"\x03\0\0\0[1]\0", "object"),
        ("floats", b"1234567", "float64"),
        ("floats", b"12345678", "int64"),
        ("whole4", b"1234", "float64"),
        ("whole4", b"123", "int64"),
        ("strange", b"1", "int64"),
        ("constant", b"[", "int64"),
        ("constant", b"3", "object"),
    ],
)
def test_damaged_columns_are_noticed(kind: str, data: bytes, dtype: str) -> None:
    sound = (*encode([0 if dtype != "object" else ""], dtype), 1)
    with pytest.raises(Damaged):
        assemble([(kind, data, 1), sound], dtype)


# ---- tables ------------------------------------------------------------------------------------------


def _hostile(one: RunRecord, chance: random.Random) -> RunRecord:
    """The same run, made worse in one way or another."""
    changes: list[Callable[[RunRecord], RunRecord]] = [
        lambda r: dataclasses.replace(r, status="crashed", samples=None, detail=chance.choice(_WORDS)),
        lambda r: dataclasses.replace(r, status="cancelled", samples=None),
        lambda r: dataclasses.replace(r, status="timeout", samples=None, facts=None, versions=None),
        lambda r: dataclasses.replace(r, status="wrong-output"),
        lambda r: dataclasses.replace(r, purpose="search"),
        lambda r: dataclasses.replace(r, label=chance.choice(_WORDS)),
        lambda r: dataclasses.replace(r, campaign=chance.choice(_WORDS[:6])),
        lambda r: dataclasses.replace(r, device=chance.choice(["local", "raspberry-pi-5", "<b>"])),
        lambda r: dataclasses.replace(r, engine=chance.choice(["llama-bench", "other"])),
        lambda r: dataclasses.replace(r, facts=facts(chance.choice(["f00d", "beef", ""]), os=r.started_at)),
        lambda r: dataclasses.replace(r, started_at="2026-01-01T00:00:00Z"),
        lambda r: dataclasses.replace(r, replicate=chance.randrange(4)),
        lambda r: dataclasses.replace(r, attempt=1),
        lambda r: dataclasses.replace(r, id="00"),
        disturbed,
        lambda r: prompt_only(r, 500.0),
        lambda r: beside(r, 20.0),
        lambda r: dataclasses.replace(r, check=None, wall_s=float(chance.randrange(9))),
    ]
    for change in chance.sample(changes, chance.choice([0, 1, 1, 2])):
        one = change(one)
    return one


def _runs(chance: random.Random) -> list[RunRecord]:
    made: list[RunRecord] = []
    for model in ("smallthinker-4b", "qwen3-0.6b", "gemma3n-e2b", "some model"):
        for ffn, threads in ((False, 1), (True, 2)):
            common: dict[str, Any] = {"ffn": ffn, "threads": threads, "synthetic": chance.random() < 0.5}
            made += [beside(one, 40.0) for one in case(noisy(9, len(made)), **common, model=model)]
    made += [limited(9.0 + i, replicate=i) for i in range(5)]
    made += [record(replicate=i, output_hash=f"{i:x}" * 16) for i in range(3)]
    made = [_hostile(dataclasses.replace(one, id=f"{i:04x}"), chance) for i, one in enumerate(made)]
    chance.shuffle(made)
    return made


def _write(path: Path, runs: list[RunRecord], chance: random.Random) -> None:
    """Lines of these, some of them twice, some in another form, and some that are none."""
    lines = [wire.dumps(one).encode() for one in runs]
    lines += [chance.choice(lines) for _ in range(5)]
    lines += [json.dumps(json.loads(line), sort_keys=True, indent=None).encode() for line in lines[:5]]
    lines += [line.replace(b'"wall_s":', b'"wall_s":1') for line in chance.sample(lines, 5)]
    lines += [b"{}", b"", b"\0\0", b"\xff", b'{"schema": 99}', b"[" * 9999, lines[0][:-9], b"NaN"] * 2
    chance.shuffle(lines)
    ends = [chance.choice([b"\n", b"\n", b"\r\n"]) for _ in lines]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + end for line, end in zip(lines, ends, strict=True)) + lines[1][:50])


@pytest.mark.parametrize("seed", range(2))
def test_tables_of_hostile_records_are_the_same_byte_for_byte(
    seed: int, tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the index, in chunks of a few lines, and by reading; also what is said on stderr."""
    monkeypatch.setattr(index_reading, "CHUNK", 16)
    chance = random.Random(seed)
    runs = _runs(chance)
    paths = [tmp_path / "a" / "records.jsonl", tmp_path / "b.jsonl"]
    _write(paths[0], runs, chance)
    _write(paths[1], [_hostile(one, chance) for one in runs[::3]] + _runs(chance)[:20], chance)
    given = [paths[0].parent, paths[1]]
    engines = sorted({one.engine for one in finished(read(given))[0]})
    for options in (
        ["--format", "md"],
        ["--json"],
        ["--json", "--engine", chance.choice([*engines, "fastest"])],
    ):
        said = [sandbox.run("grid", *map(str, given), *options, index) for index in ("--no-index", "--index")]
        assert said[0][0] == 0
        assert said[1] == said[0]
    found = assert_same(given, tmp_path / "index.sqlite")
    for metric in ("decode_tps", "prefill_tps"):
        assert series_of(found.frame, metric) == series_of(found.rows.frame(), metric)


def test_a_grid_never_makes_a_frame_of_all_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require(all(path.is_dir() for path in REAL), "a checkout has results/")
    found = assert_same(REAL, tmp_path / "index.sqlite")
    wanted = render.json_text(grid.build_tables(read(REAL)))

    def whole(rows: Rows) -> pd.DataFrame:
        raise AssertionError(f"{len(rows)} rows of {len(COLUMNS)} columns")

    monkeypatch.setattr(Rows, "frame", whole)
    assert render.json_text(grid.tables_of(found.frame, found.facts, found.claims)) == wanted
    assert series_of(found.frame, "decode_tps")


def test_proofs_of_a_case_are_those_of_its_cell() -> None:
    frame = grid.to_frame(case(noisy(7)))
    assert cells.speed_cell(frame, "decode_tps", cells.details_of(frame)) == cells.speed_cell(
        frame, "decode_tps"
    )
