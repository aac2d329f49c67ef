"""Files that are replaced whole or not at all."""

import errno
import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> Path:
    """Replaces ``path`` by a complete file with ``data`` and returns it; one that was there keeps its mode.
    A reader sees the old one or the new one, whoever else writes it and also after a power cut. On OSError
    the old file stays, or the new one where only its directory could not be synced."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
    return path


def sync_directory(path: Path) -> None:
    """The names in a directory are on the disk when this returns, or the file system has no such call."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Network and phone file systems keep directories in ways of their own.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)
