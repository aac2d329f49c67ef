"""What makes a job the same job: its id, by which campaigns are resumed and records found again."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from stbench.agent import wire
from stbench.agent.wire import JobSpec, Settings

if TYPE_CHECKING:
    from stbench.sweeps.plan import Target

# Settings that came later than the first records: they are part of an id only where they are used, so that
# the jobs of older campaigns are still the same.
_LATER = (
    "memory_limit_bytes",
    "cache",
    "cache_policy",
    "io",
    "io_direct",
    "prefetch",
    "start",
    "routing_digest",
    "record_routing",
    "timeline",
)
# Where files lie on a device.
_PATHS = ("bundle", "routing")


def job_id(job: JobSpec, target: Target, seed: int) -> str:
    """What makes a job the same job: library, model, workload, settings, board, replicate, seed; of a
    program its command, environment and build instead of the library; of -t auto the search in place of
    what it will find. A synthetic model is named by its
    specification, so that the id is known before the file exists, a replayed trace by its digest; of a run
    with a memory limit the way in which it is held, too. Other
    paths, labels and the campaign's name are not part of it. 16 hexadecimal digits."""
    program = target.programs.get(job.engine)
    identity = {
        "library": program.build if program is not None else target.library_sha256,
        "engine": job.engine,
        "model": wire.to_json(job.model.synthetic)
        if job.model.synthetic
        else job.model.digest or job.model.name,
        "workload": wire.to_json(job.workload),
        "settings": settings_identity(job.settings),
        "warmup": job.warmup_tokens,
        "device": job.device,
        "fingerprint": target.facts.fingerprint,
        "replicate": job.replicate,
        "seed": seed,
    }
    if job.program is not None:
        identity["program"] = wire.to_json(job.program)
    if job.settings.memory_limit_bytes:
        identity["limit_method"] = job.limit_method
    if job.choice is not None:
        identity["search"] = job.choice.search
    if job.candidates:
        identity["candidates"] = [wire.to_json(candidate) for candidate in job.candidates]
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def settings_identity(settings: Settings) -> dict[str, Any]:
    """The settings as they are part of an id."""
    values: dict[str, Any] = wire.to_json(settings)
    unset = wire.to_json(Settings())
    for key in _PATHS:
        del values[key]
    for key in _LATER:
        if values[key] == unset[key]:
            del values[key]
    return values
