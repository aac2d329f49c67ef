"""What an agent said, judged: whether a record is the job's, and what becomes of a job without one."""

from __future__ import annotations

import datetime
import signal
import time
from typing import TypeVar

from stbench.agent import wire
from stbench.agent.jobrecord import record_of
from stbench.agent.wire import JobSpec, RunRecord
from stbench.connectors.base import Ending
from stbench.records.lines import LineError, parse_record
from stbench.yamlfile import printable

Message = TypeVar("Message")


class JobInterrupted(Exception):
    """The user stopped a running job; ``record`` says so."""

    def __init__(self, record: RunRecord) -> None:
        super().__init__(record.label)
        self.record = record


def message(kind: type[Message], line: str) -> Message | None:
    """A line as a message, None where it is none of this kind."""
    try:
        return wire.loads(kind, line)
    except wire.WireError:
        return None


def own_record(job: JobSpec, line: str) -> RunRecord | None:
    """A record on this line, if it is this job's: a device cannot speak for another. It is judged as it will
    be when it is read back: one that is stored and then refused would be a job that is done without a
    result."""
    try:
        record = parse_record(line)
    except LineError:
        return None
    if (record.id, record.device, record.label) != (job.id, job.device, job.label):
        return None
    if (record.campaign, record.attempt) != (job.campaign, job.attempt):
        return None
    return record


class Watch:
    """When a job was begun here."""

    def __init__(self) -> None:
        now = datetime.datetime.now(datetime.timezone.utc)
        self.started_at = now.isoformat(timespec="milliseconds")
        self._begin = time.monotonic()

    def record(self, job: JobSpec, status: str, detail: str) -> RunRecord:
        """The record of a job whose process left none."""
        return record_of(job, status, detail, self.started_at, time.monotonic() - self._begin)


def why(ending: Ending, limit_s: float) -> tuple[str, str]:
    """(status, sentence) of a process that ended without a record."""
    if ending.timed_out:
        return "timeout", f"no record after {limit_s:g} s; the process was ended"
    detail = f"the agent {how(ending)} without a record"
    return ("crashed" if ending.code < 0 else "failed"), with_last_line(detail, ending)


def how(ending: Ending) -> str:
    """The end of a sentence that begins with "the agent"."""
    if ending.timed_out:
        return "did not end in time"
    if ending.code >= 0:
        return f"ended with exit code {ending.code}"
    try:
        return f"was ended by {signal.Signals(-ending.code).name}"
    except ValueError:
        return f"was ended by signal {-ending.code}"


def with_last_line(sentence: str, ending: Ending) -> str:
    """The sentence and what the process said last."""
    said = last_line(ending.stderr)
    return sentence + (f": {said}" if said else "")


def last_line(text: str) -> str:
    """The last line that says something, harmless to print."""
    lines = [line for line in text.splitlines() if line.strip()]
    return printable(lines[-1])[-300:] if lines else ""
