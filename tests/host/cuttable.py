"""A device behind a link that can be cut at any moment: commands run on this machine, which know nothing."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from stbench.connectors.base import Ending
from stbench.connectors.local import LocalConnector
from stbench.devices.inventory import Device
from stbench.errors import LinkLost, Unreachable


class CutRunning:
    """A command at the far end. Its pipes are all that connects us: as with sshd, they end with the link."""

    def __init__(self, process: subprocess.Popen[bytes], stdin: bytes, timeout_s: float) -> None:
        self.process = process
        self._deadline = time.monotonic() + timeout_s
        self._lost = self._timed_out = self._killed = False
        self._lock = threading.Lock()
        self.send(stdin)

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        with self._lock, contextlib.suppress(BrokenPipeError, ValueError):
            self.process.stdin.write(data)
            self.process.stdin.flush()

    def lines(self) -> Iterator[str]:
        assert self.process.stdout is not None
        unread = b""
        while not (self._lost or self._killed):
            if time.monotonic() > self._deadline:
                self._timed_out = True
                self.kill()
                return
            if not select.select([self.process.stdout], [], [], 0.02)[0]:
                continue
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            if not data:
                return
            *whole, unread = (unread + data).split(b"\n")
            for line in whole:
                if self._lost:
                    return
                yield line.decode("utf-8", "replace")

    def ending(self) -> Ending:
        if self._lost:
            return Ending(-1, False, "", lost=True)
        assert self.process.stderr is not None
        said = self.process.stderr.read().decode("utf-8", "replace")
        return Ending(self.process.wait(60), self._timed_out, said)

    def cut(self) -> None:
        """The far end sees the end of its stdin; what it says from now on is lost."""
        self._lost = True
        self._hang_up()

    def cancel(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self._killed = True
        self.process.kill()

    def _hang_up(self) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):
            assert self.process.stdin is not None
            self.process.stdin.close()


class CutConnector(LocalConnector):
    """``cut`` breaks what runs and keeps ``down_for`` attempts to connect from succeeding. ``boot_id`` is
    which boot of the board this is."""

    def __init__(self, directory: Path, boot_id: str = "boot") -> None:
        super().__init__(Device("d", work_dir=str(directory / "work")))
        self.directory, self.boot_id = directory, boot_id
        self.started: list[CutRunning] = []
        self.arguments: list[list[str]] = []
        self.connected, self.attempts = True, 0
        self._down_for, self._lock = 0, threading.Lock()
        # Down or not, attempts succeed from when this is there.
        self.up_with: Path | None = None

    @property
    def remote(self) -> bool:
        return True

    def connect(self, *, lease: bool = True) -> None:
        self.attempts += 1
        with self._lock:
            if self._down_for > 0 and not (self.up_with and self.up_with.exists()):
                self._down_for -= 1
                raise Unreachable("d: no route to host")
        self.connected = True

    def close(self) -> None:
        self.connected = False

    def cut(self, down_for: int = 0) -> None:
        self.connected = False
        self.stay_down_for(down_for)
        for running in self.started:
            running.cut()

    def stay_down_for(self, attempts: int) -> None:
        """From now on; 0: the next attempt to connect succeeds."""
        with self._lock:
            self._down_for = attempts

    def start(  # type: ignore[override]
        self,
        argv: Sequence[str],
        stdin: bytes,
        timeout_s: float,
        *,
        keep_stdin: bool = False,
        silence_s: float | None = None,
    ) -> CutRunning:
        if not self.connected:
            raise LinkLost("d: the link is down")
        Path(self.work_dir).mkdir(parents=True, exist_ok=True)
        arguments = list(argv)
        self.arguments.append(list(argv))
        if "--spool" in arguments:
            arguments += ["--boot-id", self.boot_id]
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "STBENCH_LEASE": str(self.directory / "lease")},
        )
        running = CutRunning(process, stdin, timeout_s)
        if not keep_stdin:
            running._hang_up()
        self.started.append(running)
        return running
