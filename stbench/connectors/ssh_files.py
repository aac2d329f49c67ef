"""Files on a board over a link: small ones at once, big ones in pieces that survive a cut."""

from __future__ import annotations

import base64
import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from stbench.connectors import ssh_boardside
from stbench.connectors.base import Ending, FileFacts
from stbench.connectors.ssh_running import SshRunning
from stbench.devices.inventory import Device
from stbench.errors import DeviceError, LinkLost, NoSpace, StbenchError, Unreachable
from stbench.yamlfile import printable

SMALL_TIMEOUT_S = 120.0
# For hashing what is there, and for a whole file: 100 GB from a slow card, over a slow link.
BIG_TIMEOUT_S = 86400.0
PIECE = 256 << 10
REPORT_BYTES = 4 << 20
RETRY_FIRST_S = 0.5
RETRY_LAST_S = 15.0


class Starter(Protocol):
    """What is needed of the connector."""

    device: Device

    @property
    def python(self) -> str:
        """The board's interpreter."""
        ...

    def connect(self, *, lease: bool = True) -> None:
        """Makes the link again."""
        ...

    def start(
        self,
        argv: list[str],
        stdin: bytes,
        timeout_s: float,
        *,
        keep_stdin: bool = False,
        silence_s: float | None = None,
    ) -> SshRunning:
        """Starts a command."""
        ...


class SshFiles:
    """The files of one board."""

    def __init__(self, connector: Starter) -> None:
        self._connector = connector
        self._name = connector.device.name
        self._sent = 0
        self._source = Path(ssh_boardside.__file__).read_text("utf-8")

    def stat(self, path: str) -> FileFacts | None:
        """Size and time of a file, None where there is none."""
        found = self._ask("stat", path)
        if "absent" in found:
            return None
        return FileFacts(self._number(found, "bytes"), self._number(found, "mtime_ns"))

    def read(self, path: str) -> bytes | None:
        """A small file's bytes, None where there is none."""
        found = self._ask("read", path)
        if "absent" in found:
            return None
        try:
            return base64.b64decode(found["data"], validate=True)
        except (KeyError, TypeError, ValueError) as error:
            raise self._nonsense(found) from error

    def write(self, path: str, data: bytes) -> None:
        """Writes a file atomically, making its directory."""
        self._ask("write", path, b"%d\n" % len(data) + data)

    def remove(self, path: str) -> None:
        """Deletes a file, if it is there."""
        self._ask("remove", path)

    def free_bytes(self, path: str) -> int:
        """Room on the file system of ``path`` or of its nearest existing parent."""
        return self._number(self._ask("free", path), "free")

    def put(self, source: Path, path: str, sha256: str, on_bytes: Callable[[int, int], None]) -> None:
        """Copies a file; see :class:`stbench.connectors.base.Connector`. A lost link is made again, for
        ``reconnect_s`` without progress; what ``on_bytes`` raises ends it."""
        total = source.stat().st_size
        best, until, pause = -1, 0.0, RETRY_FIRST_S
        damaged = False
        while True:
            self._sent = 0
            try:
                self._connector.connect(lease=False)
                if self._send(source, path, sha256, total, on_bytes):
                    on_bytes(total, total)
                    return
            except (LinkLost, Unreachable):
                # A board that is rebooting or off the net comes back; refused keys do not heal.
                now = time.monotonic()
                if self._sent > best:
                    best, until, pause = self._sent, now + self._connector.device.reconnect_s, RETRY_FIRST_S
                if now + pause > until:
                    raise
                on_bytes(best, total)
                time.sleep(pause)
                pause = min(2 * pause, RETRY_LAST_S)
                continue
            if damaged:
                raise DeviceError(
                    f"{self._name}: {path} arrives with another digest than {source} should have",
                    hint="the file changed since it was hashed, or the board's storage fails: run again",
                )
            damaged = True

    def _send(
        self, source: Path, path: str, sha256: str, total: int, on_bytes: Callable[[int, int], None]
    ) -> bool:
        """One attempt. False when it arrived damaged."""
        running = self._start(["receive", path, sha256, str(total)], b"", BIG_TIMEOUT_S, keep_stdin=True)
        try:
            answers = self._answers(running)
            first = next(answers, {})
            if "start" in first:
                self._pour(running, source, min(self._number(first, "start"), total), total, on_bytes)
            last = first if "have" in first or "room" in first else next(answers, {})
            ending = running.ending()
        except BaseException:
            running.kill()
            raise
        if "room" in last:
            raise NoSpace(
                f"{self._name}: {path} needs {total} bytes; {self._number(last, 'room')} are free",
                hint="free some space there, or name another work_dir in devices.yaml",
            )
        if not last:
            raise self._no_answer(ending)
        return "differs" not in last

    def _pour(
        self, running: SshRunning, source: Path, start: int, total: int, on_bytes: Callable[[int, int], None]
    ) -> None:
        done = reported = start
        on_bytes(done, total)
        with source.open("rb") as file:
            file.seek(start)
            while done < total and not running.over:
                piece = file.read(min(PIECE, total - done))
                if not piece:
                    break
                running.send(piece)
                done += len(piece)
                self._sent = done
                if done - reported >= REPORT_BYTES:
                    on_bytes(done, total)
                    reported = done
        running.close_stdin()

    def _ask(self, operation: str, path: str, stdin: bytes = b"") -> dict[str, Any]:
        running = self._start([operation, path], stdin, SMALL_TIMEOUT_S)
        try:
            answer = next(self._answers(running), {})
            ending = running.ending()
        except BaseException:
            running.kill()
            raise
        if not answer:
            raise self._no_answer(ending)
        return answer

    def _start(
        self, arguments: list[str], stdin: bytes, timeout_s: float, keep_stdin: bool = False
    ) -> SshRunning:
        argv = [self._connector.python, "-I", "-S", "-c", self._source, *arguments]
        return self._connector.start(argv, stdin, timeout_s, keep_stdin=keep_stdin)

    def _answers(self, running: SshRunning) -> Iterator[dict[str, Any]]:
        """What the board says; its errors are raised. Other lines come from a shell's start-up files."""
        for line in running.lines():
            if not line.startswith(ssh_boardside.MARK):
                continue
            try:
                answer = json.loads(line[len(ssh_boardside.MARK) :])
            except ValueError:
                continue
            if not isinstance(answer, dict):
                continue
            if "errno" in answer:
                raise failure(self._name, answer.get("errno"), answer.get("path"), answer.get("text"))
            yield answer

    def _number(self, answer: dict[str, Any], key: str) -> int:
        value = answer.get(key)
        if type(value) is not int or value < 0:
            raise self._nonsense(answer)
        return value

    def _nonsense(self, answer: dict[str, Any]) -> DeviceError:
        return DeviceError(
            f"{self._name}: the board answered what nobody asked: {printable(repr(answer))[:200]}",
            hint="is python in devices.yaml really a Python?",
        )

    def _no_answer(self, ending: Ending) -> DeviceError:
        if ending.lost:
            return LinkLost(
                f"{self._name}: the link is lost",
                hint="look at the board's power and network; stbench sweep --resume goes on where this ended",
            )
        said = printable(ending.stderr.strip().rpartition("\n")[2])[-300:]
        how = "in time" if ending.timed_out else f"(exit code {ending.code})"
        return DeviceError(
            f"{self._name}: the board did not answer {how}" + (f": {said}" if said else ""),
            hint="try the same with ssh: is its Python in order, and its disk not full?",
        )


def failure(name: str, number: Any, path: Any, text: Any) -> StbenchError:
    """What a board's operating system refused, as a sentence."""
    where = printable(str(path))
    if number in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(
            f"{name}: {where}: no space left on the board",
            hint="free some space there, or name another work_dir in devices.yaml",
        )
    reason = os.strerror(number) if isinstance(number, int) and 0 < number < 134 else printable(str(text))
    hint = "name a work_dir in devices.yaml that its user may write to" if number in _WRITE_REFUSED else ""
    return DeviceError(f"{name}: {where}: {reason}", hint=hint)


_WRITE_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
