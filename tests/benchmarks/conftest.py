"""What benchmarks share; and what they and the gates found, for the runner's summary.

A plain ``pytest`` runs every benchmark briefly and on small data, to see that it works; for numbers:
``pytest tests/benchmarks --full-benchmarks``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stbench.agent import sbr

_VERDICTS: list[str] = []
_SPEEDS: list[str] = []

Measure = Callable[[Callable[[], Any]], float]


@pytest.fixture(scope="session")
def library(library_path: Path) -> sbr.Library:
    return sbr.load(str(library_path))


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether numbers are wanted."""
    return bool(request.config.getoption("--full-benchmarks"))


@pytest.fixture
def measure(benchmark: Any, full: bool) -> Measure:
    """Times a call, briefly or in full, and returns the median in nanoseconds."""

    def run(call: Callable[[], Any]) -> float:
        rounds = 21 if full else 2
        benchmark.pedantic(call, rounds=rounds, warmup_rounds=1)
        # --benchmark-disable calls once and keeps no time.
        return float(benchmark.stats.stats.median * 1e9) if benchmark.stats else float("nan")

    return run


@pytest.fixture(scope="session")
def say() -> Callable[[object], None]:
    """Adds a line to the gates' part of the summary."""
    return lambda line: _VERDICTS.append(str(line))


@pytest.fixture
def speed(benchmark: Any, full: bool) -> Callable[..., None]:
    """Files speeds under a benchmark, ``speed(gb_s=12.3)``, and adds them to the summary of a full run."""

    def file(**speeds: float) -> None:
        benchmark.extra_info.update(speeds)
        if full:
            values = "  ".join(f"{value:10.2f} {unit}" for unit, value in speeds.items())
            _SPEEDS.append(f"{benchmark.name:44} {values}")

    return file


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for title, lines in (("speeds", _SPEEDS), ("this runtime and the previous commit's", _VERDICTS)):
        if lines:
            terminalreporter.section(title)
            for line in lines:
                terminalreporter.write_line(line)
