"""Talks to the agent on a device: one process per request, JSON on its stdin, JSON lines on its stdout.

Whatever the process does, :meth:`Agent.run` comes back with a record: a crash, a hang and silence have a
status.
"""

from __future__ import annotations

import datetime
import signal
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from stbench.agent import wire
from stbench.agent.wire import (
    DeviceFacts,
    JobSpec,
    LimitResult,
    LimitsRequest,
    MakeRequest,
    ModelFile,
    RunRecord,
)
from stbench.connectors.base import Connector, Ending, Running
from stbench.deploy import Deployment
from stbench.errors import AgentError, ModelError, NoSpace
from stbench.sweep import FAKE
from stbench.yamlfile import printable

Message = TypeVar("Message")
OnBytes = Callable[[str, int, int], None]

# The agent keeps to a job's own time limit; this is for one that does not.
GRACE_S = 30.0
PROBE_TIMEOUT_S = 60.0
MAKE_TIMEOUT_S = 7200.0


class JobInterrupted(Exception):
    """The user stopped a running job; ``record`` says so."""

    def __init__(self, record: RunRecord) -> None:
        super().__init__(record.label)
        self.record = record


class Agent:
    """The agent of one device, deployed."""

    def __init__(self, name: str, connector: Connector, deployment: Deployment) -> None:
        self.name = name
        self.connector = connector
        self.deployment = deployment

    def facts(self) -> DeviceFacts:
        """What the device reports about itself. Raises :class:`AgentError`."""
        arguments = ["--library", self.deployment.library] if self.deployment.library else []
        running = self._start(
            ["probe", *arguments, "--path", self.connector.models_dir], b"", PROBE_TIMEOUT_S
        )
        return self._last(running, DeviceFacts)

    def make(self, path: str, spec: wire.SynthSpec, on_bytes: OnBytes) -> ModelFile:
        """Writes a synthetic model unless it is there, and hashes it. Raises :class:`ModelError`."""
        return self._file("make", MakeRequest(path, self.deployment.library, spec), on_bytes)

    def digest(self, path: str, on_bytes: OnBytes) -> ModelFile:
        """Hashes a file on the device. Raises :class:`ModelError`."""
        return self._file("digest", MakeRequest(path), on_bytes)

    def limits(self, request: LimitsRequest) -> list[LimitResult]:
        """What the device can do at best. Raises :class:`AgentError`."""
        timeout = PROBE_TIMEOUT_S + 10 * sum(probe.duration_s for probe in request.probes)
        running = self._start(["rooflines"], wire.dumps(request).encode(), timeout)
        found = [m for line in self._lines(running) if (m := _message(LimitResult, line)) is not None]
        self._require_end(running.ending(), len(found) == len(request.probes))
        return found

    def run(self, job: JobSpec) -> RunRecord:
        """One job, one record. Raises :class:`JobInterrupted` on Ctrl-C, after ending the job."""
        started_at, begin = _now(), time.monotonic()
        running = self._start(["run"], wire.dumps(job).encode() + b"\n", job.timeout_s + GRACE_S)
        record: RunRecord | None = None
        try:
            for line in running.lines():
                record = _own_record(job, line) or record
            ending = running.ending()
        except KeyboardInterrupt:
            running.cancel()
            for line in running.lines():
                record = _own_record(job, line) or record
            running.ending()
            stopped = record or _silent(job, "cancelled", "stopped by the user", started_at, begin)
            raise JobInterrupted(stopped) from None
        finally:
            running.kill()
        if record is not None:
            return record
        status, detail = _why(ending, job)
        return _silent(job, status, detail, started_at, begin)

    def never_started(self, job: JobSpec, why: str) -> RunRecord:
        """The record of a job that has no chance: its model could not be made."""
        return _silent(job, "failed", why, _now(), time.monotonic())

    # ---- one process ---------------------------------------------------------------------------------

    def _start(self, arguments: list[str], stdin: bytes, timeout_s: float) -> Running:
        # -I: neither the user's site-packages nor PYTHON* variables nor the working directory take part.
        argv = [self.connector.python, "-I", self.deployment.agent, *arguments]
        return self.connector.start(argv, stdin, timeout_s)

    def _lines(self, running: Running) -> Iterator[str]:
        try:
            yield from running.lines()
        except BaseException:
            running.kill()
            raise

    def _last(self, running: Running, kind: type[Message]) -> Message:
        found = None
        for line in self._lines(running):
            found = _message(kind, line) or found
        self._require_end(running.ending(), found is not None)
        assert found is not None
        return found

    def _require_end(self, ending: Ending, answered: bool) -> None:
        if answered and ending.code == 0:
            return
        said = _last_line(ending.stderr)
        raise AgentError(
            f"{self.name}: the agent {_how(ending)}" + (f": {said}" if said else ""),
            hint="it needs Python 3.8 or newer on the device (devices.yaml: python)",
        )

    def _file(self, command: str, request: MakeRequest, on_bytes: OnBytes) -> ModelFile:
        running = self._start([command], wire.dumps(request).encode() + b"\n", MAKE_TIMEOUT_S)
        found: ModelFile | None = None
        try:
            for line in running.lines():
                if (progress := _message(wire.Progress, line)) is not None:
                    on_bytes(progress.stage, progress.done_bytes, progress.total_bytes)
                found = _message(ModelFile, line) or found
        except KeyboardInterrupt:
            running.cancel()
            for _ in running.lines():
                pass
            raise
        finally:
            ending = running.ending()
        if found is None:
            self._require_end(ending, False)
        assert found is not None
        if found.status != "ok":
            kind = NoSpace if "space" in found.detail.lower() else ModelError
            raise kind(f"{self.name}: {printable(request.path)}: {printable(found.detail or found.status)}")
        return found


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


def _message(kind: type[Message], line: str) -> Message | None:
    try:
        return wire.loads(kind, line)
    except wire.WireError:
        return None


def _own_record(job: JobSpec, line: str) -> RunRecord | None:
    """A record on this line, if it is this job's: a device cannot speak for another."""
    record = _message(RunRecord, line)
    if record is None or (record.id, record.device, record.label) != (job.id, job.device, job.label):
        return None
    return record if record.status in wire.STATUSES else None


def _silent(job: JobSpec, status: str, detail: str, started_at: str, begin: float) -> RunRecord:
    """The record of a job whose process left none."""
    return RunRecord(
        id=job.id,
        label=job.label,
        campaign=job.campaign,
        device=job.device,
        case=job.case,
        replicate=job.replicate,
        engine=job.engine,
        status=status,
        detail=detail,
        started_at=started_at,
        wall_s=round(time.monotonic() - begin, 3),
        model=job.model,
        workload=job.workload,
        settings=job.settings,
        purpose=job.purpose,
        program=job.program,
        attempt=job.attempt,
        choice=job.choice,
    )


def _why(ending: Ending, job: JobSpec) -> tuple[str, str]:
    said = _last_line(ending.stderr)
    detail = f"the agent {_how(ending)} without a record" + (f": {said}" if said else "")
    if ending.timed_out:
        return "timeout", f"no record after {job.timeout_s:g} s; the process was ended"
    return ("crashed" if ending.code < 0 else "failed"), detail


def _how(ending: Ending) -> str:
    if ending.timed_out:
        return "did not end in time"
    if ending.code >= 0:
        return f"ended with exit code {ending.code}"
    try:
        return f"was ended by {signal.Signals(-ending.code).name}"
    except ValueError:
        return f"was ended by signal {-ending.code}"


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return printable(lines[-1])[-300:] if lines else ""


def needs_library(engine: str) -> bool:
    """Whether an engine runs the native library."""
    return engine != FAKE
