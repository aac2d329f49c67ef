"""What the board does with files: its source is sent along with each request, to the board's own Python.

Not SFTP: that has times in whole seconds, no free space and no digests, and small boards' servers lack it;
Python is there in any case. Standard library only, Python 3.8; this module imports nothing of stbench and
stbench only reads its text.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import signal
import sys
from typing import Any

MARK = "::stbench "
# fcntl names it from Python 3.10 on.
F_SETPIPE_SZ = 1031
PIECE = 256 << 10
# What a cut may leave half-written at the end.
BACK_OFF = 4 << 20


def say(**facts: Any) -> None:
    """One answer."""
    print(MARK + json.dumps(facts), flush=True)


def digest(path: str) -> str:
    """SHA-256 of a file."""
    state = hashlib.sha256()
    with open(path, "rb") as file:
        while True:
            piece = file.read(PIECE)
            if not piece:
                return state.hexdigest()
            state.update(piece)


def free_bytes(path: str) -> int:
    """Room on the file system of a path or of its nearest existing parent."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def sync_directory(path: str) -> None:
    """Makes a rename last, where the file system has a call for it."""
    directory = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(directory)


def write(path: str) -> None:
    """A file from stdin, atomically. The length goes first: a cut must not leave half of it."""
    length, _, data = sys.stdin.buffer.read().partition(b"\n")
    if int(length) != len(data):
        raise OSError(5, "the link broke while it was sent", path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    part = f"{path}.{os.getpid()}.part"
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        if os.path.exists(part):
            os.unlink(part)
        raise
    sync_directory(path)
    say(done=True)


def end_other_writers(part: str) -> None:
    """A sender that was cut off may have left its receiver waiting for more, and writing what comes late."""
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            files = [os.readlink(f"/proc/{name}/fd/{fd}") for fd in os.listdir(f"/proc/{name}/fd")]
        except OSError:
            continue
        if os.path.realpath(part) in files:
            # It may have ended by itself since.
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(name), signal.SIGKILL)


def receive(path: str, sha256: str, total: int) -> None:
    """A big file from stdin. Says where to begin, then that it is done. What came is kept when the rest does
    not come; the digest is of what is in the file, read back where it came earlier."""
    if os.path.isfile(path) and os.path.getsize(path) == total and digest(path) == sha256:
        say(have=True)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    part = f"{path}.{sha256[:16]}.part"
    end_other_writers(part)
    file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(file, fcntl.LOCK_EX)
    there = os.fstat(file)
    start = max(0, there.st_size - BACK_OFF) if there.st_size <= total else 0
    room = free_bytes(path) + 512 * there.st_blocks
    if room < total:
        if not there.st_size:
            os.unlink(part)
        say(room=room)
        return
    os.ftruncate(file, start)
    state = hashlib.sha256()
    done = 0
    while done < start:
        earlier = os.pread(file, min(PIECE, start - done), done)
        state.update(earlier)
        done += len(earlier)
    os.lseek(file, start, os.SEEK_SET)
    say(start=start)
    view = memoryview(bytearray(PIECE))
    # A pipe has 64 KiB; with more the server need not wait for us at every packet.
    with contextlib.suppress(OSError):
        fcntl.fcntl(0, F_SETPIPE_SZ, 4 * PIECE)
    try:
        while done < total:
            got = os.readv(0, [view[: min(PIECE, total - done)]])
            if not got:
                return
            state.update(view[:got])
            written = 0
            while written < got:
                written += os.write(file, view[written:got])
            done += got
    finally:
        os.fsync(file)
    # Cached pages would count for no memory limit: they belong to whoever brought them first.
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    if state.hexdigest() != sha256:
        os.unlink(part)
        say(differs=True)
        return
    os.replace(part, path)
    sync_directory(path)
    say(done=True)


def main(arguments: list[str]) -> None:
    """``OPERATION PATH ...``; errors are an answer, too."""
    operation, path = arguments[:2]
    try:
        if operation == "stat":
            try:
                found = os.stat(path)
            except FileNotFoundError:
                say(absent=True)
            else:
                say(bytes=found.st_size, mtime_ns=found.st_mtime_ns)
        elif operation == "read":
            try:
                with open(path, "rb") as file:
                    say(data=base64.b64encode(file.read()).decode())
            except FileNotFoundError:
                say(absent=True)
        elif operation == "write":
            write(path)
        elif operation == "remove":
            if os.path.lexists(path):
                os.unlink(path)
            say(done=True)
        elif operation == "free":
            say(free=free_bytes(path))
        elif operation == "receive":
            receive(path, arguments[2], int(arguments[3]))
    except OSError as error:
        say(errno=error.errno or 0, text=error.strerror or str(error), path=str(error.filename or path))


if __name__ == "__main__":
    main(sys.argv[1:])
