"""One worker's part of a campaign: the jobs of a board, or those of this machine's own devices in turn.

In the plan's order: models and references of a group, the searches of -t auto, then round after round, and at
the end of each its disturbed runs again. Everything here belongs to the worker, but for the store, the
references, the observer, the made files and the ledger, each of which has a lock of its own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from stbench.agent.wire import JobSpec, RunRecord
from stbench.campaigns.agentclient import JobInterrupted
from stbench.campaigns.disk import MadeFiles
from stbench.campaigns.idle import IdleLevels
from stbench.campaigns.ledger import Ledger, Observer
from stbench.campaigns.models_made import Needs
from stbench.campaigns.references import References
from stbench.campaigns.reruns import Reruns
from stbench.campaigns.schedule import named
from stbench.errors import BusyError, DeviceError, NoSpace
from stbench.records.store import UNFINISHED, Store
from stbench.sweeps import auto_threads
from stbench.sweeps.plan import Plan
from stbench.sweeps.prepare import Prepared


@dataclass(frozen=True)
class Shared:
    """What all workers of a campaign use; each part is safe to use from several threads. ``done``: the ids of
    jobs that have a record which counts."""

    plan: Plan
    store: Store
    references: References
    observer: Observer
    ledger: Ledger
    made: MadeFiles
    done: frozenset[str]


class _Clock:
    """Expected seconds of one worker's jobs, corrected by how far the guesses were off so far."""

    def __init__(self, guesses: Mapping[str, float]) -> None:
        self._guesses = guesses
        self._guessed = self._took = 0.0

    def add(self, job: JobSpec, seconds: float) -> None:
        self._guessed += self._guesses[job.id]
        self._took += seconds

    def seconds(self, jobs: Sequence[JobSpec]) -> float:
        factor = self._took / self._guessed if self._guessed else 1.0
        return factor * sum(self._guesses[job.id] for job in jobs)


class Worker:
    """Runs the jobs of its ``devices`` that have no record yet. ``stored``: the records of these devices."""

    def __init__(self, shared: Shared, devices: Sequence[Prepared], stored: Sequence[RunRecord]) -> None:
        self.names = [device.target.device.name for device in devices]
        self._shared, self._ledger, self._observer = shared, shared.ledger, shared.observer
        self._agents = {device.target.device.name: device.agent for device in devices}
        self._stored = stored
        plan = shared.plan
        groups = [[job for job in group if job.device in self.names] for group in plan.groups()]
        self._groups = [group for group in groups if group]
        jobs = [job for group in self._groups for job in group]
        self._searches = [job for job in plan.searches if job.device in self.names]
        self._pending = {job.id: job for job in jobs if job.id not in shared.done}
        self.reruns = Reruns(plan, [job for job in plan.jobs if job.device in self.names], stored)
        made = shared.made if plan.one_model_at_a_time else None
        self._needs = Needs(devices, shared.references, shared.observer, shared.ledger.stop, made)
        self._clock = _Clock(plan.guess_s)
        self._idle = IdleLevels(stored)
        ids = {search.id for search in self._searches}
        searched = {record.id: record for record in stored if record.id in ids}
        self._searched = {key: record for key, record in searched.items() if auto_threads.is_final(record)}

    @property
    def left(self) -> int:
        """How many jobs have no record yet."""
        return len(self._pending)

    def forget_failed_searches(self) -> None:
        """Lets failed searches run again, as far as no job with a record rests on them: one cell has one
        thread setting."""
        jobs = (job for group in self._groups for job in group)
        used = {j.choice.search for j in jobs if j.choice is not None and j.id in self._shared.done}
        self._searched = {
            key: record for key, record in self._searched.items() if record.status == "ok" or key in used
        }

    def run(self) -> None:
        """Until all is done or the campaign ends. Never raises: what ends a worker is in the ledger, and so
        is what has to end them all."""
        why = ""
        try:
            self._acknowledge()
            for group in self._groups:
                if not self._run_group(group):
                    break
                self._needs.put_away(group)
            for agent in self._agents.values():
                agent.settle()
        except JobInterrupted as stop:
            self._ledger.interrupted()
            self._keep_interrupted(stop.record)
        except KeyboardInterrupt:
            self._ledger.interrupted()
        except (DeviceError, BusyError, NoSpace) as error:
            self._ledger.lost(self.names, error)
            why = str(error)
            who = named(self.names)
            hint = f" (try: {error.hint})" if error.hint else ""
            self._observer.note(f"{who}: ended here, others go on: {why.removeprefix(f'{who}: ')}{hint}")
        except Exception as error:
            self._ledger.broke(error)
            self._observer.note(f"{named(self.names)}: {error}; no other job begins")
        for name in self.names:
            self._observer.device_ended(name, why)

    def _acknowledge(self) -> None:
        """A device keeps the record of a job until it hears that it is stored here, and answers with it when
        the job comes again: before anything is repeated, it has to hear of all that is here."""
        for record in self._stored:
            self._agents[record.device].stored(record)
        for agent in self._agents.values():
            agent.settle()

    def _keep_interrupted(self, record: RunRecord) -> None:
        """Mostly a cancelled one, or that of a run which ended just then. Only runs are cells; a search or a
        reference begins anew."""
        if record.purpose != "measure":
            return
        try:
            self._store(record)
        except Exception as error:
            self._ledger.broke(error)
        if record.status != UNFINISHED:
            self._pending.pop(record.id, None)

    def _store(self, record: RunRecord) -> None:
        self._shared.store.append(record)
        self.reruns.add(record)
        self._idle.learn(record)
        self._agents[record.device].stored(record)

    def _run_group(self, group: Sequence[JobSpec]) -> bool:
        """The jobs of a group without a record, and its disturbed runs again; False when the campaign
        ended."""
        first = [job for job in group if job.id in self._pending]
        self._needs.prepare(first)
        if not self._search(first):
            return False
        for round_jobs in _rounds(group):
            waiting = [job for job in round_jobs if job.id in self._pending]
            if not self._run_all([replace(job, attempt=self.reruns.attempt(job)) for job in waiting]):
                return False
            again = self._due(round_jobs[0], group)
            self._needs.prepare(again)
            if not self._run_all(again):
                return False
        return True

    # ---- searches ------------------------------------------------------------------------------------

    def _search(self, jobs: Sequence[JobSpec]) -> bool:
        """Runs the searches that these jobs wait for; False when the campaign ended."""
        wanted = {job.choice.search for job in jobs if job.choice is not None}
        for job in self._searches:
            if job.id not in wanted or job.id in self._searched:
                continue
            if not self._ledger.goes_on():
                return False
            self._needs.make_models([job])
            record = self._one_search(job)
            if not auto_threads.is_final(record):
                self._observer.note(f"{job.label}: disturbed, searching again")
                record = self._one_search(replace(job, attempt=1))
            self._searched[job.id] = record
            self._observer.note(auto_threads.result_sentence(record))
        return True

    def _one_search(self, job: JobSpec) -> RunRecord:
        self._observer.step(f"{job.label}: trying {len(job.candidates)} settings", 0, 0, job.device)
        record = self._needs.run(self._idle.sent_with(job))
        self._store(record)
        return record

    # ---- jobs ----------------------------------------------------------------------------------------

    def _run_all(self, jobs: Sequence[JobSpec]) -> bool:
        """Runs jobs as long as the limits allow; False when the campaign ended."""
        for job in jobs:
            if not self._ledger.goes_on():
                return False
            self._run(job)
        return True

    def _run(self, job: JobSpec) -> None:
        """One job, to its stored record."""
        self._observer.job_started(job, self._ledger.started(job, self._left_s()))
        begin = time.monotonic()
        record = self._needs.run(self._idle.sent_with(auto_threads.settled(job, self._searched)))
        record = self._needs.with_trace(record, self._shared.store.directory)
        self._store(record)
        self._clock.add(job, time.monotonic() - begin)
        self._ledger.ended(record, rerun=self._pending.pop(job.id, None) is None)
        self._observer.job_ended(record)

    def _left_s(self) -> dict[str, float]:
        jobs = self._pending.values()
        return {name: self._clock.seconds([job for job in jobs if job.device == name]) for name in self.names}

    def _due(self, of_round: JobSpec, group: Sequence[JobSpec]) -> list[JobSpec]:
        """Next attempts of disturbed runs of the device whose round ended, as far as they are of its group,
        after a line for people."""
        ids, device = {job.id for job in group}, of_round.device
        again = [job for job in self.reruns.due(device) if job.id in ids]
        if again:
            bound = f"{self.reruns.used(device)} of at most {self.reruns.bound(device)} re-runs used"
            labels = ", ".join(f"{job.label} #{job.replicate + 1}" for job in again)
            self._observer.note(f"{device}: disturbed, running again: {labels} ({bound})")
        return again


def _rounds(jobs: Sequence[JobSpec]) -> list[list[JobSpec]]:
    """The jobs of one device and replicate together, in the plan's order."""
    rounds: dict[tuple[str, int], list[JobSpec]] = {}
    for job in jobs:
        rounds.setdefault((job.device, job.replicate), []).append(job)
    return list(rounds.values())
