"""Routing traces of a sweep: the one that is replayed goes to devices, those that runs recorded come back.

The file is docs/routing.md's; it is small (80 bytes a token for the 4B model), so it travels whole.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from stbench.agent import timelines
from stbench.agent.routing import SUFFIX
from stbench.agent.wire import JobSpec, RoutingTrace, RunRecord, TimelineTrace
from stbench.caches import routings
from stbench.connectors.base import Connector
from stbench.errors import StoreError, unreadable

# Where recorded traces lie, beside the records.
FOLDER = "routing"
# The same of timelines (docs/profile.md); on devices they lie with the traces.
TIMELINES = "timelines"


@dataclass(frozen=True)
class Trace:
    """A trace of this machine, to be replayed. ``digest`` is the SHA-256 of the file."""

    source: Path
    digest: str


def trace_of(path: Path) -> Trace:
    """Reads and checks a trace. Raises :class:`InputError`."""
    routings.load(path)
    try:
        return Trace(path, hashlib.sha256(path.read_bytes()).hexdigest())
    except OSError as error:
        raise unreadable(path, error) from error


def path_on(connector: Connector, digest: str) -> str:
    """Where a trace to replay lies on a device."""
    return f"{connector.work_dir}/{FOLDER}/{digest[:16]}{SUFFIX}"


def send(connector: Connector, trace: Trace, on_bytes: Callable[[int, int], None]) -> None:
    """Puts a trace on a device, unless it is there. Raises :class:`stbench.errors.DeviceError`,
    :class:`stbench.errors.NoSpace`."""
    connector.put(trace.source, path_on(connector, trace.digest), trace.digest, on_bytes)


def recorded_on(connector: Connector, job: JobSpec) -> str:
    """Where a job writes its own trace on its device."""
    return f"{connector.work_dir}/{FOLDER}/{job.id}-{job.attempt}{SUFFIX}"


def timeline_on(connector: Connector, job: JobSpec) -> str:
    """Where a job writes its timeline on its device."""
    return f"{connector.work_dir}/{FOLDER}/{job.id}-{job.attempt}{timelines.SUFFIX}"


def fetched(connector: Connector, record: RunRecord, directory: Path) -> RunRecord:
    """The record with its trace and its timeline in the campaign's ``directory``, and the device's copies
    deleted. One that is gone or was damaged on the way is a warning in the record.

    Raises :class:`StoreError`, and DeviceError when the link breaks."""
    if record.routing is not None:
        path, why = _fetched(connector, record, record.routing, directory / FOLDER, SUFFIX)
        routing = replace(record.routing, path=f"{FOLDER}/{path}") if path else None
        warnings = [*record.warnings, *([f"the routing of this run {why}"] if why else [])]
        record = replace(record, routing=routing, warnings=warnings)
    if record.profile is not None:
        path, why = _fetched(connector, record, record.profile, directory / TIMELINES, timelines.SUFFIX)
        profile = replace(record.profile, path=f"{TIMELINES}/{path}") if path else None
        warnings = [*record.warnings, *([f"the timeline of this run {why}"] if why else [])]
        record = replace(record, profile=profile, warnings=warnings)
    return record


def _fetched(
    connector: Connector, record: RunRecord, trace: RoutingTrace | TimelineTrace, folder: Path, suffix: str
) -> tuple[str, str]:
    """The name of the file in ``folder``; or "" and why there is none."""
    name = re.sub(r"[^A-Za-z0-9._%+-]+", "_", f"{record.label}-{record.replicate}")[:180]
    path = folder / f"{name}-{record.id[:8]}-{record.attempt}{suffix}"
    data = connector.read(trace.path)
    if data is None and path.exists() and routings.file_digest(path) == trace.sha256:
        # Fetched before, by one that was killed before it had stored the record.
        return path.name, ""
    if data is None or hashlib.sha256(data).hexdigest() != trace.sha256:
        why = "is gone from the device" if data is None else "is not the file that the run wrote"
        return "", f"{why} ({trace.path})"
    try:
        path.parent.mkdir(exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    connector.remove(trace.path)
    return path.name, ""
