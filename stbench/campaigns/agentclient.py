"""Talks to the agent on a device: one process per request, JSON on its stdin, JSON lines on its stdout.

Whatever the process does, :meth:`Agent.run` comes back with a record: a crash, a hang and silence have a
status. Where a link that can break lies between, :mod:`stbench.campaigns.remote_run` follows the job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from stbench.agent import lease, wire
from stbench.agent.describe import ModelHeader
from stbench.agent.wire import (
    BundleRequest,
    DeviceFacts,
    JobSpec,
    LimitResult,
    LimitsRequest,
    MakeRequest,
    ModelFile,
    ModelRef,
    RunRecord,
)
from stbench.campaigns.answers import JobInterrupted as JobInterrupted
from stbench.campaigns.answers import Watch, how, message, own_record, why, with_last_line
from stbench.campaigns.deploy import Deployment
from stbench.campaigns.remote_run import Patience, RemoteRuns, cancelling
from stbench.campaigns.stopping import Stop
from stbench.connectors.base import Connector, Ending, Running
from stbench.devices.board import agent_argv
from stbench.errors import AgentError, LinkLost, ModelError, NoSpace
from stbench.sweeps.sweep import FAKE
from stbench.yamlfile import printable

Answer = TypeVar("Answer")
OnBytes = Callable[[str, int, int], None]

# The agent keeps to a job's own time limit; this is for one that does not.
GRACE_S = 30.0
PROBE_TIMEOUT_S = 60.0
MAKE_TIMEOUT_S = 7200.0


class Agent:
    """The agent of one device, deployed."""

    def __init__(
        self, name: str, connector: Connector, deployment: Deployment, patience: Patience | None = None
    ) -> None:
        self.name = name
        self.connector = connector
        self.deployment = deployment
        self._detached = RemoteRuns(name, connector, self._start, patience or Patience())

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

    def bundle(self, model: ModelRef, gathers: int, path: str, on_bytes: OnBytes) -> ModelFile:
        """Writes the bundle of a model's file for ``gathers`` to ``path``, unless a fitting one is there.
        Raises :class:`ModelError` and :class:`NoSpace`."""
        return self._file(
            "bundle",
            BundleRequest(path, self.deployment.library, model.path, model.digest, gathers),
            on_bytes,
        )

    def digest(self, path: str, on_bytes: OnBytes) -> ModelFile:
        """Hashes a file on the device. Raises :class:`ModelError`."""
        return self._file("digest", MakeRequest(path), on_bytes)

    def header(self, path: str) -> ModelHeader:
        """What a GGUF file on the device says of itself. Raises :class:`ModelError`."""
        request = wire.dumps(MakeRequest(path, self.deployment.library)).encode() + b"\n"
        found = self._last(self._start(["describe"], request, PROBE_TIMEOUT_S), ModelHeader)
        if found.problem:
            raise ModelError(f"{self.name}: {printable(found.problem)}")
        return found

    def note_digest(self, path: str, sha256: str) -> None:
        """Tells the device the digest of a file that was sent there, so that it is not read again."""
        request = wire.dumps(ModelFile("ok", path, sha256=sha256)).encode() + b"\n"
        self._last(self._start(["note-digest"], request, PROBE_TIMEOUT_S), ModelFile)

    def limits(self, request: LimitsRequest) -> list[LimitResult]:
        """What the device can do at best. Raises :class:`AgentError`."""
        timeout = PROBE_TIMEOUT_S + 10 * sum(probe.duration_s for probe in request.probes)
        running = self._start(["rooflines"], wire.dumps(request).encode(), timeout)
        found = [m for line in self._lines(running) if (m := message(LimitResult, line)) is not None]
        self._require_end(running.ending(), len(found) == len(request.probes))
        return found

    def run(
        self, job: JobSpec, stop: Stop | None = None, tell: Callable[[str], None] = lambda _: None
    ) -> RunRecord:
        """One job, one record. ``tell`` hears who has a busy board that is waited for.

        Raises :class:`JobInterrupted` on Ctrl-C or when asked to stop, after ending the job; for a device
        behind a link also what :meth:`stbench.campaigns.remote_run.RemoteRuns.run` raises."""
        stop = stop or Stop()
        return self._detached.run(job, stop, tell) if self.connector.remote else self._run_here(job, stop)

    def stored(self, record: RunRecord) -> None:
        """Call it when a record of :meth:`run` is on this machine's disk, and for all that are when a
        campaign is resumed: a device behind a link keeps it until then."""
        if self.connector.remote:
            self._detached.stored(record)

    def reference_known(self, job: JobSpec) -> None:
        """Call it when the reference that this job computes is on this machine's disk."""
        if self.connector.remote:
            self._detached.reference_known(job)

    def settle(self) -> None:
        """Call it when a device has no more to do: it forgets what is stored here."""
        if self.connector.remote:
            self._detached.settle()

    def reconnect(self, stop: Stop, why: str) -> None:
        """A new connection after a lost one, for what is asked again besides jobs. Raises what
        :meth:`stbench.campaigns.remote_run.RemoteRuns.reconnect` does."""
        self._detached.reconnect(stop, why)

    def never_started(self, job: JobSpec, why: str) -> RunRecord:
        """The record of a job that has no chance: its model could not be made."""
        return Watch().record(job, "failed", why)

    def _run_here(self, job: JobSpec, stop: Stop) -> RunRecord:
        watch = Watch()
        limit_s = lease.lease_s(job, GRACE_S)
        running = self._start(["run"], wire.dumps(job).encode() + b"\n", limit_s)
        record: RunRecord | None = None
        try:
            with cancelling(running, stop, running.cancel):
                try:
                    for line in running.lines():
                        record = own_record(job, line) or record
                except KeyboardInterrupt:
                    # In the main thread nobody else hears it.
                    stop.ask()
                    for line in running.lines():
                        record = own_record(job, line) or record
                ending = running.ending()
        finally:
            running.kill()
        if stop.asked:
            raise JobInterrupted(record or watch.record(job, "cancelled", "stopped by the user"))
        return record if record is not None else watch.record(job, *why(ending, job.timeout_s))

    # ---- one process ---------------------------------------------------------------------------------

    def _start(
        self,
        arguments: list[str],
        stdin: bytes,
        timeout_s: float,
        *,
        keep_stdin: bool = False,
        silence_s: float | None = None,
    ) -> Running:
        argv = agent_argv(self.connector, self.deployment.agent, *arguments)
        return self.connector.start(argv, stdin, timeout_s, keep_stdin=keep_stdin, silence_s=silence_s)

    def _lines(self, running: Running) -> Iterator[str]:
        try:
            yield from running.lines()
        except BaseException:
            running.kill()
            raise

    def _last(self, running: Running, kind: type[Answer]) -> Answer:
        found = None
        for line in self._lines(running):
            found = message(kind, line) or found
        self._require_end(running.ending(), found is not None)
        assert found is not None
        return found

    def _require_end(self, ending: Ending, answered: bool) -> None:
        if answered and ending.code == 0:
            return
        if ending.lost:
            raise LinkLost(with_last_line(f"{self.name}: the link broke during a request", ending))
        raise AgentError(
            with_last_line(f"{self.name}: the agent {how(ending)}", ending),
            hint="it needs Python 3.8 or newer on the device (devices.yaml: python)",
        )

    def _file(self, command: str, request: MakeRequest | BundleRequest, on_bytes: OnBytes) -> ModelFile:
        running = self._start([command], wire.dumps(request).encode() + b"\n", MAKE_TIMEOUT_S)
        found: ModelFile | None = None
        try:
            for line in running.lines():
                if (progress := message(wire.Progress, line)) is not None:
                    on_bytes(progress.stage, progress.done_bytes, progress.total_bytes)
                found = message(ModelFile, line) or found
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


def needs_library(engine: str) -> bool:
    """Whether an engine runs the native library."""
    return engine != FAKE
