"""The part of every record that says which job it is of."""

import re
from dataclasses import fields
from typing import Any

from .wire import JobSpec, OfJob, RunRecord


def record_of(
    job: JobSpec, status: str, detail: str, started_at: str, wall_s: float, **parts: Any
) -> RunRecord:
    """The job's record. ``parts``: what was measured, by the names of RunRecord's fields."""
    return RunRecord(
        **{
            **{spec.name: getattr(job, spec.name) for spec in fields(OfJob)},
            "status": status,
            "detail": re.sub(r"\s+", " ", detail),
            "started_at": started_at,
            "wall_s": round(wall_s, 6),
            "model": job.model,
            "workload": job.workload,
            "settings": job.settings,
            "purpose": job.purpose,
            "program": job.program,
            "attempt": job.attempt,
            "choice": job.choice,
            **parts,
        }
    )
