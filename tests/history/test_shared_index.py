"""One index and several processes, and what is no damage of it: a full disk, a lock, somebody else's file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import sqlite3
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from stbench.agent import wire
from stbench.errors import InputError
from stbench.records import index_reading, record_index
from stbench.records.columnar import Column, Damaged
from stbench.records.record_index import RecordIndex
from tests.compare.records import case, noisy, write
from tests.history.test_record_index import assert_equal, assert_same, from_records, gathered
from tests.host.conftest import Sandbox, sandbox

__all__ = ["sandbox"]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "index.sqlite"


@pytest.fixture
def campaign(tmp_path: Path) -> Path:
    return Path(write(tmp_path / "results" / "c1", case(noisy(30))))


def test_two_readers_at_once_share_the_index(
    index: Path, campaign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each finds out what is known before the other has stored anything."""
    monkeypatch.setattr(index_reading, "CHUNK", 7)
    known = record_index._Reading._known

    def slowly(self: record_index._Reading, size: int) -> object:
        found = known(self, size)
        time.sleep(0.5)
        return found

    monkeypatch.setattr(record_index._Reading, "_known", slowly)
    for lines in (b"", (campaign / "records.jsonl").read_bytes()):
        with (campaign / "records.jsonl").open("ab") as file:
            file.write(lines)
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda _: gathered([campaign], index), range(2)))
        for found in both:
            assert_equal(found, from_records([campaign]))
    with sqlite3.connect(index) as database:
        assert database.execute("SELECT count(*) FROM files").fetchone() == (1,)
    database.close()


def test_an_index_that_another_process_is_just_making_is_waited_for(index: Path, campaign: Path) -> None:
    with contextlib.ExitStack() as making, ThreadPoolExecutor(1) as pool:
        fcntl.flock(making.enter_context(index.with_name(f"{index.name}.lock").open("a")), fcntl.LOCK_EX)
        other = making.enter_context(contextlib.closing(sqlite3.connect(index, isolation_level=None)))
        other.execute("BEGIN IMMEDIATE")
        other.execute("CREATE TABLE meta (version TEXT NOT NULL)")
        made = pool.submit(gathered, [campaign], index)
        time.sleep(0.3)
        assert not made.done()
        # It is killed before it has finished.
        making.close()
        assert_equal(made.result(), from_records([campaign]))


def test_rows_that_are_there_already_are_no_damage(
    index: Path, campaign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process without the lock would store them."""
    with RecordIndex(index) as opened:
        known = record_index._Reading._known
        times = iter([True])

        def taken(self: record_index._Reading, size: int) -> object:
            found = known(self, size)
            if next(times, False):
                opened._database.execute("INSERT INTO chunks VALUES (?, ?, 0)", found[-2:])
            return found

        monkeypatch.setattr(record_index._Reading, "_known", taken)
        assert_equal(opened.gather([campaign]), from_records([campaign]))
        assert not opened.notes


def test_columns_are_of_one_state_while_another_process_reads_what_was_appended(
    index: Path, campaign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The campaign goes on, and another process brings the index up to date between two columns of ours."""
    gathered([campaign], index)
    before = from_records([campaign])
    more = "".join(wire.dumps(one) + "\n" for one in case(noisy(40, seed=1), start=60)[30:])
    column, calls = RecordIndex.column, iter(range(1_000_000))

    def interrupted(self: RecordIndex, files: Sequence[int], name: str) -> Column:
        if self is opened and next(calls) == 5:
            with (campaign / "records.jsonl").open("a") as file:
                file.write(more)
            with RecordIndex(index) as other:
                other.refresh([(campaign / "records.jsonl").resolve()])
        return column(self, files, name)

    monkeypatch.setattr(RecordIndex, "column", interrupted)
    with RecordIndex(index) as opened:
        assert_equal(opened.gather([campaign]), before)
        assert len(opened.gather([campaign]).frame) == len(before) + 10
        assert not opened.notes


@pytest.mark.parametrize("forever", [False, True])
def test_half_of_a_file_is_waited_for_and_is_no_damage(
    index: Path, campaign: Path, monkeypatch: pytest.MonkeyPatch, forever: bool
) -> None:
    """Another process has stored rows, and not yet what all rows tell together, just when we load."""
    gathered([campaign], index)
    inode = index.stat().st_ino
    lines = [wire.dumps(one) + "\n" for one in case(noisy(80, seed=1), start=60)[30:]]
    refresh = RecordIndex.refresh
    times = iter(range(1000))

    class Killed(Exception):
        pass

    def derive(*_: object) -> None:
        raise Killed

    def followed(self: RecordIndex, *args: Any) -> None:
        refresh(self, *args)
        if self is opened and (next(times) == 0 or forever):
            with (campaign / "records.jsonl").open("a") as file:
                file.write(lines.pop())
            with monkeypatch.context() as patch, RecordIndex(index) as other:
                patch.setattr(record_index._Reading, "_derive", derive)
                with pytest.raises(Killed):
                    refresh(other, [(campaign / "records.jsonl").resolve()])

    monkeypatch.setattr(RecordIndex, "refresh", followed)
    with RecordIndex(index) as opened:
        if forever:
            with pytest.raises(InputError, match="other processes change it all the time"):
                opened.gather([campaign])
        else:
            assert_equal(opened.gather([campaign]), from_records([campaign]))
        assert not opened.notes
    assert index.stat().st_ino == inode


def test_an_index_that_another_process_has_repaired_is_kept(
    index: Path, campaign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered([campaign], index)
    column, times = RecordIndex.column, iter([True])

    def damaged(self: RecordIndex, files: Sequence[int], name: str) -> Column:
        if self is opened and next(times, False):
            for path in index.parent.glob(f"{index.name}*"):
                path.unlink()
            gathered([campaign], index)
            made.append(index.stat().st_ino)
            raise Damaged("as the other process found, too")
        return column(self, files, name)

    made: list[int] = []
    monkeypatch.setattr(RecordIndex, "column", damaged)
    with RecordIndex(index) as opened:
        assert_equal(opened.gather([campaign]), from_records([campaign]))
        assert not opened.notes
    assert made == [index.stat().st_ino]


@pytest.mark.parametrize("waits", [False, True])
def test_a_file_system_without_locks_ends_with_a_sentence(
    index: Path, campaign: Path, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    def flock(file: object, how: int) -> None:
        if waits and how & fcntl.LOCK_NB:
            raise BlockingIOError
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(InputError, match=r"used: index\.sqlite\.lock: No locks available") as caught:
        gathered([campaign], index)
    assert "--no-index" in caught.value.hint


def test_a_lock_that_cannot_be_opened_ends_with_a_sentence(index: Path, campaign: Path) -> None:
    index.with_name(f"{index.name}.lock").mkdir()
    with pytest.raises(InputError, match=r"used: index\.sqlite\.lock: Is a directory") as caught:
        gathered([campaign], index)
    assert "--no-index" in caught.value.hint


def test_a_full_disk_ends_with_a_sentence_and_keeps_the_index(index: Path, campaign: Path) -> None:
    gathered([campaign], index)
    inode = index.stat().st_ino
    whole = (campaign / "records.jsonl").read_bytes()
    with (campaign / "records.jsonl").open("ab") as file:
        file.write(whole * 20)
    with RecordIndex(index) as opened:
        (pages,) = opened._database.execute("PRAGMA page_count").fetchone()
        opened._database.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(InputError, match="cannot be used: database or disk is full") as caught:
            opened.gather([campaign])
        assert "history --index FILE" in caught.value.hint
        assert "grid --no-index" in caught.value.hint
        assert not opened.notes
    assert index.stat().st_ino == inode
    assert_same([campaign], index)


def test_a_locked_index_is_no_damaged_one(index: Path, campaign: Path) -> None:
    with RecordIndex(index) as opened, contextlib.closing(sqlite3.connect(index)) as other:
        opened._database.execute("PRAGMA busy_timeout = 10")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(InputError, match="cannot be used: database is locked"):
            opened.gather([campaign])
        other.execute("ROLLBACK")
        assert_equal(opened.gather([campaign]), from_records([campaign]))
        assert not opened.notes


def test_no_room_for_an_index_is_said_with_options_that_there_are(tmp_path: Path, sandbox: Sandbox) -> None:
    (tmp_path / "file").write_text("")
    campaign = write(tmp_path / "c", case(noisy(3)))
    for place in ("no/such/place", "file/index"):
        code, _, said = sandbox.run("history", str(campaign), "--index", str(tmp_path / place))
        assert code == 2
        assert "--index FILE" in said


def test_a_database_of_somebody_else_s_is_not_thrown_away(index: Path, campaign: Path) -> None:
    with contextlib.closing(sqlite3.connect(index)) as database:
        database.execute("CREATE TABLE theirs (a)")
    gathered([campaign], index)
    with contextlib.closing(sqlite3.connect(index)) as database:
        assert database.execute("SELECT count(*) FROM theirs").fetchone() == (0,)
