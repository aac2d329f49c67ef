"""Runs a job detached from whoever submitted it: in its own session, with a record in the spool at its end.

The keeper holds the job's lock and the board's lease, and so does the process that measures, until both end.
After :func:`.lease.lease_s` it ends itself and all that it started. Processes that lost their parents become
its children (PR_SET_CHILD_SUBREAPER), so that none is overlooked.
"""

import contextlib
import ctypes
import datetime
import errno
import os
import signal
import sys
import time
from typing import Any, Dict, List, Optional, Set, Tuple

from . import lease, supervise, wire
from .jobrecord import record_of
from .spool import Spool, Started

_PR_SET_CHILD_SUBREAPER = 36
# How long what was killed is waited for: GiB are given back in seconds, what hangs in the kernel never ends.
_END_S = 10.0
_STOPPING = (signal.SIGALRM, signal.SIGTERM, signal.SIGINT)


class _Ended(Exception):
    """The job ends now, with this status."""

    def __init__(self, status: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status


def typed_record(job: wire.JobSpec, status: str, detail: str, wall_s: float = 0.0) -> wire.RunRecord:
    """The record of a job that has no other."""
    return record_of(job, status, detail, utc_now(), wall_s)


def utc_now() -> str:
    """By the board's clock, which nothing rests on."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def detach(job: wire.JobSpec, spool: Spool, key: str, started: Started, held: List[int]) -> int:
    """Starts the job's keeper, which inherits the locks ``held``; the caller closes its own copies. Returns
    the reading end of a pipe: it ends with the keeper, after a line that says what went wrong, if anything
    did. ``started`` lacks the process, which the keeper fills in."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork() == 0:
        os.close(reader)
        _keep(job, spool, key, started, held, writer)
    os.close(writer)
    return reader


def _keep(job: wire.JobSpec, spool: Spool, key: str, started: Started, held: List[int], pipe: int) -> None:
    """Never returns."""
    code = 1
    try:
        os.setsid()
        os.umask(0o077)
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        _store(spool, key, job, _run(job, spool, key, started))
        code = 0
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(pipe, ("%s\n" % (str(error) or type(error).__name__)).encode("utf-8", "replace"))
            spool.tidy(key)
    finally:
        end_all(os.getpid(), os.getpid())
        # The lease first: who sees the job's lock free submits the next job at once.
        for descriptor in held:
            os.close(descriptor)
        os._exit(code)


def _run(job: wire.JobSpec, spool: Spool, key: str, started: Started) -> wire.RunRecord:
    limit_s, begin = lease.lease_s(job), time.monotonic()
    values: Dict[str, Any] = wire.to_json(started)
    values.update(pid=os.getpid(), pid_start=start_ticks(os.getpid()))
    # Who reads there who it is may tell it to stop at once: that waits until somebody listens.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    spool.note_start(key, Started(**values))
    try:
        _on_signals(limit_s)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        record = supervise.run_job(job)
        _ignore_signals()
    except _Ended as error:
        record = typed_record(job, error.status, str(error), time.monotonic() - begin)
    except Exception as error:
        _ignore_signals()
        detail = "%s: %s" % (type(error).__name__, error)
        record = typed_record(job, "failed", detail, time.monotonic() - begin)
    # Before the record says that it is over, it is.
    end_all(os.getpid(), os.getpid())
    return record


def _on_signals(limit_s: float) -> None:
    def ended(number: int, _frame: Any) -> None:
        _ignore_signals()
        if number == signal.SIGALRM:
            raise _Ended("timeout", "not done when its lease of %g s was over" % limit_s)
        raise _Ended("cancelled", "%s between two steps" % signal.Signals(number).name)

    for number in _STOPPING:
        signal.signal(number, ended)
    signal.setitimer(signal.ITIMER_REAL, limit_s)


def _ignore_signals() -> None:
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _store(spool: Spool, key: str, job: wire.JobSpec, record: wire.RunRecord) -> None:
    line = wire.dumps(record)
    try:
        spool.store(key, line)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        told = "its record of %d bytes could not be stored: %s" % (len(line), error)
        spool.store(key, wire.dumps(typed_record(job, "failed", told, record.wall_s)))


# ---- processes ---------------------------------------------------------------------------------------


def _processes() -> Dict[int, Tuple[int, int]]:
    """pid -> (parent, session), as far as the kernel shows them to us, without the dead."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = _stat(int(name))
            if len(fields) > 19 and fields[0] not in "ZX":
                found[int(name)] = (int(fields[1]), int(fields[3]))
    return found


def _stat(pid: int) -> List[str]:
    """The fields of /proc/PID/stat from the state on; [] when it is gone."""
    try:
        with open("/proc/%d/stat" % pid, errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot; -1 when it is gone."""
    fields = _stat(pid)
    return int(fields[19]) if len(fields) > 19 else -1


def end_all(session: int, parent: Optional[int] = None) -> None:
    """SIGKILL to every process of a session and to all descendants of ``parent``, but not to ``parent``;
    returns when they are gone, or when what hangs in the kernel was waited for long enough."""
    end = time.monotonic() + _END_S
    while time.monotonic() < end:
        processes = _processes()
        doomed = {pid for pid, (_, its_session) in processes.items() if its_session == session}
        if parent is not None:
            doomed |= _descendants(parent, processes)
        doomed -= {os.getpid(), parent}
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while parent is not None and os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not doomed:
            return
        time.sleep(0.005)


def _descendants(parent: int, processes: Dict[int, Tuple[int, int]]) -> Set[int]:
    found: Set[int] = set()
    newest = {parent}
    while newest:
        newest = {pid for pid, (its_parent, _) in processes.items() if its_parent in newest} - found
        found |= newest
    return found


def end_leftovers(started: Started) -> None:
    """Ends what a keeper that was killed left behind. Its session's number is nobody else's as long as there
    are such processes; where it leads a new one, there are none."""
    if started.pid > 0 and start_ticks(started.pid) in (-1, started.pid_start):
        end_all(started.pid)
