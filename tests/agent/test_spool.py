"""What lies on the device of detached jobs: nothing is lost with a full or a read-only disk, nothing stays
for ever, and nothing goes that the host has not acknowledged."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stbench.agent import spool as spools
from stbench.agent import wire
from stbench.agent.keeper import typed_record
from stbench.agent.spool import Spool, Started
from stbench.agent.wire import Receipt, RunRecord, spool_key
from tests.agent.conftest import fake_job
from tests.agent.detached import Board, eventually, record_of
from tests.conftest import require

JOB = fake_job()
KEY = spool_key("me@here", JOB.campaign, JOB.id, JOB.label, 0)
STARTED = Started("me@here", "c", JOB.label, 0, "boot", 1, 1, 1, "")


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    """Nothing of it outlives the test."""
    board = Board(tmp_path)
    yield board
    board.kill_everything()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Board]:
    """A board whose spool has 1.5 MiB: room for one record and little more."""
    require(os.geteuid() == 0, "mounting takes root")
    board = Board(tmp_path)
    board.spool.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=1536k", "tmpfs", str(board.spool)]
    require(subprocess.run(mounted, capture_output=True).returncode == 0, "tmpfs cannot be mounted here")
    yield board
    board.kill_everything()
    # What was killed may not have closed its files yet.
    subprocess.run(["umount", "--lazy", str(board.spool)], check=True)


def refused(board: Board) -> str:
    process = board.submit(JOB)
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = process.stdout.read(), process.stderr.read()
    assert (process.wait(60), out) == (74, "")
    return err


def fill(directory: Path) -> None:
    full = False
    with open(directory / "others", "wb") as file:
        while not full:
            try:
                os.write(file.fileno(), b"x" * 4096)
            except OSError as error:
                full = error.errno == errno.ENOSPC
                assert full


def receipt(record: RunRecord, owner: str = "me@here") -> Receipt:
    key = spool_key(owner, record.campaign, record.id, record.label, record.attempt)
    return Receipt(key, record.started_at)


# ---- receipts ----------------------------------------------------------------------------------------


def test_what_is_acknowledged_goes(board: Board) -> None:
    first, second = board.run(JOB), board.run(replace(JOB, attempt=1))
    assert [entry.state for entry in board.entries()] == ["record", "record"]
    assert board.forget(receipt(first)) == 0
    (left,) = board.entries()
    assert (left.attempt, left.owner, left.campaign, left.label) == (1, "me@here", "c", JOB.label)
    assert board.forget(receipt(second), receipt(first)) == 0
    assert list(board.spool.iterdir()) == []


def test_a_receipt_of_another_run_takes_nothing_away(board: Board) -> None:
    """As when a failed job is retried: the receipt of its first run must not cost the second one."""
    record = board.run(JOB)
    assert board.forget(replace(receipt(record), started_at="2026-01-01T00:00:00.000000Z")) == 0
    assert board.forget(receipt(record, owner="you@there")) == 0
    assert board.run(JOB) == record
    assert len(board.entries()) == 1


def test_a_reference_that_is_known_goes_whoever_computed_it(board: Board) -> None:
    board.run(JOB)
    board.run(replace(JOB, id="reference-1", purpose="reference"))
    keys = {entry.key for entry in board.entries()}
    assert board.forget(*(Receipt(key, "") for key in keys)) == 0
    assert {entry.key for entry in board.entries()} == {KEY}


def test_a_running_job_is_not_forgotten(board: Board) -> None:
    record = board.run(JOB)
    endless = fake_job("hang", id="endless")
    board.submit(endless)
    board.measuring()
    states = {entry.key: entry.state for entry in board.entries()}
    key = spool_key("me@here", "c", "endless", endless.label, 0)
    assert states == {KEY: "record", key: "running"}
    assert board.forget(Receipt(key, record.started_at)) == 0
    assert [entry.state for entry in board.entries() if entry.key == key] == ["running"]
    board.kill_everything()
    assert [entry.state for entry in board.entries() if entry.key == key] == ["started"]


def test_a_death_while_forgetting_leaves_a_record_or_nothing(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path))
    spool.note_start(KEY, STARTED)
    spool.store(KEY, wire.dumps(JOB))
    for kind in ("started", "lock"):
        Path(spool.path(KEY, kind)).unlink(missing_ok=True)
        assert [entry.state for entry in spool.entries()] == ["record"]


def test_a_job_forgotten_while_somebody_lists_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(str(tmp_path))
    spool.note_start(KEY, STARTED)
    record = typed_record(JOB, "failed", "")
    spool.store(KEY, wire.dumps(record))
    listed = os.listdir(tmp_path)
    assert spool.forget(Receipt(KEY, record.started_at))
    monkeypatch.setattr(os, "listdir", lambda _: listed)
    assert list(spool.entries()) == []
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "x" * 32, "0" * 31, "0" * 33])
def test_no_receipt_names_another_file(board: Board, key: str) -> None:
    board.spool.mkdir()
    assert board.forget(Receipt(key, "")) == 2


def test_a_spool_that_nobody_empties_takes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spools, "MAX_JOBS", 3)
    spool = Spool(str(tmp_path))
    for number in range(3):
        spool.make_room(f"{number:032x}")
        spool.note_start(f"{number:032x}", STARTED)
    with pytest.raises(OSError, match="3 jobs wait for whoever submitted them"):
        spool.make_room(KEY)


# ---- disks -------------------------------------------------------------------------------------------


def test_a_full_disk_refuses_the_job_before_it_runs(small: Board) -> None:
    fill(small.spool)
    said = refused(small)
    assert "No space left on device" in said
    assert str(small.spool) in said
    assert [path.name for path in small.spool.iterdir()] == ["others"]
    (small.spool / "others").unlink()
    assert small.run(JOB).status == "ok"


def test_a_disk_that_fills_up_during_the_run_costs_no_record(small: Board) -> None:
    go = small.directory / "go"
    job = fake_job(f"until={go}")
    follower = small.submit(job)
    small.measuring()
    fill(small.spool)
    go.touch()
    record = record_of(follower)
    assert record.status == "ok"
    assert small.run(job) == record


def test_a_record_too_large_for_the_disk_says_so(small: Board) -> None:
    settings = wire.Settings(threads=1, n_ctx=400010)
    job = fake_job("vocab=16", workload=wire.Workload(8, 400000), settings=settings, warmup_tokens=0)
    record = small.run(job)
    assert record.status == "failed"
    assert "bytes could not be stored: [Errno 28] No space left on device" in record.detail


def test_a_read_only_spool_is_an_error_that_names_it(tmp_path: Path) -> None:
    require(os.geteuid() == 0, "mounting takes root")
    board = Board(tmp_path)
    board.spool.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(board.spool)]
    require(subprocess.run(mounted, capture_output=True).returncode == 0, "tmpfs cannot be mounted here")
    try:
        said = refused(board)
    finally:
        subprocess.run(["umount", str(board.spool)], check=True)
    assert said.startswith(f"stbench.agent: the spool {board.spool}: ")
    assert "Read-only file system" in said


def test_a_spool_that_becomes_read_only_is_an_error(small: Board) -> None:
    """The record cannot be kept, and says nothing that is not kept."""
    go = small.directory / "go"
    follower = small.submit(fake_job(f"until={go}"))
    small.measuring()
    subprocess.run(["mount", "-o", "remount,ro", str(small.spool)], check=True)
    go.touch()
    assert follower.stdout is not None
    assert follower.stderr is not None
    assert follower.stdout.read() == ""
    assert follower.wait(60) == 74
    assert "Read-only file system" in follower.stderr.read()


def test_a_file_in_the_way_is_an_error(board: Board) -> None:
    board.spool.write_text("")
    assert "File exists" in refused(board)


def test_it_is_this_user_s_alone(board: Board) -> None:
    board.run(JOB)
    assert board.spool.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in board.spool.iterdir()} == {0o600}


def test_a_torn_start_is_none(board: Board) -> None:
    """As a file system leaves it that kept the name and lost the bytes: the job runs."""
    board.spool.mkdir()
    (board.spool / f"{KEY}.started").write_text('{"owner":')
    assert board.run(JOB).status == "ok"
    eventually(lambda: not board.processes())
