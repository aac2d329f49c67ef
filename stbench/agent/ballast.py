"""Limits of a whole machine: one that has no more memory than the limit, and one whose other memory is
locked by a process of ours.

Locked memory is no control group: it presses on everything that runs there, system code included, and a run
was five times slower beside it than in a group of the same size. The two are never compared.
"""

import contextlib
import ctypes
import mmap
import os
import select
import signal
import time
from typing import Any, List, Optional, Tuple

from .memhold import Hold, Parts, Refused, no_swap, write
from .tree import Tree

# What a kernel takes of a machine's memory before MemTotal is counted: some 10 % of 512 MiB, less of more.
_LEAST_SHARE = 0.75
# MemAvailable is an estimate, and others come and go.
_AVAILABLE_SHARE = 0.9

_STEP = 64 << 20
_SMALLEST_STEP = 1 << 20
# Locking takes about a second per GiB here; slow boards ten times that.
_PATIENCE_S = 60.0
_PATIENCE_S_PER_GIB = 10.0
_PR_SET_PDEATHSIG = 1


def _meminfo(tree: Tree, key: str) -> Optional[int]:
    return tree.kibibytes(tree.fields("proc/meminfo"), key)


class Boot(Hold):
    """A machine that was booted with ``mem=``, or has no more memory than the limit."""

    method = "boot"

    def __init__(self, tree: Tree, limit_bytes: int) -> None:
        self._tree = tree
        total = _meminfo(tree, "MemTotal")
        self.least, self.most = int(limit_bytes * _LEAST_SHARE), limit_bytes
        if total is None:
            raise Refused("/proc/meminfo does not say how much memory there is")
        if not self.least <= total <= self.most:
            told = "the machine has %d MiB, which is %s the limit (the kernel's option mem= sets it)"
            raise Refused(told % (total >> 20, "above" if total > self.most else "far below"))

    def limit(self) -> Optional[int]:
        """See :class:`.memhold.Hold`."""
        return _meminfo(self._tree, "MemTotal")

    def usage(self) -> Optional[int]:
        """What the whole machine has in use and cannot give back."""
        total, available = _meminfo(self._tree, "MemTotal"), _meminfo(self._tree, "MemAvailable")
        return total - available if total is not None and available is not None else None

    def parts(self) -> Optional[Parts]:
        """Of the whole machine."""
        anon, file = _meminfo(self._tree, "AnonPages"), _meminfo(self._tree, "Cached")
        return Parts(anon, file) if anon is not None and file is not None else None

    def swap_off(self) -> Optional[bool]:
        """See :class:`.memhold.Hold`."""
        return no_swap(self._tree)


class Ballast(Hold):
    """A process of ours that has locked all memory but the limit, and that the kernel would kill first."""

    method = "ballast"

    def __init__(self, tree: Tree, limit_bytes: int) -> None:
        """Returns when the memory is locked. Raises Refused."""
        self._tree = tree
        self.least, self.most = int(limit_bytes * _AVAILABLE_SHARE), limit_bytes
        self._ended = ""
        available = _meminfo(tree, "MemAvailable")
        if available is None:
            raise Refused("/proc/meminfo does not say how much memory is available")
        if available < self.least:
            raise Refused("only %d MiB are available" % (available >> 20))
        reader, writer = os.pipe()
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(reader)
            _hold_locked(tree, limit_bytes, writer, parent)
        os.close(writer)
        try:
            said = _first_line(reader, _PATIENCE_S + available / float(1 << 30) * _PATIENCE_S_PER_GIB)
        finally:
            os.close(reader)
        numbers = said.split()
        if len(numbers) != 2 or not all(number.isdigit() for number in numbers):
            self.remove()
            raise Refused("memory could not be locked: " + (said or "it took too long"))
        # What the process saw when it had done: read again, it would have moved with what others do.
        self._locked, self._available = map(int, numbers)

    def limit(self) -> int:
        """What was left available when all else was locked."""
        return self._available

    def usage(self) -> Optional[int]:
        """What was taken of that."""
        now = _meminfo(self._tree, "MemAvailable")
        return max(self._available - now, 0) if now is not None else None

    def swap_off(self) -> Optional[bool]:
        """See :class:`.memhold.Hold`."""
        return no_swap(self._tree)

    def broken(self) -> str:
        """See :class:`.memhold.Hold`."""
        if not self._ended:
            with contextlib.suppress(ChildProcessError):
                pid, _ = os.waitpid(self._pid, os.WNOHANG)
                self._ended = "the process that held the other memory ended" if pid else ""
        if not self._ended:
            fields = self._tree.fields("proc/%d/status" % self._pid)
            locked = self._tree.kibibytes(fields, "VmLck")
            if locked is None or locked < self._locked:
                return "the other memory did not stay locked"
        return self._ended

    def remove(self) -> None:
        """Gives the memory back."""
        if self._ended:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        self._ended = "it was given back"


def _first_line(reader: int, patience_s: float) -> str:
    end, said = time.monotonic() + patience_s, b""
    while b"\n" not in said:
        if not select.select([reader], [], [], max(end - time.monotonic(), 0.0))[0]:
            return ""
        data = os.read(reader, 1 << 10)
        if not data:
            break
        said += data
    return said.decode("utf-8", "replace").strip() or "its process was killed"


def _hold_locked(tree: Tree, limit_bytes: int, writer: int, parent: int) -> None:
    """The process that holds the memory. Never returns."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        write(tree, "proc/self/oom_score_adj", "1000")
        os.write(writer, b"%d %d\n" % _lock_down_to(tree, libc, limit_bytes))
        os.close(writer)
        while True:
            signal.pause()
    except BaseException as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        os.write(writer, ("%s\n" % said).encode("utf-8", "replace"))
    finally:
        os._exit(1)


_kept: List[Any] = []


def _lock_down_to(tree: Tree, libc: Any, limit_bytes: int) -> Tuple[int, int]:
    """Locks memory until no more than the limit is available; returns how much, and what is available."""
    libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    locked, total = 0, _meminfo(tree, "MemTotal") or 0
    while locked < total:
        available = _meminfo(tree, "MemAvailable") or 0
        excess = available - limit_bytes
        if excess <= 0:
            return locked, available
        size = max(_SMALLEST_STEP, min(_STEP, excess) // _SMALLEST_STEP * _SMALLEST_STEP)
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if libc.mlock(ctypes.addressof(ctypes.c_char.from_buffer(block)), size):
            number = ctypes.get_errno()
            raise OSError(number, "mlock of %d MiB: %s" % (size >> 20, os.strerror(number)))
        _kept.append(block)
        locked += size
    raise OSError("all memory was locked, and more than the limit is available still")
