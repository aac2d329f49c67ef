"""Waiting for a child process: its pipes are read until it is dead, it is killed at its deadline or when we
are told to stop, and who watches it is given the time for that (:mod:`.sampler`, :mod:`.memlimit`)."""

import collections
import json
import os
import select
import signal
import sys
import time
from typing import Any, Deque, Dict, List, Protocol, Sequence, Tuple

_LOG_LINES = 12
# Of a Python stack, innermost first, so many lines.
_LOG_FRAMES = 2
_LOG_LINE_CHARS = 300
# How long output of a dead child's own children is waited for, seconds.
_DRAIN_S = 0.5


class Watcher(Protocol):
    """Somebody who looks at a child now and then."""

    def pause(self, limit: float) -> float:
        """Seconds until the next look, at most ``limit``."""
        ...

    def look(self) -> None:
        """A look, if it is due."""
        ...

    def told(self, data: bytes) -> None:
        """What the child reported just now."""
        ...


def phases_told(data: bytes) -> Tuple[List[str], bytes]:
    """The phases that a piece of a report names, and its last line as far as it came."""
    *lines, rest = data.split(b"\n")
    found = []
    for line in lines:
        if line.startswith(b'{"phase"'):
            try:
                found.append(str(json.loads(line.decode())["phase"]))
            except ValueError:
                continue
    # Of long parts the beginning says enough.
    return found, rest[:64]


class Signals:
    """SIGTERM, SIGINT and SIGCHLD as bytes on a pipe while the block runs; ``cancelled_by`` remembers
    which."""

    def __init__(self) -> None:
        self.cancelled_by = 0
        self.reader, self._writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self._writer, False)
        self._before: Dict[int, Any] = {}
        self._wakeup = -1

    def _note(self, number: int, _frame: Any) -> None:
        self.cancelled_by = number

    def __enter__(self) -> "Signals":
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        return self

    def __exit__(self, *_exc: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self.reader)
        os.close(self._writer)


class Loop:
    """Reads a child's pipes until it is dead, killing it at the deadline or when we are told to stop."""

    def __init__(
        self, pid: int, results: int, log: int, signals: Signals, watchers: Sequence[Watcher] = ()
    ) -> None:
        self._pid = pid
        self._results_fd = results
        self._log_fd = log
        self._signals = signals
        self._watchers = watchers
        self._results = bytearray()
        self._lines: Deque[bytes] = collections.deque(maxlen=_LOG_LINES)
        self._partial = b""
        self._frames = 0
        self._open = {results, log}

    def run(self, deadline: float) -> Tuple[int, bool]:
        """(wait status, killed because of the deadline). Closes both pipes."""
        timed_out = killed = False
        status = None
        while status is None:
            left = deadline - time.monotonic()
            if not killed and (left <= 0 or self._signals.cancelled_by):
                timed_out = not self._signals.cancelled_by
                killed = True
                self._kill()
            pause = 0.2 if killed else min(max(left, 0.0), 60.0)
            for watcher in self._watchers:
                pause = watcher.pause(pause)
            self._read(pause)
            for watcher in self._watchers:
                watcher.look()
            waited, wait_status = os.waitpid(self._pid, os.WNOHANG)
            if waited:
                status = wait_status
        self._kill()
        # What it left itself is there already, and is read however late we come to it.
        drained = time.monotonic() + _DRAIN_S
        self._read(0.05)
        while self._open and time.monotonic() < drained:
            self._read(0.05)
        for descriptor in (self._results_fd, self._log_fd):
            os.close(descriptor)
        return status, timed_out

    def _kill(self) -> None:
        """The child's process group; the child itself as long as it has not made one."""
        for kill, target in ((os.killpg, self._pid), (os.kill, self._pid)):
            try:
                kill(target, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue

    def _read(self, timeout: float) -> None:
        readable, _, _ = select.select([*self._open, self._signals.reader], [], [], timeout)
        for descriptor in readable:
            try:
                data = os.read(descriptor, 1 << 16)
            except BlockingIOError:
                continue
            if descriptor == self._results_fd:
                self._results += data
                for watcher in self._watchers:
                    watcher.told(data)
            elif descriptor == self._log_fd:
                self._log(data)
            if not data:
                self._open.discard(descriptor)

    def _log(self, data: bytes) -> None:
        try:
            sys.stderr.buffer.write(data)
            sys.stderr.buffer.flush()
        except (OSError, ValueError):
            # Nobody listens any more; the record still goes to its file.
            pass
        lines = (self._partial + data).split(b"\n")
        self._partial = lines.pop()[-4 * _LOG_LINE_CHARS :]
        for line in lines:
            self._frames = self._frames + 1 if line.startswith(b'  File "') else 0
            if line.strip() and self._frames <= _LOG_FRAMES:
                self._lines.append(line)

    def log(self) -> List[str]:
        """The last lines that the child wrote."""
        lines = list(self._lines) + ([self._partial] if self._partial.strip() else [])
        return [line.decode("utf-8", "replace").strip()[:_LOG_LINE_CHARS] for line in lines[-_LOG_LINES:]]

    def messages(self) -> List[Dict[str, Any]]:
        """What the child reported; a line that it did not finish is dropped."""
        found = []
        for line in bytes(self._results).split(b"\n")[:-1]:
            found.append(json.loads(line))
        return found
