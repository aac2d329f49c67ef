"""What the workers of a campaign have in common: how far it is, when it ends early, and who is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from stbench.agent.wire import JobSpec, RunRecord
from stbench.campaigns import schedule
from stbench.campaigns.stopping import Stop
from stbench.sweeps.plan import Plan


@dataclass(frozen=True)
class Progress:
    """Where a job stands: it is number ``index``, from 1, of the ``total`` of its device, those with a record
    included, and ``done`` of ``of_all`` jobs of the campaign have ended; ``left_s`` and ``all_left_s`` are
    expected seconds of the device and of the campaign."""

    index: int
    total: int
    left_s: float
    done: int
    of_all: int
    all_left_s: float


class Observer(Protocol):
    """Is told what happens, for people. Workers call it from threads of their own: it keeps its own state
    under its own lock."""

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...

    def step(self, text: str, done: float, total: float, device: str = "") -> None:
        """Work before the jobs, of one device or of none; ``total`` 0 where there is nothing to count."""
        ...

    def job_started(self, job: JobSpec, progress: Progress) -> None:
        """It runs now."""
        ...

    def job_ended(self, record: RunRecord) -> None:
        """The record is stored."""
        ...

    def device_ended(self, device: str, why: str) -> None:
        """Nothing more runs there. ``why``: what ended it before its time, "" when all was done."""
        ...


@dataclass
class Outcome:
    """How a campaign ended. ``stopped``: why it ended early, "" when it did not. ``ran`` counts the
    ``reruns``, too; ``disturbed`` labels have runs that stay disturbed. ``lost`` maps devices that failed for
    good to the reason; ``unattended`` are devices that were given up while something ran there."""

    ran: int = 0
    skipped: int = 0
    failures: int = 0
    stopped: str = ""
    interrupted: bool = False
    left: int = 0
    reruns: int = 0
    disturbed: list[str] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)
    unattended: list[str] = field(default_factory=list)


@dataclass
class _Tally:
    """The counts of one device."""

    jobs: int
    skipped: int
    ran: int = 0
    reruns: int = 0
    left_s: float = 0.0


class Ledger:
    """Counts and limits over all workers. One lock holds for everything in it, and nothing is called with it
    held. ``stop`` is the user's Ctrl-C; ``begin`` is when ``max_time_s`` began to run."""

    def __init__(
        self,
        plan: Plan,
        done: Iterable[str],
        stop: Stop,
        *,
        max_time_s: float | None,
        max_failures: int | None,
    ) -> None:
        self.stop = stop
        self.outcome = Outcome()
        self._boards = plan.boards
        self._max_time_s, self._max_failures = max_time_s, max_failures
        self._begin = time.monotonic()
        self._lock = threading.Lock()
        self._broken: BaseException | None = None
        self._tallies = {device: _Tally(0, 0) for device in plan.devices}
        finished = set(done)
        for job in plan.jobs:
            tally = self._tallies[job.device]
            tally.jobs += 1
            if job.id in finished:
                tally.skipped += 1
                self.outcome.skipped += 1
            else:
                tally.left_s += plan.guess_s[job.id]

    def goes_on(self) -> bool:
        """Whether another job may begin; the first limit that is reached becomes the outcome's."""
        with self._lock:
            if self._broken is not None or self.outcome.stopped or self.stop.asked:
                return False
            if self._max_time_s is not None and time.monotonic() - self._begin >= self._max_time_s:
                self.outcome.stopped = f"--max-time {self._max_time_s:g}s is over"
            elif self._max_failures is not None and self.outcome.failures >= self._max_failures:
                self.outcome.stopped = f"{self.outcome.failures} jobs failed (--max-failures)"
            return not self.outcome.stopped

    def started(self, job: JobSpec, left_s: Mapping[str, float]) -> Progress:
        """A job begins; ``left_s`` are the expected seconds of its worker's devices, itself included."""
        with self._lock:
            for device, seconds in left_s.items():
                self._tallies[device].left_s = seconds
            own, again = self._tallies[job.device], job.attempt > 0
            return Progress(
                own.skipped + own.ran + 1,
                own.jobs + own.reruns + again,
                own.left_s,
                self.outcome.skipped + self.outcome.ran,
                sum(tally.jobs for tally in self._tallies.values()) + self.outcome.reruns + again,
                schedule.elapsed_s({name: t.left_s for name, t in self._tallies.items()}, self._boards),
            )

    def ended(self, record: RunRecord, *, rerun: bool) -> None:
        """Its record is stored."""
        with self._lock:
            for counts in (self.outcome, self._tallies[record.device]):
                counts.ran += 1
                counts.reruns += rerun
            self.outcome.failures += record.status != "ok"

    def interrupted(self) -> None:
        """A worker ended because the user asked for it."""
        with self._lock:
            self.outcome.interrupted = True

    def unattended(self, devices: Iterable[str]) -> None:
        """Their workers did not end, and nobody waits for them."""
        with self._lock:
            self.outcome.unattended = list(devices)

    def lost(self, devices: Iterable[str], error: Exception) -> None:
        """Devices failed for good; nothing more is expected of them."""
        with self._lock:
            for device in devices:
                self.outcome.lost[device] = str(error)
                self._tallies[device].left_s = 0.0

    def broke(self, error: BaseException) -> None:
        """Something failed that no worker can go on without: a full disk, a defect. The first counts."""
        with self._lock:
            self._broken = self._broken or error

    def raise_broken(self) -> None:
        """Raises what :meth:`broke` was told, in the thread that calls."""
        with self._lock:
            if self._broken is not None:
                raise self._broken
