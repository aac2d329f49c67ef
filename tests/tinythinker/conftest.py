"""tinythinker's file, the book it never saw, and the runtime in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from stbench import native
from stbench.agent import sbr
from tests.tinythinker import measure


@pytest.fixture(scope="session")
def library(library_path: Path) -> sbr.Library:
    return native.open_library(library_path)


@pytest.fixture(scope="session")
def ruth(library: sbr.Library) -> list[int]:
    """The held-out book in tokens."""
    return measure.held_out(library)
