"""``results/<campaign>/``: ``records.jsonl``, append-only, one fsynced line per run, and ``campaign.json``.

What is in the file is never rewritten. Where an id occurs twice (a cancelled run or a disturbed one that was
repeated), the last line of a run that ended counts. A line that a killed writer left unfinished is moved to
``records.jsonl.torn`` when the next writer opens the store, and reported.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from stbench.agent import wire
from stbench.agent.wire import RunRecord
from stbench.atomic import sync_directory, write_atomically
from stbench.errors import BusyError, InputError, StoreError
from stbench.paths import instead_of
from stbench.records.lines import UNFINISHED as UNFINISHED
from stbench.records.lines import Problems, Repetitions, outcome_of, read_lines
from stbench.records.lines import parse_record as parse_record

RECORDS = "records.jsonl"
CAMPAIGN = "campaign.json"

CAMPAIGN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Reading:
    """What a file held. ``problems``: a sentence with file and line for everything that is not in
    ``records`` or that stands there twice. ``torn_at``: where an unfinished last line begins, in bytes.
    ``left_out``: how many lines are no record."""

    records: list[RunRecord]
    problems: list[str]
    torn_at: int | None = None
    left_out: int = 0

    def latest(self) -> list[RunRecord]:
        """The last record of every id, in the order of first appearance. A cancelled attempt does not replace
        one that ended."""
        by_id: dict[str, RunRecord] = {}
        for record in self.records:
            known = by_id.setdefault(record.id, record)
            if record.status != UNFINISHED or known.status == UNFINISHED:
                by_id[record.id] = record
        return list(by_id.values())


def validate_campaign_name(name: str) -> str:
    """Returns ``name``. Raises :class:`StoreError` where it could not be a directory's name everywhere."""
    if not CAMPAIGN_NAME.fullmatch(name):
        raise StoreError(
            f"{name!r} is no name for a campaign: letters, digits, dots, dashes and underscores, at most 100",
            hint="--campaign 2026-01-31-quick",
        )
    return name


def records_path(path: Path) -> Path:
    """The records file that ``path`` means: itself, or the one in a campaign's directory.

    Raises :class:`InputError` where there is none."""
    found = path / RECORDS if path.is_dir() else path
    if found.exists() and not found.is_file():
        raise InputError(
            f"{found}: is not a regular file",
            hint="records are read by their place in a file, which a pipe has not: store them in one",
        )
    if not found.is_file():
        hint = "" if path.is_dir() else instead_of(path)
        raise InputError(
            f"{found}: no such file",
            hint=hint or "name a campaign's directory (results/...) or its records.jsonl",
        )
    return found


def campaigns_in(path: Path) -> list[Path]:
    """The campaigns that ``path`` means: itself, or those in a directory of campaigns, by name.

    Raises :class:`InputError` where there is none."""
    if path.is_dir() and not (path / RECORDS).is_file():
        found = sorted(records.parent for records in path.glob(f"*/{RECORDS}"))
        if found:
            return found
    records_path(path)
    return [path]


def read_records(path: Path) -> Reading:
    """Reads a campaign's directory or a records file without changing it. Raises :class:`InputError`."""
    path = records_path(path)
    records: list[RunRecord] = []
    problems, repetitions = Problems(), Repetitions()
    torn_at = None
    for line in read_lines(path):
        problems.look_at(line)
        if line.record is not None:
            records.append(line.record)
        outcome = outcome_of(line)
        if outcome is not None and (found := repetitions.look_at(outcome)):
            problems.add(found[0], line.number, found[1])
        if line.torn:
            torn_at = line.offset
    return Reading(records, problems.sentences(path), torn_at, problems.left_out)


def latest_of(paths: Iterable[Path]) -> tuple[list[RunRecord], list[str]]:
    """The latest records of campaigns' directories or records files, and a sentence for all else in them.
    Raises :class:`InputError`, also for lines of which none is a record."""
    records: list[RunRecord] = []
    problems: list[str] = []
    for path in paths:
        reading = read_records(path)
        records += reading.latest()
        problems += reading.problems
    problems = list(dict.fromkeys(problems))
    if not records:
        refuse_only(problems)
    return records, problems


def refuse_only(problems: Sequence[str]) -> None:
    """Raises :class:`InputError` where there is nothing but problems: tables and charts of no record would
    look like those of a campaign that measured nothing."""
    if problems:
        raise InputError(
            "\n".join([*problems, "no record is left to show"]),
            hint="name another campaign, or measure again: stbench sweep --campaign NAME",
        )


class Store:
    """The one writer of a campaign's directory, from :meth:`open` to :meth:`close`. Several threads may
    append: one lock holds from a line's first byte until it is on the disk, so that a line that does not fit
    is cut off alone."""

    def __init__(self, directory: Path, records: int, reading: Reading) -> None:
        self.directory = directory
        self.reading = reading
        self._records = records
        self._appending = threading.Lock()

    @classmethod
    def open(cls, directory: Path) -> Store:
        """Creates or opens a campaign's directory and locks its records.

        An unfinished last line is moved to ``records.jsonl.torn``; ``reading.problems`` tells. Raises
        :class:`BusyError` when another process has the lock.
        """
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / RECORDS
        records = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(records, directory)
            sync_directory(directory)
            reading = read_records(path)
            if reading.torn_at is not None:
                _cut(records, reading.torn_at, path.with_name(RECORDS + ".torn"))
            return cls(directory, records, reading)
        except BaseException:
            os.close(records)
            raise

    def append(self, record: RunRecord) -> None:
        """Writes one line and returns when it is on the disk. Raises :class:`StoreError`."""
        line = (wire.dumps(record) + "\n").encode("utf-8")
        with self._appending:
            if self._records < 0:
                raise StoreError(f"{self.directory / RECORDS} is closed; {record.label} came too late")
            size = os.fstat(self._records).st_size
            try:
                written = os.write(self._records, line)
                if written != len(line):
                    raise OSError(28, "no space left on the device")
                os.fsync(self._records)
            except OSError as error:
                os.ftruncate(self._records, size)
                raise StoreError(
                    f"{self.directory / RECORDS}: {error.strerror}; nothing that was stored is lost",
                    hint="make room and go on with --resume",
                ) from error

    def write_campaign(self, description: dict[str, Any]) -> None:
        """Replaces ``campaign.json`` atomically."""
        write_json(self.directory / CAMPAIGN, description)

    def read_campaign(self) -> dict[str, Any] | None:
        """``campaign.json``, None where there is none. Raises :class:`InputError`."""
        return read_campaign(self.directory)

    def close(self) -> None:
        """Gives the lock back. A thread that appends later gets an error: the number of the closed file may
        be another's by then."""
        with self._appending:
            os.close(self._records)
            self._records = -1

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def newest_campaign(results: Path) -> str:
    """The campaign under ``results`` that was begun or resumed last. Raises :class:`InputError`."""
    found = [(path.stat().st_mtime_ns, path.parent.name) for path in results.glob(f"*/{CAMPAIGN}")]
    if not found:
        raise InputError(f"{results}: no campaign to resume", hint="start one with `stbench sweep`")
    return max(found)[1]


def read_campaign(directory: Path) -> dict[str, Any] | None:
    """The description of a campaign, None where there is none. Raises :class:`InputError`."""
    path = directory / CAMPAIGN
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: not a JSON object")
    return data


def write_json(path: Path, data: Any) -> None:
    """Replaces a JSON file as a whole. Raises OSError."""
    write_atomically(path, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())


def _lock(records: int, directory: Path) -> None:
    """An advisory lock that ends with its holder, however that ends."""
    try:
        fcntl.flock(records, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise BusyError(
            f"{directory} is in use by another stbench",
            hint="wait for it, or give this sweep another --campaign",
        ) from error


def _cut(records: int, torn_at: int, torn: Path) -> None:
    """Moves everything from ``torn_at`` on to the side file; the copy is on the disk before the cut."""
    rest = os.pread(records, os.fstat(records).st_size - torn_at, torn_at)
    with torn.open("ab") as file:
        file.write(rest + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.ftruncate(records, torn_at)
    os.fsync(records)
