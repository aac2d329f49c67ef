"""Bundles: weights that stay on storage, one file per model and purpose (``sbr_bundle_*``)."""

import ctypes
import os
from typing import Any, NamedTuple, Optional

from . import _abi_tools
from ._files import ProgressCallback
from ._load import Library
from ._names import BUNDLE_KINDS, sized


class BundleInfo(NamedTuple):
    """What a bundle's header says, or would say. ``kind`` is "experts" or "layers"; ``gathers`` is GATHER_UP
    for a sparse FFN, else 0; ``unit_bytes`` is of one unit, of which there are ``n_layer`` times
    ``units_per_layer``; ``layout`` says in which form its matrices are. ``model_digest`` is the one that was
    given when it was made, "" in a plan."""

    version: int
    kind: str
    gathers: int
    n_layer: int
    units_per_layer: int
    unit_bytes: int
    file_bytes: int
    layout: str
    model_digest: str


def _info(library: Library, call: str, *arguments: Any) -> BundleInfo:
    found = sized(_abi_tools.BundleInfo)
    library.call(call, *arguments, ctypes.byref(found))
    return BundleInfo(
        found.version,
        BUNDLE_KINDS[found.kind],
        found.gathers,
        found.n_layer,
        found.units_per_layer,
        found.unit_bytes,
        found.file_bytes,
        found.layout.decode("utf-8", "replace"),
        found.model_digest.decode("utf-8", "replace"),
    )


def bundle_plan(library: Library, model: str, gathers: int) -> BundleInfo:
    """What :func:`bundle_write` would write for a model's file; reads its header only. Raises NativeError."""
    return _info(library, "sbr_bundle_plan", os.fsencode(model), gathers)


def bundle_describe(library: Library, path: str) -> BundleInfo:
    """What a bundle says of itself, once its header was checked. Raises NativeError, saying what differs."""
    return _info(library, "sbr_bundle_describe", os.fsencode(path))


def bundle_write(
    library: Library,
    model: str,
    digest: str,
    gathers: int,
    path: str,
    progress: Optional[ProgressCallback] = None,
) -> None:
    """Writes the bundle of a model's file; ``digest`` is kept in its header. It appears under its name when
    it is complete, and is not left in the page cache. Raises NativeError."""
    library.call(
        "sbr_bundle_write",
        os.fsencode(model),
        os.fsencode(digest),
        gathers,
        os.fsencode(path),
        _forward(progress),
        None,
    )


def bundle_verify(library: Library, path: str, progress: Optional[ProgressCallback] = None) -> None:
    """Compares the checksums of all units. Raises NativeError, naming the first that differs."""
    library.call("sbr_bundle_verify", os.fsencode(path), _forward(progress), None)


def _forward(progress: Optional[ProgressCallback]) -> Any:
    def forward(_user: Any, done: int, total: int) -> int:
        return 1 if progress is not None and progress(done, total) else 0

    return _abi_tools.Progress(forward)
