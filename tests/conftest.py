"""What every test may ask for: the runtime's library, and a skip that CI turns into a failure."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

# Before numpy is imported: the tests' matrices are small, and BLAS threads that spin on a busy machine cost
# minutes.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Tests have caches of their own, and matplotlib would list this machine's fonts, a second's work, in each.
os.environ.setdefault("MPLCONFIGDIR", str(Path("~/.cache/matplotlib").expanduser()))

from stbench.agent import sbr
from stbench.builds.build import find_library
from stbench.errors import BuildError

pytest_plugins = ["tests.beside"]

# What a machine may lack although nothing can install it there: such skips are allowed in CI, too.
CPU_LACKS = "this CPU lacks"
NO_PYTHON_38 = "no Python 3.8 to be found"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--library", type=Path, help="libsbr.so to test (default: the installed one)")
    parser.addoption(
        "--full-benchmarks", action="store_true", help="benchmarks at full size, for their numbers"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than half a minute")
    # A shell's background jobs ignore SIGINT, and so would all that tests start and interrupt.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def require(condition: object, reason: str) -> None:
    """Skips the test when ``condition`` is false. With ``STBENCH_REQUIRE=all``, as in CI, every skip fails
    unless its reason begins with one of the two above."""
    if not condition:
        pytest.skip(reason)


def late(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same, begun half a second later: a thread that was not scheduled at once."""

    def begun_late(*args: Any) -> Any:
        time.sleep(0.5)
        return function(*args)

    return begun_late


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, None]:
    """Turns skips that the machine could have run into failures."""
    report = (yield).get_result()
    if not report.skipped or hasattr(report, "wasxfail") or os.environ.get("STBENCH_REQUIRE") != "all":
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not reason.removeprefix("Skipped: ").startswith((CPU_LACKS, NO_PYTHON_38)):
        report.outcome = "failed"
        report.longrepr = f"skipped, which STBENCH_REQUIRE=all forbids: {reason}"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Lists the instruction sets that no test could run on this CPU (the native tests pass them over)."""
    try:
        library = sbr.load(str(find_library(config.getoption("--library")).path))
    except (BuildError, sbr.LoadError):
        return
    missing = [isa.name for isa in library.isas() if not isa.supported]
    if missing:
        terminalreporter.write_line(f"not run, {CPU_LACKS} them: {', '.join(missing)}")


@pytest.fixture(scope="session")
def library_path(request: pytest.FixtureRequest) -> Path:
    """The runtime under test."""
    try:
        return find_library(request.config.getoption("--library")).path
    except BuildError as error:
        require(False, str(error))
        raise
