"""The index of records: the same rows as reading gives, whatever happens to files and index."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest

from stbench.agent import wire
from stbench.agent.wire import RunRecord
from stbench.errors import InputError
from stbench.records import index_reading, record_index, store
from stbench.records.frame import to_frame
from stbench.records.gathering import Gathered
from stbench.records.one_run import finished
from stbench.records.record_index import RecordIndex
from stbench.tables import grid, notes, render
from tests.benchmarks.million_records import generate
from tests.compare.records import beside, case, disturbed, in_cache, noisy, write
from tests.conftest import require
from tests.host.conftest import ROOT, Sandbox, sandbox

__all__ = ["sandbox"]

# Limited runs with caches and their bounds, and a campaign of two engines.
REAL = [ROOT / "results" / f"epyc-2core-{name}" for name in ("cache-sizes-4b", "limited-21b", "quick")]


def from_records(paths: Sequence[Path]) -> pd.DataFrame:
    """Rows as the grid makes them without an index."""
    return to_frame(finished(read(paths))[0])


def read(paths: Sequence[Path]) -> list[RunRecord]:
    return [record for path in paths for record in store.read_records(path).latest()]


def gathered(paths: Sequence[Path], index: Path) -> Gathered:
    with RecordIndex(index) as opened:
        found = opened.gather(paths)
        assert not opened.notes
        return found


def assert_equal(found: Gathered, wanted: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found.rows.frame().reset_index(drop=True), wanted)


def assert_same(paths: Sequence[Path], index: Path) -> Gathered:
    """Rows, sentences and facts are those of reading."""
    found = gathered(paths, index)
    assert_equal(found, from_records(paths))
    assert found.problems == tuple(text for path in paths for text in store.read_records(path).problems)
    kept, claims = finished(read(paths))
    assert (list(found.claims), found.facts) == (claims, notes.device_facts(kept))
    return found


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "index.sqlite"


@pytest.fixture
def campaign(tmp_path: Path) -> Path:
    """Thirty runs, some of them disturbed, one beside another bandwidth, one failed, one cancelled and run
    again."""
    runs = [beside(one, 40.0 + i / 100) for i, one in enumerate(case(noisy(30)))]
    runs[3], runs[4] = disturbed(runs[3]), beside(runs[4], 25.0)
    runs[5] = dataclasses.replace(runs[5], status="crashed", samples=None, detail="SIGSEGV")
    runs[6] = in_cache(beside(runs[6], 10.0), 84.0)
    runs.insert(7, dataclasses.replace(runs[7], status="cancelled", samples=None))
    runs.append(dataclasses.replace(runs[8], status="cancelled", samples=None))
    return Path(write(tmp_path / "results" / "c1", runs))


@pytest.mark.parametrize("chunk", [7, 8192])
def test_rows_are_those_of_reading(
    index: Path, campaign: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_reading, "CHUNK", chunk)
    found = assert_same([campaign], index)
    assert found.frame["disturbed"].sum() == 2
    assert found.frame["off_level"].sum() == 1
    assert len(found.frame) == 30
    assert_same([campaign], index)


def test_all_committed_campaigns_and_their_tables(index: Path) -> None:
    """Also a cache's bounds and limits: frames are equal in every column, tables in every byte."""
    require(all(path.is_dir() for path in REAL), "a checkout has results/")
    assert_same(REAL, index)
    found = gathered(REAL[:2], index)
    records = read(REAL[:2])
    made = grid.tables_of(found.frame, found.facts, found.claims)
    assert render.json_text(made) == render.json_text(grid.build_tables(records))
    assert found.facts == notes.device_facts(records)


def test_appended_lines_are_read_alone(index: Path, campaign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gathered([campaign], index)
    read: list[int] = []
    lines = index_reading.read_lines

    def counting(path: Path, *, offset: int = 0, number: int = 0) -> object:
        for line in lines(path, offset=offset, number=number):
            read.append(line.number)
            yield line

    monkeypatch.setattr(index_reading, "read_lines", counting)
    more = [beside(one, 40.0) for one in case(noisy(40, seed=1), start=60)][30:]
    with (campaign / "records.jsonl").open("a") as file:
        file.write("".join(wire.dumps(one) + "\n" for one in more))
    assert len(assert_same([campaign], index).frame) == 40
    assert read == list(range(33, 43))
    gathered([campaign], index)
    assert read == list(range(33, 43))


def _cut(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:20]))


def _edit(path: Path) -> None:
    """A digit in the middle: the same size, another time."""
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"replicate":1,', b'"replicate":2,', 1))


def _edit_and_append(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    _edit(path)
    with path.open("ab") as file:
        file.write(lines[-2])


def _replace(path: Path) -> None:
    path.write_text("".join(wire.dumps(one) + "\n" for one in case(noisy(12, seed=5))))


@pytest.mark.parametrize("change", [_cut, _edit, _edit_and_append, _replace])
def test_cut_and_rewritten_files_are_read_anew(
    index: Path, campaign: Path, change: Callable[[Path], None]
) -> None:
    gathered([campaign], index)
    change(campaign / "records.jsonl")
    assert_same([campaign], index)


def test_a_torn_line_and_broken_ones_are_said(index: Path, campaign: Path) -> None:
    path = campaign / "records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b"{}\n" + whole[:100])
    found = assert_same([campaign], index)
    assert [text.partition("jsonl:")[2].partition(":")[0] for text in found.problems[:2]] == ["33", "34"]
    path.write_bytes(whole + b"{}\n" + whole[:100] + whole[100 : whole.index(b"\n") + 1])
    assert not any("unfinished" in text for text in assert_same([campaign], index).problems)


@pytest.mark.parametrize("damage", ["text", "cut", "hole", "version"])
def test_a_damaged_index_is_made_anew(index: Path, campaign: Path, damage: str) -> None:
    gathered([campaign], index)
    if damage == "text":
        index.write_text("no database at all, but a text that somebody saved here")
    elif damage == "cut":
        with index.open("r+b") as file:
            file.truncate(index.stat().st_size // 2 // 4096 * 4096)
    elif damage == "hole":
        with index.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (index.stat().st_size - 8192))
    else:
        with sqlite3.connect(index) as database:
            database.execute("UPDATE meta SET version = 'older'")
        database.close()
    with RecordIndex(index) as opened:
        found = opened.gather([campaign])
        assert len(opened.notes) == 1
    assert_equal(found, from_records([campaign]))
    gathered([campaign], index)


def test_one_campaign_in_two_places_counts_once(index: Path, campaign: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes((campaign / "records.jsonl").read_bytes())
    assert len(assert_same([campaign, copy], index).frame) == 30
    copy.write_text("".join(json.dumps(json.loads(line)) + "\n" for line in copy.read_text().splitlines()))
    assert not assert_same([campaign, copy], index).claims
    edited = copy.read_bytes().replace(b'"detail": ""', b'"detail": "edited"', 1)
    copy.write_bytes(edited)
    for paths in ([campaign, copy], [copy, campaign]):
        found = assert_same(paths, index)
        assert (len(found.frame), len(found.claims)) == (30, 1)


def test_a_campaign_in_two_files_is_judged_as_one(index: Path, tmp_path: Path) -> None:
    """Each half by itself is at a level of its own; only together they show which was disturbed."""
    runs = [beside(one, 40.0 if i < 20 else 30.0) for i, one in enumerate(case(noisy(40)))]
    first = Path(write(tmp_path / "first", runs[:20]))
    second = Path(write(tmp_path / "second", runs[20:]))
    assert not assert_same([second], index).frame["disturbed"].any()
    for paths in ([first, second], [second, first]):
        assert assert_same(paths, index).frame["disturbed"].sum() == 20


def test_a_file_with_its_old_time_is_read_anew(index: Path, campaign: Path) -> None:
    path = campaign / "records.jsonl"
    gathered([campaign], index)
    before = path.stat()
    _edit(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert_same([campaign], index)


def test_a_removed_file_is_forgotten(index: Path, campaign: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_bytes((campaign / "records.jsonl").read_bytes())
    gathered([campaign, other], index)
    other.unlink()
    with pytest.raises(InputError, match="no such file"):
        gathered([campaign, other], index)
    _replace(campaign / "records.jsonl")
    assert_same([campaign], index)
    with sqlite3.connect(index) as database:
        assert database.execute("SELECT count(*) FROM files").fetchone() == (1,)
        assert database.execute("SELECT count(DISTINCT file) FROM columns").fetchone() == (1,)
    database.close()


_READER = """
import sys
from pathlib import Path
from stbench.records import index_reading, record_index
index_reading.CHUNK = 50
index_reading.SEVERAL_BYTES = int(sys.argv[3])
started = index_reading._start
def start():
    process = started()
    print("reader", process.pid, flush=True)
    return process
index_reading._start = start
with record_index.RecordIndex(Path(sys.argv[2])) as index:
    index.gather([Path(sys.argv[1])], lambda done, total: print(done, flush=True))
"""


@pytest.mark.parametrize("several", [0, 1 << 40], ids=["processes", "alone"])
def test_a_killed_reader_loses_what_it_had_not_stored(index: Path, tmp_path: Path, several: int) -> None:
    campaign = Path(write(tmp_path / "results" / "c1", case(noisy(600))))
    child = subprocess.Popen(
        [sys.executable, "-c", _READER, str(campaign), str(index), str(several)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    readers, progress = [], 0
    while progress < 4:
        words = child.stdout.readline().split()
        assert words
        if words[0] == "reader":
            readers.append(int(words[1]))
        else:
            progress += 1
    os.kill(child.pid, signal.SIGKILL)
    child.wait(timeout=60)
    assert bool(readers) == (several == 0)
    begun: list[int] = []
    with RecordIndex(index) as opened:
        found = opened.gather([campaign], lambda done, total: begun.append(done))
        assert not opened.notes
        (offset,) = opened._database.execute("SELECT min(chunk) FROM chunks").fetchone()
        assert offset == 0
        (chunks,) = opened._database.execute("SELECT count(*) FROM chunks WHERE rows = 50").fetchone()
    assert chunks >= 4
    assert_equal(found, from_records([campaign]))
    # Nobody writes to them any more.
    deadline = time.monotonic() + 60
    while any(_runs(pid) for pid in readers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"index_reading" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def test_processes_read_the_same_and_one_that_dies_is_done_without(
    index: Path, campaign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_reading, "CHUNK", 3)
    monkeypatch.setattr(index_reading, "processes_for", lambda size: 2)
    started = index_reading._start
    processes = []

    def start() -> subprocess.Popen[bytes]:
        processes.append(started())
        if len(processes) == 4:
            processes[-1].kill()
        return processes[-1]

    monkeypatch.setattr(index_reading, "_start", start)
    path = campaign / "records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + whole.replace(b"\n", b"\r\n", 9) + b"{}\n" * 9 + b"\0\n" + whole[:99])
    for _ in range(2):
        assert_same([campaign], index)
        index.unlink()
    assert len(processes) == 4


def test_many_records(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small version of `python -m tests.benchmarks.million_records`: streamed in several chunks, and the
    second time a matter of reading columns."""
    monkeypatch.setattr(index_reading, "CHUNK", 500)
    path = tmp_path / "results" / "many" / "records.jsonl"
    generate(path, 2_000)
    found = gathered([path], index)
    assert len(found.frame) == 2_000
    assert found.frame["usable"].all()

    def reads(path: Path, span: object) -> object:
        raise AssertionError(f"{path} is known")

    monkeypatch.setattr(index_reading, "read_span", reads)
    assert_equal(gathered([path], index), found.rows.frame().reset_index(drop=True))


def test_the_grid_by_the_index_is_the_grid(sandbox: Sandbox) -> None:
    require(REAL[0].is_dir(), "a checkout has results/")
    for options in ([], ["--engine", "sbr"]):
        plain = sandbox.run("grid", str(REAL[0]), "--format", "md", *options)
        assert sandbox.run("grid", str(REAL[0]), "--format", "md", "--index", *options) == plain
        assert plain[0] == 0
    assert 'unknown engine "other"' in sandbox.run("grid", str(REAL[0]), "--index", "--engine", "other")[2]


def test_large_results_go_through_the_index_by_themselves(
    sandbox: Sandbox, campaign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_index, "LARGE_BYTES", 1000)
    index = sandbox.directory.parent / "cache" / "stbench" / record_index.NAME
    assert sandbox.run("grid", str(campaign), "--no-index")[0] == 0
    assert not index.exists()
    assert sandbox.run("grid", str(campaign))[0] == 0
    assert index.exists()


def test_a_repeated_run_counts_once_and_judges_nobody(index: Path, tmp_path: Path) -> None:
    """First attempts beside another bandwidth: they are no part of the campaign's level."""
    runs = [beside(one, 40.0) for one in case(noisy(20))]
    first = [beside(one, 60.0) for one in runs]
    again = [dataclasses.replace(one, attempt=1) for one in runs]
    campaign = Path(write(tmp_path / "results" / "c1", [*first, *again]))
    assert not assert_same([campaign], index).frame["disturbed"].any()
