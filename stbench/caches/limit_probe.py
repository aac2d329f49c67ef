"""Runs of a case under one memory limit -> an outcome for :mod:`stbench.caches.find_limit`.

Every run is an ordinary job of a campaign, with the id that a sweep with this ``--memory-limit`` would give
it, so that a second search, a table and a chart find its record.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stbench.agent import cachesize, loading, wire
from stbench.agent.wire import JobSpec, RunRecord
from stbench.caches.find_limit import MIB
from stbench.caches.find_limit import Outcome as Found
from stbench.campaigns.campaign import UNFINISHED, Outcome, run_campaign
from stbench.campaigns.ledger import Observer
from stbench.campaigns.live import tokens_per_s
from stbench.campaigns.references import References
from stbench.errors import CellsFailed, DeviceError, Interrupted
from stbench.records import disturbance
from stbench.records.store import Store
from stbench.sweeps.plan import Plan, build_plan
from stbench.sweeps.prepare import Prepared
from stbench.sweeps.sweep import Sweep
from stbench.wording import clean

_GO_ON = "the same command with this --campaign goes on"


class CaseFailed(CellsFailed):
    """One case has no answer; that says nothing about others."""


def case_key(job: JobSpec) -> str:
    """What a case is, whatever its limit, replicate and label."""
    settings = wire.to_json(replace(job.settings, memory_limit_bytes=0))
    parts = [job.engine, job.model.name, wire.to_json(job.workload), settings]
    return json.dumps(parts, sort_keys=True)


def too_little(record: RunRecord) -> str:
    """Why a case does not run, where more memory might help; "" for other ends."""
    if record.status in ("out-of-memory", "timeout"):
        return f"{record.status}: {clean(record.detail, 400)}"
    if record.status == "failed" and "a cache of" in record.detail and "is too small" in record.detail:
        return clean(record.detail, 400)
    return ""


def check_enforced(record: RunRecord) -> None:
    """Raises :class:`CellsFailed` where nobody can hold a limit, :class:`CaseFailed` for a run whose limit
    was not held: a search over such runs would find a number that means nothing."""
    proof = record.limit
    if proof is None or record.status == UNFINISHED:
        return
    said = clean(proof.detail, 600) or "the record does not say why"
    if proof.verdict == "not-enforced":
        raise CellsFailed(
            f"{record.device} cannot enforce a memory limit, so that none can be found: {said}",
            hint=f"stbench devices doctor {record.device}",
        )
    if record.status == "ok" and proof.verdict != "held":
        raise CaseFailed(
            f"{record.label}: the limit was not held ({proof.verdict}), so this run shows nothing: {said}",
            hint="docs/memory-limits.md says what each verdict means",
        )


def check_usable(record: RunRecord) -> None:
    """Raises :class:`CaseFailed` for a run that ended neither well nor for want of memory."""
    check_enforced(record)
    if too_little(record):
        return
    if record.status != "ok":
        raise CaseFailed(
            f"{record.label}: {record.status}, which says nothing about its limit: "
            f"{clean(record.detail, 400)}",
            hint=f"mend it; {_GO_ON}, with --retry-failed",
        )
    verdict = record.check.verdict if record.check is not None else "unchecked"
    if record.program is None and verdict != "ok":
        raise CaseFailed(
            f"{record.label}: its output is {verdict}, and only a run whose output is right counts",
            hint="mend what the notes above say of its reference; then take another --campaign",
        )


def outcome_of(limit: int, records: Sequence[RunRecord], *, reused: bool) -> Found:
    """Of the finished runs under a limit, at least one. Disturbed ones are left out of the speeds as long as
    two others are left. Raises :class:`CellsFailed`."""
    for record in records:
        check_usable(record)
    whys = [why for record in records if (why := too_little(record))]
    good = [record for record in records if record.status == "ok"]
    steady = [
        record for record, verdict in zip(good, disturbance.judge(good), strict=True) if not verdict.disturbed
    ]
    counted = steady if len(steady) >= min(2, len(good)) else good
    speeds = [tps for r in counted if r.workload.n_gen and (tps := tokens_per_s(r)) is not None]
    return Found(
        limit,
        not whys,
        whys[0] if whys else "",
        len(good),
        len(records),
        tuple(speeds),
        len(good) - len(counted),
        _median(r.limit.peak_bytes for r in records if r.limit is not None),
        _median(r.cache.bytes for r in good if r.cache is not None),
        _hit_rate(good),
        reused,
    )


def _median(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return int(statistics.median(known)) if known else None


def _hit_rate(records: Sequence[RunRecord]) -> float | None:
    counters = [r.cache.decode for r in records if r.cache is not None]
    rates = [c.hits / c.requests for c in counters if c.requests > 0]
    return statistics.median(rates) if rates else None


def enough_bytes(record: RunRecord) -> int:
    """A limit in which everything should fit that a run without one had in memory; whole steps of 16 MiB."""
    account, memory = record.account, record.memory
    own = 32 * MIB + (memory.capture_bytes + (memory.baseline_rss_bytes or 0) if memory else 0)
    if account is None:
        need = own + (memory.peak_rss_bytes if memory else 0)
    else:
        weights = account.weights + account.cache
        if record.cache is None:
            # What --load auto asks for before it repacks.
            weights = account.model_file + account.model_file // 10 + loading.SPARE_BYTES
        need = own + weights + account.kv_allocated + account.scratch + cachesize.RESERVE_BYTES
    need += need // 32
    return -(-need // (16 * MIB)) * 16 * MIB


@dataclass(frozen=True)
class Room:
    """Where runs go: a connected device, a campaign's directory, and who is told; ``ends_at``: when no other
    job begins (time.monotonic), None for never."""

    directory: Path
    sweep: Sweep
    device: Prepared
    references: References
    observer: Observer
    retry_failed: bool = False
    ends_at: float | None = None


class Prober:
    """Measures cases of a sweep under any limit. ``describe`` is called before runs with the open store and
    the sweep that these and earlier runs are: what ``stbench sweep --resume`` would go on with."""

    def __init__(self, room: Room, describe: Callable[[Store, Sweep], None]) -> None:
        self._room = room
        self._device = room.device
        self._describe = describe
        self._limits: set[int] = set()
        self._labels: set[str] = set()

    def cases(self, filters: Sequence[str]) -> list[JobSpec]:
        """The first job of each case, without a limit, in the sweep's order."""
        return [jobs[0] for jobs in self._plan(0, filters).cases().values()]

    def plan(self) -> Plan:
        """Of all cases without a limit: what has to be made for them is the same under any."""
        return self._plan(0, self._room.sweep.filter)

    def unlimited(self, case: JobSpec) -> RunRecord:
        """One run without a limit, whatever became of it."""
        plan, jobs = self._jobs(case, 0)
        return self._run(replace(plan, jobs=tuple(jobs[:1])))[0]

    def known(self, case: JobSpec) -> list[Found]:
        """What the campaign has of this case, as far as it is complete."""
        with Store.open(self._room.directory) as store:
            stored = {record.id: record for record in store.reading.latest() if record.status != UNFINISHED}
        asked = sorted({r.settings.memory_limit_bytes for r in stored.values()} - {0})
        outcomes = []
        for limit in asked:
            _, jobs = self._jobs(case, limit)
            records = [stored[job.id] for job in jobs if job.id in stored]
            if records and self._is_complete(jobs, records):
                self._note(jobs)
                outcomes.append(outcome_of(limit, records, reused=True))
        return outcomes

    def _is_complete(self, jobs: Sequence[JobSpec], records: Sequence[RunRecord]) -> bool:
        """A replicate for which the memory was too little settles its limit."""
        if any(too_little(record) for record in records):
            return True
        return len(records) == len(jobs) and (
            not self._room.retry_failed or all(record.status == "ok" for record in records)
        )

    def measure(self, case: JobSpec, limit: int) -> Found:
        """The replicates of a case under a limit, as far as they have no record; the first one that finds too
        little memory ends them. Raises :class:`CellsFailed` where they show nothing, :class:`DeviceError`,
        :class:`Interrupted`."""
        plan, jobs = self._jobs(case, limit)
        self._note(jobs)
        # Alone: whether the limit is enforced is known before the others take their time.
        records = self._run(replace(plan, jobs=tuple(jobs[:1])))
        if len(jobs) > 1:
            check_usable(records[0])
            if not too_little(records[0]):
                records = self._run(replace(plan, jobs=tuple(jobs)))
        return outcome_of(limit, records, reused=False)

    def _plan(self, limit: int, filters: Sequence[str] = ()) -> Plan:
        sweep = replace(self._room.sweep, memory_limit=(limit,), filter=tuple(filters))
        return build_plan(sweep, [self._device.target], self._room.directory.name)

    def _jobs(self, case: JobSpec, limit: int) -> tuple[Plan, list[JobSpec]]:
        plan, key = self._plan(limit), case_key(case)
        return plan, [job for job in plan.jobs if case_key(job) == key]

    def _note(self, jobs: Sequence[JobSpec]) -> None:
        self._limits |= {job.settings.memory_limit_bytes for job in jobs}
        self._labels |= {job.label for job in jobs}

    def _run(self, plan: Plan) -> list[RunRecord]:
        """Runs what has no record, and returns the records that there are then, at least one."""
        room = self._room
        with Store.open(room.directory) as store:
            asked = tuple(sorted(self._limits)) or (0,)
            labels = tuple(glob.escape(label) for label in sorted(self._labels))
            self._describe(store, replace(room.sweep, memory_limit=asked, filter=labels))
            left_s = None if room.ends_at is None else max(room.ends_at - time.monotonic(), 1e-9)
            ended = run_campaign(
                plan,
                [self._device],
                store,
                room.references,
                room.observer,
                max_time_s=left_s,
                max_failures=1,
                retry_failed=room.retry_failed and not self._settled(store, plan),
            )
        with Store.open(room.directory) as store:
            latest = {record.id: record for record in store.reading.latest()}
        ids = [job.id for job in plan.jobs]
        records = [latest[i] for i in ids if i in latest and latest[i].status != UNFINISHED]
        self._raise_unfinished(ended, records, len(ids))
        self._device = _with_made(self._device, records)
        return records

    def _settled(self, store: Store, plan: Plan) -> bool:
        ids = {job.id for job in plan.jobs}
        return any(too_little(record) for record in store.reading.latest() if record.id in ids)

    def _raise_unfinished(self, ended: Outcome, records: Sequence[RunRecord], wanted: int) -> None:
        campaign = self._room.directory.name
        if ended.interrupted:
            raise Interrupted(f"interrupted; what was measured is in {campaign}", hint=_GO_ON)
        if ended.lost:
            device, why = next(iter(ended.lost.items()))
            raise DeviceError(f"{device}: {why}; what was measured is in {campaign}", hint=_GO_ON)
        if len(records) < wanted and all(record.status == "ok" for record in records):
            raise CellsFailed(f"stopped: {ended.stopped or 'jobs are left'}", hint=_GO_ON)


def _with_made(device: Prepared, records: Sequence[RunRecord]) -> Prepared:
    """The device, knowing that the models of these runs are there now."""
    models = dict(device.target.models)
    for record in records:
        model = models.get(record.model.name)
        if model is not None and model.to_make and record.model.digest:
            ref = replace(model.ref, digest=record.model.digest)
            models[record.model.name] = dataclasses.replace(model, ref=ref, to_make=False)
    return replace(device, target=replace(device.target, models=models))
