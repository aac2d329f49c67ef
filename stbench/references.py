"""Expected outputs: shipped with the package, or computed once on a device and kept in the cache.

A reference belongs to a model's digest and to everything that changes results (``verify.reference_key``), not
to a sweep: it is never computed twice on a machine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path

from stbench.agent import verify, wire
from stbench.agent.wire import JobSpec, Reference
from stbench.agentclient import Agent
from stbench.errors import InputError, StoreError
from stbench.paths import cache_dir
from stbench.store import write_text

# The scalar kernels are five to twenty times slower than those of a timed run.
TIMEOUT_FACTOR = 10.0


def reference_job(job: JobSpec) -> JobSpec:
    """The job that computes the reference of ``job``: the scalar kernels on as many threads."""
    return replace(
        job,
        id=f"reference-{verify.reference_key(job)}",
        label=f"{job.label} (reference)",
        purpose="reference",
        settings=replace(job.settings, isa="scalar", load="mmap"),
        timeout_s=job.timeout_s * TIMEOUT_FACTOR,
        warmup_tokens=0,
        reference=None,
    )


class References:
    """Looks references up and stores new ones. ``directory`` is the cache's by default."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory if directory is not None else cache_dir() / "references"
        self._loaded: dict[str, Reference] = {}

    @staticmethod
    def key_of(job: JobSpec) -> str:
        """What :func:`stbench.agent.verify.reference_key` says; the model's digest must be known."""
        return verify.reference_key(job)

    def lookup(self, job: JobSpec, note: Callable[[str], None] = lambda _: None) -> Reference | None:
        """The shipped or cached reference of a job, None where there is none yet.

        A cached one that is not what its name says is removed, ``note`` is told, and there is none. Raises
        :class:`InputError` for such a shipped one: the package itself is damaged."""
        key, digest = self.key_of(job), job.model.digest
        if key not in self._loaded:
            shipped = _shipped(key)
            found = _parse(shipped, key, digest) if shipped is not None else self._cached(key, digest, note)
            if found is None:
                return None
            self._loaded[key] = found
        return self._loaded[key]

    def _cached(self, key: str, digest: str, note: Callable[[str], None]) -> Reference | None:
        path = self.path_of(key)
        try:
            return _parse(path.read_bytes(), key, digest)
        except FileNotFoundError:
            return None
        except (OSError, InputError) as error:
            note(f"{path}: {error}; it is removed and computed again")
            with contextlib.suppress(OSError):
                path.unlink()
            return None

    def path_of(self, key: str) -> Path:
        """Where a reference is or would be kept; the same format ships as ``data/references/KEY.json``."""
        return self.directory / f"{key}.json"

    def store(self, reference: Reference) -> None:
        """Keeps a new reference; it is on the disk, whole, when this returns. Raises :class:`StoreError`."""
        path = self.path_of(reference.key)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_text(path, wire.dumps(reference) + "\n")
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error
        self._loaded[reference.key] = reference

    def compute(self, agent: Agent, job: JobSpec) -> tuple[Reference | None, str]:
        """Runs the reference job. None and the reason when it failed. Raises
        :class:`stbench.agentclient.JobInterrupted`, :class:`stbench.errors.DeviceError`,
        :class:`StoreError`."""
        record = agent.run(reference_job(job))
        if record.status != "ok" or record.reference is None:
            return None, f"{record.status}: {record.detail}"
        if record.reference.key != self.key_of(job):
            return None, f"the agent answered for another reference ({record.reference.key})"
        self.store(record.reference)
        return record.reference, ""


def _shipped(key: str) -> bytes | None:
    found = resources.files("stbench").joinpath("data", "references", f"{key}.json")
    return found.read_bytes() if found.is_file() else None


def _parse(data: bytes, key: str, digest: str) -> Reference:
    hint = "install stbench again"
    try:
        reference = wire.loads(Reference, data.decode("utf-8"))
    except (wire.WireError, UnicodeDecodeError) as error:
        raise InputError(f"the reference {key} cannot be read: {error}", hint=hint) from error
    if reference.key != key or reference.model_digest != digest:
        raise InputError(f"the reference {key} is of another model", hint=hint)
    return reference
