"""``run --spool`` as a process, on a board of the test's own: its lease, its spool, and what runs there."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stbench.agent import wire
from stbench.agent.wire import Alive, JobSpec, Receipt, RunRecord, SpoolEntry
from tests.agent.conftest import ROOT, STARTED


def eventually(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def writes_or_ends(child: int, path: Path) -> None:
    """Waits until a child of this process has appended to a file, however long a busy machine takes."""
    before = path.stat().st_size if path.exists() else 0
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
    eventually(lambda: os.waitid(os.P_PID, child, ended) or (path.exists() and path.stat().st_size > before))


def alive(pid: int) -> bool:
    """Not gone, and not only waiting for whoever reaps it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def leads_a_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


@dataclass(frozen=True)
class Board:
    """A directory that stands for a board. ``patch`` is Python that the agent runs first."""

    directory: Path
    patch: str = ""

    @property
    def spool(self) -> Path:
        return self.directory / "spool"

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "STBENCH_LEASE": str(self.directory / "lease")}

    def agent(self, *arguments: str) -> subprocess.Popen[str]:
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{self.patch}\n"
        code += "from stbench.agent.__main__ import main\nsys.exit(main())"
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )
        STARTED.append(process)
        return process

    def submit(self, job: JobSpec, *options: str, owner: str = "me@here") -> subprocess.Popen[str]:
        """A follower whose stdin stays open."""
        process = self.agent("run", "--spool", str(self.spool), "--owner", owner, *options)
        assert process.stdin is not None
        process.stdin.write(wire.dumps(job) + "\n")
        process.stdin.flush()
        return process

    def run(self, job: JobSpec, *options: str, owner: str = "me@here") -> RunRecord:
        """To the job's record."""
        return record_of(self.submit(job, *options, owner=owner))

    def forget(self, *receipts: Receipt) -> int:
        process = self.agent("spool", str(self.spool), "--forget")
        process.communicate("".join(wire.dumps(receipt) + "\n" for receipt in receipts), timeout=60)
        return process.returncode

    def entries(self) -> list[SpoolEntry]:
        out, err = self.agent("spool", str(self.spool), "--list").communicate(timeout=60)
        assert not err
        return [wire.loads(SpoolEntry, line) for line in out.splitlines()]

    def processes(self) -> list[int]:
        """Whatever of ours is alive: it has the spool's path on its command line."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                command = (path / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if os.fsencode(self.spool) in command and alive(int(path.name)):
                found.append(int(path.name))
        return found

    def keeper(self) -> int:
        """The process that leads the running job's session."""
        found: list[int] = []

        def there() -> bool:
            found[:] = [pid for pid in self.processes() if leads_a_session(pid)]
            return bool(found)

        eventually(there)
        (pid,) = found
        return pid

    def measuring(self) -> int:
        """Once the job hangs or sleeps in its engine: the keeper's child."""
        keeper = self.keeper()
        path = Path(f"/proc/{keeper}/task/{keeper}/children")
        found: list[str] = []
        eventually(lambda: found.extend(path.read_text().split()) or found)
        return int(found[0])

    def kill_everything(self) -> None:
        """What a reboot does to it: nobody sees another one end; what was just being started ends, too."""

        def nothing_left() -> bool:
            left = self.processes()
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
            return not left

        eventually(nothing_left)


def record_of(process: subprocess.Popen[str]) -> RunRecord:
    """The record that a follower prints last; before it are signs of life only."""
    assert process.stdout is not None
    assert process.stderr is not None
    lines = process.stdout.read().splitlines()
    assert process.wait(60) == 0, process.stderr.read()
    for line in lines[:-1]:
        wire.loads(Alive, line)
    return wire.loads(RunRecord, lines[-1])


def busy(process: subprocess.Popen[str]) -> str:
    """What a follower says that was refused."""
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = process.stdout.read(), process.stderr.read()
    assert (process.wait(60), out) == (75, "")
    assert err.count("\n") == 1
    return err
