"""The spool: what is known on the device of submitted jobs, in files that outlive whoever submitted them.

A job has a key (:func:`.wirespool.spool_key`) and up to four files in the spool's directory:

- ``KEY.lock``: a flock on it is held while the job runs, and by whoever is about to start it;
- ``KEY.started``: a :class:`Started`, on the disk before the job starts;
- ``KEY.part``: room for the record, taken before the job starts, so that a disk that fills up later does not
  cost it;
- ``KEY.record``: the RunRecord, one line, whole and on the disk from the moment it has this name.

They go when the host sends the record's receipt (:meth:`Spool.forget`), never before. A host that never comes
back leaves them; a spool of more than MAX_JOBS jobs takes no more.
"""

import contextlib
import errno
import os
import tempfile
from dataclasses import dataclass
from typing import Iterator, List, Optional

from . import wire
from .lease import try_lock

MAX_JOBS = 10000
# Records of measurements have 10 to 150 kB, a million decoded tokens 9 MB.
RESERVE_BYTES = 1 << 20
_MAX_RECORD_BYTES = 32 << 20
_KINDS = ("lock", "started", "part", "record")


@dataclass(frozen=True)
class Started:
    """A job that was started. ``pid`` leads a session of its own; ``pid_start`` is its start time in clock
    ticks since boot ``boot_id``. ``starts`` counts, from 1. ``since`` is by the device's clock."""

    owner: str
    campaign: str
    label: str
    attempt: int
    boot_id: str
    pid: int
    pid_start: int
    starts: int
    since: str


class Spool:
    """The files of one directory. All methods raise OSError where the disk does."""

    def __init__(self, directory: str) -> None:
        self.directory = os.path.abspath(os.path.expanduser(directory))

    def prepare(self) -> None:
        """Makes the directory, for this user alone."""
        os.makedirs(self.directory, mode=0o700, exist_ok=True)

    def path(self, key: str, kind: str) -> str:
        """The file of a job; see the module's text."""
        if not (len(key) == 32 and all(c in "0123456789abcdef" for c in key)):
            raise wire.WireError("%r is no key of a job" % key)
        return os.path.join(self.directory, "%s.%s" % (key, kind))

    def try_lock(self, key: str) -> Optional[int]:
        """A descriptor with the job's lock, None while the job runs or somebody is about to start it."""
        return try_lock(self.path(key, "lock"), _open_lock)

    def tidy(self, key: str) -> None:
        """Leaves no file of a job that was never started. For whoever has its lock."""
        if not any(os.path.exists(self.path(key, kind)) for kind in ("started", "record")):
            for kind in ("part", "lock"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path(key, kind))

    # ---- what was started ------------------------------------------------------------------------------

    def started(self, key: str) -> Optional[Started]:
        """None for a job that never was."""
        line = self._line(key, "started")
        try:
            return wire.loads(Started, line) if line is not None else None
        except wire.WireError:
            return None

    def note_start(self, key: str, started: Started) -> None:
        """On the disk when this returns."""
        self._replace(self.path(key, "started"), wire.dumps(started) + "\n")

    # ---- the record ------------------------------------------------------------------------------------

    def make_room(self, key: str) -> None:
        """Takes room for the record, and refuses a job that would be one too many."""
        jobs = sum(name.endswith(".started") for name in os.listdir(self.directory))
        if jobs >= MAX_JOBS:
            told = "%d jobs wait for whoever submitted them; fetch their records with --resume" % jobs
            raise OSError(errno.ENOSPC, told, self.directory)
        descriptor = os.open(
            self.path(key, "part"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            try:
                os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
            except (AttributeError, OSError) as error:
                if getattr(error, "errno", 0) not in (0, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise
                _write_all(descriptor, b"\0" * RESERVE_BYTES)
        except BaseException:
            # Half of it would only make the full disk fuller.
            os.unlink(self.path(key, "part"))
            raise
        finally:
            os.close(descriptor)

    def store(self, key: str, line: str) -> None:
        """The record, on the disk when this returns."""
        part, data = self.path(key, "part"), (line + "\n").encode()
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            # Into the room that was taken: what it is too long for is cut off after.
            _write_all(descriptor, data)
            os.ftruncate(descriptor, len(data))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(part, self.path(key, "record"))
        _sync(self.directory)

    def record(self, key: str) -> Optional[str]:
        """The record's line, None where there is none."""
        return self._line(key, "record")

    def drop_record(self, key: str) -> None:
        """For a record that says only that there is no result."""
        os.unlink(self.path(key, "record"))

    def forget(self, receipt: wire.Receipt) -> bool:
        """Removes a job whose record the host has; False when it runs again or has another record."""
        lock = self.try_lock(receipt.key)
        if lock is None:
            return False
        try:
            line = self.record(receipt.key)
            if line is None or not _is_meant(receipt, line):
                return False
            # The record last: what a death leaves behind is then still a record.
            for kind in ("started", "part", "record"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path(receipt.key, kind))
            return True
        finally:
            self.tidy(receipt.key)
            os.close(lock)

    # ---- for people ------------------------------------------------------------------------------------

    def entries(self) -> Iterator[wire.SpoolEntry]:
        """What lies here, by key."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return
        unknown = Started("", "", "", 0, "", 0, 0, 0, "")
        for key in sorted({name[:32] for name in names if name[32:] in (".started", ".record")}):
            told, state = self.started(key) or unknown, self._state(key)
            if state is None:
                continue
            yield wire.SpoolEntry(
                key,
                state,
                told.owner,
                told.campaign,
                told.label,
                told.attempt,
                told.since,
                sum(self._sizes(key)),
            )

    def _state(self, key: str) -> Optional[str]:
        """None for a job that is forgotten by now."""
        lock = self.try_lock(key)
        if lock is None:
            return "running"
        try:
            for kind in ("record", "started"):
                if os.path.exists(self.path(key, kind)):
                    return kind
            return None
        finally:
            self.tidy(key)
            os.close(lock)

    def _sizes(self, key: str) -> List[int]:
        sizes = []
        for kind in _KINDS:
            with contextlib.suppress(FileNotFoundError):
                sizes.append(os.stat(self.path(key, kind)).st_blocks * 512)
        return sizes

    def _line(self, key: str, kind: str) -> Optional[str]:
        try:
            with open(self.path(key, kind), "rb") as file:
                return file.read(_MAX_RECORD_BYTES).decode("utf-8", "replace").rstrip("\n")
        except FileNotFoundError:
            return None

    def _replace(self, path: str, text: str) -> None:
        descriptor, part = tempfile.mkstemp(dir=self.directory, suffix=".new")
        try:
            try:
                _write_all(descriptor, text.encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise
        _sync(self.directory)


def _open_lock(path: str) -> int:
    # Not for writing: a file system that is to become read-only would have to wait for us.
    return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _is_meant(receipt: wire.Receipt, line: str) -> bool:
    try:
        record = wire.loads(wire.RunRecord, line)
    except wire.WireError:
        return False
    if not receipt.started_at:
        return record.purpose == "reference"
    return record.started_at == receipt.started_at


def _write_all(descriptor: int, data: bytes) -> None:
    offset = 0
    while offset < len(data):
        offset += os.pwrite(descriptor, data[offset:], offset)


def _sync(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Network and phone file systems keep directories in ways of their own.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
