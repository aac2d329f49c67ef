"""What of a file lies in the page cache: asked with mincore, and put out of it with fadvise.

Page cache is charged to the control group that touched it first. Weights that were just uploaded, hashed or
measured without a limit lie in another group's memory, and a run that reads them there pays nothing: its
limit shows nothing. They have to go before the run enters its group.
"""

import contextlib
import ctypes
import os
import stat
import time
from typing import Any, List, Optional, Sequence

from .tree import Tree

_PROT_READ, _MAP_SHARED = 1, 1
# Mapped piece by piece, so that a 32-bit board finds room.
_WINDOW = 256 << 20
# Pages on their way to or from the disk stay at first.
_TRIES = 5
_PAUSE_S = 0.05
_MAX_HOLDERS = 3


def cached_bytes(path: str) -> Optional[int]:
    """Bytes of a file's pages that lie in the page cache. None where the kernel does not tell: of files that
    one neither owns nor may write, mincore says since Linux 5.2 that everything is there. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() and not os.access(path, os.W_OK):
            return None
        pages = 0
        for offset in range(0, status.st_size, _WINDOW):
            pages += _resident(descriptor, offset, min(_WINDOW, status.st_size - offset))
        return min(pages * os.sysconf("SC_PAGE_SIZE"), status.st_size)
    finally:
        os.close(descriptor)


def _resident(descriptor: int, offset: int, length: int) -> int:
    """Pages of one window."""
    libc = ctypes.CDLL(None, use_errno=True)
    map_file: Any = getattr(libc, "mmap64", None) or libc.mmap
    map_file.restype = ctypes.c_void_p
    map_file.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_int64]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    address = map_file(None, length, _PROT_READ, _MAP_SHARED, descriptor, offset)
    if address == ctypes.c_void_p(-1).value:
        raise _last_error("mmap")
    try:
        there = ctypes.create_string_buffer(-(-length // os.sysconf("SC_PAGE_SIZE")))
        if libc.mincore(address, length, there):
            raise _last_error("mincore")
        return there.raw.count(b"\x01")
    finally:
        libc.munmap(address, length)


def _last_error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, "%s: %s" % (call, os.strerror(number)))


def drop(path: str, sync: bool = True) -> None:
    """Asks the kernel to forget a file's pages; those that somebody has mapped or locked stay, and dirty ones
    without ``sync``. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # A read-only file system has nothing to write.
        with contextlib.suppress(OSError):
            if sync:
                os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def holders(path: str, tree: Optional[Tree] = None) -> List[str]:
    """Processes that map a file, as ``PID (name)``, the first few of those that /proc shows us."""
    tree = tree if tree is not None else Tree()
    try:
        inode = str(os.stat(path).st_ino)
    except OSError:
        return []
    name, found = os.path.basename(os.path.realpath(path)), []
    for pid in tree.names("proc"):
        if not pid.isdigit() or int(pid) == os.getpid():
            continue
        for line in (tree.text("proc/%s/maps" % pid) or "").splitlines():
            words = line.split(None, 5)
            if len(words) == 6 and words[4] == inode and os.path.basename(words[5]) == name:
                found.append("%s (%s)" % (pid, tree.text("proc/%s/comm" % pid) or "?"))
                break
        if len(found) == _MAX_HOLDERS:
            break
    return found


class Weights:
    """The files that a run reads its weights from, as far as they are there."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = [path for path in dict.fromkeys(paths) if path and _is_file(path)]
        self.size = sum(os.stat(path).st_size for path in self.paths)
        # What may stay without being worth a word: an edge of a large page, a header somebody looked at.
        self.tolerance = max(64 << 10, self.size // 1000)

    def cached(self) -> Optional[int]:
        """Bytes of them in the page cache; None when that is not known of all."""
        try:
            found = [cached_bytes(path) for path in self.paths]
        except OSError:
            return None
        known = [size for size in found if size is not None]
        return sum(known) if len(known) == len(found) else None

    def drop(self) -> Optional[int]:
        """Puts them out of the page cache; what stays all the same, None when not known."""
        left = self.cached()
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_PAUSE_S)
            for path in self.paths:
                with contextlib.suppress(OSError):
                    # Waiting for a busy disk can take a minute; a file that was not just written needs none.
                    drop(path, sync=attempt > 0 or left is None)
            left = self.cached()
            if left is None or left <= self.tolerance:
                break
        return left

    def holders(self) -> List[str]:
        """Who maps one of them."""
        return list(dict.fromkeys(who for path in self.paths for who in holders(path)))[:_MAX_HOLDERS]


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False
