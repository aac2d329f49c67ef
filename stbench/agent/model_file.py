"""Model files on the device: written from a specification, and known by their digest.

A sidecar ``<path>.json`` keeps size, mtime_ns, sha256 and specification of a file, so that gigabytes are
hashed once. A sidecar that does not fit the file's size and time is ignored.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import time
from typing import Any, Callable, Dict, Optional

from . import sbr
from .wire import ModelFile, ModelRef, Progress, SynthSpec, to_json

Emit = Callable[[Any], None]
# Asked now and then; true stops.
Stop = Callable[[], bool]

_CHUNK = 1 << 20
# A line of progress at most this often, seconds.
_INTERVAL_S = 0.2


class Cancelled(Exception):
    """The work was stopped on request; nothing unfinished is left."""


class Meter:
    """Progress lines, not too many."""

    def __init__(self, emit: Emit, stage: str) -> None:
        self._emit = emit
        self._stage = stage
        self._next = 0.0

    def update(self, done: int, total: int) -> None:
        """So many bytes are done."""
        now = time.monotonic()
        if now >= self._next or done == total:
            self._next = now + _INTERVAL_S
            self._emit(Progress(self._stage, done, total))


def sidecar_path(path: str) -> str:
    """Where the digest of a model file is kept."""
    return path + ".json"


def known(path: str) -> Optional[Dict[str, Any]]:
    """The sidecar of a file as it is now; None when there is no file or no fitting sidecar."""
    try:
        status = os.stat(path)
        with open(sidecar_path(path), encoding="utf-8") as file:
            values = json.load(file)
    except (OSError, ValueError):
        return None
    if not isinstance(values, dict) or not isinstance(values.get("sha256"), str):
        return None
    fits = values.get("size") == status.st_size and values.get("mtime_ns") == status.st_mtime_ns
    return values if fits else None


def with_digest(model: ModelRef) -> ModelRef:
    """``model`` with the digest of its sidecar. Raises ValueError when the file is not the one that was
    planned; nothing is hashed here."""
    values = known(model.path)
    if values is None:
        return model
    if model.digest and model.digest != values["sha256"]:
        raise ValueError(
            "%s has the digest %s..., the job asks for %s..."
            % (model.path, values["sha256"][:12], model.digest[:12])
        )
    return dataclasses.replace(model, digest=values["sha256"])


def digest(path: str, emit: Emit, stop: Stop, spec: Optional[SynthSpec] = None) -> ModelFile:
    """Hashes a file, unless its sidecar knows, and writes the sidecar where the directory lets it: somebody's
    own model may lie where nobody may write. Raises OSError, Cancelled."""
    values = known(path)
    already = values is not None and (spec is None or values.get("spec") == to_json(spec))
    if values is not None and already:
        return ModelFile("ok", path, bytes=values["size"], sha256=values["sha256"], already_there=True)
    status = os.stat(path)
    meter = Meter(emit, "hash")
    state = hashlib.sha256()
    done = 0
    with open(path, "rb", buffering=0) as file:
        chunk = bytearray(_CHUNK)
        view = memoryview(chunk)
        while True:
            count = file.readinto(chunk)
            if not count:
                break
            state.update(view[:count])
            done += count
            meter.update(done, status.st_size)
            if stop():
                raise Cancelled("stopped while hashing %s" % path)
    with contextlib.suppress(OSError):
        _note(path, status, state.hexdigest(), spec)
    return ModelFile("ok", path, bytes=status.st_size, sha256=state.hexdigest())


def note(path: str, sha256: str) -> int:
    """Writes the sidecar of a file whose digest somebody else computed; returns its size. Raises OSError."""
    status = os.stat(path)
    _note(path, status, sha256, None)
    return status.st_size


def _note(path: str, status: os.stat_result, sha256: str, spec: Optional[SynthSpec]) -> None:
    sidecar = {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "sha256": sha256,
        "spec": to_json(spec) if spec is not None else None,
    }
    _write_atomically(sidecar_path(path), json.dumps(sidecar, indent=1) + "\n")


def make(library: sbr.Library, spec: SynthSpec, path: str, emit: Emit, stop: Stop) -> ModelFile:
    """Writes a synthetic model and its sidecar; does nothing when both are there and fit.

    Two processes that make the same file wait for each other. Raises NativeError, OSError, Cancelled.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        values = known(path)
        if values is not None and values.get("spec") == to_json(spec):
            return ModelFile("ok", path, bytes=values["size"], sha256=values["sha256"], already_there=True)
        meter = Meter(emit, "write")

        def progress(done: int, total: int) -> bool:
            meter.update(done, total)
            return stop()

        sbr.synth_write(library, to_json(spec), path, progress)
        return digest(path, emit, stop, spec)


def _write_atomically(path: str, text: str) -> None:
    temporary = "%s.%d.part" % (path, os.getpid())
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
