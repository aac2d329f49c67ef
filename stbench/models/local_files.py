"""Model files of this machine: their digests, known once per file, wherever it lies."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path

from stbench.agent import model_file
from stbench.atomic import write_atomically
from stbench.errors import ModelError
from stbench.paths import cache_dir

# Several boards may want one file at the same time; it is read once.
_ONE_AT_A_TIME = threading.Lock()


def digest_of(path: Path, on_bytes: Callable[[int, int], None]) -> str:
    """The SHA-256 of a file. It is kept in the cache: the file's own directory may be read-only.

    Raises :class:`ModelError`."""
    with _ONE_AT_A_TIME:
        known = model_file.known(str(path))
        if known is not None:
            return str(known["sha256"])
        name = hashlib.sha256(str(path).encode()).hexdigest()[:32]
        note = cache_dir() / "digests" / f"{name}.json"
        try:
            status = path.stat()
            kept = _kept(note, status.st_size, status.st_mtime_ns)
            if kept is not None:
                return kept
            sha256 = _hash(path, status.st_size, on_bytes)
        except OSError as error:
            raise ModelError(
                f"{path}: {error.strerror}", hint="the path of a GGUF file, or a name of `stbench models`"
            ) from error
        note.parent.mkdir(exist_ok=True)
        text = json.dumps({"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256})
        write_atomically(note, text.encode())
        return sha256


def _kept(note: Path, size: int, mtime_ns: int) -> str | None:
    try:
        data = json.loads(note.read_text())
        return str(data["sha256"]) if (data["size"], data["mtime_ns"]) == (size, mtime_ns) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _hash(path: Path, total: int, on_bytes: Callable[[int, int], None]) -> str:
    state, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(4 << 20):
            state.update(chunk)
            done += len(chunk)
            on_bytes(done, total)
    return state.hexdigest()
