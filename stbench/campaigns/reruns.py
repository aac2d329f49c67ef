"""Which disturbed runs of a campaign are repeated: bounded before anything ran, and known again after a kill.

Everything is derived from the stored records, so a resumed campaign goes on where the other one was: the
attempts of a job are the numbers in its records, and a bound counts repetitions that ended. Every device has
a bound of its own: what one board uses up depends on no other, nor on which of them was faster.

Only disturbed runs are repeated, not their partners in the same block. A partner belongs to as many pairs as
its block has other engines and settings; a second run of it beside one of them would tear it from all
others, and repeating whole blocks costs several undisturbed runs for each disturbed one. Repetitions come at
the end of the same round in the plan's order, so that what was disturbed together is adjacent again, and all
runs that count have been within 10 % of one bandwidth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from stbench.agent.wire import JobSpec, RunRecord
from stbench.records import disturbance
from stbench.records.store import UNFINISHED
from stbench.sweeps.plan import RERUNS_PER_JOB, Plan


class Reruns:
    """The attempts so far of one worker's devices: ``jobs`` of a plan. Add every record as it is stored."""

    def __init__(self, plan: Plan, jobs: Sequence[JobSpec], stored: Iterable[RunRecord]) -> None:
        self._bounds = plan.reruns
        self._jobs = {job.id: job for job in jobs}
        self._records: list[RunRecord] = []
        for record in stored:
            self.add(record)

    def add(self, record: RunRecord) -> None:
        """A record of this campaign; what was cancelled is no attempt."""
        if record.id in self._jobs and record.status != UNFINISHED:
            self._records.append(record)

    def bound(self, device: str) -> int:
        """How many repetitions a device may have."""
        return self._bounds.get(device, 0)

    def used(self, device: str) -> int:
        """How many repetitions of a device ended."""
        found = (record for record in self._records if record.device == device and record.attempt > 0)
        return len({(record.id, record.attempt) for record in found})

    def left(self, device: str) -> int:
        """How many more there may be."""
        return max(self.bound(device) - self.used(device), 0)

    def attempt(self, job: JobSpec) -> int:
        """The number of a job's newest attempt, 0 before there is any."""
        return max((record.attempt for record in self._records if record.id == job.id), default=0)

    def disturbed(self, device: str | None = None) -> list[RunRecord]:
        """The newest record of every job that is disturbed, as far as known now: more records may still move
        a campaign's level. In the plan's order."""
        verdicts = disturbance.judge(self._records)
        newest = {
            record.id: (record, verdict) for record, verdict in zip(self._records, verdicts, strict=True)
        }
        found = (newest[job_id] for job_id in self._jobs if job_id in newest)
        return [
            record
            for record, verdict in found
            if verdict.disturbed and (device is None or record.device == device)
        ]

    def due(self, device: str) -> list[JobSpec]:
        """The next attempts of a device's disturbed runs, in the plan's order. Where its bound does not allow
        all, cases with few undisturbed replicates come first."""
        disturbed = self.disturbed(device)
        open_jobs = [record for record in disturbed if record.attempt < RERUNS_PER_JOB]
        bad = {record.id for record in disturbed}
        calm: dict[str, int] = {}
        for record in {r.id: r for r in self._records}.values():
            calm[record.label] = calm.get(record.label, 0) + (record.status == "ok" and record.id not in bad)
        first = sorted(open_jobs, key=lambda r: calm.get(r.label, 0))[: self.left(device)]
        chosen = {record.id: record for record in first}
        return [
            replace(job, attempt=chosen[job.id].attempt + 1)
            for job in self._jobs.values()
            if job.id in chosen
        ]
