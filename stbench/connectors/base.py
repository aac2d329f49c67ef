"""What every way to reach a device can do. Paths are the device's, absolute unless said otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# More than any honest line: a reference of 16 positions has 150 kB.
MAX_LINE_BYTES = 32 << 20


@dataclass(frozen=True)
class FileFacts:
    """Enough to tell that a file is still the one that was hashed."""

    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Ending:
    """How a command ended. ``code``: exit status, or minus the signal that ended it. ``stderr``: its end.
    ``lost``: the link went away first, so that nobody knows how it ended; ``code`` is -1 then."""

    code: int
    timed_out: bool
    stderr: str
    lost: bool = False


class Running(Protocol):
    """A started command. Its lines must be read to the end before :attr:`ending`."""

    def lines(self) -> Iterator[str]:
        """Lines of stdout as they come. Ends when the command does or its time is up."""
        ...

    def ending(self) -> Ending:
        """How it ended; waits for that."""
        ...

    def send(self, data: bytes) -> None:
        """More of its stdin, where it was started with ``keep_stdin``. A command that is gone is ignored:
        its ending tells."""
        ...

    def cancel(self) -> None:
        """Asks the command and its children to stop, and soon stops them. Lines may still be read after."""
        ...

    def kill(self) -> None:
        """Ends the command and its children at once."""
        ...


class Connector(Protocol):
    """One device. Failures to reach it are :class:`stbench.errors.DeviceError`."""

    @property
    def remote(self) -> bool:
        """Whether a link that can break lies between. Jobs are then detached from it: they go on without us,
        and their records lie on the device until they are fetched."""
        ...

    @property
    def work_dir(self) -> str:
        """Where everything of ours lies on the device."""
        ...

    @property
    def models_dir(self) -> str:
        """Where models are made on the device."""
        ...

    @property
    def python(self) -> str:
        """The device's interpreter for the agent."""
        ...

    def connect(self, *, lease: bool = True) -> None:
        """Makes the work directory and takes the device for this process; without ``lease`` only the former,
        to ask beside a sweep.

        Raises :class:`stbench.errors.BusyError` when another controller has it."""
        ...

    def close(self) -> None:
        """Gives the device back."""
        ...

    def start(
        self,
        argv: Sequence[str],
        stdin: bytes,
        timeout_s: float,
        *,
        keep_stdin: bool = False,
        silence_s: float | None = None,
    ) -> Running:
        """Starts a command with ``stdin`` as all of its input, or with ``keep_stdin`` as the beginning of it.
        With ``silence_s`` it promises a line on stdout at least that often: a longer silence means that the
        link is lost."""
        ...

    def stat(self, path: str) -> FileFacts | None:
        """None where there is no such file."""
        ...

    def read(self, path: str) -> bytes | None:
        """A small file's bytes, None where there is none."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Writes a file atomically, making its directory."""
        ...

    def put(self, source: Path, path: str, sha256: str, on_bytes: Callable[[int, int], None]) -> None:
        """Copies a file of this machine to the device, atomically, going on where an earlier attempt
        stopped; ``on_bytes`` gets done and total. A file that is there with this digest is left alone.

        Raises :class:`stbench.errors.NoSpace` before anything is written, and DeviceError."""
        ...

    def remove(self, path: str) -> None:
        """Deletes a file, if it is there."""
        ...

    def free_bytes(self, path: str) -> int:
        """Room on the file system of ``path``, which may not exist yet."""
        ...
