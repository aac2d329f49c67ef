"""Runs a job in a child process and turns whatever happens to it into a record with a typed status.

The child is a fork of this small process: it loads the library, measures and writes each part of the record
to a pipe as one JSON line. Its stdout and stderr are read here, passed on to our stderr, and their last
lines explain a death. The child is the leader of a process group, so that its own children go with it, dies
with this process (PR_SET_PDEATHSIG), and volunteers to be the out-of-memory killer's first choice, so that
we live to tell.
"""

import contextlib
import ctypes
import dataclasses
import datetime
import faulthandler
import json
import os
import resource
import signal
import sys
import tempfile
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple, Type

from . import bracket, gate, lease, memlimit, memscope, wire
from .childloop import Loop, Signals
from .jobrecord import record_of
from .measure import Report, measure
from .sampler import Sampler
from .sbr import NativeError, _abi
from .tree import Tree
from .wire import Gate, JobSpec, RunRecord
from .wirejson import T

_PR_SET_PDEATHSIG = 1

# The fields of a record that arrive as parts, with their types.
_PARTS: Dict[str, Any] = {
    "model": wire.ModelRef,
    "facts": wire.DeviceFacts,
    "shape": wire.ModelShape,
    "effective": wire.Effective,
    "samples": wire.Samples,
    "counters": wire.Counters,
    "memory": wire.Memory,
    "telemetry": wire.Telemetry,
    "check": wire.Check,
    "versions": wire.Versions,
    "reference": wire.Reference,
    "search": wire.ThreadSearch,
    "cache": wire.CacheUse,
    "account": wire.MemoryAccount,
    "routing": wire.RoutingTrace,
    "profile": wire.TimelineTrace,
}


class Outcome(NamedTuple):
    """How a child ended, before it is a status."""

    returncode: int
    messages: List[Dict[str, Any]]
    log: List[str]
    timed_out: bool
    cancelled_by: int
    oom_kills: Optional[int]
    wall_s: float


_NOT_RUN = Outcome(0, [], [], False, 0, None, 0.0)


def run_job(
    job: JobSpec, work: Callable[[JobSpec, Report], None] = measure, in_scope: bool = False
) -> RunRecord:
    """Measures ``job`` and returns its record, whatever happens. Call from the main thread. ``in_scope``:
    this process was started in a scope of its own (:mod:`.memscope`)."""
    started = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    place = memlimit.Place(in_scope)
    if not in_scope and memlimit.scope_helps(job):
        record, refused = _run_in_scope(job, started)
        if record is not None:
            return record
        place = memlimit.Place(scope_refused=refused)
    gated, problem, waiting = _cool_down(job) if gate.is_wanted(job) else (None, "", _NOT_RUN)
    if waiting.cancelled_by:
        return _record(job, waiting, started)
    # A sensor that hung there would hang us, too.
    record = _bracketed(dataclasses.replace(job, sample_hz=0.0) if problem else job, work, started, place)
    if problem:
        said = "the thermal gate failed: not sampled, and perhaps started on a warm device: " + problem
        record = dataclasses.replace(record, warnings=[*record.warnings, said])
    return dataclasses.replace(record, gate=gated)


def _run_in_scope(job: JobSpec, started: str) -> Tuple[Optional[RunRecord], str]:
    """The record of this agent started anew in a scope; None and the reason where there was no scope."""
    with tempfile.TemporaryFile() as spec:
        spec.write((wire.dumps(job) + "\n").encode())
        spec.seek(0)

        def become(report: Any) -> None:
            os.dup2(spec.fileno(), 0)
            os.dup2(report.descriptor, 1)
            os.environ["XDG_RUNTIME_DIR"] = memscope.runtime_dir()
            command = memscope.command()
            os.execvp(command[0], command)

        outcome = _run_child(become, lease.lease_s(job))
    found = [message for message in outcome.messages if "started_at" in message]
    if found:
        return wire.from_json(RunRecord, found[-1]), ""
    if outcome.cancelled_by or outcome.timed_out:
        return _record(job, outcome, started), ""
    return None, "systemd-run --user --scope: " + (" | ".join(outcome.log) or _verdict(outcome, 0.0)[1])


def _bracketed(
    job: JobSpec, work: Callable[[JobSpec, Report], None], started: str, place: memlimit.Place
) -> RunRecord:
    """The record of a run with the bandwidth probed around it, where that was asked for."""
    if job.bracket_ms <= 0 or job.purpose != "measure":
        return _measured(job, work, started, place)
    before, problem, probing = _probe_memory(job, after=False)
    if probing.cancelled_by:
        return _record(job, probing, started)
    record = _measured(job, work, started, place)
    if record.status != "ok":
        return record
    after = None
    if before is not None:
        after, problem, _ = _probe_memory(job, after=True)
    if before is None or after is None:
        said = "no bandwidth was probed beside this run, which cannot be judged disturbed or not: " + problem
        return dataclasses.replace(record, warnings=[*record.warnings, said])
    problem = bracket.storage_problem(before, after)
    if problem:
        said = "storage was not probed beside this run, whose share of its bound is not known: " + problem
        record = dataclasses.replace(record, warnings=[*record.warnings, said])
    return dataclasses.replace(record, bracket=bracket.joined(before, after))


def _measured(
    job: JobSpec, work: Callable[[JobSpec, Report], None], started: str, place: memlimit.Place
) -> RunRecord:
    """The record of a run, with what was seen of the machine meanwhile."""
    seen = Sampler(job) if job.sample_hz > 0 and job.purpose == "measure" else None
    limit = memlimit.Limit(job, place) if memlimit.is_wanted(job) else None
    try:
        outcome = _run_child(lambda report: work(job, report), job.timeout_s, seen, limit)
        record = _record(job, outcome, started)
        if limit is not None:
            record = limit.proved(record, outcome.messages)
    finally:
        if limit is not None:
            limit.close()
    if seen is None:
        return record
    samples, telemetry = record.samples, record.telemetry
    return dataclasses.replace(
        record,
        timeline=seen.timeline(),
        telemetry=seen.judged(telemetry) if telemetry is not None else None,
        energy=seen.energy(job.workload.n_gen) if samples is not None and samples.decode_ns else None,
    )


def _cool_down(job: JobSpec) -> Tuple[Optional[Gate], str, Outcome]:
    """The thermal gate, in a child of its own: a sensor that hangs is no reason to hang with it. Its result,
    or None and the reason."""
    return _aside("thermal gate", Gate, lambda: gate.wait(job), job.cool_down_s + gate.PATIENCE_S)


def _probe_memory(job: JobSpec, after: bool) -> Tuple[Optional[bracket.Probe], str, Outcome]:
    """One side of a bracket, or None and the reason."""
    return _aside("memory probe", bracket.Probe, lambda: bracket.measure(job, after), bracket.timeout_s(job))


def _aside(
    phase: str, kind: Type[T], find: Callable[[], T], timeout_s: float
) -> Tuple[Optional[T], str, Outcome]:
    """What ``find`` returns in a child of its own, beside the job; or None and the reason."""

    def work(report: Report) -> None:
        report.phase(phase)
        report.part("aside", find())

    try:
        outcome = _run_child(work, timeout_s)
    except OSError as error:
        # No process to be had for it; the job may still find one, or has ended well already.
        return None, str(error), _NOT_RUN
    status, detail = _verdict(outcome, timeout_s)
    found = [message["value"] for message in outcome.messages if message.get("part") == "aside"]
    if status != "ok" or not found:
        return None, detail or status, outcome
    return wire.from_json(kind, found[-1]), "", outcome


# ---- the child ---------------------------------------------------------------------------------------


class _PipeReport:
    """The child's side: a JSON line per part."""

    def __init__(self, descriptor: int, limit: Optional[memlimit.Limit] = None) -> None:
        self.descriptor = descriptor
        self._limit = limit

    def _send(self, message: Dict[str, Any]) -> None:
        data = (json.dumps(message, allow_nan=False) + "\n").encode()
        while data:
            data = data[os.write(self.descriptor, data) :]

    def phase(self, name: str) -> None:
        if name == memlimit.RESULTS and self._limit is not None:
            self.part(memlimit.PART, self._limit.reading())
        self._send({"phase": name})

    def part(self, name: str, value: Any) -> None:
        self._send(
            {"part": name, "value": wire.to_json(value) if hasattr(value, "__dataclass_fields__") else value}
        )

    def done(self, status: str, detail: str) -> None:
        self._send({"done": status, "detail": detail})


def status_of(error: BaseException) -> Tuple[str, str]:
    """(status, sentence) of an exception that ended a job."""
    text = str(error) or type(error).__name__
    if isinstance(error, NativeError):
        kinds = {
            _abi.ERR_UNSUPPORTED: "unsupported",
            _abi.ERR_MEMORY: "out-of-memory",
            _abi.ERR_CANCELLED: "cancelled",
        }
        return kinds.get(error.status, "failed"), text
    if isinstance(error, MemoryError):
        return "out-of-memory", text if str(error) else "an allocation failed"
    if isinstance(error, KeyboardInterrupt):
        return "cancelled", "interrupted"
    if isinstance(error, (OSError, ValueError)):
        return "failed", text
    return "failed", "%s: %s" % (type(error).__name__, text)


def _child(
    parent: int,
    results: int,
    log: int,
    work: Callable[[Report], None],
    limit: Optional[memlimit.Limit],
    admitted: Optional[int],
) -> None:
    """Waits for the end of the pipe ``admitted``, then works. Never returns."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.setpgid(0, 0)
        _die_with(parent)
        if admitted is not None:
            # Nothing is loaded before this process is under its limit.
            os.read(admitted, 1)
        # A dumped core would be gigabytes of weights.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
        faulthandler.enable(sys.stderr, all_threads=False)
        report = _PipeReport(results, limit)
        status, detail = "ok", ""
        try:
            work(report)
        except BaseException as error:
            status, detail = status_of(error)
            if status == "failed" and not isinstance(error, (NativeError, OSError, ValueError)):
                sys.excepthook(type(error), error, error.__traceback__)
        report.done(status, detail)
        code = 0
    finally:
        os._exit(code)


def _die_with(parent: int) -> None:
    """Best effort: this process ends when its parent does, and is the first to go when memory is short."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("800")


# ---- the parent --------------------------------------------------------------------------------------


def _oom_kills(tree: Optional[Tree] = None) -> Optional[int]:
    """How often the kernel killed for want of memory so far, on the machine or in our control group; None
    when nothing here counts that."""
    tree = tree if tree is not None else Tree()
    counts = [tree.fields("proc/vmstat", " ").get("oom_kill")]
    for line in (tree.text("proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            counts.append(tree.fields("sys/fs/cgroup%s/memory.events" % path, " ").get("oom_kill"))
        elif "memory" in controllers.split(","):
            counts.append(
                tree.fields("sys/fs/cgroup/memory%s/memory.oom_control" % path, " ").get("oom_kill")
            )
    numbers = [int(count) for count in counts if count is not None and count.isdigit()]
    return sum(numbers) if numbers else None


def _run_child(
    work: Callable[[Report], None],
    timeout_s: float,
    sampler: Optional[Sampler] = None,
    limit: Optional[memlimit.Limit] = None,
) -> Outcome:
    """Runs ``work`` in a child to its end, under ``limit``; ``sampler`` looks at the machine meanwhile."""
    begin = time.monotonic()
    oom_before = _oom_kills()
    result_reader, result_writer = os.pipe()
    log_reader, log_writer = os.pipe()
    admitted, admission = os.pipe() if limit is not None else (None, None)
    sys.stdout.flush()
    sys.stderr.flush()
    with Signals() as signals:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            os.close(result_reader)
            os.close(log_reader)
            if admission is not None:
                os.close(admission)
            _child(parent, result_writer, log_writer, work, limit, admitted)
        os.close(result_writer)
        os.close(log_writer)
        watchers = [watcher for watcher in (sampler, limit) if watcher is not None]
        loop = Loop(pid, result_reader, log_reader, signals, watchers)
        try:
            if limit is not None and admitted is not None and admission is not None:
                os.close(admitted)
                limit.admit(pid)
                os.close(admission)
            if sampler is not None:
                sampler.start(pid)
            status, timed_out = loop.run(begin + timeout_s)
        finally:
            if sampler is not None:
                sampler.close()
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
    oom_after = _oom_kills()
    oom = oom_after - oom_before if oom_after is not None and oom_before is not None else None
    if limit is not None and limit.oom_kills() is not None:
        oom = limit.oom_kills()
    return Outcome(
        code, loop.messages(), loop.log(), timed_out, signals.cancelled_by, oom, time.monotonic() - begin
    )


# ---- the record --------------------------------------------------------------------------------------


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "signal %d" % number


def _verdict(outcome: Outcome, timeout_s: float) -> Tuple[str, str]:
    """(status, detail) of a child."""
    phase = "start"
    done: Optional[Dict[str, Any]] = None
    wrong: Optional[str] = None
    for message in outcome.messages:
        phase = message.get("phase", phase)
        if "done" in message:
            done = message
        if message.get("part") == "check" and message["value"]["verdict"] == "wrong":
            wrong = message["value"]["detail"]
        if message.get("part") == "counters":
            met = sum(message["value"][name].get("nonfinite", 0) for name in ("prefill", "decode"))
            if met:
                wrong = wrong or (
                    "%d vectors held an infinity or a NaN: the model file is damaged, or not for this runtime"
                    % met
                )
    last = "; last lines: " + " | ".join(outcome.log) if outcome.log else ""
    if outcome.cancelled_by:
        return "cancelled", "%s during %s" % (_signal_name(outcome.cancelled_by), phase)
    if outcome.timed_out:
        return "timeout", "not done after %g s, during %s%s" % (timeout_s, phase, last)
    if outcome.returncode < 0:
        name = _signal_name(-outcome.returncode)
        if -outcome.returncode == signal.SIGKILL:
            if outcome.oom_kills:
                return "out-of-memory", "killed by the kernel's out-of-memory killer during %s%s" % (
                    phase,
                    last,
                )
            unsure = (
                "" if outcome.oom_kills == 0 else " (perhaps for want of memory: this kernel does not tell)"
            )
            return "crashed", "killed by SIGKILL during %s%s%s" % (phase, unsure, last)
        return "crashed", "killed by %s during %s%s" % (name, phase, last)
    if done is None:
        return "crashed", "exited with code %d during %s, without a result%s" % (
            outcome.returncode,
            phase,
            last,
        )
    if done["done"] == "ok" and wrong is not None:
        return "wrong-output", wrong
    return done["done"], done["detail"]


def _record(job: JobSpec, outcome: Outcome, started_at: str) -> RunRecord:
    status, detail = _verdict(outcome, job.timeout_s)
    parts: Dict[str, Any] = {}
    for message in outcome.messages:
        name = message.get("part")
        if name in _PARTS:
            parts[name] = wire.from_json(_PARTS[name], message["value"])
        elif name == "warnings":
            parts[name] = [str(line) for line in message["value"]]
    return record_of(job, status, detail, started_at, outcome.wall_s, **parts)
