"""Plan -> RunRecords: makes models, computes missing references, runs the jobs in order, stores each result.

A failing case never ends the sweep. Every record is on the disk before the next job starts, so a kill at any
moment loses at most the job that was running, and a resumed campaign runs exactly what has no record.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from stbench.agent.wire import JobSpec, Reference, RunRecord
from stbench.agentclient import Agent, JobInterrupted
from stbench.errors import StbenchError
from stbench.plan import Plan
from stbench.prepare import Prepared, make
from stbench.references import References
from stbench.store import Store

# A record of these is a result, also a bad one; "cancelled" says only that there is none yet.
UNFINISHED = "cancelled"


class Observer(Protocol):
    """Is told what happens, for people."""

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...

    def step(self, text: str, done: float, total: float) -> None:
        """Work before the jobs; ``total`` 0 where there is nothing to count."""
        ...

    def job_started(self, job: JobSpec, index: int, total: int, left_s: float) -> None:
        """``index`` of ``total`` jobs, from 1, those with a record included; ``left_s``: expected seconds."""
        ...

    def job_ended(self, record: RunRecord) -> None:
        """The record is stored."""
        ...


@dataclass
class Outcome:
    """How a campaign ended. ``stopped``: why it ended early, "" when it did not."""

    ran: int = 0
    skipped: int = 0
    failures: int = 0
    stopped: str = ""
    interrupted: bool = False
    left: int = 0


@dataclass
class _Clock:
    """Expected seconds, corrected by how far the guesses were off so far."""

    guesses: Mapping[str, float]
    guessed: float = 0.0
    took: float = 0.0
    begin: float = field(default_factory=time.monotonic)

    def add(self, job: JobSpec, seconds: float) -> None:
        self.guessed += self.guesses[job.id]
        self.took += seconds

    def left(self, jobs: Sequence[JobSpec]) -> float:
        factor = self.took / self.guessed if self.guessed else 1.0
        return factor * sum(self.guesses[job.id] for job in jobs)

    def elapsed(self) -> float:
        return time.monotonic() - self.begin


def run_campaign(
    plan: Plan,
    devices: Sequence[Prepared],
    store: Store,
    references: References,
    observer: Observer,
    *,
    max_time_s: float | None = None,
    max_failures: int | None = None,
    retry_failed: bool = False,
) -> Outcome:
    """Runs what has no record yet. Ctrl-C ends the running job, stores it as cancelled and returns; only a
    full disk or a defect raises."""
    done = _done(store, retry_failed)
    pending = [job for job in plan.jobs if job.id not in done]
    outcome = Outcome(skipped=len(plan.jobs) - len(pending))
    by_name = {device.target.device.name: device for device in devices}
    clock = _Clock(plan.guess_s)
    try:
        ready = _make_models(pending, by_name, observer)
        found = _find_references(pending, ready, by_name, references, observer)
        while pending:
            outcome.left = len(pending)
            if max_time_s is not None and clock.elapsed() >= max_time_s:
                outcome.stopped = f"--max-time {max_time_s:g}s is over"
                break
            if max_failures is not None and outcome.failures >= max_failures:
                outcome.stopped = f"{outcome.failures} jobs failed (--max-failures)"
                break
            job = pending[0]
            observer.job_started(job, len(plan.jobs) - len(pending) + 1, len(plan.jobs), clock.left(pending))
            begin = time.monotonic()
            record = _one(job, by_name[job.device].agent, ready, found)
            store.append(record)
            clock.add(job, time.monotonic() - begin)
            observer.job_ended(record)
            outcome.ran += 1
            outcome.failures += record.status != "ok"
            del pending[0]
    except JobInterrupted as stop:
        if stop.record.purpose == "measure":
            store.append(stop.record)
        outcome.interrupted = True
    except KeyboardInterrupt:
        outcome.interrupted = True
    outcome.left = len(pending)
    return outcome


def compute_references(
    plan: Plan, devices: Sequence[Prepared], references: References, observer: Observer
) -> list[str]:
    """Makes the models of a plan and computes the references that are missing; measures nothing. Returns the
    keys of all that exist then."""
    by_name = {device.target.device.name: device for device in devices}
    ready = _make_models(plan.jobs, by_name, observer)
    found = _find_references(plan.jobs, ready, by_name, references, observer)
    return sorted({reference.key for reference in found.values() if reference is not None})


def _done(store: Store, retry_failed: bool) -> set[str]:
    return {
        record.id
        for record in store.reading.latest()
        if record.status == "ok" or (record.status != UNFINISHED and not retry_failed)
    }


# ---- before the jobs --------------------------------------------------------------------------------------

# (device, model name) -> the digest of its file, or why there is none.
_Ready = dict[tuple[str, str], tuple[str, str]]


def _make_models(pending: Sequence[JobSpec], devices: Mapping[str, Prepared], observer: Observer) -> _Ready:
    """A model that cannot be made fails its own jobs, not the campaign."""
    ready: _Ready = {}
    for job in pending:
        key = (job.device, job.model.name)
        if key in ready:
            continue
        device = devices[job.device]
        model = device.target.models[job.model.name]
        if not model.to_make:
            ready[key] = (model.ref.digest, "")
            continue
        title = f"{job.device}: making {job.model.name}"

        def on_bytes(stage: str, done: int, total: int, title: str = title) -> None:
            observer.step(title if stage == "write" else f"{title} (digest)", done, total)

        observer.note(f"{title} ({model.file_bytes / 1e9:.2g} GB, synthetic weights)")
        try:
            ready[key] = (make(device.agent, model, on_bytes).ref.digest, "")
        except StbenchError as error:
            observer.note(str(error))
            ready[key] = ("", str(error))
    return ready


def _with_digest(job: JobSpec, ready: _Ready) -> JobSpec:
    digest, _ = ready[job.device, job.model.name]
    return replace(job, model=replace(job.model, digest=digest))


def _find_references(
    pending: Sequence[JobSpec],
    ready: _Ready,
    devices: Mapping[str, Prepared],
    references: References,
    observer: Observer,
) -> dict[str, Reference | None]:
    """Job id -> its reference. Replicates share one; what is not known is computed before anything is
    timed."""
    found: dict[str, Reference | None] = {}
    missing: dict[str, JobSpec] = {}
    keys: dict[str, str] = {}
    for job in pending:
        if ready[job.device, job.model.name][1]:
            continue
        job = _with_digest(job, ready)
        keys[job.id] = key = references.key_of(job)
        if key not in found and key not in missing:
            known = references.lookup(job, observer.note)
            if known is None:
                missing[key] = job
            else:
                found[key] = known
    for i, (key, job) in enumerate(missing.items()):
        observer.step(f"reference {i + 1} of {len(missing)}: {job.label}", 0, 0)
        try:
            found[key], why = references.compute(devices[job.device].agent, job)
        except StbenchError as error:
            found[key], why = None, str(error)
        if found[key] is None:
            observer.note(f"{job.label}: no reference ({why}); its outputs stay unchecked")
    return {job_id: found[key] for job_id, key in keys.items()}


def _one(job: JobSpec, agent: Agent, ready: _Ready, found: Mapping[str, Reference | None]) -> RunRecord:
    _, problem = ready[job.device, job.model.name]
    if problem:
        return agent.never_started(job, problem)
    return agent.run(replace(_with_digest(job, ready), reference=found[job.id]))
