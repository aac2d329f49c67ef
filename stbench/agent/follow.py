"""``run --spool``: submits a job, or attaches to it where it was submitted before, and follows it to its end.

One question decides everything: who has the job's lock? Whoever gets it finds a record, or a job that was
never started, or one that was started and left no record: killed in this boot, or lost with a reboot. While
somebody has it, the job runs (or is about to), and there is nothing to do but to wait and to say so.
"""

import contextlib
import os
import select
import signal
import sys
import time
from typing import List, NamedTuple, Optional, Tuple

from . import keeper, lease, wire
from .spool import Spool, Started

EXIT_LEFT = 1
EXIT_SPOOL = 74
EXIT_BUSY = 75

# A job that reboots its board will do it again.
MAX_STARTS = 3
ALIVE_S = 2.0
# How often a job that another command started is looked at, and a busy board.
_POLL_S = 0.5
_CANCEL_EVERY_S = 0.5
# A reader that takes nothing for so long is none.
_PATIENCE_S = 60.0
_CHUNK = 4096
_MAX_LINE_BYTES = 32 << 20


class Lines:
    """Lines of a descriptor, read when it has some."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.ended = False
        self._unread = b""

    def read(self) -> List[bytes]:
        """Whole lines that came with one read; waits for that."""
        data = os.read(self.descriptor, 1 << 16)
        self.ended = not data or len(self._unread) > _MAX_LINE_BYTES
        *whole, self._unread = (self._unread + data).split(b"\n")
        return whole

    def first(self) -> Tuple[bytes, List[bytes]]:
        """The first line, which may lack its end, and what came with it."""
        found: List[bytes] = []
        while not found and not self.ended:
            found = self.read()
        if not found:
            found, self._unread = [self._unread], b""
        return found[0], found[1:]


class Request(NamedTuple):
    """What ``run --spool`` was asked. ``boot_id``: which boot this is."""

    spool: Spool
    owner: str
    wait_s: float
    boot_id: str


class _Gone(Exception):
    """Nobody follows any more."""


class _Busy(Exception):
    """Somebody has the board."""


def run(request: Request, stdin: int = 0, stdout: int = 1) -> int:
    """Reads a JobSpec and follows it; returns the exit code. Raises WireError."""
    lines = Lines(stdin)
    first, more = lines.first()
    follower = _Follower(request, wire.loads(wire.JobSpec, first.decode("utf-8", "replace")), lines, stdout)
    follower.hear(more)
    try:
        request.spool.prepare()
        follower.show(follower.record_line())
        return 0
    except _Gone:
        return EXIT_LEFT
    except _Busy as error:
        sys.stderr.write("stbench.agent: %s\n" % error)
        return EXIT_BUSY
    except OSError as error:
        sys.stderr.write("stbench.agent: the spool %s: %s\n" % (request.spool.directory, error))
        return EXIT_SPOOL


class _Follower:
    """One ``run --spool``."""

    def __init__(self, request: Request, job: wire.JobSpec, lines: Lines, stdout: int) -> None:
        self._request, self._job, self._lines, self._stdout = request, job, lines, stdout
        self._spool = request.spool
        self._key = wire.spool_key(request.owner, job.campaign, job.id, job.label, job.attempt)
        self._begin = time.monotonic()
        self._shown = self._begin
        self._cancel = False
        self._cancelled_at = 0.0
        # Whether a cancelled record is the answer, and not one of an earlier submission.
        self._followed = False

    def record_line(self) -> str:
        """The job's record, however long that takes. Raises _Gone, _Busy and OSError."""
        while True:
            lock = self._spool.try_lock(self._key)
            if lock is None:
                self._follow(None)
                continue
            pipe = None
            try:
                line = self._settled()
                pipe = self._start(lock) if line is None else None
            finally:
                if pipe is None:
                    self._spool.tidy(self._key)
                # The keeper has a copy.
                os.close(lock)
            if line is not None:
                return line
            if pipe is not None:
                self._follow(pipe)

    # ---- with the job's lock -----------------------------------------------------------------------------

    def _settled(self) -> Optional[str]:
        """The record where there is one or has to be one; None for a job that is to be started."""
        line = self._spool.record(self._key)
        if line is not None:
            if self._followed or wire.loads(wire.RunRecord, line).status != "cancelled":
                return line
            # It was stopped, and is wanted again: it said only that there is no result.
            self._spool.drop_record(self._key)
            return None
        if self._cancel:
            return wire.dumps(keeper.typed_record(self._job, "cancelled", "stopped before it was started"))
        started = self._spool.started(self._key)
        if started is None:
            return None
        if started.boot_id == self._request.boot_id:
            keeper.end_leftovers(started)
            detail = "its process on the device was killed, with all below it, and left no record"
            return self._stored("crashed", detail)
        if started.starts >= MAX_STARTS:
            told = "the device rebooted each of the %d times that it ran" % started.starts
            return self._stored("lost", told)
        return None

    def _stored(self, status: str, detail: str) -> str:
        line = wire.dumps(keeper.typed_record(self._job, status, detail))
        self._spool.store(self._key, line)
        return line

    def _board(self) -> Optional[int]:
        """The board's lease; None when the wish to stop came first."""
        path, begin = lease.lease_path(self._spool.directory), time.monotonic()
        while True:
            taken = lease.try_take(path)
            if taken is not None:
                return taken
            holder = lease.read_holder(path)
            told = lease.sentence(holder, self._request.boot_id)
            if time.monotonic() - begin >= self._patience_s(holder):
                raise _Busy(told)
            self._idle(_POLL_S, None, told)
            if self._cancel:
                return None

    def _patience_s(self, holder: Optional[lease.Holder]) -> float:
        """Who resumes a campaign waits for what was left running of it."""
        if holder is None or (holder.owner, holder.campaign) != (self._request.owner, self._job.campaign):
            return self._request.wait_s
        return max(self._request.wait_s, lease.lease_s(self._job))

    def _start(self, lock: int) -> Optional[int]:
        """The pipe of the job's keeper, which has the board now; None when the wish to stop came first."""
        self._spool.make_room(self._key)
        board = self._board()
        if board is None:
            return None
        job, request = self._job, self._request
        before = self._spool.started(self._key)
        starts = before.starts + 1 if before is not None else 1
        since, now_s = keeper.utc_now(), lease.now_s()
        lease.sign(
            board,
            lease.Holder(
                owner=request.owner,
                campaign=job.campaign,
                label=job.label,
                boot_id=request.boot_id,
                since=since,
                since_s=now_s,
                expires_s=now_s + lease.lease_s(job),
            ),
        )
        started = Started(
            request.owner, job.campaign, job.label, job.attempt, request.boot_id, 0, 0, starts, since
        )
        try:
            return keeper.detach(job, self._spool, self._key, started, [board, lock])
        finally:
            os.close(board)

    # ---- without it --------------------------------------------------------------------------------------

    def _follow(self, pipe: Optional[int]) -> None:
        """Returns when the job's lock may be free: our own keeper ended, or a while has passed."""
        # A lock beside a record is of somebody who looks at that, not of the job.
        self._followed = self._followed or pipe is not None or self._spool.record(self._key) is None
        if pipe is None:
            self._idle(_POLL_S, None, "")
            return
        said = Lines(pipe)
        try:
            while not said.ended:
                if self._idle(ALIVE_S, pipe, ""):
                    for line in said.read():
                        raise OSError(line.decode("utf-8", "replace"))
        finally:
            os.close(pipe)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)

    def _idle(self, seconds: float, pipe: Optional[int], waiting_for: str) -> bool:
        """Waits, listening to who follows and saying that we are there; whether ``pipe`` has something."""
        due = self._shown + ALIVE_S - time.monotonic()
        wanted = [self._lines.descriptor] + ([pipe] if pipe is not None else [])
        if self._cancel:
            seconds = min(seconds, _CANCEL_EVERY_S)
            self._end_job()
        ready, _, _ = select.select(wanted, [], [], max(min(seconds, due), 0.0))
        if self._lines.descriptor in ready:
            self.hear(self._lines.read())
            if self._lines.ended:
                raise _Gone()
        if time.monotonic() - self._shown >= ALIVE_S:
            self._shown = time.monotonic()
            self.show(wire.dumps(wire.Alive(round(self._shown - self._begin, 3), waiting_for)))
        return pipe in ready

    def hear(self, lines: List[bytes]) -> None:
        """What may follow the JobSpec: the wish to stop. Anything else is ignored."""
        self._cancel = self._cancel or any(line.strip() == b"cancel" for line in lines)

    def _end_job(self) -> None:
        """SIGTERM to the keeper, again and again: it may not have said yet who it is."""
        if time.monotonic() - self._cancelled_at < _CANCEL_EVERY_S:
            return
        self._cancelled_at = time.monotonic()
        started = self._spool.started(self._key)
        if started is None or started.boot_id != self._request.boot_id or started.pid <= 0:
            return
        if keeper.start_ticks(started.pid) == started.pid_start:
            with contextlib.suppress(ProcessLookupError):
                os.kill(started.pid, signal.SIGTERM)

    def show(self, line: str) -> None:
        """A line on stdout. Raises _Gone where nobody reads it."""
        data = (line + "\n").encode()
        for offset in range(0, len(data), _CHUNK):
            # A pipe that is writable takes this much at once, so that no write waits for ever.
            if not select.select([], [self._stdout], [], _PATIENCE_S)[1]:
                raise _Gone()
            try:
                os.write(self._stdout, data[offset : offset + _CHUNK])
            except OSError:
                raise _Gone() from None
