"""What the doctor looks at and what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from stbench.agent.wirecapture import Capture
from stbench.doctor.captures import CapturedTree

# A run fails or will; its numbers are wrong or differ between runs; good to know.
FAILS, WRONG, NOTE = "fails", "wrong", "note"
SEVERITIES = (FAILS, WRONG, NOTE)


@dataclass(frozen=True)
class Finding:
    """``name`` is stable and for programs; ``text`` a sentence; ``mend`` a line for the device's shell, for
    devices.yaml, or what to do."""

    name: str
    severity: str
    text: str
    mend: str


@dataclass(frozen=True)
class Patient:
    """A captured machine and what is known of it from here: how far its clock is off (seconds, positive when
    it is ahead), how its memory is limited (devices.yaml), what it is called there."""

    capture: Capture
    clock_off_s: float | None = None
    memory_limit: str = "auto"
    name: str = field(default="NAME", compare=False)

    @cached_property
    def tree(self) -> CapturedTree:
        """Its files."""
        return CapturedTree(self.capture.files, self.capture.denied)


Check = Callable[[Patient], Iterator[Finding]]
