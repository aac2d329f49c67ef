"""Two builds in turn on one machine, judged by the ratio of their speeds.

A pair is one process of each build, the first of them by turns, so that what the machine does to one it does
to the other. The unit is processor time of one thread per token: other load takes no share of it, though
still of caches and of the clock. The statistics are those of ``stbench compare``.
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stbench.comparison import inference

PAIRS = 15
# Speed now / speed before below which a change fails, with all of the interval.
THRESHOLD = 0.95

Samples = dict[str, list[float]]


@dataclass(frozen=True)
class Judgement:
    """Speed now / speed before of one measurement, with a 95 % interval. ``verdict`` is the comparison's, at
    its threshold of 2 %; ``regressed`` is the gate's."""

    name: str
    n: int
    ratio: float
    low: float
    high: float
    verdict: str

    @property
    def regressed(self) -> bool:
        """The whole interval is below the gate's threshold."""
        return self.high < THRESHOLD

    def __str__(self) -> str:
        return (
            f"{self.name}: speed x {self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}], {self.n} processes "
            f"each, {self.verdict}"
        )


def judge(name: str, before: Sequence[float], now: Sequence[float], *, paired: bool = True) -> Judgement:
    """From nanoseconds per token; with ``paired``, of neighbours in equal places."""
    a, b = 1 / np.array(before), 1 / np.array(now)
    if paired:
        ratio, p = inference.paired_ratio(a, b), inference.signed_rank_p(np.log(b) - np.log(a))
    else:
        ratio, p = inference.unpaired_ratio(a, b), inference.mann_whitney_p(a, b)
    verdict = str(inference.verdicts(ratio, np.array(p), 0.02, 0.0))
    values = (math.exp(float(value)) for value in (ratio.estimate, ratio.low, ratio.high))
    return Judgement(name, min(len(a), len(b)), *values, verdict)


def measure(driver: Path, library: Path, model: Path, isa: str) -> dict[str, float]:
    """Nanoseconds per token, each the median of 15 passes in one process."""
    done = subprocess.run(
        [str(driver), str(library), str(model), "time", isa], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: float(value) for name, value in (line.split() for line in done.stdout.splitlines())}


def interleave(
    driver: Path, before: Path, now: Path, model: Path, isa: str = "auto", pairs: int = PAIRS
) -> list[Judgement]:
    """Runs both builds ``pairs`` times in turn and judges each measurement."""
    samples: dict[Path, Samples] = {before: {}, now: {}}
    for pair in range(pairs):
        for library in (before, now) if pair % 2 == 0 else (now, before):
            for name, value in measure(driver, library, model, isa).items():
                samples[library].setdefault(name, []).append(value)
    return [
        judge(name, samples[before][name], samples[now][name])
        for name in sorted(samples[before].keys() & samples[now].keys())
    ]
