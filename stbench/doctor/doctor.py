"""What would make a device's numbers wrong or its run fail, each with the line that mends it.

:func:`diagnose` is a pure function of a captured machine (:mod:`stbench.doctor.captures`), so that a capture
that somebody mailed says the same as the board did."""

from __future__ import annotations

from collections.abc import Iterator

from stbench.devices.board import OLDEST_PYTHON
from stbench.doctor import doctor_memory, doctor_speed
from stbench.doctor.findings import FAILS, SEVERITIES, WRONG, Check, Finding, Patient


def diagnose(patient: Patient) -> list[Finding]:
    """All findings, the worst first."""
    checks: tuple[Check, ...] = (*doctor_speed.CHECKS, *doctor_memory.CHECKS, _clock, _python)
    found = [finding for check in checks for finding in check(patient)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


# Records are timed by a clock that cannot jump; this one dates them, and TLS and file times need it.
_CLOCK_S = 5.0


def _clock(patient: Patient) -> Iterator[Finding]:
    off = patient.clock_off_s
    if off is not None and abs(off) > _CLOCK_S:
        yield Finding(
            "clock",
            WRONG,
            f"its clock is {_span(abs(off))} {'ahead of' if off > 0 else 'behind'} this machine's, and dates "
            "records and files wrongly",
            "sudo timedatectl set-ntp true",
        )


def _span(seconds: float) -> str:
    for length, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _python(patient: Patient) -> Iterator[Finding]:
    numbers = patient.capture.python.split(".")
    if len(numbers) >= 2 and all(number.isdigit() for number in numbers[:2]):
        version = (int(numbers[0]), int(numbers[1]))
        if version < OLDEST_PYTHON:
            yield Finding(
                "python",
                FAILS,
                f"its Python is {version[0]}.{version[1]}; the agent needs 3.8 or newer",
                "sudo apt install python3   # or name another in devices.yaml: python: /path/to/python3",
            )
