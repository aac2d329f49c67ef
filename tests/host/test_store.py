"""The store: one fsynced line per record; torn, foreign and newer lines; one writer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from stbench.agent import wire
from stbench.agent.wire import ModelRef, RunRecord, Settings, Workload
from stbench.errors import BusyError, InputError, StoreError
from stbench.records import lines, store
from stbench.records.store import Store, read_records
from tests.host.conftest import ROOT

RECORD = RunRecord(
    id="r0",
    label="d:m/dense/t1/tg1",
    campaign="c",
    device="d",
    case="m/dense/t1/tg1",
    replicate=0,
    engine="fake",
    status="ok",
    detail="",
    started_at="2026-01-01T00:00:00Z",
    wall_s=1.0,
    model=ModelRef("m", ""),
    workload=Workload(0, 1),
    settings=Settings(),
)


def record(name: str, status: str = "ok") -> RunRecord:
    return replace(RECORD, id=name, status=status)


def ids(directory: Path) -> list[str]:
    return [r.id for r in read_records(directory).records]


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    with Store.open(tmp_path / "c") as opened:
        for name in ("a", "b", "\r\x85 line ends of other kinds"):
            opened.append(record(name))
    assert ids(tmp_path / "c") == ["a", "b", "\r\x85 line ends of other kinds"]
    assert read_records(tmp_path / "c" / "records.jsonl").problems == []


@pytest.mark.parametrize("cut", [1, 2, 10, -1])
def test_a_torn_last_line_is_moved_aside_and_said(tmp_path: Path, cut: int) -> None:
    with Store.open(tmp_path) as opened:
        opened.append(record("a"))
        opened.append(record("b"))
    path = tmp_path / "records.jsonl"
    first, second, _ = path.read_bytes().split(b"\n")
    path.write_bytes(first + b"\n" + second[:cut])

    assert ids(tmp_path) == ["a"], "readers leave it alone"
    assert path.read_bytes().endswith(second[:cut])
    with Store.open(tmp_path) as opened:
        (said,) = opened.reading.problems
        assert f"{path}:2: the last line is unfinished ({len(second[:cut])} bytes)" in said
        assert path.read_bytes() == first + b"\n"
        assert path.with_name("records.jsonl.torn").read_bytes() == second[:cut] + b"\n"
        opened.append(record("b"))
    assert ids(tmp_path) == ["a", "b"]
    with Store.open(tmp_path) as opened:
        assert opened.reading.problems == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{}", "not a record: no schema version"),
        (b"[1]", "not a JSON object"),
        (b"nonsense", "not JSON"),
        (b"\xff\xfe", "codec can't decode"),
        (b"[" * 100000, "not JSON"),
        (b'{"schema": 99}', f"written by a newer stbench (schema 99, this one reads {wire.SCHEMA_VERSION})"),
        (b'{"schema": true}', "no schema version"),
        (b'{"schema": 1, "id": 5}', "RunRecord.id: expected a string, got 5"),
        (wire.dumps(RECORD).replace('"ok"', '"ok').encode(), "not JSON"),
        (wire.dumps(RECORD).replace("1.0", "NaN").encode(), "wall_s"),
    ],
)
def test_unreadable_lines_are_reported_and_the_rest_is_read(tmp_path: Path, line: bytes, said: str) -> None:
    good, other = wire.dumps(RECORD).encode(), wire.dumps(record("r1")).encode()
    (tmp_path / "records.jsonl").write_bytes(good + b"\n" + line + b"\n" + other + b"\n")
    reading = read_records(tmp_path)
    assert len(reading.records) == 2
    (problem,) = reading.problems
    assert problem.startswith(f"{tmp_path}/records.jsonl:2: ")
    assert said in problem


def test_older_records_are_upgraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = json.loads(wire.dumps(RECORD)) | {"schema": 0, "identifier": "old"}
    del data["id"]
    (tmp_path / "records.jsonl").write_text(json.dumps(data) + "\n")
    assert "schema 0 is not known" in read_records(tmp_path).problems[0]
    monkeypatch.setitem(lines.UPGRADES, 0, lambda old: old | {"id": old["identifier"]})
    assert ids(tmp_path) == ["old"]


def test_the_last_record_of_an_id_counts(tmp_path: Path) -> None:
    with Store.open(tmp_path) as opened:
        for name, status in (("a", "cancelled"), ("b", "ok"), ("a", "ok")):
            opened.append(record(name, status))
    assert [(r.id, r.status) for r in read_records(tmp_path).latest()] == [("a", "ok"), ("b", "ok")]


def test_a_second_writer_is_told_who_is_there(tmp_path: Path) -> None:
    with Store.open(tmp_path):
        opened = f"Store.open(Path({str(tmp_path)!r}))"
        code = f"from pathlib import Path; from stbench.records.store import Store; {opened}"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert f"{tmp_path} is in use by another stbench" in done.stderr
        with pytest.raises(BusyError) as caught:
            Store.open(tmp_path)
        assert caught.value.exit_code == 4
    Store.open(tmp_path).close()


def test_a_full_disk_keeps_what_was_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path) as opened:
        opened.append(record("a"))
        write = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[: len(data) // 2]))
        with pytest.raises(StoreError, match="no space left"):
            opened.append(record("b"))
        monkeypatch.undo()
        opened.append(record("c"))
    assert ids(tmp_path) == ["a", "c"]
    assert read_records(tmp_path).problems == []


def test_a_record_is_on_the_disk_when_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def remember(handle: int) -> None:
        fsync(handle)
        synced.append(os.fstat(handle).st_size)

    with Store.open(tmp_path) as opened:
        monkeypatch.setattr(os, "fsync", remember)
        for name in ("a", "b"):
            opened.append(record(name))
            assert synced[-1] == (tmp_path / "records.jsonl").stat().st_size
    assert len(synced) == 2


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "a/b", "../x", "a b", "x" * 101, "a\n", "-x"])
def test_refused_campaign_names(name: str) -> None:
    with pytest.raises(StoreError, match="is no name for a campaign"):
        store.validate_campaign_name(name)


def test_records_of_a_pipe_are_refused_with_its_reason(tmp_path: Path) -> None:
    """As in a shell's ``<(git show HEAD:results/.../records.jsonl)``."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: is not a regular file"):
        read_records(tmp_path / "pipe")


def test_reading_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_records(tmp_path)
    with pytest.raises(InputError, match="no campaign to resume"):
        store.newest_campaign(tmp_path)
    assert store.read_campaign(tmp_path) is None
    (tmp_path / "campaign.json").write_text("[")
    with pytest.raises(InputError, match=r"campaign\.json"):
        store.read_campaign(tmp_path)
