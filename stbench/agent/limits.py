"""What the machine can do at most: read bandwidth, gathered rows, storage. The speeds that results are held
against."""

from . import sbr
from .supervise import status_of
from .wire import LimitProbe, LimitResult


def measure_limit(library: sbr.Library, request: LimitProbe) -> LimitResult:
    """One probe; a failure becomes the result's status and detail."""
    duration_ns = int(request.duration_s * 1e9)
    try:
        if request.kind == "read":
            done = sbr.probe_read(library, request.threads, request.buffer_bytes, duration_ns, request.cpus)
        elif request.kind == "gather":
            done = sbr.probe_gather(
                library, request.threads, request.buffer_bytes, request.row_bytes, duration_ns, request.cpus
            )
        elif request.kind == "storage":
            done = sbr.probe_storage(
                library,
                request.path,
                request.threads,
                request.row_bytes,
                duration_ns,
                request.direct,
                request.cpus,
            )
        else:
            raise ValueError('kind "%s": expected read, gather or storage' % request.kind)
    except (sbr.NativeError, OSError, ValueError, MemoryError) as error:
        status, detail = status_of(error)
        return LimitResult(request, status, detail)
    return LimitResult(request, "ok", "", done.threads, done.bytes, done.ns, done.operations)
