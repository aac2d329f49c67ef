"""Detached jobs: submitted, left alone, found again, killed, rebooted. Real processes, real kill -9."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stbench.agent import keeper, wire
from stbench.agent.spool import Spool
from stbench.agent.wire import Alive, JobSpec, RunRecord
from tests.agent.conftest import fake_job
from tests.agent.detached import Board, alive, busy, eventually, record_of

# A job whose limits are never the reason that it ends; the tests' own waits end before.
SLOW = fake_job("sleep=0.2")
ENDLESS = fake_job("hang", timeout_s=300.0)


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    """Nothing of it outlives the test."""
    board = Board(tmp_path)
    yield board
    board.kill_everything()


def stored_lines(board: Board) -> list[str]:
    return [path.read_text() for path in board.spool.glob("*.record")]


# ---- the link ----------------------------------------------------------------------------------------


def test_the_record_lies_on_the_device_and_is_printed_again(board: Board) -> None:
    record = board.run(SLOW)
    assert (record.status, record.id) == ("ok", SLOW.id)
    assert stored_lines(board) == [wire.dumps(record) + "\n"]
    assert board.run(SLOW) == record, "it ran again"
    assert board.run(replace(SLOW, attempt=1)) != record, "another attempt is another job"


def test_signs_of_life_come_every_two_seconds(board: Board) -> None:
    process = board.submit(ENDLESS)
    assert process.stdout is not None
    seen = [wire.loads(Alive, process.stdout.readline()).alive for _ in range(2)]
    assert 1.9 < seen[0] < seen[1]


@pytest.mark.parametrize("how", ["stdin ends", "stdout breaks", "killed"])
def test_the_job_goes_on_without_its_follower(board: Board, how: str) -> None:
    done = board.directory / "done"
    job = fake_job(f"until={done}")
    follower = board.submit(job)
    assert follower.stdin is not None
    assert follower.stdout is not None
    keeper = board.keeper()
    if how == "stdin ends":
        follower.stdin.close()
        assert follower.wait(60) == 1
    elif how == "stdout breaks":  # noticed with the next sign of life
        follower.stdout.close()
        assert follower.wait(60) == 1
    else:
        follower.kill()
        follower.wait(60)
    assert board.keeper() == keeper
    done.touch()
    record = board.run(job)
    assert record.status == "ok"
    assert len(stored_lines(board)) == 1
    eventually(lambda: not board.processes())


def test_several_followers_see_one_run(board: Board) -> None:
    followers = [board.submit(SLOW) for _ in range(4)]
    records = [record_of(follower) for follower in followers]
    assert {record.started_at for record in records} == {records[0].started_at}


def test_a_follower_that_nobody_reads_hinders_no_job(board: Board) -> None:
    """64 KiB fill the pipe; the record alone has more."""
    job = fake_job("vocab=64", workload=wire.Workload(8, 20000), settings=wire.Settings(1, n_ctx=20100))
    deaf = board.submit(job)
    eventually(lambda: stored_lines(board), 60)
    assert len(stored_lines(board)[0]) > 1 << 17
    assert deaf.poll() is None
    assert board.run(job).status == "ok"


# ---- the wish to stop --------------------------------------------------------------------------------


def test_cancel_ends_the_job_and_it_may_run_again(board: Board) -> None:
    follower = board.submit(ENDLESS)
    measuring = board.measuring()
    assert follower.stdin is not None
    follower.stdin.write("noise\ncancel\n")
    follower.stdin.flush()
    assert record_of(follower).status == "cancelled"
    assert not alive(measuring)
    eventually(lambda: not board.processes())
    again = board.submit(ENDLESS)
    assert board.measuring() != measuring
    again.kill()


def test_cancel_reaches_a_job_that_another_one_submitted(board: Board) -> None:
    first = board.submit(ENDLESS)
    board.measuring()
    second = board.submit(ENDLESS)
    assert second.stdin is not None
    second.stdin.write("cancel\n")
    second.stdin.flush()
    assert record_of(second) == record_of(first)


def test_a_cancelled_job_runs_again_whoever_looks_at_its_record(board: Board) -> None:
    first = board.submit(ENDLESS)
    board.measuring()
    assert first.stdin is not None
    first.stdin.write("cancel\n")
    first.stdin.flush()
    assert record_of(first).status == "cancelled"
    (path,) = board.spool.glob("*.record")
    lock = Spool(str(board.spool)).try_lock(path.stem)
    assert lock is not None
    again = board.submit(ENDLESS)
    assert again.stdout is not None
    wire.loads(Alive, again.stdout.readline())
    os.close(lock)
    board.measuring()


def test_cancel_between_two_steps_of_the_job(tmp_path: Path) -> None:
    """Where no child runs that could be told."""
    begun = tmp_path / "begun"
    patch = (
        "from stbench.agent import supervise\nimport pathlib, time\n"
        f"supervise.run_job = lambda job: (pathlib.Path({str(begun)!r}).touch(), time.sleep(500))"
    )
    board = Board(tmp_path, patch)
    follower = board.submit(ENDLESS)
    eventually(begun.exists)  # a wish that comes sooner ends a job that was never started
    assert follower.stdin is not None
    follower.stdin.write("cancel\n")
    follower.stdin.flush()
    record = record_of(follower)
    assert (record.status, record.detail) == ("cancelled", "SIGTERM between two steps")


def test_cancel_as_soon_as_the_job_has_said_who_it_is(tmp_path: Path) -> None:
    patch = """
import os, signal
from stbench.agent.spool import Spool
note_start = Spool.note_start
def told(self, key, started):
    note_start(self, key, started)
    os.kill(os.getpid(), signal.SIGTERM)
Spool.note_start = told
"""
    record = Board(tmp_path, patch).run(ENDLESS)
    assert (record.status, record.detail) == ("cancelled", "SIGTERM between two steps")


def test_cancel_while_waiting_for_the_board(board: Board) -> None:
    holder = board.submit(ENDLESS)
    board.measuring()
    waiting = board.submit(fake_job(id="other"), "--wait", "100", owner="you@there")
    assert waiting.stdin is not None
    assert waiting.stdout is not None
    told = wire.loads(Alive, waiting.stdout.readline())
    assert "in use by me@here" in told.waiting_for
    waiting.stdin.write("cancel\n")
    waiting.stdin.flush()
    assert record_of(waiting).detail == "stopped before it was started"
    holder.kill()


# ---- deaths ------------------------------------------------------------------------------------------


def test_a_killed_keeper_is_a_crash_and_takes_all_with_it(board: Board) -> None:
    follower = board.submit(ENDLESS)
    measuring = board.measuring()
    os.kill(board.keeper(), signal.SIGKILL)
    record = record_of(follower)
    assert record.status == "crashed"
    assert "killed" in record.detail
    assert not alive(measuring)
    assert board.run(ENDLESS) == record, "it is a result, and is not tried again"


ORPHANS = """
from stbench.agent import lease, supervise
import os, signal, subprocess, time
lease.lease_s = lambda job, grace_s=0: {limit}
def written(path):
    return os.path.exists(path) and os.path.getsize(path) > 0
def run_job(job):
    # The lease waits for them, however long a busy machine takes to start them.
    left = signal.setitimer(signal.ITIMER_REAL, 0)
    # One that left the session, one whose parent is gone, and one that does not want to end.
    subprocess.Popen(["sh", "-c", "setsid sh -c 'echo $$ >{file}.1; exec sleep 100' & exec sleep 100"])
    subprocess.Popen(["sh", "-c", "(trap '' TERM; echo 1 >{file}.2; sleep 50; sleep 50) & exit"])
    while not (written("{file}.1") and written("{file}.2")):
        time.sleep(0.01)
    open("{file}", "w").close()
    signal.setitimer(signal.ITIMER_REAL, *left)
    time.sleep(100)
supervise.run_job = run_job
"""


def descendants(session: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] not in "ZX" and int(fields[3]) == session:
            found.append(int(path.parent.name))
    return found


def test_a_job_ends_with_its_lease_and_all_below_it(tmp_path: Path) -> None:
    """Whatever it is doing: here it hangs where its own time limit is not looked at."""
    board = Board(tmp_path, ORPHANS.format(limit=4.0, file=tmp_path / "ready"))
    follower = board.submit(fake_job())
    keeper = board.keeper()
    eventually((tmp_path / "ready").exists)
    escaped = int((tmp_path / "ready.1").read_text())
    record = record_of(follower)
    assert (record.status, record.detail) == ("timeout", "not done when its lease of 4 s was over")
    eventually(lambda: not descendants(keeper))
    eventually(lambda: not alive(escaped))


def test_who_comes_next_ends_what_a_killed_keeper_left(tmp_path: Path) -> None:
    board = Board(tmp_path, ORPHANS.format(limit=500.0, file=tmp_path / "ready"))
    follower = board.submit(fake_job())
    keeper = board.keeper()
    eventually((tmp_path / "ready").exists)
    follower.kill()
    os.kill(keeper, signal.SIGKILL)
    assert len(descendants(keeper)) >= 2
    assert board.run(fake_job()).status == "crashed"
    assert not descendants(keeper)
    subprocess.run(["kill", "-9", (tmp_path / "ready.1").read_text().strip()], check=True)


def test_what_gives_its_memory_back_slowly_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process of many GiB does."""
    slow = subprocess.Popen(["sleep", "100"], start_new_session=True)
    kill, dies_at = os.kill, time.monotonic() + 3.0

    def slowly(pid: int, number: int) -> None:
        if time.monotonic() > dies_at:
            kill(pid, number)

    monkeypatch.setattr(os, "kill", slowly)
    keeper.end_all(slow.pid)
    assert time.monotonic() > dies_at
    assert slow.wait(5) == -signal.SIGKILL


def test_a_defect_is_a_failed_record(tmp_path: Path) -> None:
    patch = "from stbench.agent import supervise\nsupervise.run_job = lambda job: 1 / 0"
    record = Board(tmp_path, patch).run(fake_job())
    assert (record.status, record.detail) == ("failed", "ZeroDivisionError: division by zero")


# ---- reboots -----------------------------------------------------------------------------------------


def test_a_job_lost_with_a_reboot_is_started_again(board: Board) -> None:
    job = fake_job("sleep=0.2")
    board.submit(replace(job, model=replace(job.model, name="fake:hang")), "--boot-id", "first")
    board.measuring()
    board.kill_everything()
    assert board.run(job, "--boot-id", "second").status == "ok"


def test_a_job_that_reboots_its_board_is_lost(board: Board) -> None:
    for boot in ("first", "second", "third"):
        board.submit(ENDLESS, "--boot-id", boot)
        board.measuring()
        board.kill_everything()
    record = board.run(ENDLESS, "--boot-id", "fourth")
    assert (record.status, record.detail) == ("lost", "the device rebooted each of the 3 times that it ran")
    assert board.run(ENDLESS, "--boot-id", "fourth") == record


def test_a_record_outlives_the_reboot(board: Board) -> None:
    record = board.run(SLOW, "--boot-id", "first")
    assert board.run(SLOW, "--boot-id", "second") == record


def test_nobody_is_killed_whose_number_the_process_had_before(board: Board) -> None:
    """After a reboot numbers begin anew: a wish to stop must not end a stranger."""
    stranger = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        follower = board.submit(ENDLESS)
        board.measuring()
        board.kill_everything()
        follower.wait()
        (path,) = board.spool.glob("*.started")
        path.write_text(re.sub(r'"pid":\d+', f'"pid":{stranger.pid}', path.read_text()))
        assert board.run(ENDLESS).status == "crashed"
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


# ---- two owners --------------------------------------------------------------------------------------


def test_the_second_owner_is_told_and_may_wait(board: Board) -> None:
    done = board.directory / "done"
    first = board.submit(fake_job(f"until={done}", campaign="night"))
    board.measuring()
    said = busy(board.submit(fake_job(id="other"), owner="you@there"))
    assert re.search(
        r"in use by me@here \(campaign night, job local:fake/dense/t1/pp8\+tg20\) since \d+ s "
        r"\(\d{4}-.* by its clock\), for at most \d+ s more$",
        said.strip(),
    )
    second = board.submit(fake_job(id="other"), "--wait", "60", owner="you@there")
    assert second.stdout is not None
    assert "in use by me@here" in wire.loads(Alive, second.stdout.readline()).waiting_for
    done.touch()
    assert record_of(second).status == "ok"
    assert record_of(first).status == "ok"


def test_waiting_has_an_end(board: Board) -> None:
    board.submit(ENDLESS)
    board.measuring()
    assert "in use by me@here" in busy(board.submit(fake_job(id="other"), "--wait", "1", owner="you@there"))
    assert not [entry for entry in board.entries() if entry.owner == "you@there"]
    assert len(list(board.spool.iterdir())) == 3, "the refused job left something"


def test_who_resumes_waits_for_what_was_left_running(board: Board) -> None:
    done = board.directory / "done"
    left = board.submit(fake_job(f"until={done}"))
    board.measuring()
    left.kill()
    resumed = board.submit(fake_job(id="next"))
    assert resumed.stdout is not None
    assert "in use by me@here" in wire.loads(Alive, resumed.stdout.readline()).waiting_for
    done.touch()
    assert record_of(resumed).status == "ok"


def test_the_same_job_of_two_owners_is_two_jobs(board: Board) -> None:
    mine, theirs = board.run(fake_job()), board.run(fake_job(), owner="you@there")
    assert mine.started_at != theirs.started_at


# ---- what is sent ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "garbage\n", "{}\n", "[" * 100000 + "\n"])
def test_an_unreadable_job_is_refused(board: Board, text: str) -> None:
    process = board.agent("run", "--spool", str(board.spool), "--owner", "me@here")
    _, err = process.communicate(text, timeout=60)
    assert process.returncode == 2
    assert "JobSpec" in err


def test_a_job_without_the_end_of_its_line(board: Board) -> None:
    job: JobSpec = fake_job()
    process = board.agent("run", "--spool", str(board.spool), "--owner", "me@here")
    assert process.stdin is not None
    process.stdin.write(wire.dumps(job))
    process.stdin.close()
    assert process.wait(60) == 1
    assert isinstance(board.run(job), RunRecord)
