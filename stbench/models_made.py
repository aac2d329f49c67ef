"""What jobs need before they run: their models, and references of the outputs. Nothing is timed here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from stbench.agent.wire import JobSpec, Reference, RunRecord
from stbench.agentclient import Agent
from stbench.disk import MadeFiles, remove_model
from stbench.errors import AgentError, BusyError, DeviceError, LinkLost, StbenchError
from stbench.ledger import Observer
from stbench.prepare import Prepared, make
from stbench.references import References, reference_job
from stbench.stopping import Stop

T = TypeVar("T")

# A link that breaks as often while one model is made will not see its jobs to their end.
MOST_LOSSES = 20


def ends_the_device(error: Exception) -> bool:
    """Whether nothing can run on a device after this: it is gone, or somebody else has it. An agent that
    died over one request may do well with the next."""
    return isinstance(error, (DeviceError, BusyError)) and not isinstance(error, AgentError)


class Needs:
    """The models and references of one worker's jobs, by what the worker did so far. Only ``references`` and
    ``made`` (None: the caller deletes models itself) are shared with other workers.

    Its methods raise what :func:`ends_the_device`, and on ``stop`` what Ctrl-C raises in the main thread."""

    def __init__(
        self,
        devices: Sequence[Prepared],
        references: References,
        observer: Observer,
        stop: Stop,
        made: MadeFiles | None = None,
    ) -> None:
        self._devices = {device.target.device.name: device for device in devices}
        self._references, self._observer, self._stop, self._made = references, observer, stop, made
        # (device, model name) -> the digest of its file, or why there is none.
        self._ready: dict[tuple[str, str], tuple[str, str]] = {}
        # Job id -> its reference, None where it has none.
        self._found: dict[str, Reference | None] = {}
        self._tried: set[str] = set()

    def agent(self, job: JobSpec) -> Agent:
        """The one that runs a job."""
        return self._devices[job.device].agent

    def prepare(self, jobs: Sequence[JobSpec]) -> None:
        """Models and references of jobs that have none yet."""
        jobs = [job for job in jobs if job.id not in self._found]
        self.make_models(jobs)
        self._find_references(jobs)

    def run(self, job: JobSpec) -> RunRecord:
        """One job whose model was made, with its reference where there is one."""
        _, problem = self._ready[job.device, job.model.name]
        if problem:
            return self.agent(job).never_started(job, problem)
        job = replace(self._with_digest(job), reference=self._found.get(job.id))
        return self.agent(job).run(job, self._stop, self._waiting(job))

    def _waiting(self, job: JobSpec) -> Callable[[str], None]:
        return lambda holder: self._observer.note(f"{job.device}: waiting: {holder}")

    def references(self) -> set[str]:
        """The keys of all references found so far."""
        return {reference.key for reference in self._found.values() if reference is not None}

    # ---- models --------------------------------------------------------------------------------------

    def make_models(self, jobs: Sequence[JobSpec]) -> None:
        """A model that cannot be made fails its own jobs, not the campaign."""
        for job in jobs:
            key = (job.device, job.model.name)
            if key not in self._ready:
                self._ready[key] = self._made_model(job)

    def _made_model(self, job: JobSpec) -> tuple[str, str]:
        device = self._devices[job.device]
        model = device.target.models[job.model.name]
        if not model.to_make:
            return model.ref.digest, ""
        if self._made is not None:
            self._made.note(job.device, model.ref.path)
        title = f"{job.device}: {'sending' if model.source else 'making'} {job.model.name}"

        def on_bytes(stage: str, done: int, total: int) -> None:
            if self._stop.asked:
                raise KeyboardInterrupt
            shown = f"{title} (digest)" if stage == "hash" else title
            self._observer.step(shown, done, total, job.device)

        kind = "sent from this machine" if model.source else "synthetic weights"
        self._observer.note(f"{title} ({model.file_bytes / 1e9:.2g} GB, {kind})")
        try:
            return self._over_losses(device.agent, lambda: make(device.agent, model, on_bytes)).ref.digest, ""
        except StbenchError as error:
            if ends_the_device(error):
                raise
            self._observer.note(str(error))
            return "", str(error)

    def put_away(self, jobs: Sequence[JobSpec]) -> None:
        """Deletes the model files of jobs that ended, where this campaign made them one at a time."""
        if self._made is None:
            return
        for job in {(job.device, job.model.name): job for job in jobs}.values():
            self._put_away(job, self._made)

    def _put_away(self, job: JobSpec, made: MadeFiles) -> None:
        agent = self.agent(job)
        path = self._devices[job.device].target.models[job.model.name].ref.path
        if self._over_losses(agent, lambda: made.delete(job.device, path, agent.connector)):
            self._ready.pop((job.device, job.model.name), None)
            self._observer.note(f"{job.device}: deleted {path}")

    def _over_losses(self, agent: Agent, work: Callable[[], T]) -> T:
        """Work that may be begun again, over a link that breaks: what was made stays made."""
        for _ in range(MOST_LOSSES):
            try:
                return work()
            except LinkLost as error:
                if self._stop.asked:
                    raise KeyboardInterrupt from error
                self._observer.note(f"{error}; connecting again")
                agent.reconnect(self._stop, str(error))
        return work()

    def _with_digest(self, job: JobSpec) -> JobSpec:
        digest, _ = self._ready[job.device, job.model.name]
        return replace(job, model=replace(job.model, digest=digest))

    # ---- references ----------------------------------------------------------------------------------

    def _find_references(self, jobs: Sequence[JobSpec]) -> None:
        """Replicates share one; what is not known is computed before anything is timed."""
        keys: dict[str, str] = {}
        missing: dict[str, JobSpec] = {}
        for job in jobs:
            # A program shows no logits to compare.
            if job.program is not None or self._ready[job.device, job.model.name][1]:
                continue
            job = self._with_digest(job)
            keys[job.id] = key = self._references.key_of(job)
            if key not in missing and self._references.lookup(job, self._observer.note) is None:
                missing[key] = job
        self._compute(missing)
        for key, job in missing.items():
            if self._references.known(key) is None:
                why = self._references.why_not(key)
                self._observer.note(f"{job.label}: no reference ({why}); its outputs stay unchecked")
        self._found |= {job_id: self._references.known(key) for job_id, key in keys.items()}
        for job in jobs:
            if self._found.get(job.id) is not None:
                self.agent(job).reference_known(reference_job(self._with_digest(job)))

    def _compute(self, missing: Mapping[str, JobSpec]) -> None:
        """Until every one is known, or given up: those that no other worker computes, and waits for the
        rest."""
        device = next(iter(missing.values())).device if missing else ""

        def waiting() -> None:
            # The same words for all, so that a log has them once.
            self._observer.step("waiting for references that other boards compute", 0, 0, device)

        # Every turn makes a key known or tried, so that it ends.
        for number in itertools.count(1):
            with self._references.turn(missing.keys(), self._tried, self._stop, waiting) as key:
                if key is None:
                    return
                job = missing[key]
                text = f"reference {number} of {len(missing)}: {job.label}"
                self._observer.step(text, 0, 0, job.device)
                try:
                    found, why = self._references.compute(
                        self.agent(job), job, self._stop, self._waiting(job)
                    )
                except StbenchError as error:
                    if ends_the_device(error):
                        raise
                    found, why = None, str(error)
                if found is None:
                    self._tried.add(key)
                    self._references.failed(key, why)


def remove_made(devices: Sequence[Prepared], jobs: Sequence[JobSpec]) -> None:
    """Deletes the synthetic models that jobs had to make."""
    by_name = {device.target.device.name: device for device in devices}
    for job in {(job.device, job.model.name): job for job in jobs}.values():
        model = by_name[job.device].target.models[job.model.name]
        if model.to_make:
            remove_model(by_name[job.device].agent.connector, model.ref.path)
