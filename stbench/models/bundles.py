"""Bundles on devices: which ones jobs need, where they lie, what they take (docs/bundles.md).

A job with a cache reads units of its model's *bundle*: one more file beside the model's, in the layout that
the kernels read. It is made on the device before anything is measured, once for all jobs with the same model
and the same rows to pick, and is found again by the digest of the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stbench.agent.wire import JobSpec, Settings
from stbench.devices.engine_names import ENGINE

if TYPE_CHECKING:
    from stbench.sweeps.plan import DeviceModel

# As in SBR_GATHER_UP: rows of up are picked one by one, and are then not interleaved.
GATHER_UP = 1


@dataclass(frozen=True)
class Bundle:
    """One that has to be made. ``bytes`` is of its units, counted from the model's shapes."""

    model: str
    gathers: int
    bytes: int

    @property
    def name(self) -> str:
        """For people: ``bundle of smallthinker-4b for sparse_ffn``."""
        return f"bundle of {self.model}" + (" for sparse_ffn" if self.gathers else "")


def is_needed(job: JobSpec) -> bool:
    """Whether a job reads a bundle; the fake engine only pretends."""
    return job.engine == ENGINE and bool(job.settings.cache)


def gathers_of(settings: Settings) -> int:
    """What a bundle for these settings is made for. The same bundle serves either lm_head."""
    return GATHER_UP if settings.sparse_ffn else 0


def path_of(models_dir: str, model: str, digest: str, gathers: int) -> str:
    """Where a model's bundle lies on a device: its name says the model, and by its digest which one."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", model)[:60]
    return f"{models_dir}/{name}-{digest[:16]}-{'sparse' if gathers else 'dense'}.bundle"


def to_make(jobs: Iterable[JobSpec], models: Mapping[str, DeviceModel]) -> tuple[Bundle, ...]:
    """The bundles that the jobs of one device need and that are not there yet, in the order of the jobs."""
    needed = dict.fromkeys((job.model.name, gathers_of(job.settings)) for job in jobs if is_needed(job))
    return tuple(
        Bundle(name, gathers, bundle_bytes(models[name]))
        for name, gathers in needed
        if gathers not in models[name].bundles
    )


def bundle_bytes(model: DeviceModel) -> int:
    """What a model's bundle takes; of a file whose tensors nobody counted at most as much as the file."""
    counted = model.sizes.bundle_bytes if model.sizes is not None else 0
    return counted or model.file_bytes
