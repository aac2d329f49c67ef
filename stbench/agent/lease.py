"""The board's lease: one job at a time, whoever submits it.

A flock on one file. It is taken by the submitting command and handed to the detached job, which holds it
until it ends, however it ends; so does the process that measures. Its text says who, since when and until
when at most; it is for people, and nothing rests on it.

The file is ``stbench.lease`` in the first of /run/lock and /tmp that every user of the board may write to, so
that different users and work directories exclude each other; where there is neither (Termux) it lies in the
spool, and only submissions to the same work directory exclude each other. ``STBENCH_LEASE`` names another
file, for boards that share a file system, as those of the tests do. In a directory that all may write to:

- it is opened without O_CREAT first, as fs.protected_regular demands of files of other users, and made with
  O_EXCL and for all;
- a symbolic link is not followed, and what is not an ordinary file with one name is refused, so that nobody's
  other file is ever written to;
- who may log in to the board can keep the lease for ever: it is an agreement, no protection.

Times are seconds of CLOCK_BOOTTIME: a board's wall clock may be years off, and jumps when it is set.
"""

import contextlib
import errno
import fcntl
import os
import stat
import time
from dataclasses import dataclass
from typing import Callable, Optional

from . import bracket, wire

_SHARED = ("/run/lock", "/tmp")
_NAME = "stbench.lease"
_MAX_TEXT = 4096
# Beyond a job's own limits: starting, storing the record, and a busy board.
GRACE_S = 30.0


@dataclass(frozen=True)
class Holder:
    """The text of the file. ``since`` is by the board's clock, for people; ``since_s`` and ``expires_s`` are
    seconds since boot ``boot_id``."""

    owner: str
    campaign: str
    label: str
    boot_id: str
    since: str
    since_s: float
    expires_s: float


def now_s() -> float:
    """Seconds since boot, suspended ones included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Which boot this is, "" where the kernel does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read(100).strip()
    except OSError:
        return ""


def lease_s(job: wire.JobSpec, grace_s: float = GRACE_S) -> float:
    """Seconds after which a job is ended, whatever it is doing: its own limit, what the thermal gate and the
    probes beside it may take, and grace."""
    probes = 2 * bracket.timeout_s(job) if job.bracket_ms > 0 else 0.0
    return job.timeout_s + job.cool_down_s + probes + grace_s


def lease_path(spool: str) -> str:
    """The lease file of this board; see the module's text."""
    named = os.environ.get("STBENCH_LEASE")
    if named:
        return named
    for directory in _SHARED:
        if _is_for_all(directory):
            return os.path.join(directory, _NAME)
    return os.path.join(spool, _NAME)


def _is_for_all(directory: str) -> bool:
    """The same answer for every user."""
    try:
        mode = os.stat(directory).st_mode
    except OSError:
        return False
    return bool(mode & stat.S_ISVTX and mode & stat.S_IWOTH) and os.access(directory, os.W_OK)


def try_take(path: str) -> Optional[int]:
    """A descriptor with the lock, None when somebody has it. Raises OSError."""
    return try_lock(path, _open)


def try_lock(path: str, opened: Callable[[str], int]) -> Optional[int]:
    """A descriptor with the lock of a file that ``opened`` opens, None when somebody has it. Raises
    OSError."""
    for _ in range(100):
        descriptor = opened(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(descriptor, path):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        # A cleaner removed it between our opening and locking it: what we locked is nobody's.
        os.close(descriptor)
    raise OSError(errno.EBUSY, "the file is replaced all the time", path)


def is_at(descriptor: int, path: str) -> bool:
    """Whether ``path`` still is this file."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    held = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)


def _open(path: str) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    for _ in range(100):
        try:
            return _checked(os.open(path, flags), path)
        except FileNotFoundError:
            pass
        except PermissionError:
            # Made by another program with narrower rights: the lock works all the same.
            return _checked(os.open(path, flags & ~os.O_RDWR | os.O_RDONLY), path)
        try:
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            continue
        # Whatever the umask: the next user of the board has to write who it is.
        os.fchmod(descriptor, 0o666)
        return descriptor
    raise OSError(errno.EBUSY, "the file comes and goes", path)


def _checked(descriptor: int, path: str) -> int:
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not an ordinary file of its own; remove it", path)


def sign(descriptor: int, holder: Holder) -> None:
    """Writes who has it. A lease that cannot be signed is one all the same."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, (wire.dumps(holder) + "\n").encode()[:_MAX_TEXT], 0)


def read_holder(path: str) -> Optional[Holder]:
    """Who says to have it; None where nothing sensible is said."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return wire.loads(Holder, os.pread(descriptor, _MAX_TEXT, 0).decode("utf-8", "replace"))
    except (OSError, wire.WireError):
        return None
    finally:
        os.close(descriptor)


def sentence(holder: Optional[Holder], boot: str) -> str:
    """One line for whoever is refused."""
    if holder is None or holder.boot_id != boot:
        return "in use by somebody who has not said who"
    since, left = max(now_s() - holder.since_s, 0.0), max(holder.expires_s - now_s(), 0.0)
    text = "in use by %s (campaign %s, job %s) since %.0f s (%s by its clock), for at most %.0f s more" % (
        holder.owner,
        holder.campaign,
        holder.label,
        since,
        holder.since,
        left,
    )
    return "".join(c if c.isprintable() else "?" for c in text)
