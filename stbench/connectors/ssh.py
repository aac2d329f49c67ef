"""A board over SSH: one connection, made again after a loss; every request is one session of it."""

from __future__ import annotations

import re
import shlex
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from stbench.connectors.base import FileFacts
from stbench.connectors.ssh_files import SshFiles, failure
from stbench.connectors.ssh_link import Link, open_link
from stbench.connectors.ssh_running import SshRunning, command_line
from stbench.devices.inventory import Device
from stbench.errors import DeviceError
from stbench.yamlfile import printable

DEFAULT_WORK_DIR = "~/.cache/stbench"
DEFAULT_PYTHON = "python3"
MIN_PYTHON = (3, 8)

# What must be known of a board before anything else: where ~ is, whether there is room for files, its Python.
_GREETING = "; ".join(
    [
        'case $1 in "~/"*) w=$HOME/${1#"~/"};; *) w=$1;; esac',
        'case $2 in "~/"*) p=$HOME/${2#"~/"};; *) p=$2;; esac',
        'mkdir -p "$w" && cd "$w" && : > .writable && rm -f .writable && echo "::stbench work $w"',
        '"$p" -I -S -c "import sys; print(sys.version_info[:2])" | '
        'while read -r v; do echo "::stbench python $v $p"; done',
    ]
)
_WORK = re.compile(r"^::stbench work (/.*)$", re.MULTILINE)
_PYTHON = re.compile(r"^::stbench python \((\d+), (\d+)\) (.+)$", re.MULTILINE)


class SshConnector:
    """A board. The lease is the jobs' own: it must outlast the link."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._work_dir = device.work_dir or DEFAULT_WORK_DIR
        self._python = device.python or DEFAULT_PYTHON
        self._files = SshFiles(self)

    @property
    def remote(self) -> bool:
        """A link lies between."""
        return True

    @property
    def work_dir(self) -> str:
        """Where everything of ours lies; ``~`` is resolved once connected."""
        return self._work_dir

    @property
    def models_dir(self) -> str:
        """Where models are made."""
        return f"{self._work_dir}/models"

    @property
    def python(self) -> str:
        """The board's interpreter for the agent."""
        return self._python

    def connect(self, *, lease: bool = True) -> None:
        """Connects unless connected, and makes the work directory; ``lease`` changes nothing.

        Raises :class:`Unreachable`, :class:`HostKeyRefused`, :class:`LoginRefused`, :class:`LinkLost`, and
        :class:`DeviceError` for a board without a work directory to write to or without a fitting Python."""
        with self._lock:
            if self._link is not None:
                if self._link.alive:
                    return
                self._link.close()
                self._link = None
            link = open_link(self.device)
            try:
                self._greet(link)
            except BaseException:
                link.close()
                raise
            self._link = link

    def close(self) -> None:
        """Ends the connection, and with it what still runs there undetached."""
        with self._lock:
            if self._link is not None:
                self._link.close()
                self._link = None

    def start(
        self,
        argv: Sequence[str],
        stdin: bytes,
        timeout_s: float,
        *,
        keep_stdin: bool = False,
        silence_s: float | None = None,
    ) -> SshRunning:
        """Starts a command; see :class:`stbench.connectors.base.Connector`. Connects when nobody did yet; a
        lost link stays lost until :meth:`connect`. A program that is not there ends with code 127."""
        if self._link is None:
            self.connect(lease=False)
        link = self._link
        assert link is not None
        command = command_line(argv, self._work_dir, timeout_s)
        return SshRunning(link, command, stdin, timeout_s, keep_stdin=keep_stdin, silence_s=silence_s)

    def stat(self, path: str) -> FileFacts | None:
        """Size and time of a file, None where there is none."""
        return self._files.stat(path)

    def read(self, path: str) -> bytes | None:
        """A small file's bytes, None where there is none."""
        return self._files.read(path)

    def write(self, path: str, data: bytes) -> None:
        """Writes a file atomically, making its directory."""
        self._files.write(path, data)

    def put(self, source: Path, path: str, sha256: str, on_bytes: Callable[[int, int], None]) -> None:
        """Copies a file; see :class:`stbench.connectors.base.Connector`."""
        self._files.put(source, path, sha256, on_bytes)

    def remove(self, path: str) -> None:
        """Deletes a file, if it is there."""
        self._files.remove(path)

    def free_bytes(self, path: str) -> int:
        """Room on the file system of ``path``, which may not exist yet."""
        return self._files.free_bytes(path)

    def _greet(self, link: Link) -> None:
        """Work directory and Python, as the board has them."""
        name = self.device.name
        work_dir = self.device.work_dir or DEFAULT_WORK_DIR
        python = self.device.python or DEFAULT_PYTHON
        words = ["sh", "-c", _GREETING, "sh", work_dir, python]
        _, out, err = link.call("exec " + " ".join(map(shlex.quote, words)))
        lines = [printable(line)[-300:] for line in err.splitlines() if line.strip()] or ["no answer"]
        if (work := _WORK.search(out)) is None:
            if "No space left" in err:
                raise failure(name, 28, work_dir, "")
            raise DeviceError(
                f"{name}: {work_dir} cannot be used on the board: {lines[0]}",
                hint="name a work_dir in devices.yaml that its user may write to",
            )
        if (found := _PYTHON.search(out)) is None:
            raise DeviceError(
                f"{name}: no {python} on the board: {lines[-1]}",
                hint="install Python 3.8 or newer there (Debian: sudo apt install python3; Termux: "
                "pkg install python), or name one in devices.yaml: python",
            )
        if (int(found[1]), int(found[2])) < MIN_PYTHON:
            raise DeviceError(
                f"{name}: {python} on the board is Python {found[1]}.{found[2]}; 3.8 or newer is needed",
                hint="name a newer one in devices.yaml: python",
            )
        self._work_dir, self._python = work[1], found[3]
