"""What jobs need before they run: their models, bundles of these, a trace to replay, and references of the
outputs. Nothing is timed here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from stbench.agent.wire import JobSpec, ModelRef, Reference, RunRecord
from stbench.campaigns import traces
from stbench.campaigns.agentclient import Agent
from stbench.campaigns.disk import MadeFiles, remove_model
from stbench.campaigns.ledger import Observer
from stbench.campaigns.references import References, reference_job
from stbench.campaigns.stopping import Stop
from stbench.errors import AgentError, BusyError, DeviceError, LinkLost, StbenchError
from stbench.models import bundles
from stbench.sweeps.prepare import Prepared, bundle_path, free_space_for, make
from stbench.yamlfile import printable

T = TypeVar("T")

# A link that breaks as often while one model is made will not see its jobs to their end.
MOST_LOSSES = 20


def ends_the_device(error: Exception) -> bool:
    """Whether nothing can run on a device after this: it is gone, or somebody else has it. An agent that
    died over one request may do well with the next."""
    return isinstance(error, (DeviceError, BusyError)) and not isinstance(error, AgentError)


class Needs:
    """The models and references of one worker's jobs, by what the worker did so far. Only ``references`` and
    ``made`` (None: the caller deletes models itself) are shared with other workers. Jobs that are
    ``only_references`` are never run, so that no bundle is made for them.

    Its methods raise what :func:`ends_the_device`, and on ``stop`` what Ctrl-C raises in the main thread."""

    def __init__(
        self,
        devices: Sequence[Prepared],
        references: References,
        observer: Observer,
        stop: Stop,
        made: MadeFiles | None = None,
        *,
        only_references: bool = False,
    ) -> None:
        self._devices = {device.target.device.name: device for device in devices}
        self._references, self._observer, self._stop, self._made = references, observer, stop, made
        self._only_references = only_references
        # (device, model name) -> the digest of its file, or why there is none.
        self._ready: dict[tuple[str, str], tuple[str, str]] = {}
        # (device, model name, gathers) -> the path of its bundle, or why there is none.
        self._bundles: dict[tuple[str, str, int], tuple[str, str]] = {}
        # Devices that have the trace.
        self._with_trace: set[str] = set()
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
        problem = self._problem(job)
        if problem:
            return self.agent(job).never_started(job, problem)
        job = replace(self._with_paths(self._with_digest(job)), reference=self._found.get(job.id))
        return self.agent(job).run(job, self._stop, self._waiting(job))

    def with_trace(self, record: RunRecord, directory: Path) -> RunRecord:
        """The record of a job that ran, its routing and timeline beside the records in ``directory``."""
        if record.routing is None and record.profile is None:
            return record
        agent = self._devices[record.device].agent
        return self._over_losses(agent, lambda: traces.fetched(agent.connector, record, directory))

    def _problem(self, job: JobSpec) -> str:
        """Why a job cannot run; "" when it can."""
        _, problem = self._ready[job.device, job.model.name]
        if not problem and self._needs_bundle(job):
            _, problem = self._bundles[self._bundle_key(job)]
        return problem

    def _with_paths(self, job: JobSpec) -> JobSpec:
        """The job with the device's paths of what its settings name otherwise."""
        settings, connector = job.settings, self.agent(job).connector
        if self._needs_bundle(job):
            settings = replace(settings, bundle=self._bundles[self._bundle_key(job)][0])
        if settings.routing_digest:
            settings = replace(settings, routing=traces.path_on(connector, settings.routing_digest))
        if settings.record_routing:
            settings = replace(settings, record_routing=traces.recorded_on(connector, job))
        if settings.timeline:
            settings = replace(settings, timeline=traces.timeline_on(connector, job))
        return replace(job, settings=settings)

    def _waiting(self, job: JobSpec) -> Callable[[str], None]:
        return lambda holder: self._observer.note(f"{job.device}: waiting: {holder}")

    def references(self) -> set[str]:
        """The keys of all references found so far."""
        return {reference.key for reference in self._found.values() if reference is not None}

    # ---- models --------------------------------------------------------------------------------------

    def make_models(self, jobs: Sequence[JobSpec]) -> None:
        """A model, or a bundle, that cannot be made fails its own jobs, not the campaign."""
        for job in jobs:
            key = (job.device, job.model.name)
            if key not in self._ready:
                self._ready[key] = self._made_model(job)
            if self._needs_bundle(job) and not self._ready[key][1]:
                wanted = self._bundle_key(job)
                if wanted not in self._bundles:
                    self._bundles[wanted] = self._made_bundle(job)
            self._send_trace(job)

    def _send_trace(self, job: JobSpec) -> None:
        trace = self._devices[job.device].target.trace
        if trace is None or not job.settings.routing_digest or job.device in self._with_trace:
            return
        agent = self.agent(job)
        on_bytes = self._telling(job, f"{job.device}: sending {trace.source.name}")
        self._over_losses(
            agent,
            lambda: traces.send(agent.connector, trace, lambda done, all_: on_bytes("send", done, all_)),
        )
        self._with_trace.add(job.device)

    def _telling(self, job: JobSpec, title: str) -> Callable[[str, int, int], None]:
        def on_bytes(stage: str, done: int, total: int) -> None:
            if self._stop.asked:
                raise KeyboardInterrupt
            shown = f"{title} (digest)" if stage == "hash" else title
            self._observer.step(shown, done, total, job.device)

        return on_bytes

    def _made_model(self, job: JobSpec) -> tuple[str, str]:
        device = self._devices[job.device]
        model = device.target.models[job.model.name]
        if not model.to_make:
            return model.ref.digest, ""
        if self._made is not None:
            self._made.note(job.device, model.ref.path)
        title = f"{job.device}: {'sending' if model.source else 'making'} {job.model.name}"
        on_bytes = self._telling(job, title)
        kind = "sent from this machine" if model.source else "synthetic weights"
        self._observer.note(f"{title} ({model.file_bytes / 1e9:.2g} GB, {kind})")
        try:
            return self._over_losses(device.agent, lambda: make(device.agent, model, on_bytes)).ref.digest, ""
        except StbenchError as error:
            if ends_the_device(error):
                raise
            self._observer.note(str(error))
            return "", str(error)

    def _needs_bundle(self, job: JobSpec) -> bool:
        return bundles.is_needed(job) and not self._only_references

    def _bundle_key(self, job: JobSpec) -> tuple[str, str, int]:
        return job.device, job.model.name, bundles.gathers_of(job.settings)

    def _model_ref(self, job: JobSpec) -> ModelRef:
        """The model of a job as it is on the device, with its digest."""
        return self._with_digest(job).model

    def _made_bundle(self, job: JobSpec) -> tuple[str, str]:
        device = self._devices[job.device]
        agent, model, gathers = device.agent, self._model_ref(job), bundles.gathers_of(job.settings)
        path = bundle_path(agent, model, gathers)
        size = bundles.bundle_bytes(device.target.models[job.model.name])
        made = bundles.Bundle(job.model.name, gathers, size)
        try:
            if self._over_losses(agent, lambda: agent.connector.stat(path)) is None:
                free_space_for(agent, made.name, path, size)
                if self._made is not None:
                    self._made.note(job.device, path)
                self._observer.note(f"{job.device}: making the {made.name} ({size / 1e9:.2g} GB)")
            on_bytes = self._telling(job, f"{job.device}: {made.name}")
            there = self._over_losses(agent, lambda: agent.bundle(model, gathers, path, on_bytes))
            if there.detail:
                self._observer.note(f"{job.device}: the {made.name} was {printable(there.detail)}")
        except StbenchError as error:
            if ends_the_device(error):
                raise
            self._observer.note(str(error))
            return path, str(error)
        return path, ""

    def put_away(self, jobs: Sequence[JobSpec]) -> None:
        """Deletes the files and bundles of models whose jobs ended, where this campaign made them one at a
        time."""
        if self._made is None:
            return
        for job in {(job.device, job.model.name): job for job in jobs}.values():
            for key in [key for key in self._bundles if key[:2] == (job.device, job.model.name)]:
                path, _ = self._bundles.pop(key)
                self._delete(job, path, self._made)
            path = self._devices[job.device].target.models[job.model.name].ref.path
            if self._delete(job, path, self._made):
                self._ready.pop((job.device, job.model.name), None)

    def _delete(self, job: JobSpec, path: str, made: MadeFiles) -> bool:
        agent = self.agent(job)
        deleted = self._over_losses(agent, lambda: made.delete(job.device, path, agent.connector))
        if deleted:
            self._observer.note(f"{job.device}: deleted {path}")
        return deleted

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
            if job.program is not None or self._problem(job):
                continue
            job = self._with_paths(self._with_digest(job))
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
