"""Expected outputs: shipped with the package, or computed once on a device and kept in the cache.

A reference belongs to a model's digest and to everything that changes results (``verify.reference_key``), not
to a sweep: it is never computed twice on a machine. Boards that need the same one at the same time take turns
(:meth:`References.turn`): the first computes it, the others wait.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path

from stbench.agent import verify, wire
from stbench.agent.wire import JobSpec, Reference
from stbench.atomic import write_atomically
from stbench.campaigns.agentclient import Agent
from stbench.campaigns.stopping import Stop
from stbench.errors import InputError, StoreError
from stbench.paths import cache_dir

# The scalar kernels are five to twenty times slower than those of a timed run.
TIMEOUT_FACTOR = 10.0

# A reference that so many devices could not compute is not tried on another: each costs the time of a slow
# run, and what they have in common is the model.
ATTEMPTS = 3


def reference_job(job: JobSpec) -> JobSpec:
    """The job that computes the reference of ``job``: the scalar kernels on as many threads."""
    return replace(
        job,
        id=f"reference-{verify.reference_key(job)}",
        label=f"{job.label} (reference)",
        purpose="reference",
        settings=verify.reference_settings(job.settings),
        timeout_s=job.timeout_s * TIMEOUT_FACTOR,
        warmup_tokens=0,
        reference=None,
    )


class References:
    """Looks references up and stores new ones. ``directory`` is the cache's by default.

    Several threads may use it: one lock holds for what is loaded, what is being computed and what failed. It
    is held while files are read and written, never while a device computes."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory if directory is not None else cache_dir() / "references"
        self._loaded: dict[str, Reference] = {}
        self._computing: set[str] = set()
        self._failures: dict[str, list[str]] = {}
        self._changed = threading.Condition(threading.RLock())

    @staticmethod
    def key_of(job: JobSpec) -> str:
        """What :func:`stbench.agent.verify.reference_key` says; the model's digest must be known."""
        return verify.reference_key(job)

    def lookup(self, job: JobSpec, note: Callable[[str], None] = lambda _: None) -> Reference | None:
        """The shipped or cached reference of a job, None where there is none yet.

        A cached one that is not what its name says is removed, ``note`` is told, and there is none. Raises
        :class:`InputError` for such a shipped one: the package itself is damaged."""
        key, digest = self.key_of(job), job.model.digest
        with self._changed:
            if key not in self._loaded:
                shipped = _shipped(key)
                found = (
                    _parse(shipped, key, digest) if shipped is not None else self._cached(key, digest, note)
                )
                if found is None:
                    return None
                self._loaded[key] = found
            return self._loaded[key]

    def known(self, key: str) -> Reference | None:
        """One that was looked up or computed, None where there is none."""
        with self._changed:
            return self._loaded.get(key)

    def why_not(self, key: str) -> str:
        """Why the last attempt to compute a reference failed."""
        with self._changed:
            return self._failures.get(key, ["nobody computed it"])[-1]

    @contextlib.contextmanager
    def turn(
        self, keys: Collection[str], tried: Collection[str], stop: Stop, waiting: Callable[[], None]
    ) -> Iterator[str | None]:
        """For the block, one of ``keys`` that is the caller's to compute; one that the block does not store
        is free for others then. While others compute all that is left it waits, after calling ``waiting``
        once. None: nothing is left to compute; what is not :meth:`known` then stays unknown.

        ``tried`` are keys that failed on the caller's device, which leaves them to others. Raises
        KeyboardInterrupt, as in the main thread, once ``stop`` is asked for."""
        with stop.calling(self._wake):
            key = self._claimed(keys, tried, stop, waiting)
        try:
            yield key
        finally:
            if key is not None:
                with self._changed:
                    self._computing.discard(key)
                    self._changed.notify_all()

    def _claimed(
        self, keys: Collection[str], tried: Collection[str], stop: Stop, waiting: Callable[[], None]
    ) -> str | None:
        told = False
        with self._changed:
            while not stop.asked:
                left = [key for key in keys if key not in self._loaded]
                for key in left:
                    if key not in self._computing and key not in tried and self._is_hopeful(key):
                        self._computing.add(key)
                        return key
                if not self._computing.intersection(left):
                    return None
                if not told:
                    waiting()
                    told = True
                self._changed.wait()
        raise KeyboardInterrupt

    def _is_hopeful(self, key: str) -> bool:
        return len(self._failures.get(key, ())) < ATTEMPTS

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def failed(self, key: str, why: str) -> None:
        """A device could not compute it."""
        with self._changed:
            self._failures.setdefault(key, []).append(why)

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
        with self._changed:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                write_atomically(path, (wire.dumps(reference) + "\n").encode())
            except OSError as error:
                raise StoreError(f"{path}: {error.strerror}") from error
            self._loaded[reference.key] = reference

    def compute(
        self, agent: Agent, job: JobSpec, stop: Stop, tell: Callable[[str], None]
    ) -> tuple[Reference | None, str]:
        """Runs the reference job; ``tell`` as of :meth:`stbench.campaigns.agentclient.Agent.run`. None and
        the reason when it failed. Raises
        :class:`stbench.campaigns.agentclient.JobInterrupted`, :class:`stbench.errors.DeviceError`,
        :class:`StoreError`."""
        record = agent.run(reference_job(job), stop, tell)
        found, why = None, ""
        if record.status != "ok" or record.reference is None:
            why = f"{record.status}: {record.detail}"
        elif record.reference.key != self.key_of(job):
            why = f"the agent answered for another reference ({record.reference.key})"
        else:
            self.store(record.reference)
            found = record.reference
        agent.stored(record)
        return found, why


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
