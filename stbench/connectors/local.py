"""This machine as a device: the same agent as on boards, started as a process."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from stbench.connectors.base import MAX_LINE_BYTES, Ending, FileFacts
from stbench.devices.inventory import Device
from stbench.errors import BusyError, DeviceError, NoSpace
from stbench.paths import cache_dir
from stbench.yamlfile import printable

STDERR_TAIL_BYTES = 16 << 10
CANCEL_GRACE_S = 5.0
# For our threads to end after the process: at once, unless its own children hold its pipes. A busy machine
# may take more than a second to read what was written last.
_THREADS_S = 5.0

_PR_SET_PDEATHSIG = 1


class _Lease:
    """The machine, taken once by a process: two sweeps at once would measure each other, whatever their
    devices are called. Devices of one process take turns anyway and share the lease."""

    def __init__(self) -> None:
        self._file = -1
        self._holders = 0

    def take(self, name: str) -> None:
        """Raises :class:`BusyError` with who has it and since when; ``name`` is the device that asks."""
        if not self._holders:
            self._file = self._locked(name)
        self._holders += 1

    def give_back(self) -> None:
        """The last holder unlocks it."""
        self._holders -= 1
        if not self._holders:
            os.close(self._file)

    def _locked(self, name: str) -> int:
        file = os.open(cache_dir() / "local.lease", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(file, 200).decode("utf-8", "replace").strip()
            os.close(file)
            raise BusyError(
                f"{name}: this machine is in use by another stbench ({printable(holder) or 'unknown'})",
                hint="wait until it ends",
            ) from error
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode(), 0)
        return file


_LEASE = _Lease()


class LocalConnector:
    """Commands run in a process group of their own and die with this process, even when it is killed: an
    orphan would go on computing under whatever is measured next."""

    def __init__(self, device: Device) -> None:
        self.device = device
        default = cache_dir() / "devices" / device.name
        self._work_dir = Path(device.work_dir).expanduser() if device.work_dir else default
        self._leased = False

    @property
    def remote(self) -> bool:
        """Nothing lies between."""
        return False

    @property
    def work_dir(self) -> str:
        """Where everything of ours lies."""
        return str(self._work_dir)

    @property
    def models_dir(self) -> str:
        """Where models are made: shared by all local devices unless one has a work directory of its own."""
        return str(self._work_dir / "models") if self.device.work_dir else str(cache_dir() / "models")

    @property
    def python(self) -> str:
        """This interpreter, unless devices.yaml names another."""
        return self.device.python or sys.executable

    def connect(self, *, lease: bool = True) -> None:
        """Makes the work directory and, with ``lease``, takes this machine."""
        self._work_dir.mkdir(parents=True, exist_ok=True)
        if lease and not self._leased:
            _LEASE.take(self.device.name)
            self._leased = True

    def close(self) -> None:
        """Gives the device back."""
        if self._leased:
            self._leased = False
            _LEASE.give_back()

    def start(
        self,
        argv: Sequence[str],
        stdin: bytes,
        timeout_s: float,
        *,
        keep_stdin: bool = False,
        silence_s: float | None = None,
    ) -> LocalRunning:
        """Starts a command; see :class:`stbench.connectors.base.Connector`. No link can be lost here."""
        self._work_dir.mkdir(parents=True, exist_ok=True)
        try:
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self._work_dir,
                start_new_session=True,
                preexec_fn=functools.partial(_die_with_parent, os.getpid()),
            )
        except OSError as error:
            raise DeviceError(f"{self.device.name}: cannot start {argv[0]}: {error.strerror}") from error
        return LocalRunning(process, stdin, timeout_s, keep_stdin)

    def stat(self, path: str) -> FileFacts | None:
        """Size and time of a file, None where there is none."""
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return None
        return FileFacts(found.st_size, found.st_mtime_ns)

    def read(self, path: str) -> bytes | None:
        """A file's bytes, None where there is none."""
        try:
            return Path(path).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, path: str, data: bytes) -> None:
        """Writes a file atomically, making its directory."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        part.write_bytes(data)
        part.replace(target)

    def put(self, source: Path, path: str, sha256: str, on_bytes: Callable[[int, int], None]) -> None:
        """Copies a file; see :class:`stbench.connectors.base.Connector`."""
        target = Path(path)
        if target.is_file() and _sha256(target) == sha256:
            return
        total = source.stat().st_size
        if (free := self.free_bytes(path)) < total:
            raise NoSpace(f"{self.device.name}: {target} needs {total} bytes; {free} are free")
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        shutil.copyfile(source, part)
        if _sha256(part) != sha256:
            part.unlink()
            raise DeviceError(f"{self.device.name}: {source} changed while it was copied")
        part.replace(target)
        on_bytes(total, total)

    def remove(self, path: str) -> None:
        """Deletes a file, if it is there."""
        Path(path).unlink(missing_ok=True)

    def free_bytes(self, path: str) -> int:
        """Room on the file system of ``path`` or of its nearest existing parent."""
        found = Path(path)
        while not found.exists():
            found = found.parent
        return shutil.disk_usage(found).free


class LocalRunning:
    """A process of :meth:`LocalConnector.start`."""

    def __init__(
        self, process: subprocess.Popen[bytes], stdin: bytes, timeout_s: float, keep_stdin: bool = False
    ) -> None:
        self._process = process
        self._deadline = time.monotonic() + timeout_s
        self._timed_out = False
        self._tail = b""
        self._unread = b""
        self._fed = threading.Event()
        self._threads = [
            threading.Thread(target=self._feed, args=(stdin, keep_stdin), daemon=True),
            threading.Thread(target=self._drain, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _feed(self, stdin: bytes, keep_stdin: bool) -> None:
        assert self._process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(stdin)
                self._process.stdin.flush()
                if not keep_stdin:
                    self._process.stdin.close()
        finally:
            self._fed.set()

    def send(self, data: bytes) -> None:
        """More of its stdin, where it was kept open; behind what it was started with."""
        self._fed.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def _drain(self) -> None:
        assert self._process.stderr is not None
        while chunk := os.read(self._process.stderr.fileno(), 65536):
            self._tail = (self._tail + chunk)[-STDERR_TAIL_BYTES:]

    def lines(self) -> Iterator[str]:
        """Lines of stdout as they come; a line that never ends is cut off with its process. May be called
        again after an interruption: what was half read is kept."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while True:
                left = self._deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    self._timed_out = True
                    self.kill()
                    return
                chunk = os.read(self._process.stdout.fileno(), 1 << 20)
                if not chunk:
                    break
                *whole, self._unread = (self._unread + chunk).split(b"\n")
                for line in whole:
                    yield line.decode("utf-8", "replace")
                if len(self._unread) > MAX_LINE_BYTES:
                    self.kill()
                    return
        if self._unread:
            yield self._unread.decode("utf-8", "replace")

    def ending(self) -> Ending:
        """How the process ended; one that closed its output but does not end is killed at the deadline."""
        try:
            code = self._process.wait(max(self._deadline - time.monotonic(), 1.0))
        except subprocess.TimeoutExpired:
            self._timed_out = True
            self.kill()
            code = self._process.wait()
        for thread in self._threads:
            thread.join(_THREADS_S)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None and not self._threads[1].is_alive():
                stream.close()
        return Ending(code, self._timed_out, self._tail.decode("utf-8", "replace"))

    def cancel(self) -> None:
        """SIGTERM to the group now, and an end in five seconds whatever it does."""
        self._signal(signal.SIGTERM)
        self._deadline = min(self._deadline, time.monotonic() + CANCEL_GRACE_S)

    def kill(self) -> None:
        """SIGKILL to the group."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        # Once the leader was waited for, its number may belong to somebody else.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


_LIBC = ctypes.CDLL(None, use_errno=True)


def _die_with_parent(parent: int) -> None:
    """Runs in the child between fork and exec: system calls only."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
