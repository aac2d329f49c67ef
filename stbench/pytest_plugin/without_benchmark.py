"""The fixture, where pytest-benchmark is not: a message."""

from __future__ import annotations

import pytest


@pytest.fixture
def stbench() -> None:
    """Fails: what measures a round is missing."""
    pytest.fail(
        "the fixture `stbench` measures through pytest-benchmark, which is not there: "
        "pip install pytest-benchmark, without -p no:benchmark",
        pytrace=False,
    )
