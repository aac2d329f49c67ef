"""``-t auto`` in a plan: which searches run before the jobs, and what a job becomes once its search is known.

A search belongs to a device, a model and the settings of our engine; all workloads share it. A program
(llama-bench, an external command) runs on what was found for our engine on the same weights, for the dense
settings where they are in the sweep: it has no search of its own, because what is compared should differ in
the engine and not in the CPUs.

The ids of jobs do not depend on what a search finds, so a plan can be printed, and resumed, without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stbench.agent import search, wire
from stbench.agent.wire import Candidate, JobSpec, RunRecord, ThreadChoice, Workload
from stbench.models.catalogue import STANDARD_SUFFIX
from stbench.records.disturbance import judge
from stbench.records.store import UNFINISHED
from stbench.sweeps.candidates import candidates
from stbench.sweeps.limited import limited_of
from stbench.sweeps.sweep import AUTO_THREADS, threads_label

if TYPE_CHECKING:
    from stbench.sweeps.plan import Target

# Stands in a job's choice until its search is known.
PENDING = ThreadChoice("")

_MARK = f"/{threads_label(AUTO_THREADS)}/"


@dataclass(frozen=True)
class Searched:
    """Jobs with their searches named, the searches, and sentences on what has none."""

    jobs: list[JobSpec]
    searches: list[JobSpec]
    notes: list[str]


def with_searches(jobs: Sequence[JobSpec], target: Target, identify: Callable[[JobSpec], str]) -> Searched:
    """Names the search of every job whose choice is :data:`PENDING`; ``identify`` gives a search its id."""
    pending = [job for job in jobs if job.choice == PENDING]
    if not pending:
        return Searched(list(jobs), [], [])
    tried = candidates(target.facts, target.device.cpus)
    own: dict[str, JobSpec] = {}
    for job in pending:
        if job.program is None:
            own.setdefault(_key(job), _search(job, tried, identify))
    notes: list[str] = []
    settled: list[JobSpec] = []
    for job in jobs:
        if job.choice == PENDING:
            job = _only(job, tried[0]) if len(tried) == 1 else _named(job, own, notes)
        settled.append(job)
    return Searched(settled, list(own.values()) if len(tried) > 1 else [], list(dict.fromkeys(notes)))


def _key(job: JobSpec) -> str:
    return f"{job.engine} {job.model.name} {wire.dumps(job.settings)}"


def _search(job: JobSpec, tried: list[Candidate], identify: Callable[[JobSpec], str]) -> JobSpec:
    limits = limited_of(job.settings).label.lstrip("/")
    case = f"{job.case.split(_MARK)[0]}{_MARK}{limits}{'/' * bool(limits)}search"
    made = replace(
        job,
        settings=replace(job.settings, record_routing="", timeline=""),
        label=f"{job.device}:{case}",
        case=case,
        purpose="search",
        workload=Workload(0, search.DECODE_TOKENS, 0, job.workload.seed),
        candidates=tried,
        choice=None,
        bracket_ms=0,
    )
    return replace(made, id=identify(made))


def _only(job: JobSpec, candidate: Candidate) -> JobSpec:
    why = f"{search.described(candidate)}, the only candidate"
    return replace(_on(job, candidate), choice=ThreadChoice("", why))


def _named(job: JobSpec, own: Mapping[str, JobSpec], notes: list[str]) -> JobSpec:
    if job.program is None:
        return replace(job, choice=ThreadChoice(own[_key(job)].id))
    found = _of_same_weights(job, list(own.values()))
    if found is not None:
        return replace(job, choice=ThreadChoice(found.id))
    why = f"{_default(job)}: -t auto measures our own engine, and this sweep runs it on no file of this model"
    notes.append(f"{job.label.split(_MARK)[0]}: {why}")
    return replace(job, choice=ThreadChoice("", why))


def _of_same_weights(job: JobSpec, searches: Sequence[JobSpec]) -> JobSpec | None:
    """The search for our engine on the program's file, else on its twin; under the same memory limit before
    others, without a cache before with one, dense before sparse."""

    def rank(one: JobSpec) -> tuple[bool, ...]:
        settings = one.settings
        return (
            one.model.name != job.model.name,
            settings.memory_limit_bytes != job.settings.memory_limit_bytes,
            bool(settings.cache),
            settings.sparse_ffn or settings.sparse_lm_head,
        )

    plain = job.model.name.removesuffix(STANDARD_SUFFIX)
    same = [one for one in searches if one.model.name.removesuffix(STANDARD_SUFFIX) == plain]
    return min(same, key=rank, default=None)


def _default(job: JobSpec) -> str:
    threads = job.settings.threads
    return f"{threads} thread{'' if threads == 1 else 's'}, the device's default"


def _on(job: JobSpec, candidate: Candidate) -> JobSpec:
    return replace(job, settings=replace(job.settings, threads=candidate.threads, cpus=list(candidate.cpus)))


def settled(job: JobSpec, searched: Mapping[str, RunRecord]) -> JobSpec:
    """The job on what its search found, or on the device's default where the search failed. ``searched`` has
    records by the ids of their searches; a job without a search stays as it is."""
    if job.choice is None or not job.choice.search:
        return job
    record = searched[job.choice.search]
    if record.search is None:
        why = f"{_default(job)}: the search ended as {record.status} ({record.detail})"
        return replace(job, choice=replace(job.choice, why=why))
    why = record.search.why + _reservation(record)
    if job.program is not None:
        why = f"as found for {record.engine} ({record.case.split(_MARK)[0]}): {why}"
    chosen = record.search.tried[record.search.chosen].candidate
    return replace(_on(job, chosen), choice=replace(job.choice, why=why))


def sentence(job: JobSpec, seconds: float) -> str:
    """A search, for people, before it ran."""
    names = "; ".join(search.described(candidate) for candidate in job.candidates)
    return f"{job.label}: -t auto tries {len(job.candidates)} settings first (about {seconds:.0f} s): {names}"


def result_sentence(record: RunRecord) -> str:
    """A search, for people, after it ran."""
    if record.search is None:
        return f"{record.label}: {record.status}: {record.detail}; its cases run on the device's default"
    return f"{record.label}: {record.search.why}{_reservation(record)}"


def disturbances(record: RunRecord) -> tuple[str, ...]:
    """What disturbed a search, in words: candidates take turns, but one that is measured beside a busy CPU
    may lose for that."""
    return judge([record])[0].reasons


def is_final(record: RunRecord) -> bool:
    """Whether a search counts: a cancelled one does not, nor a disturbed one that was not repeated yet."""
    return record.status != UNFINISHED and (record.attempt > 0 or not disturbances(record))


def _reservation(record: RunRecord) -> str:
    reasons = disturbances(record)
    return f" (disturbed, in a second search, too: {'; '.join(reasons)})" if reasons else ""
