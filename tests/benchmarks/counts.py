"""Instructions per token and per kernel call, by callgrind: what a noisy clock cannot show.

valgrind knows no AVX-512 and hides it from CPUID, so scalar and AVX2 are forced by name. The count of a build
is the same in every run, so a rise is judged without statistics.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import require

ISAS = ("scalar", "avx2")
# Smaller rises are let through: another inlining decision in code that is no kernel moves a total by 1 %.
TOLERANCE = 0.02


@dataclass(frozen=True)
class Rise:
    """One measurement that got dearer: ``ratio`` is instructions now / instructions before."""

    name: str
    before: float
    now: float

    @property
    def ratio(self) -> float:
        return self.now / self.before

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.before:.0f} -> {self.now:.0f} instructions ({100 * (self.ratio - 1):+.1f} %)"
        )


def find_valgrind() -> str:
    """Path of valgrind, with the header that the driver needs; otherwise the test is skipped."""
    found = shutil.which("valgrind")
    require(found is not None, "no valgrind: apt install valgrind")
    assert found is not None
    return found


def count(driver: Path, library: Path, model: Path, folder: Path) -> dict[str, float]:
    """ "avx2/decode-dense" -> instructions per token, "avx2/gemv-q4_0" -> per call.

    callgrind's dumps stay in ``folder``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dumps = folder / "callgrind"
    command = [find_valgrind(), "-q", "--tool=callgrind", f"--callgrind-out-file={dumps}"]
    done = subprocess.run(
        [*command, str(driver), str(library), str(model), "count", *ISAS],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    units = {name: float(value) for name, value in (line.split() for line in done.stdout.splitlines())}
    counted = {}
    for path in folder.glob("callgrind.*"):
        text = path.read_text(errors="replace")
        label = re.search(r"^desc: Trigger: Client Request: (.+)$", text, re.MULTILINE)
        total = re.search(r"^totals: (\d+)$", text, re.MULTILINE)
        if label and total:
            counted[label.group(1)] = int(total.group(1)) / units[label.group(1)]
    assert counted.keys() == units.keys(), "callgrind left out a dump"
    return counted


def rises(before: dict[str, float], now: dict[str, float], tolerance: float = TOLERANCE) -> list[Rise]:
    """What costs more than before by more than ``tolerance``, among what both builds have."""
    both = [Rise(name, before[name], now[name]) for name in sorted(before.keys() & now.keys())]
    return [rise for rise in both if rise.ratio > 1 + tolerance]
