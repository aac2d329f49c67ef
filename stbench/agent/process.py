"""Runs a program and watches it: what it printed, the memory it took, the CPUs its threads were allowed.

The program stays in our process group, so that whoever ends the group ends it, and it dies when we do. What
it starts itself is watched, too, as far as the kernel lists children (CONFIG_PROC_CHILDREN).
"""

import collections
import contextlib
import ctypes
import os
import resource
import select
import signal
import subprocess
import sys
import time
from typing import Any, Callable, Deque, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from . import affinity
from .tree import Tree, cpu_list, processes

_PR_SET_PDEATHSIG = 1

# Between two looks at /proc: first often, for programs that end at once, then seldom: a look takes about
# 0.2 ms of CPU time, which at 4 Hz is less than a thousandth of one CPU.
_FIRST_LOOK_S = 0.01
_LOOK_S = 0.25

# Of each stream the end is kept; a verbose llama-bench on a model of 50 layers prints 0.5 MB.
KEPT_BYTES = 4 << 20

# How long output of a dead program's own children is waited for, seconds.
_DRAIN_S = 0.5

# Threads that took less than this share of the busiest one's CPU time did not compute.
_BUSY_SHARE = 0.1


class Finished(NamedTuple):
    """``returncode`` is minus the signal that ended it. ``peak_rss_bytes`` is of its largest process, the
    other two of that process when they were largest together. ``affinity`` has a list of CPUs per thread
    that computed, busiest threads first, ``last_cpus`` where each was when looked at last."""

    returncode: int
    stdout: str
    stderr: str
    wall_s: float
    peak_rss_bytes: int
    rss_anon_bytes: Optional[int]
    rss_file_bytes: Optional[int]
    affinity: List[List[int]]
    last_cpus: List[int]

    def last_lines(self, is_noise: Callable[[str], bool] = lambda line: False, count: int = 4) -> str:
        """What it said last, stderr if there is any, in one line and without noise."""
        said = (self.stderr or self.stdout).splitlines()
        lines = [line.strip() for line in said if line.strip() and not is_noise(line)]
        return " | ".join(line[:200] for line in lines[-count:])


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    cpus: Sequence[int] = (),
    is_noise: Callable[[str], bool] = lambda line: False,
) -> Finished:
    """Runs ``command`` to its end with ``environment`` added to ours and pinned to ``cpus`` (empty: as we
    are). Its stderr goes to ours line by line, less ``is_noise``. Raises OSError when it cannot be started,
    ValueError for CPUs that we may not use."""
    allowed = os.sched_getaffinity(0)
    denied = sorted(set(cpus) - allowed)
    if denied:
        raise ValueError("CPUs %s are not ours to run on" % ", ".join(map(str, denied)))
    begin = time.monotonic()
    # Linux starts a program's ru_maxrss at what the process had that it replaced.
    inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ, **environment),
        preexec_fn=_Before(os.getpid(), cpus),
    )
    watch = _Watch(process.pid)
    streams = _Streams(process, is_noise)
    if cpus and allowed - set(cpus):
        # We look at it from where it does not compute.
        os.sched_setaffinity(0, allowed - set(cpus))
    try:
        status, usage = _wait(process, watch, streams)
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        streams.close()
        os.sched_setaffinity(0, allowed)
    # wait4 took the status away that Popen would look for.
    process.returncode = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
    told = usage.ru_maxrss * 1024
    return Finished(
        process.returncode,
        streams.text("stdout"),
        streams.text("stderr"),
        time.monotonic() - begin,
        max(watch.peak, told if told > inherited else 0),
        watch.anon,
        watch.file,
        watch.affinity(),
        watch.last_cpus(),
    )


class _Before:
    """Runs in the child between fork and exec."""

    def __init__(self, parent: int, cpus: Sequence[int]) -> None:
        self._parent = parent
        self._cpus = set(cpus)
        with contextlib.suppress(OSError, AttributeError):
            self._prctl = ctypes.CDLL(None).prctl

    def __call__(self) -> None:
        if self._cpus:
            os.sched_setaffinity(0, self._cpus)
        with contextlib.suppress(AttributeError):
            self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self._parent:
            os._exit(1)


def end_group_with_parent() -> None:
    """Makes this process end its whole group when its parent is killed: a program's own children would
    otherwise survive, and compute under whatever is measured next. Only for the leader of a group."""
    if os.getpgrp() != os.getpid():
        return
    signal.signal(signal.SIGTERM, lambda _number, _frame: os.killpg(0, signal.SIGKILL))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _wait(process: "subprocess.Popen[bytes]", watch: "_Watch", streams: "_Streams") -> Tuple[int, Any]:
    """(wait status, resource usage) once it has ended and its output is read."""
    pause = _FIRST_LOOK_S
    while True:
        streams.read(pause)
        watch.look()
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        pause = min(pause * 2, _LOOK_S)
    # What it left itself is there already, and is read however late we come to it.
    drained = time.monotonic() + _DRAIN_S
    streams.read(0.0)
    while streams.open and time.monotonic() < drained:
        streams.read(0.05)
    return status, usage


class _Streams:
    """Both outputs of a program, their ends kept."""

    def __init__(self, process: "subprocess.Popen[bytes]", is_noise: Callable[[str], bool]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.open: Dict[int, str] = {process.stdout.fileno(): "stdout", process.stderr.fileno(): "stderr"}
        self._files = [process.stdout, process.stderr]
        self._chunks: Dict[str, Deque[bytes]] = {n: collections.deque() for n in self.open.values()}
        self._sizes = dict.fromkeys(self._chunks, 0)
        self._is_noise = is_noise
        self._partial = b""

    def read(self, timeout: float) -> None:
        """Waits for output, at most so many seconds, and takes what is there."""
        if not self.open:
            time.sleep(timeout)
            return
        for descriptor in select.select(list(self.open), [], [], timeout)[0]:
            data = os.read(descriptor, 1 << 16)
            name = self.open[descriptor]
            if not data:
                del self.open[descriptor]
                continue
            chunks = self._chunks[name]
            chunks.append(data)
            self._sizes[name] += len(data)
            while self._sizes[name] - len(chunks[0]) > KEPT_BYTES:
                self._sizes[name] -= len(chunks.popleft())
            if name == "stderr":
                self._pass_on(data)

    def _pass_on(self, data: bytes) -> None:
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._partial = self._partial[-KEPT_BYTES:]
        for line in lines:
            text = line.decode("utf-8", "replace")
            if not self._is_noise(text):
                sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def text(self, name: str) -> str:
        """What was printed, or the end of it."""
        return b"".join(self._chunks[name]).decode("utf-8", "replace")

    def close(self) -> None:
        """Passes an unfinished last line on and closes both ends."""
        if self._partial:
            self._pass_on(b"\n")
        for file in self._files:
            file.close()


class _Watch:
    """Looks at a program and its descendants in /proc."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._tree = Tree()
        self.peak = 0
        self.anon: Optional[int] = None
        self.file: Optional[int] = None
        # Thread id -> (CPU ticks, CPUs, the CPU that it was on), as seen last.
        self._threads: Dict[int, Tuple[int, List[int], Optional[int]]] = {}

    def look(self) -> None:
        """One look."""
        for pid in processes(self._tree, self._pid):
            fields = self._tree.fields("proc/%d/status" % pid)
            sizes = {key: self._tree.kibibytes(fields, key) for key in ("VmHWM", "RssAnon", "RssFile")}
            self.peak = max(self.peak, sizes["VmHWM"] or 0)
            if (sizes["RssAnon"] or 0) + (sizes["RssFile"] or 0) >= (self.anon or 0) + (self.file or 0):
                self.anon, self.file = sizes["RssAnon"], sizes["RssFile"]
            for name in self._tree.names("proc/%d/task" % pid):
                self._thread(pid, int(name))

    def _thread(self, pid: int, thread: int) -> None:
        base = "proc/%d/task/%d/" % (pid, thread)
        stat = self._tree.text(base + "stat") or ""
        # The command's name is in brackets and may hold anything.
        numbers = stat.rpartition(")")[2].split()
        cpus = cpu_list(self._tree.fields(base + "status").get("Cpus_allowed_list", ""))
        if len(numbers) > 12 and cpus:
            ticks = int(numbers[11]) + int(numbers[12])
            self._threads[thread] = (ticks, cpus, affinity.processor(stat))

    def affinity(self) -> List[List[int]]:
        """CPUs of the threads that computed, busiest first."""
        return [cpus for _, cpus, _ in self._busy()]

    def last_cpus(self) -> List[int]:
        """Where these threads were; [] when /proc does not say of all."""
        found = [cpu for _, _, cpu in self._busy() if cpu is not None]
        return found if len(found) == len(self._busy()) else []

    def _busy(self) -> List[Tuple[int, List[int], Optional[int]]]:
        seen = [one for _, one in sorted(self._threads.items(), key=lambda item: (-item[1][0], item[0]))]
        busiest = seen[0][0] if seen else 0
        return [one for one in seen if one[0] >= _BUSY_SHARE * busiest]
