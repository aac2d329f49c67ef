"""What every test may ask for: the runtime's library, and a skip that CI turns into a failure."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before numpy is imported: the tests' matrices are small, and BLAS threads that spin on a busy machine cost
# minutes.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from stbench.build import find_library
from stbench.errors import BuildError


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--library", type=Path, help="libsbr.so to test (default: the installed one)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than half a minute")


def require(condition: object, reason: str) -> None:
    """Skips the test when ``condition`` is false; with ``STBENCH_REQUIRE=all``, as in CI, fails it.

    Not for CPU features: a machine without AVX-512 skips those tests in CI too (``pytest.skip``).
    """
    if condition:
        return
    if os.environ.get("STBENCH_REQUIRE") == "all":
        pytest.fail(f"required by STBENCH_REQUIRE=all: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def library_path(request: pytest.FixtureRequest) -> Path:
    """The runtime under test."""
    try:
        return find_library(request.config.getoption("--library")).path
    except BuildError as error:
        require(False, str(error))
        raise
