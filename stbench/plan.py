"""Sweep x targets -> Plan. Pure: it touches nothing, and the same input gives the same plan.

Replicates are processes. They come in rounds: every round runs each case of a device once, in an order of its
own drawn from the seed, so that a slow minute hits all cases alike.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stbench.agent import wire
from stbench.agent.wire import DeviceFacts, JobSpec, ModelRef, Settings, Workload
from stbench.catalogue import Sizes
from stbench.errors import SweepError
from stbench.inventory import Device
from stbench.roofline import token_bytes
from stbench.sweep import ENGINE, Case, Sweep, Traits, expand

# What the times of a plan assume before anything is measured: bytes/s of weights per thread (more than four
# threads rarely add bandwidth), how much faster a prompt token is than a generated one, making a model, and
# one process from its start to the first token.
GUESS_READ = 6e9
GUESS_READ_THREADS = 4
GUESS_PREFILL_SPEEDUP = 4.0
GUESS_WRITE = 400e6
GUESS_START_S = 1.5


@dataclass(frozen=True)
class DeviceModel:
    """A model as one device has it or will have it. ``file_bytes`` is without the header for a model that is
    still ``to_make``; ``sizes`` None: a file whose tensors nobody counted yet."""

    ref: ModelRef
    traits: Traits
    file_bytes: int
    to_make: bool = False
    sizes: Sizes | None = None


@dataclass(frozen=True)
class Target:
    """A device with what has to be known before planning. ``library`` is a path on the device."""

    device: Device
    facts: DeviceFacts
    library: str
    library_sha256: str
    models: Mapping[str, DeviceModel]


@dataclass(frozen=True)
class Plan:
    """Jobs in the order in which they run on their device. ``to_make`` maps a device to its models that do
    not exist yet; times are guesses in seconds."""

    campaign: str
    preset: str
    seed: int
    jobs: tuple[JobSpec, ...]
    to_make: Mapping[str, tuple[DeviceModel, ...]]
    notes: tuple[str, ...]
    guess_s: Mapping[str, float]

    def peak_disk_bytes(self, device: str) -> int:
        """What the models that have to be made will take on a device."""
        return sum(model.file_bytes for model in self.to_make[device])

    def expected_s(self) -> float:
        """All jobs one after the other, and making the models."""
        making = sum(m.file_bytes for models in self.to_make.values() for m in models) / GUESS_WRITE
        return making + sum(self.guess_s.values())

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
            "to_make": {
                device: [{"model": m.ref.name, "bytes": m.file_bytes} for m in models]
                for device, models in self.to_make.items()
            },
            "peak_disk_bytes": {device: self.peak_disk_bytes(device) for device in self.to_make},
            "expected_s": round(self.expected_s(), 1),
            "notes": list(self.notes),
        }


def build_plan(sweep: Sweep, targets: Sequence[Target], campaign: str) -> Plan:
    """Raises :class:`SweepError` when nothing is left to run."""
    jobs: list[JobSpec] = []
    notes: list[str] = []
    to_make: dict[str, tuple[DeviceModel, ...]] = {}
    guesses: dict[str, float] = {}
    for target in targets:
        device_jobs = _rounds(sweep, target, campaign, notes)
        used = {job.model.name for job in device_jobs}
        to_make[target.device.name] = tuple(
            m for name, m in target.models.items() if m.to_make and name in used
        )
        guesses |= {job.id: guess_seconds(job, target.models[job.model.name]) for job in device_jobs}
        jobs += device_jobs
    if not jobs:
        raise SweepError(
            [
                "nothing is left to run"
                + (f" after --filter {' '.join(sweep.filter)}" if sweep.filter else "")
            ],
            hint="`stbench plan` without --filter prints the labels",
        )
    return Plan(
        campaign, sweep.preset, sweep.seed, tuple(jobs), to_make, tuple(dict.fromkeys(notes)), guesses
    )


def _rounds(sweep: Sweep, target: Target, campaign: str, notes: list[str]) -> list[JobSpec]:
    cases, dropped = expand(sweep, {name: model.traits for name, model in target.models.items()})
    notes += dropped
    templates = [
        job
        for case in cases
        for threads in _threads(sweep, target, notes)
        if _selected(job := _job(sweep, target, case, threads, campaign), sweep.filter)
    ]
    jobs: list[JobSpec] = []
    for replicate in range(sweep.replicates):
        order = list(templates)
        random.Random(f"{sweep.seed}/{target.device.name}/{replicate}").shuffle(order)
        for template in order:
            job = replace(template, replicate=replicate)
            jobs.append(replace(job, id=job_id(job, target, sweep.seed)))
    return jobs


def _threads(sweep: Sweep, target: Target, notes: list[str]) -> list[int]:
    device = target.device
    available = len(device.cpus or target.facts.allowed_cpus) or target.facts.n_cpus
    wanted = sweep.threads or device.threads or (available,)
    fitting = [n for n in wanted if n <= available]
    notes += [f"{device.name}: t{n} left out: {available} CPUs" for n in wanted if n > available]
    return fitting


def _selected(job: JobSpec, patterns: Sequence[str]) -> bool:
    return not patterns or any(
        fnmatch.fnmatchcase(text, pattern) for pattern in patterns for text in (job.label, job.case)
    )


def _job(sweep: Sweep, target: Target, case: Case, threads: int, campaign: str) -> JobSpec:
    device = target.device
    label = case.label(threads)
    return JobSpec(
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
            threads=threads,
            cpus=list(device.cpus),
            isa=sweep.isa,
            n_ctx=sweep.n_ctx,
            n_batch=sweep.n_batch,
            kv_type=sweep.kv_type,
            kv_touch=True,
            sparse_ffn=case.sparse_ffn,
            sparse_lm_head=case.sparse_lm_head,
            lm_head_threshold=sweep.lm_head_threshold,
            requantise_down=sweep.requantise_down,
            load=sweep.load,
        ),
        warmup_tokens=sweep.warmup_tokens,
        timeout_s=device.timeout_s,
    )


def job_id(job: JobSpec, target: Target, seed: int) -> str:
    """What makes a job the same job: library, model, workload, settings, board, replicate, seed. A synthetic
    model is named by its specification, so that the id is known before the file exists. Paths, labels and the
    campaign's name are not part of it. 16 hexadecimal digits."""
    identity = {
        "library": target.library_sha256,
        "engine": job.engine,
        "model": wire.to_json(job.model.synthetic)
        if job.model.synthetic
        else job.model.digest or job.model.name,
        "workload": wire.to_json(job.workload),
        "settings": wire.to_json(job.settings),
        "warmup": job.warmup_tokens,
        "device": job.device,
        "fingerprint": target.facts.fingerprint,
        "replicate": job.replicate,
        "seed": seed,
    }
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def guess_seconds(job: JobSpec, model: DeviceModel) -> float:
    """How long a job may take, from the bytes that a token reads. Only for planning: nothing was measured."""
    per_token = _bytes_per_token(job, model)
    rate = GUESS_READ * min(job.settings.threads, GUESS_READ_THREADS)
    work = job.workload
    tokens = work.n_gen + job.warmup_tokens + (work.n_prompt + work.n_depth) / GUESS_PREFILL_SPEEDUP
    load = model.file_bytes / rate if job.engine == ENGINE else 0.0
    return GUESS_START_S + load + tokens * per_token / rate


def _bytes_per_token(job: JobSpec, model: DeviceModel) -> float:
    spec = job.model.synthetic
    if spec is not None:
        loaded = replace(spec, transposed_down=spec.transposed_down or job.settings.requantise_down)
        switches = job.settings
        return token_bytes(
            loaded, sparse_ffn=switches.sparse_ffn, sparse_lm_head=switches.sparse_lm_head
        ).total
    if model.sizes is None:
        return float(model.file_bytes)
    return model.sizes.weight_bytes * model.sizes.params_active / model.sizes.params
