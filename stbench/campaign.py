"""Plan -> RunRecords: makes models, computes missing references, runs the searches of -t auto and then the
jobs in order, stores each result.

At the end of each round, disturbed runs are repeated within the plan's bound (:mod:`stbench.reruns`). A
failing case never ends the sweep. Every record is on the disk before the next job starts, so a kill at any
moment loses at most the job that was running, and a resumed campaign runs exactly what has no record.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from stbench import auto_threads
from stbench.agent.wire import JobSpec, Reference, RunRecord
from stbench.agentclient import Agent, JobInterrupted
from stbench.disk import MadeFiles, remove_model
from stbench.errors import StbenchError
from stbench.plan import Plan
from stbench.prepare import Prepared, make
from stbench.references import References
from stbench.reruns import Reruns
from stbench.store import UNFINISHED as UNFINISHED
from stbench.store import Store


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
    """How a campaign ended. ``stopped``: why it ended early, "" when it did not. ``ran`` counts the
    ``reruns``, too; ``disturbed`` labels have runs that stay disturbed."""

    ran: int = 0
    skipped: int = 0
    failures: int = 0
    stopped: str = ""
    interrupted: bool = False
    left: int = 0
    reruns: int = 0
    disturbed: list[str] = field(default_factory=list)


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
    """Runs what has no record yet, and disturbed runs again. Ctrl-C ends the running job, stores it as
    cancelled and returns; only a full disk or a defect raises."""
    done = _done(store, retry_failed)
    pending = [job for job in plan.jobs if job.id not in done]
    runner = _Runner(plan, devices, store, references, observer, pending)
    if retry_failed:
        runner.forget_failed_searches(done)
    outcome = runner.outcome
    try:
        for group in plan.groups():
            if not _run_group(runner, group, done, max_time_s, max_failures):
                break
            runner.put_away(group)
    except JobInterrupted as stop:
        if stop.record.purpose == "measure":
            store.append(stop.record)
            runner.reruns.add(stop.record)
        outcome.interrupted = True
    except KeyboardInterrupt:
        outcome.interrupted = True
    return runner.ended()


def _run_group(
    runner: _Runner,
    group: Sequence[JobSpec],
    done: set[str],
    max_time_s: float | None,
    max_failures: int | None,
) -> bool:
    """The jobs of a group without a record, and its disturbed runs again; False when a limit ended it."""
    runner.prepare([job for job in group if job.id not in done])
    if not runner.search([job for job in group if job.id not in done], max_time_s):
        return False
    for round_jobs in _rounds(group):
        first = [replace(job, attempt=runner.reruns.attempt(job)) for job in round_jobs if job.id not in done]
        if not runner.run_all(first, max_time_s, max_failures):
            return False
        again = runner.due(round_jobs[0], group)
        runner.prepare(again)
        if not runner.run_all(again, max_time_s, max_failures):
            return False
    return True


def _rounds(jobs: Sequence[JobSpec]) -> list[list[JobSpec]]:
    """The jobs of one device and replicate together, in the plan's order."""
    rounds: dict[tuple[str, int], list[JobSpec]] = {}
    for job in jobs:
        rounds.setdefault((job.device, job.replicate), []).append(job)
    return list(rounds.values())


class _Runner:
    """What the jobs of one campaign need, and what is known of them so far."""

    def __init__(
        self,
        plan: Plan,
        devices: Sequence[Prepared],
        store: Store,
        references: References,
        observer: Observer,
        pending: list[JobSpec],
    ) -> None:
        self.reruns = Reruns(plan, store.reading.records)
        self.outcome = Outcome(skipped=len(plan.jobs) - len(pending))
        self._plan, self._store, self._references, self._observer = plan, store, references, observer
        self._devices = {device.target.device.name: device for device in devices}
        self._pending = list(pending)
        self._clock = _Clock(plan.guess_s)
        self._made = MadeFiles(store.directory)
        self._ready: _Ready = {}
        self._found: dict[str, Reference | None] = {}
        ids = {search.id for search in plan.searches}
        found = [record for record in store.reading.latest() if record.id in ids]
        self._searched = {record.id: record for record in found if auto_threads.is_final(record)}

    def prepare(self, jobs: Sequence[JobSpec]) -> None:
        """Models and references of jobs that have none yet."""
        jobs = [job for job in jobs if job.id not in self._found]
        self._make_models(jobs)
        self._found |= _find_references(jobs, self._ready, self._devices, self._references, self._observer)

    def _make_models(self, jobs: Sequence[JobSpec]) -> None:
        for job in jobs if self._plan.one_model_at_a_time else ():
            model = self._devices[job.device].target.models[job.model.name]
            if model.to_make and (job.device, job.model.name) not in self._ready:
                self._made.note(job.device, model.ref.path)
        self._ready |= _make_models(jobs, self._devices, self._observer, self._ready)

    def forget_failed_searches(self, done: set[str]) -> None:
        """Lets failed searches run again, as far as no job with a record rests on them: one cell has one
        thread setting."""
        used = {job.choice.search for job in self._plan.jobs if job.choice is not None and job.id in done}
        self._searched = {
            key: record for key, record in self._searched.items() if record.status == "ok" or key in used
        }

    def search(self, jobs: Sequence[JobSpec], max_time_s: float | None) -> bool:
        """Runs the searches that these jobs wait for; False when the time limit ended the campaign."""
        wanted = {job.choice.search for job in jobs if job.choice is not None}
        for job in self._plan.searches:
            if job.id not in wanted or job.id in self._searched:
                continue
            if self._is_over(max_time_s):
                return False
            self._make_models([job])
            record = self._search(job)
            if not auto_threads.is_final(record):
                self._observer.note(f"{job.label}: disturbed, searching again")
                record = self._search(replace(job, attempt=1))
            self._searched[job.id] = record
            self._observer.note(auto_threads.result_sentence(record))
        return True

    def _search(self, job: JobSpec) -> RunRecord:
        self._observer.step(f"{job.label}: trying {len(job.candidates)} settings", 0, 0)
        record = _one(job, self._devices[job.device].agent, self._ready, {})
        self._store.append(record)
        return record

    def _is_over(self, max_time_s: float | None) -> bool:
        if max_time_s is None or self._clock.elapsed() < max_time_s:
            return False
        self.outcome.stopped = f"--max-time {max_time_s:g}s is over"
        return True

    def run_all(self, jobs: Sequence[JobSpec], max_time_s: float | None, max_failures: int | None) -> bool:
        """Runs jobs as long as the limits allow; False when a limit ended the campaign."""
        for job in jobs:
            if self._is_over(max_time_s):
                return False
            if max_failures is not None and self.outcome.failures >= max_failures:
                self.outcome.stopped = f"{self.outcome.failures} jobs failed (--max-failures)"
                return False
            self._run(job)
        return True

    def put_away(self, group: Sequence[JobSpec]) -> None:
        """Deletes the model files of a group that ended, where this campaign made them one at a time."""
        for job in {(job.device, job.model.name): job for job in group}.values():
            device = self._devices[job.device]
            path = device.target.models[job.model.name].ref.path
            if self._made.delete(job.device, path, device.agent.connector):
                self._ready.pop((job.device, job.model.name), None)
                self._observer.note(f"{job.device}: deleted {path}")

    def due(self, of_round: JobSpec, group: Sequence[JobSpec]) -> list[JobSpec]:
        """Next attempts of disturbed runs of the device whose round ended, as far as they are of its group,
        after a line for people."""
        ids = {job.id for job in group}
        again = [job for job in self.reruns.due(of_round.device) if job.id in ids]
        if again:
            bound = f"{self.reruns.used} of at most {self._plan.max_reruns} re-runs used"
            labels = ", ".join(f"{job.label} #{job.replicate + 1}" for job in again)
            self._observer.note(f"{of_round.device}: disturbed, running again: {labels} ({bound})")
        return again

    def _run(self, job: JobSpec) -> None:
        """One job, to its stored record."""
        outcome, plan = self.outcome, self._plan
        total = len(plan.jobs) + outcome.reruns + (job.attempt > 0)
        left_s = self._clock.left(self._pending)
        self._observer.job_started(job, outcome.skipped + outcome.ran + 1, total, left_s)
        begin = time.monotonic()
        settled = auto_threads.settled(job, self._searched)
        record = _one(settled, self._devices[job.device].agent, self._ready, self._found)
        self._store.append(record)
        self.reruns.add(record)
        self._clock.add(job, time.monotonic() - begin)
        self._observer.job_ended(record)
        outcome.ran += 1
        outcome.failures += record.status != "ok"
        if job.id in {waiting.id for waiting in self._pending}:
            self._pending = [waiting for waiting in self._pending if waiting.id != job.id]
        else:
            outcome.reruns += 1

    def ended(self) -> Outcome:
        """The outcome, completed."""
        self.outcome.left = len(self._pending)
        self.outcome.disturbed = sorted({record.label for record in self.reruns.disturbed()})
        return self.outcome


def compute_references(
    plan: Plan, devices: Sequence[Prepared], references: References, observer: Observer
) -> list[str]:
    """Makes the models of a plan and computes the references that are missing; measures nothing. Returns the
    keys of all that exist then."""
    by_name = {device.target.device.name: device for device in devices}
    keys: set[str] = set()
    for group in plan.groups():
        ready = _make_models(group, by_name, observer, {})
        found = _find_references(group, ready, by_name, references, observer)
        keys |= {reference.key for reference in found.values() if reference is not None}
        device = by_name[group[0].device]
        model = device.target.models[group[0].model.name]
        if plan.one_model_at_a_time and model.to_make:
            remove_model(device.agent.connector, model.ref.path)
    return sorted(keys)


def _done(store: Store, retry_failed: bool) -> set[str]:
    return {
        record.id
        for record in store.reading.latest()
        if record.status == "ok" or (record.status != UNFINISHED and not retry_failed)
    }


# ---- before the jobs --------------------------------------------------------------------------------------

# (device, model name) -> the digest of its file, or why there is none.
_Ready = dict[tuple[str, str], tuple[str, str]]


def _make_models(
    pending: Sequence[JobSpec], devices: Mapping[str, Prepared], observer: Observer, known: _Ready
) -> _Ready:
    """A model that cannot be made fails its own jobs, not the campaign. Returns the ``known`` ones, too."""
    ready: _Ready = dict(known)
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
        # A program shows no logits to compare.
        if job.program is not None or ready[job.device, job.model.name][1]:
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
    return agent.run(replace(_with_digest(job, ready), reference=found.get(job.id)))
