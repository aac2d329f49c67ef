"""Bundles on the device: made from a model's file on first need and found again by its digest.

docs/bundles.md describes the file.
"""

import contextlib
import fcntl
import os
from typing import Iterator, Optional

from . import model_file, sbr
from .model_file import Emit, Meter, Stop
from .wire import ModelRef
from .wiretools import BundleRequest, ModelFile

# How every bundle begins, whatever its version.
MAGIC = b"SBRUNITS"


def make(library: sbr.Library, request: BundleRequest, emit: Emit, stop: Stop) -> ModelFile:
    """Writes the bundle that is asked for, unless it is there: one with the digest, the purpose and the
    layout that this library would write. Another bundle under that name is replaced, and ``detail`` says
    why; a file that is none is left alone. A model whose digest nobody knows is hashed.

    Two processes that make the same bundle wait for each other. Raises NativeError, OSError, ValueError (the
    model is not the one that was asked for, the path is taken), :class:`stbench.agent.model_file.Cancelled`.
    """
    path = request.path
    digest = _digest(request, emit, stop)
    wanted = sbr.bundle_plan(library, request.model, request.gathers)._replace(model_digest=digest)
    there = ModelFile("ok", path, bytes=wanted.file_bytes, already_there=True)
    # Before the lock: a directory that nobody may write to can have one.
    if why_not(library, path, wanted) == "":
        return there
    with _locked(path):
        unfit = why_not(library, path, wanted)
        if unfit == "":
            return there
        meter = Meter(emit, "bundle")

        def progress(done: int, total: int) -> bool:
            meter.update(done, total)
            return stop()

        sbr.bundle_write(library, request.model, digest, request.gathers, path, progress)
    detail = "made again: " + unfit if unfit else ""
    return ModelFile("ok", path, detail, bytes=wanted.file_bytes)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        lock = open(path + ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise ValueError("%s: a bundle cannot be written there: %s" % (path, error.strerror)) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def why_not(library: sbr.Library, path: str, wanted: sbr.BundleInfo) -> Optional[str]:
    """Why the file at ``path`` is not the bundle that is wanted: "" when it is, None when there is no file,
    else a sentence. Only its header is read. Raises ValueError for a file that is no bundle: it is not ours,
    and NativeError, OSError for one that cannot be read."""
    try:
        with open(path, "rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise ValueError(
                    "%s is not a bundle and is left alone: remove it, or give the bundle another name" % path
                )
    except FileNotFoundError:
        return None
    try:
        there = sbr.bundle_describe(library, path)
    except sbr.NativeError as error:
        if error.name not in ("format", "unsupported"):
            raise
        return str(error)
    for name, one, other in zip(wanted._fields, there, wanted):
        if one != other:
            return "%s: its %s is %s, %s is wanted" % (path, name, one, other)
    return ""


def _digest(request: BundleRequest, emit: Emit, stop: Stop) -> str:
    """Of the model's file as it is now."""
    known = model_file.with_digest(ModelRef("", request.model, request.digest))
    if model_file.known(request.model) is not None:
        return known.digest
    found = model_file.digest(request.model, emit, stop).sha256
    if request.digest and request.digest != found:
        raise ValueError(
            "%s has the digest %s..., the bundle was asked for %s..."
            % (request.model, found[:12], request.digest[:12])
        )
    return found
