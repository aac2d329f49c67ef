"""A job on a device that a link leads to: detached there, followed from here for as long as the link holds.

The device knows a submitted job by its owner, campaign, id, label and attempt. To submit it again is to
attach to it, or to get its record if it has ended, so that every failure of the link has one answer: make a
new connection, and submit the job again. What a killed controller left running is found by the next one in
the same way.
"""

from __future__ import annotations

import contextlib
import getpass
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from stbench.agent import follow, lease, wire
from stbench.agent.wire import JobSpec, RunRecord
from stbench.campaigns.answers import (
    JobInterrupted,
    Watch,
    how,
    last_line,
    message,
    own_record,
    with_last_line,
)
from stbench.campaigns.stopping import Stop
from stbench.connectors.base import Connector, Ending, Running
from stbench.devices.power import power_cycle
from stbench.errors import AgentError, BusyError, DeviceError, LinkLost, LoginRefused, NoSpace, Unreachable
from stbench.yamlfile import printable

# How often a job is submitted without being followed to an end: a link that breaks all the time, and an agent
# that ends without saying anything.
MAX_LOSSES = 200
# Before the n-th connection of a job: n times this.
LOSS_PAUSE_S = 0.05
MAX_SILENT_ENDINGS = 3
# How long a device may take to answer a wish to stop; ending everything takes it well under a second.
CANCEL_S = 15.0
# Once a campaign had the board it does not give up because another one came in between two jobs.
BETWEEN_JOBS_S = 900.0
# Starting Python, storing and sending the record.
GRACE_S = 60.0
# Records that the device keeps although they are stored here: a request for each would cost 0.3 s.
RECEIPTS_AT_ONCE = 64
SETTLE_S = 60.0
# Far more than lines of two seconds and a record.
MAX_OUTPUT_CHARS = 256 << 20
LONGEST_PAUSE_S = 30.0
# How often it is said who has a busy board.
TELL_S = 60.0
# Of one device in one campaign: what two did not bring back, a third will not.
MAX_POWER_CYCLES = 2


class Start(Protocol):
    """The deployed agent."""

    def __call__(
        self,
        arguments: list[str],
        stdin: bytes,
        timeout_s: float,
        *,
        keep_stdin: bool = False,
        silence_s: float | None = None,
    ) -> Running:
        """Starts it with these arguments; see :meth:`stbench.connectors.base.Connector.start`."""
        ...


@dataclass(frozen=True)
class Patience:
    """``reconnect_s``: for how long a lost link is made again; ``silence_s``: after how long without a line a
    link counts as lost; ``wait_s``: for how long a busy board is waited for; ``power``: a command that
    power-cycles a board which is not back by then, "" for none."""

    reconnect_s: float = 300.0
    silence_s: float = 20.0
    wait_s: float = 0.0
    power: str = ""


class RemoteRuns:
    """The detached jobs of one device."""

    def __init__(self, name: str, connector: Connector, start: Start, patience: Patience) -> None:
        self._name, self._connector, self._start, self._patience = name, connector, start, patience
        self._owner = owner()
        self._had_the_board = False
        self._power_cycles = 0
        self._receipts: dict[str, wire.Receipt] = {}

    @property
    def spool(self) -> str:
        """Where the device keeps jobs and records."""
        return f"{self._connector.work_dir}/spool"

    def run(self, job: JobSpec, stop: Stop, tell: Callable[[str], None]) -> RunRecord:
        """The job's record, whatever happens to the link. ``tell``: who has the board that is waited for.

        Raises :class:`JobInterrupted` once asked to stop, :class:`BusyError`, :class:`NoSpace`, and
        :class:`stbench.errors.DeviceError` when the device does not come back or its agent says nothing."""
        watch, losses, silent, cycles = Watch(), 0, 0, self._power_cycles
        while True:
            if stop.asked:
                raise JobInterrupted(watch.record(job, "cancelled", "stopped by the user; " + _MAY_RUN))
            try:
                record, ending = self._follow(job, stop, tell)
            except (LinkLost, Unreachable) as error:
                record, ending = None, Ending(-1, False, str(error), lost=True)
            if record is not None:
                self._had_the_board = True
                if self._power_cycles > cycles:
                    told = "the device did not come back during this job and was power-cycled"
                    record = replace(record, warnings=[*record.warnings, told])
                if stop.asked:
                    raise JobInterrupted(record)
                return record
            self._raise_if_refused(ending)
            if ending.lost:
                losses += 1
                if losses >= MAX_LOSSES:
                    raise LinkLost(
                        with_last_line(f"{self._name}: the link broke {losses} times during one job", ending),
                        hint=_RESUME,
                    )
                stop.wait(min(LOSS_PAUSE_S * losses, LONGEST_PAUSE_S))
                self.reconnect(stop, with_last_line("the link was lost", ending))
                continue
            silent += 1
            if silent >= MAX_SILENT_ENDINGS and not stop.asked:
                raise AgentError(
                    with_last_line(f"{self._name}: the agent {how(ending)} without a record", ending),
                    hint=f"tried {silent} times; {_RESUME}",
                )
            stop.wait(1.0)

    def stored(self, record: RunRecord) -> None:
        """The record is on this machine's disk: the device may forget it, and will at some time."""
        key = wire.spool_key(self._owner, record.campaign, record.id, record.label, record.attempt)
        self._receipts[key] = wire.Receipt(key, record.started_at)
        if len(self._receipts) >= RECEIPTS_AT_ONCE:
            self.settle()

    def reference_known(self, job: JobSpec) -> None:
        """The same for the reference that this job would compute, whoever did: a controller that was killed
        may have left its record behind."""
        key = wire.spool_key(self._owner, job.campaign, job.id, job.label, job.attempt)
        self._receipts.setdefault(key, wire.Receipt(key, ""))

    def settle(self) -> None:
        """Has the device forget now. A device that does not answer keeps its records, which costs some of its
        disk and is made good by the next campaign that is resumed."""
        if not self._receipts:
            return
        lines = "".join(wire.dumps(receipt) + "\n" for receipt in self._receipts.values())
        with contextlib.suppress(DeviceError):
            running = self._start(["spool", self.spool, "--forget"], lines.encode(), SETTLE_S)
            for _ in running.lines():
                pass
            if running.ending().code == 0:
                self._receipts.clear()

    def reconnect(self, stop: Stop, why: str) -> None:
        """A new connection, with growing pauses between attempts; returns early when asked to stop. A device
        that is not back in time is power-cycled, where there is a command for that, and gets as long again.

        Raises :class:`LinkLost` when there is none in time, and other DeviceErrors at once."""
        deadline, pause = time.monotonic() + self._patience.reconnect_s, 0.5
        while not stop.asked:
            try:
                self._connector.connect()
                return
            except (LinkLost, Unreachable, LoginRefused) as error:
                # A board that boots refuses logins for a while.
                why = str(error)
            left = deadline - time.monotonic()
            if left <= 0:
                if not self._patience.power or self._power_cycles >= MAX_POWER_CYCLES:
                    break
                self._power_cycles += 1
                power_cycle(self._name, self._patience.power)
                deadline, pause = time.monotonic() + self._patience.reconnect_s, 0.5
                continue
            stop.wait(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE_S)
        if not stop.asked:
            cycled = f", power-cycled {self._power_cycles} times" if self._power_cycles else ""
            raise LinkLost(
                f"{self._name}: no link within {self._patience.reconnect_s:g} s{cycled} ({last_line(why)})",
                hint=f"a running job goes on there up to its time limit; {_RESUME}",
            )

    # ---- one submission ------------------------------------------------------------------------------

    def _follow(
        self, job: JobSpec, stop: Stop, tell: Callable[[str], None]
    ) -> tuple[RunRecord | None, Ending]:
        wait_s = max(self._patience.wait_s, BETWEEN_JOBS_S if self._had_the_board else 0.0)
        arguments = ["run", "--spool", self.spool, "--owner", self._owner, "--wait", f"{wait_s:g}"]
        # Twice: what was left running of the same campaign is waited for.
        limit_s = 2 * lease.lease_s(job) + wait_s + GRACE_S
        running = self._start(
            arguments,
            wire.dumps(job).encode() + b"\n",
            limit_s,
            keep_stdin=True,
            silence_s=self._patience.silence_s,
        )
        try:
            with cancelling(running, stop, lambda: running.send(b"cancel\n")):
                try:
                    record = _record_of(job, running, tell)
                except KeyboardInterrupt:
                    # In the main thread nobody else hears it.
                    stop.ask()
                    record = _record_of(job, running, tell)
            if record is not None:
                return record, Ending(0, False, "")
            return None, running.ending()
        finally:
            running.kill()

    def _raise_if_refused(self, ending: Ending) -> None:
        said = re.sub(r"^stbench\.agent: ", "", last_line(ending.stderr))
        if ending.lost or ending.timed_out:
            return
        if ending.code == follow.EXIT_BUSY:
            raise BusyError(f"{self._name}: {said}", hint="--wait SECONDS waits for it")
        if ending.code == follow.EXIT_SPOOL:
            kind = NoSpace if "space" in said.lower() or "quota" in said.lower() else AgentError
            raise kind(f"{self._name}: {said}", hint="records are kept there first: make room, or mend it")


_RESUME = "`--resume` fetches what has ended there by then"
_MAY_RUN = "without a link to it, it may run on the device up to its time limit"


def _record_of(job: JobSpec, running: Running, tell: Callable[[str], None]) -> RunRecord | None:
    """The record, once it comes; None when the lines end before, or do not seem to."""
    seen, due = 0, 0.0
    for line in running.lines():
        record = own_record(job, line)
        if record is not None:
            return record
        alive = message(wire.Alive, line)
        if alive is not None and alive.waiting_for and time.monotonic() >= due:
            due = time.monotonic() + TELL_S
            tell(printable(alive.waiting_for)[:300])
        seen += len(line) + 1
        if seen > MAX_OUTPUT_CHARS:
            running.kill()
            return None
    return None


@contextlib.contextmanager
def cancelling(running: Running, stop: Stop, cancel: Callable[[], None]) -> Iterator[None]:
    """While the block lasts, a wish to stop calls ``cancel``; what does not end by it is killed after a
    while."""
    timer = threading.Timer(CANCEL_S, running.kill)
    timer.daemon = True
    begun = threading.Event()

    def asked() -> None:
        if not begun.is_set():
            begun.set()
            timer.start()
        cancel()

    with stop.calling(asked):
        try:
            yield
        finally:
            timer.cancel()


def owner() -> str:
    """Who submits, as the one who finds a board busy reads it."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "somebody"
    return f"{user}@{socket.gethostname()}"
