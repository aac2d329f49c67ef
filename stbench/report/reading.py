"""Campaign directories -> what a report is made from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from stbench.doctor.findings import Finding
from stbench.errors import InputError
from stbench.records import store
from stbench.report.boards import recorded_findings
from stbench.report.report import Given
from stbench.tables import stamps
from stbench.wording import count

# Beside records.jsonl: what `stbench devices doctor --json` printed.
DOCTOR = "doctor.json"


def read_given(paths: Sequence[Path]) -> Given:
    """Records and findings of campaigns' directories or records files, called by their names without the
    directories above. Raises :class:`InputError`."""
    problems: list[str] = []
    records = []
    findings: dict[str, list[Finding]] = {}
    for path in paths:
        reading = store.read_records(path)
        records += reading.latest()
        file = str(store.records_path(path))
        problems += [
            problem.replace(file, f"{name_of(path)}/{store.RECORDS}") for problem in reading.problems
        ]
        beside = store.records_path(path).with_name(DOCTOR)
        if beside.exists():
            for device, found in _findings(beside).items():
                findings.setdefault(device, []).extend(found)
    if not records:
        store.refuse_only(problems)
    names = list(dict.fromkeys(name_of(path) for path in paths))
    more = f" and {count(len(names) - 2, 'more campaign')}" if len(names) > 3 else ""
    return Given(", ".join(names[:2] if more else names) + more, records, problems, findings)


def digest_of(paths: Sequence[Path]) -> str:
    """Of everything that :func:`read_given` reads. Raises :class:`InputError`."""
    files = [store.records_path(path) for path in paths]
    return stamps.digest([*files, *filter(Path.exists, (file.with_name(DOCTOR) for file in files))])


def name_of(path: Path) -> str:
    """The campaign's name: a page says nothing of where it was on somebody's disk."""
    found = path.absolute()
    return found.parent.name if found.name == store.RECORDS else found.name


def _findings(path: Path) -> dict[str, list[Finding]]:
    try:
        return recorded_findings(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: {error}", hint=f"write it again: stbench devices doctor --json > {path}"
        ) from error
