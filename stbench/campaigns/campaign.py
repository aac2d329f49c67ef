"""Plan -> RunRecords: a worker per board, side by side, then the devices of this machine in turn.

A failing case never ends the sweep, and a failing board never ends another's. Every record is on the disk
before its device begins another job, so a kill at any moment loses at most the jobs that were running, and a
resumed campaign runs exactly what has no record.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from stbench.agent.wire import RunRecord
from stbench.campaigns.disk import MadeFiles
from stbench.campaigns.ledger import Ledger, Observer
from stbench.campaigns.ledger import Outcome as Outcome
from stbench.campaigns.models_made import Needs, remove_made
from stbench.campaigns.references import References
from stbench.campaigns.schedule import named
from stbench.campaigns.stopping import Stop
from stbench.campaigns.workers import Shared, Worker
from stbench.records.store import UNFINISHED as UNFINISHED
from stbench.records.store import Store
from stbench.sweeps.plan import Plan
from stbench.sweeps.prepare import Prepared


def run_campaign(
    plan: Plan,
    devices: Sequence[Prepared],
    store: Store,
    references: References,
    observer: Observer,
    *,
    max_time_s: float | None = None,
    max_failures: int | None = None,
    retry_failed: bool = False,
) -> Outcome:
    """Runs what has no record yet, and disturbed runs again. Ctrl-C ends the running jobs, stores them as
    cancelled and returns, a second one gives up waiting for that; only a full disk or a defect raises."""
    stop, done = Stop(), _done(store, retry_failed)
    ledger = Ledger(plan, done, stop, max_time_s=max_time_s, max_failures=max_failures)
    made = MadeFiles(store.directory)
    shared = Shared(plan, store, references, observer, ledger, made, done)
    stored: dict[str, list[RunRecord]] = {}
    for record in store.reading.records:
        stored.setdefault(record.device, []).append(record)

    def worker(part: Sequence[Prepared]) -> Worker:
        names = [device.target.device.name for device in part]
        return Worker(shared, part, [record for name in names for record in stored.get(name, ())])

    with_jobs = [device for device in devices if device.target.device.name in plan.devices]
    boards = [worker([d]) for d in with_jobs if d.target.device.name in plan.boards]
    local = [d for d in with_jobs if d.target.device.name not in plan.boards]
    workers = [*boards, *([worker(local)] if local else [])]
    if retry_failed:
        for one in workers:
            one.forget_failed_searches()
    _side_by_side(boards, stop, ledger, observer)
    if local and ledger.goes_on():
        # In this thread: Ctrl-C reaches the running job directly, and no other thread takes time.
        workers[-1].run()
    ledger.raise_broken()
    outcome = ledger.outcome
    outcome.left = sum(one.left for one in workers)
    outcome.disturbed = sorted({record.label for one in workers for record in one.reruns.disturbed()})
    return outcome


def _done(store: Store, retry_failed: bool) -> frozenset[str]:
    return frozenset(
        record.id
        for record in store.reading.latest()
        if record.status == "ok" or (record.status != UNFINISHED and not retry_failed)
    )


class _Attended:
    """A worker in a thread of its own. Not joined: a join that Ctrl-C interrupts takes the thread for ended
    (Python 3.11 and others)."""

    def __init__(self, worker: Worker) -> None:
        self.name = worker.names[0]
        self._worker = worker
        self._begun = threading.Lock()
        self._ended = threading.Event()

    def start(self) -> None:
        # A daemon: whoever gives up waiting wants the program to end.
        threading.Thread(target=self._run, name=self.name, daemon=True).start()

    def _run(self) -> None:
        if not self._begun.acquire(blocking=False):
            return
        try:
            self._worker.run()
        finally:
            self._ended.set()

    def keep_from_beginning(self) -> None:
        """Unless it has begun: Ctrl-C may come before its thread is there."""
        if self._begun.acquire(blocking=False):
            self._ended.set()

    def wait(self) -> None:
        """In short waits, between which Ctrl-C gets through on every system."""
        while not self._ended.wait(1.0):
            pass

    @property
    def ended(self) -> bool:
        return self._ended.is_set()


def _side_by_side(workers: Sequence[Worker], stop: Stop, ledger: Ledger, observer: Observer) -> None:
    """Runs every worker in a thread of its own, to its end or until Ctrl-C was pressed twice."""
    begun: list[_Attended] = []
    try:
        try:
            for worker in workers:
                begun.append(_Attended(worker))
                begun[-1].start()
            for one in begun:
                one.wait()
        except KeyboardInterrupt:
            ledger.interrupted()
            observer.note("stopping: running jobs are being cancelled (Ctrl-C again gives up waiting)")
            stop.ask()
            for one in begun:
                one.keep_from_beginning()
                one.wait()
    except KeyboardInterrupt:
        stop.ask()
        left = [one.name for one in begun if not one.ended]
        ledger.unattended(left)
        observer.note(f"not waiting any longer; a job may still run, up to its time limit, on {named(left)}")


def compute_references(
    plan: Plan, devices: Sequence[Prepared], references: References, observer: Observer
) -> list[str]:
    """Makes the models of a plan and computes the references that are missing, one after the other; measures
    nothing. Returns the keys of all that exist then."""
    keys: set[str] = set()
    for group in plan.groups():
        needs = Needs(devices, references, observer, Stop(), only_references=True)
        needs.prepare(group)
        keys |= needs.references()
        if plan.one_model_at_a_time:
            remove_made(devices, group)
    return sorted(keys)
