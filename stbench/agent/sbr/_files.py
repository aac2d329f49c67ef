"""Calls that need no model in memory: describing files, writing synthetic ones, probing the machine."""

import ctypes
import json
import os
from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence, Tuple

from . import _abi, _abi_tools
from ._load import Library, NativeError
from ._names import IO_KINDS, TYPES, number, sized, uint32s

# Called with (done_bytes, total_bytes); a true result stops.
ProgressCallback = Callable[[int, int], Any]


def describe(library: Library, path: str, max_array_items: int = 8) -> Dict[str, Any]:
    """A GGUF file's header as a dict (``sbr_gguf_describe``). Raises NativeError."""
    text = ctypes.c_void_p()
    library.call("sbr_gguf_describe", os.fsencode(path), max_array_items, ctypes.byref(text))
    try:
        description: Dict[str, Any] = json.loads(ctypes.string_at(text.value or 0).decode("utf-8"))
    finally:
        library.sbr_string_free(text)
    return description


def _synth_spec(fields: Dict[str, Any]) -> Any:
    """``sbr_synth_spec`` from the fields of ``wire.SynthSpec``."""
    values = dict(fields)
    values["weight_type"] = number(TYPES, values["weight_type"], "weight_type")
    for key, size in (("architecture", 32), ("name", 96)):
        values[key] = values[key].encode()
        if len(values[key]) >= size:
            raise NativeError(_abi.ERR_ARGUMENT, "%s: at most %d bytes" % (key, size - 1))
    shares = values.pop("zero_share", None)
    for key, value in values.items():
        if isinstance(value, bool):
            values[key] = int(value)
    spec = sized(_abi_tools.SynthSpec, **values)
    if shares is not None:
        if len(shares) != spec.n_layer:
            raise NativeError(
                _abi.ERR_ARGUMENT, "zero_share: %d numbers for %d layers" % (len(shares), spec.n_layer)
            )
        spec.zero_share = (ctypes.c_uint16 * len(shares))(*shares)
    return spec


def synth_size(library: Library, fields: Dict[str, Any]) -> int:
    """Bytes of the file that :func:`synth_write` would write."""
    size = ctypes.c_uint64()
    library.call("sbr_synth_size", ctypes.byref(_synth_spec(fields)), ctypes.byref(size))
    return size.value


def synth_write(
    library: Library, fields: Dict[str, Any], path: str, progress: Optional[ProgressCallback] = None
) -> None:
    """Writes a synthetic model; ``fields`` are those of ``wire.SynthSpec``. Raises NativeError."""

    def forward(_user: Any, done: int, total: int) -> int:
        return 1 if progress is not None and progress(done, total) else 0

    library.call(
        "sbr_synth_write",
        ctypes.byref(_synth_spec(fields)),
        os.fsencode(path),
        _abi_tools.Progress(forward),
        None,
    )


# ---- what the machine can do -------------------------------------------------------------------------


class ProbeResult(NamedTuple):
    """``bytes`` moved in ``ns`` nanoseconds by ``operations`` rows or reads."""

    threads: int
    bytes: int
    ns: int
    operations: int


class ReadsResult(NamedTuple):
    """``bytes`` of units of ``unit_bytes`` in ``ns`` nanoseconds, ``depth`` reads at a time. ``io`` of
    :data:`IO_KINDS`; ``direct``: past the page cache."""

    depth: int
    bytes: int
    ns: int
    unit_bytes: int
    io: str
    direct: bool


def _probe(library: Library, function: str, head: Tuple[Any, ...], options: Dict[str, Any]) -> ProbeResult:
    cpus = options.pop("cpus", ())
    native = sized(_abi_tools.ProbeOptions, **options)
    if cpus:
        native.cpus = uint32s(cpus)
        native.n_cpus = len(cpus)
    result = sized(_abi_tools.ProbeResult)
    library.call(function, *head, ctypes.byref(native), ctypes.byref(result))
    return ProbeResult(result.n_threads, result.bytes, result.ns, result.operations)


def probe_read(
    library: Library, n_threads: int, buffer_bytes: int, duration_ns: int, cpus: Sequence[int] = ()
) -> ProbeResult:
    """Streaming reads of a private buffer."""
    options = dict(n_threads=n_threads, buffer_bytes=buffer_bytes, duration_ns=duration_ns, cpus=cpus)
    return _probe(library, "sbr_probe_read", (), options)


def probe_gather(
    library: Library,
    n_threads: int,
    buffer_bytes: int,
    row_bytes: int,
    duration_ns: int,
    cpus: Sequence[int] = (),
) -> ProbeResult:
    """Reads of whole rows in random order."""
    options = dict(
        n_threads=n_threads,
        buffer_bytes=buffer_bytes,
        row_bytes=row_bytes,
        duration_ns=duration_ns,
        cpus=cpus,
    )
    return _probe(library, "sbr_probe_gather", (), options)


def probe_reads(
    library: Library,
    path: str,
    duration_ns: int,
    unit_bytes: int = 0,
    io: str = "auto",
    at_a_time: int = 0,
    direct: bool = True,
) -> ReadsResult:
    """Random units by the readers of a session, ``at_a_time``, or as many as these ever have (0): of the
    bundle ``path``, or with ``unit_bytes`` (a multiple of 4096) of any file. Raises NativeError."""
    options = sized(
        _abi_tools.ProbeOptions,
        n_threads=at_a_time,
        row_bytes=unit_bytes,
        duration_ns=duration_ns,
        direct=int(direct),
        io=number(IO_KINDS, io, "io"),
    )
    result = sized(_abi_tools.ProbeResult)
    library.call("sbr_probe_reads", os.fsencode(path), ctypes.byref(options), ctypes.byref(result))
    used = next((name for name, known in IO_KINDS.items() if known == result.io), str(result.io))
    direct_used = result.io_direct == _abi.DIRECT_ON
    return ReadsResult(result.n_threads, result.bytes, result.ns, result.row_bytes, used, direct_used)
