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
            return _storage(library, request, duration_ns)
        else:
            raise ValueError('kind "%s": expected read, gather or storage' % request.kind)
    except (sbr.NativeError, OSError, ValueError, MemoryError) as error:
        status, detail = status_of(error)
        return LimitResult(request, status, detail)
    return LimitResult(request, "ok", "", done.threads, done.bytes, done.ns, done.operations)


def _storage(library: sbr.Library, request: LimitProbe, duration_ns: int) -> LimitResult:
    """Through the readers that a memory-limited session has, so that the rate is one that it could reach."""
    done = sbr.probe_reads(
        library, request.path, duration_ns, request.row_bytes, "auto", request.threads, request.direct
    )
    if request.direct and not done.direct:
        raise OSError("%s: reads cannot bypass the page cache there" % request.path)
    return LimitResult(
        request, "ok", "", request.threads or done.depth, done.bytes, done.ns, done.bytes // done.unit_bytes
    )
