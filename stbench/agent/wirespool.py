"""Messages of ``run --spool`` and ``spool``: jobs that go on without whoever submitted them."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Alive:
    """A line every two seconds while a job is followed. ``alive``: seconds since it was submitted or attached
    to; ``waiting_for``: who has the board, "" once the job runs."""

    alive: float
    waiting_for: str = ""


@dataclass(frozen=True)
class Receipt:
    """The host has this record on its disk: the device may forget it. ``key`` is what :func:`spool_key` says
    of the job; ``started_at`` is the record's, so that a receipt never takes another run's record away, or ""
    for a reference, which is the same whoever computed it and when."""

    key: str
    started_at: str


@dataclass(frozen=True)
class SpoolEntry:
    """A line of ``spool --list``. ``state`` is "running", "record" (waits for its receipt) or "started"
    (ended without a record: lost with a reboot, or killed). ``since`` is by the device's clock; ``bytes`` is
    what it takes on the disk."""

    key: str
    state: str
    owner: str
    campaign: str
    label: str
    attempt: int
    since: str
    bytes: int


def spool_key(owner: str, campaign: str, job_id: str, label: str, attempt: int) -> str:
    """The name of a submission on the device: the same for the same, and one that any file system takes."""
    text = "\0".join([owner, campaign, job_id, label, str(attempt)])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
