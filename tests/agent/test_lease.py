"""The board's lease: one holder, whoever asks and from wherever; and files that somebody planted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stbench.agent import lease, wire
from stbench.agent.lease import Holder
from tests.agent.conftest import ROOT, fake_job
from tests.conftest import require

HOLDER = Holder("me@here", "c", "rpi5:m/t4/tg8", "boot", "1971-01-01T00:00:00Z", 100.0, 700.0)


def as_nobody(code: str) -> subprocess.CompletedProcess[str]:
    """Python of another user of this machine."""
    lines = f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\nfrom stbench.agent import lease\n"
    lines += f"os.setgid(65534); os.setuid(65534)\n{code}"
    return subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=60)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory like /run/lock. Not below pytest's, whose rights any other session of it narrows again."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = Path(folder)
        path.chmod(0o1777)
        yield path


def test_one_holder_until_it_ends(tmp_path: Path) -> None:
    path = str(tmp_path / "lease")
    first = lease.try_take(path)
    assert first is not None
    assert lease.try_take(path) is None
    os.close(first)
    second = lease.try_take(path)
    assert second is not None
    os.close(second)


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "lease")
    code = f"import sys, time; sys.path.insert(0, {str(ROOT)!r}); from stbench.agent import lease; "
    code += f"print(lease.try_take({path!r}), flush=True); time.sleep(1000)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert int(holder.stdout.readline()) > 0
        assert lease.try_take(path) is None
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert lease.try_take(path) is not None


def test_a_file_that_a_cleaner_removed_is_no_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removed between opening and locking: otherwise two would have a lease each, of the same name."""
    path = tmp_path / "lease"
    removed: list[int] = []
    flock = lease.fcntl.flock

    def remove_first(descriptor: int, how: int) -> None:
        if not removed:
            removed.append(descriptor)
            path.unlink()
        flock(descriptor, how)

    monkeypatch.setattr(lease.fcntl, "flock", remove_first)
    taken = lease.try_take(str(path))
    assert taken is not None
    assert lease.is_at(taken, str(path))
    assert lease.try_take(str(path)) is None


def test_users_exclude_each_other(shared: Path) -> None:
    require(os.geteuid() == 0, "another user takes root")
    path = str(shared / "stbench.lease")
    before = os.umask(0o077)
    try:
        mine = lease.try_take(path)
    finally:
        os.umask(before)
    assert mine is not None
    assert as_nobody(f"print(lease.try_take({path!r}))").stdout == "None\n"
    os.close(mine)
    theirs = as_nobody(
        f"fd = lease.try_take({path!r})\nlease.sign(fd, lease.Holder('them', 'c', 'l', 'boot', '', 1.0, 2.0))"
    )
    assert theirs.returncode == 0, theirs.stderr
    found = lease.read_holder(path)
    assert found is not None
    assert found.owner == "them"


def test_a_file_with_narrow_rights_still_excludes(shared: Path) -> None:
    require(os.geteuid() == 0, "another user takes root")
    path = shared / "stbench.lease"
    path.touch(mode=0o644)
    done = as_nobody(
        f"fd = lease.try_take({str(path)!r})\nlease.sign(fd, {HOLDER!r})".replace("Holder(", "lease.Holder(")
    )
    assert done.returncode == 0, done.stderr
    assert path.read_text() == ""


@pytest.mark.parametrize("kind", ["symlink", "dangling", "hard link", "pipe", "directory"])
def test_what_somebody_planted_is_refused_and_left_alone(shared: Path, kind: str) -> None:
    path, victim = shared / "stbench.lease", shared / "victim"
    victim.write_text("precious")
    if kind == "symlink":
        path.symlink_to(victim)
    elif kind == "dangling":
        path.symlink_to(shared / "nothing")
    elif kind == "hard link":
        path.hardlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(OSError, match=r"stbench\.lease") as caught:
        lease.try_take(str(path))
    assert "replaced all the time" not in str(caught.value), "it was opened"
    assert victim.read_text() == "precious"
    assert not (shared / "nothing").exists()


def test_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STBENCH_LEASE", raising=False)
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setattr(lease, "_SHARED", (str(first), str(second)))
    spool = str(tmp_path / "spool")
    assert lease.lease_path(spool) == f"{spool}/stbench.lease"
    second.mkdir()
    second.chmod(0o1777)
    assert lease.lease_path(spool) == f"{second}/stbench.lease"
    first.mkdir()
    # As /run/lock of some systems: only root could use it, and would exclude nobody.
    first.chmod(0o755)
    assert lease.lease_path(spool) == f"{second}/stbench.lease"
    first.chmod(0o1777)
    assert lease.lease_path(spool) == f"{first}/stbench.lease"
    monkeypatch.setenv("STBENCH_LEASE", "/named")
    assert lease.lease_path(spool) == "/named"


def test_who_and_since_when_by_no_clock_that_can_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "now_s", lambda: 130.0)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    text = lease.sentence(HOLDER, "boot")
    assert text == (
        "in use by me@here (campaign c, job rpi5:m/t4/tg8) since 30 s (1971-01-01T00:00:00Z by its clock), "
        "for at most 570 s more"
    )


@pytest.mark.parametrize("text", ["", "garbage\n", "{}", '{"owner": 7}', "\xff" * 9000])
def test_a_text_that_says_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lease"
    path.write_text(text)
    assert lease.read_holder(str(path)) is None
    assert "has not said who" in lease.sentence(None, "boot")


def test_a_text_of_before_the_reboot_accuses_nobody() -> None:
    assert "me@here" not in lease.sentence(HOLDER, "another boot")


def test_escape_sequences_reach_nobody() -> None:
    text = lease.sentence(replace(HOLDER, owner="\x1b[2Jme\n"), "boot")
    assert "in use by ?[2Jme? (" in text


def test_how_long_a_job_may_hold_it() -> None:
    job = fake_job(timeout_s=100.0)
    assert lease.lease_s(job) == 130.0
    assert lease.lease_s(replace(job, bracket_ms=500)) == 130.0 + 2 * (10 + 1)
    assert lease.lease_s(replace(job, cool_down_s=120.0)) == 250.0
    assert wire.loads(Holder, wire.dumps(HOLDER)) == HOLDER
