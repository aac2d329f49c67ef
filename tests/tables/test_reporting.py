"""The files of a report, and the command that prints stored results."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from stbench import cli
from stbench.agent import wire
from stbench.agent.wire import RunRecord
from stbench.tables.reporting import write_reports
from tests.tables.factory import record, table_4b

NAMES = [
    "table.md",
    "table.csv",
    "table.json",
    "speed.svg",
    "speed.png",
    "speed-dark.svg",
    "speed-dark.png",
]


def stored(directory: Path, records: list[RunRecord]) -> Path:
    directory.mkdir()
    (directory / "records.jsonl").write_text("".join(wire.dumps(r) + "\n" for r in records))
    return directory


def test_writes_all_files_and_the_same_bytes_again(tmp_path: Path) -> None:
    first = write_reports(table_4b(), tmp_path / "reports" / "a")
    second = write_reports(list(reversed(table_4b())), tmp_path / "b")
    assert [path.name for path in first] == NAMES
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert sorted(os.listdir(tmp_path / "b")) == sorted(NAMES)
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in first)


@pytest.mark.parametrize("records", [[], [record(status="crashed")], [record("my-own", synthetic=False)]])
def test_works_without_a_number(tmp_path: Path, records: list[RunRecord]) -> None:
    assert len(write_reports(records, tmp_path)) == len(NAMES)


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ([], "72.77 [71.00, 74.55]"),
        (["--format", "md"], "| SmallThinker 4B+sparse ffn +sparse lm_head | 2.24 |"),
        (["--format", "csv"], "table,row,label"),
    ],
)
def test_grid_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], needle: str
) -> None:
    assert cli.main(["grid", str(stored(tmp_path / "c1", table_4b())), *options]) == 0
    assert needle in capsys.readouterr().out


def test_grid_json_is_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["grid", "--json", str(stored(tmp_path / "c1", table_4b()) / "records.jsonl")]) == 0
    assert json.loads(capsys.readouterr().out)["tables"][0]["key"] == "4B"


def test_grid_merges_campaigns_by_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = stored(tmp_path / "c1", table_4b())
    two = stored(tmp_path / "c2", table_4b(device="pi", campaign="c2"))
    assert cli.main(["grid", str(one), str(two), str(one), "--format", "md"]) == 0
    out = capsys.readouterr().out
    assert "local<br>tokens/s" in out
    assert "pi<br>tokens/s" in out
    assert "Cases outside" not in out


def test_grid_writes_files_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = stored(tmp_path / "c1", table_4b())
    assert cli.main(["grid", str(results), "--out", str(tmp_path / "out"), "--format", "md"]) == 0
    assert sorted(os.listdir(tmp_path / "out")) == sorted(NAMES)
    assert (tmp_path / "out" / "table.md").read_text() == capsys.readouterr().out


def test_grid_tells_of_lines_that_it_could_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = stored(tmp_path / "c1", table_4b())
    with (results / "records.jsonl").open("a") as out:
        out.write('{"torn')
    assert cli.main(["grid", str(results)]) == 0
    captured = capsys.readouterr()
    assert "unfinished" in captured.err
    assert "72.77" in captured.out


@pytest.mark.parametrize(
    "command",
    [
        ["grid"],
        ["grid", "--index"],
        ["report", "--out", "report.html"],
        ["chart", "all"],
        ["export", "--to", "junit"],
        ["history"],
    ],
    ids=lambda words: "-".join(words[:2]),
)
def test_results_without_one_record_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables of nothing would look like those of a campaign that measured nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "c1").mkdir()
    (tmp_path / "c1" / "records.jsonl").write_text('{"torn')
    assert cli.main([command[0], "c1", *command[1:]] if command[0] != "chart" else [*command, "c1"]) == 2
    captured = capsys.readouterr()
    assert "records.jsonl" in captured.err
    assert "no record is left to show" in captured.err
    assert captured.out == ""
    assert sorted(os.listdir(tmp_path)) in (["c1"], ["c1", "cache"])


@pytest.mark.parametrize(
    "words", [["missing"], ["c1", "--ratio-to", "local"], ["c1", "--ratio-to", "local=i99"]]
)
def test_grid_refuses_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(tmp_path / "c1", table_4b())
    monkeypatch.chdir(tmp_path)
    assert cli.main(["grid", *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("stbench: ")
    assert captured.out == ""
