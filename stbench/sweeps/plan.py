"""Sweep x targets -> Plan. Pure: it touches nothing, and the same input gives the same plan.

Replicates are processes. They come in rounds: every round runs each case of a device once, in an order of its
own drawn from the seed, so that a slow minute hits all cases alike. Within a round, engines and settings of
one model, workload and thread count run one after the other, in random order: what is compared is measured in
the same minute, and from the same page cache. Models' blocks come in random order, too.
"""

from __future__ import annotations

import fnmatch
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from stbench.agent import wire
from stbench.agent.wire import DeviceFacts, JobSpec, ModelRef, Settings, Workload
from stbench.builds.programs import TargetProgram, left_out, settings_for
from stbench.campaigns import disk, schedule
from stbench.campaigns.traces import Trace
from stbench.devices.engine_names import is_program
from stbench.devices.inventory import Device
from stbench.errors import SweepError
from stbench.models import bundles
from stbench.models.bundles import Bundle
from stbench.models.catalogue import STANDARD_SUFFIX, Sizes
from stbench.sweeps import auto_threads
from stbench.sweeps.axes import AUTO_FFN
from stbench.sweeps.guesses import GUESS_WRITE, guess_search_s, guess_seconds
from stbench.sweeps.identity import job_id
from stbench.sweeps.limited import too_large
from stbench.sweeps.presets import PRESETS
from stbench.sweeps.sweep import AUTO_THREADS, Case, Sweep, Traits, expand

T = TypeVar("T")

# Stands in a job's settings until it goes out with the path of its own trace.
RECORDED = "on"

# Of disturbed runs: each is run again once at most, and of all jobs at most this share, so that a machine
# that is never quiet costs half as much again and no more.
RERUNS_PER_JOB = 1
RERUN_SHARE = 0.5


@dataclass(frozen=True)
class DeviceModel:
    """A model as one device has it or will have it. ``file_bytes`` is without the header for a model that is
    still ``to_make``; ``sizes`` None: a file whose tensors nobody counted yet. ``source``: a file of this
    machine that is sent there instead of being made. ``bundles``: those that are there, by what they are made
    for (:func:`stbench.models.bundles.gathers_of`)."""

    ref: ModelRef
    traits: Traits
    file_bytes: int
    to_make: bool = False
    sizes: Sizes | None = None
    source: str = ""
    bundles: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Target:
    """A device with what has to be known before planning. ``library`` is a path on the device; ``models``
    holds also the files that only ``programs`` run; ``trace`` is the routing that jobs replay."""

    device: Device
    facts: DeviceFacts
    library: str
    library_sha256: str
    models: Mapping[str, DeviceModel]
    programs: Mapping[str, TargetProgram] = field(default_factory=dict)
    trace: Trace | None = None


@dataclass(frozen=True)
class Plan:
    """Jobs in the order in which they run on their device. ``to_make`` maps a device to its models that do
    not exist yet, ``bundles`` to its bundles; times are guesses in seconds. Of a device's disturbed runs at
    most ``reruns`` are repeated.
    ``searches`` are those of -t auto: each runs before the first job that names it, twice if disturbed.
    ``boards`` are measured side by side, other devices in turn after them
    (:mod:`stbench.campaigns.schedule`)."""

    campaign: str
    preset: str
    seed: int
    jobs: tuple[JobSpec, ...]
    to_make: Mapping[str, tuple[DeviceModel, ...]]
    notes: tuple[str, ...]
    guess_s: Mapping[str, float]
    reruns: Mapping[str, int] = field(default_factory=dict)
    one_model_at_a_time: bool = False
    free_bytes: Mapping[str, int | None] = field(default_factory=dict)
    searches: tuple[JobSpec, ...] = ()
    search_s: Mapping[str, float] = field(default_factory=dict)
    boards: tuple[str, ...] = ()
    bundles: Mapping[str, tuple[Bundle, ...]] = field(default_factory=dict)

    @property
    def max_reruns(self) -> int:
        """How many disturbed runs may be repeated in all."""
        return sum(self.reruns.values())

    @property
    def devices(self) -> list[str]:
        """The names of all devices, in their order."""
        return list(dict.fromkeys(job.device for job in self.jobs))

    def groups(self) -> list[list[JobSpec]]:
        """Jobs that end before others begin: all of them, or those of one model's file."""
        return disk.grouped(self.jobs) if self.one_model_at_a_time else [list(self.jobs)]

    def peak_disk_bytes(self, device: str) -> int:
        """The most that models and bundles which have to be made will take on a device at one time."""
        files = {model.ref.name: model.file_bytes for model in self.to_make[device]}
        for bundle in self.bundles.get(device, ()):
            files[bundle.model] = files.get(bundle.model, 0) + bundle.bytes
        return disk.peak_bytes(list(files.values()), self.one_model_at_a_time)

    def write_bytes(self, device: str) -> int:
        """All models and bundles that have to be made on a device."""
        models = sum(model.file_bytes for model in self.to_make.get(device, ()))
        return models + sum(bundle.bytes for bundle in self.bundles.get(device, ()))

    def check_room(self) -> None:
        """Raises :class:`stbench.errors.NoSpace` when a device's models do not fit."""
        peaks = {device: self.peak_disk_bytes(device) for device in self.to_make}
        what = "the models and bundles take" if any(self.bundles.values()) else "the models take"
        disk.check_room(peaks, self.free_bytes, self.one_model_at_a_time, what)

    def room_sentences(self) -> list[str]:
        """Peak disk and free space of every device that has models or bundles to make, for people."""
        return [
            disk.room_sentence(
                device, self.peak_disk_bytes(device), self.free_bytes.get(device), self.one_model_at_a_time
            )
            for device, models in self.to_make.items()
            if models or self.bundles.get(device)
        ]

    def expected_s(self) -> float:
        """Making models and bundles, searches and jobs: of each device one after the other, of boards side by
        side."""
        seconds = {device: self.write_bytes(device) / GUESS_WRITE for device in self.devices}
        for job in self.searches:
            seconds[job.device] += self.search_s[job.id]
        for job in self.jobs:
            seconds[job.device] += self.guess_s[job.id]
        return schedule.elapsed_s(seconds, self.boards)

    def reruns_s(self) -> float:
        """The most that re-runs of disturbed runs add."""
        guesses: dict[str, list[float]] = {}
        for job in self.jobs:
            guesses.setdefault(job.device, []).append(self.guess_s[job.id])
        longest = {
            device: sum(sorted(seconds, reverse=True)[: self.reruns.get(device, 0)])
            for device, seconds in guesses.items()
        }
        return schedule.elapsed_s(longest, self.boards)

    def order_sentence(self) -> str:
        """Which devices run side by side, for people; "" where none do."""
        return schedule.sentence(self.devices, self.boards)

    def rerun_sentence(self) -> str:
        """The bound, for people."""
        if not self.max_reruns:
            return "disturbed runs are marked and not run again (--max-reruns 0)"
        runs = "is" if self.max_reruns == 1 else "are"
        seconds = self.reruns_s()
        most = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
        return (
            f"disturbed runs are run again: at most {schedule.bound_sentence(self.reruns)}, each once; "
            f"about {most} more if all {runs} needed"
        )

    def search_sentences(self) -> list[str]:
        """What -t auto will try, for people."""
        return [auto_threads.sentence(job, self.search_s[job.id]) for job in self.searches]

    def cases(self) -> dict[str, list[JobSpec]]:
        """Label -> its replicates, labels in the order of the sweep's axes."""
        cases: dict[str, list[JobSpec]] = {}
        for job in sorted(self.jobs, key=lambda job: job.replicate):
            cases.setdefault(job.label, []).append(job)
        return cases

    def describe(self) -> dict[str, Any]:
        """JSON-ready, for ``campaign.json`` and ``stbench plan --json``."""
        return {
            "campaign": self.campaign,
            "preset": self.preset,
            "seed": self.seed,
            "cases": {
                label: {
                    "jobs": [job.id for job in jobs],
                    "guess_s": round(sum(self.guess_s[j.id] for j in jobs), 1),
                }
                for label, jobs in self.cases().items()
            },
            "order": [job.id for job in self.jobs],
            "searches": {
                job.label: {
                    "job": job.id,
                    "candidates": [wire.to_json(candidate) for candidate in job.candidates],
                    "guess_s": round(self.search_s[job.id], 1),
                }
                for job in self.searches
            },
            "to_make": {
                device: [{"model": m.ref.name, "bytes": m.file_bytes} for m in models]
                for device, models in self.to_make.items()
            },
            "bundles_to_make": {
                device: [{"model": b.model, "gathers": b.gathers, "bytes": b.bytes} for b in made]
                for device, made in self.bundles.items()
            },
            "one_model_at_a_time": self.one_model_at_a_time,
            "peak_disk_bytes": {device: self.peak_disk_bytes(device) for device in self.to_make},
            "free_bytes": dict(self.free_bytes),
            "expected_s": round(self.expected_s(), 1),
            "boards_side_by_side": list(self.boards),
            "max_reruns": self.max_reruns,
            "reruns_s": round(self.reruns_s(), 1),
            "notes": list(self.notes),
        }


def build_plan(sweep: Sweep, targets: Sequence[Target], campaign: str) -> Plan:
    """Raises :class:`SweepError` when nothing is left to run."""
    jobs: list[JobSpec] = []
    searches: list[JobSpec] = []
    search_s: dict[str, float] = {}
    notes: list[str] = []
    to_make: dict[str, tuple[DeviceModel, ...]] = {}
    guesses: dict[str, float] = {}
    reruns: dict[str, int] = {}
    bundles_to_make: dict[str, tuple[Bundle, ...]] = {}
    for target in targets:
        device_jobs, own_searches = _rounds(sweep, target, campaign, notes)
        used = {job.model.name for job in device_jobs}
        to_make[target.device.name] = tuple(
            m for name, m in target.models.items() if m.to_make and name in used
        )
        bundles_to_make[target.device.name] = bundles.to_make(device_jobs, target.models)
        guesses |= {job.id: guess_seconds(job, target.models[job.model.name]) for job in device_jobs}
        search_s |= {job.id: guess_search_s(job, target.models[job.model.name]) for job in own_searches}
        searches += own_searches
        jobs += device_jobs
        if device_jobs:
            reruns[target.device.name] = _max_reruns(sweep, len(device_jobs))
    if not jobs:
        raise _nothing_left(sweep)
    return Plan(
        campaign,
        sweep.preset,
        sweep.seed,
        tuple(jobs),
        to_make,
        tuple(dict.fromkeys(notes)),
        guesses,
        reruns,
        sweep.one_model_at_a_time,
        {target.device.name: target.facts.storage_free_bytes for target in targets},
        tuple(searches),
        search_s,
        schedule.boards_of(target.device for target in targets if target.device.name in reruns),
        bundles_to_make,
    )


def _nothing_left(sweep: Sweep) -> SweepError:
    said, hint = "", "`stbench plan` without --filter prints the labels"
    if sweep.filter and list(sweep.filter) == PRESETS.get(sweep.preset, {}).get("filter"):
        said, hint = f" of what preset {sweep.preset} is about", "--filter '*' takes all that the axes make"
    elif sweep.filter:
        said = f" after --filter {' '.join(sweep.filter)}"
    return SweepError([f"nothing is left to run{said}"], hint=hint)


def _max_reruns(sweep: Sweep, n_jobs: int) -> int:
    """Of one device, so that a restless board takes none of another's. Without brackets nothing is judged by
    its bandwidth, and nothing is run again."""
    if not sweep.bracket_ms:
        return 0
    bound = RERUNS_PER_JOB * n_jobs
    return min(bound, math.ceil(RERUN_SHARE * n_jobs) if sweep.max_reruns is None else sweep.max_reruns)


def _rounds(
    sweep: Sweep, target: Target, campaign: str, notes: list[str]
) -> tuple[list[JobSpec], list[JobSpec]]:
    """All jobs of a device in their order, and the searches that they need."""
    cases, dropped = expand(sweep, {name: model.traits for name, model in target.models.items()})
    reasons = {
        case: left_out(case, target.device, target.programs, cases) or _too_large(sweep, target, case)
        for case in cases
    }
    notes += dropped + [why for why in reasons.values() if why]
    templates = [
        job
        for case, why in reasons.items()
        if not why
        for threads in _threads(sweep, target, notes)
        if _selected(job := _job(sweep, target, case, threads, campaign), sweep.filter)
    ]
    auto = auto_threads.with_searches(templates, target, lambda job: job_id(job, target, sweep.seed))
    notes += auto.notes
    # A program runs on what was found for our engine, whose models therefore come first.
    templates = sorted(auto.jobs, key=lambda job: bool(auto.searches) and job.program is not None)
    jobs: list[JobSpec] = []
    for group in disk.grouped(templates) if sweep.one_model_at_a_time else [templates]:
        for replicate in range(sweep.replicates):
            chance = random.Random(f"{sweep.seed}/{target.device.name}/{replicate}")
            for template in _round(group, chance):
                job = replace(template, replicate=replicate)
                jobs.append(replace(job, id=job_id(job, target, sweep.seed)))
    return jobs, auto.searches


def _too_large(sweep: Sweep, target: Target, case: Case) -> str:
    """Of presets alone: whoever names an unlimited case gets it."""
    if not sweep.preset:
        return ""
    what = f"{target.device.name}: {case.model}"
    size = 0 if is_program(case.engine) else target.models[case.model].file_bytes
    return too_large(what, case.limited, sweep.memory_limit, size, target.facts.memory_bytes)


def _round(templates: Sequence[JobSpec], chance: random.Random) -> list[JobSpec]:
    """One round's order: models, of each its workloads and thread counts, of each its engines and settings. A
    model and its standard-layout twin are one: the twin is what other engines load instead."""
    models: dict[str, dict[tuple[Workload, int], list[JobSpec]]] = {}
    for job in templates:
        blocks = models.setdefault(job.model.name.removesuffix(STANDARD_SUFFIX), {})
        blocks.setdefault((job.workload, job.settings.threads), []).append(job)
    order: list[JobSpec] = []
    for blocks in _shuffled(list(models.values()), chance):
        for block in _shuffled(list(blocks.values()), chance):
            order += _shuffled(block, chance)
    return order


def _shuffled(items: list[T], chance: random.Random) -> list[T]:
    chance.shuffle(items)
    return items


def _threads(sweep: Sweep, target: Target, notes: list[str]) -> list[int]:
    device, available = target.device, _available(target)
    named = sweep.threads or device.threads or (available,)
    if AUTO_THREADS in named:
        return [AUTO_THREADS]
    wanted = dict.fromkeys(n or available for n in named)
    fitting = [n for n in wanted if n <= available]
    notes += [f"{device.name}: t{n} left out: {available} CPUs" for n in wanted if n > available]
    return fitting


def _available(target: Target) -> int:
    """How many CPUs there are to run on."""
    return len(target.device.cpus or target.facts.allowed_cpus) or target.facts.n_cpus


def _default_threads(target: Target) -> int:
    """What -t auto takes where it cannot search: the first count of devices.yaml, else all CPUs."""
    available = _available(target)
    first = next(iter(target.device.threads or ()), available)
    return min(first, available) if first > 0 else available


def _records_routing(sweep: Sweep, target: Target, case: Case) -> bool:
    """Programs do not say what they chose, and models without experts choose nothing."""
    known = target.models[case.model].traits.experts
    return sweep.record_routing and not is_program(case.engine) and known is not False


def _selected(job: JobSpec, patterns: Sequence[str]) -> bool:
    return not patterns or any(
        fnmatch.fnmatchcase(text, pattern) for pattern in patterns for text in (job.label, job.case)
    )


def _job(sweep: Sweep, target: Target, case: Case, threads: int, campaign: str) -> JobSpec:
    device = target.device
    label = case.label(threads)
    is_auto = threads == AUTO_THREADS
    job = JobSpec(
        id="",
        label=f"{device.name}:{label}",
        campaign=campaign,
        device=device.name,
        case=label,
        replicate=0,
        engine=case.engine,
        library=target.library,
        model=target.models[case.model].ref,
        workload=Workload(case.n_prompt, case.n_gen, case.n_depth, sweep.seed),
        settings=Settings(
            threads=_default_threads(target) if is_auto else threads,
            cpus=list(device.cpus),
            isa=sweep.isa,
            n_ctx=sweep.n_ctx,
            n_batch=sweep.n_batch,
            kv_type=sweep.kv_type,
            kv_touch=True,
            sparse_ffn=bool(case.sparse_ffn),
            sparse_ffn_auto=case.sparse_ffn == AUTO_FFN,
            sparse_lm_head=case.sparse_lm_head,
            lm_head_threshold=sweep.lm_head_threshold,
            requantise_down=sweep.requantise_down,
            load=sweep.load,
            memory_limit_bytes=case.limited.memory_limit,
            cache=case.limited.cache,
            cache_policy=case.limited.policy,
            io=case.limited.io,
            io_direct=sweep.io_direct if case.limited.cache else Settings().io_direct,
            prefetch=case.limited.prefetch,
            start=case.limited.start,
            routing_digest=target.trace.digest if case.replay and target.trace is not None else "",
            record_routing=RECORDED if _records_routing(sweep, target, case) else "",
        ),
        warmup_tokens=sweep.warmup_tokens,
        timeout_s=device.timeout_s,
        bracket_ms=sweep.bracket_ms,
        cool_down_s=device.cool_down_s,
        sample_hz=sweep.sample_hz,
        limit_method=device.memory_limit,
        choice=auto_threads.PENDING if is_auto else None,
    )
    program = target.programs.get(case.engine)
    if program is None:
        return job
    file = target.models[program.models[case.model]]
    return replace(
        job,
        program=program.program,
        model=file.ref,
        settings=settings_for(program, file.traits, job.settings, job.workload),
        timeout_s=program.timeout_s,
    )
