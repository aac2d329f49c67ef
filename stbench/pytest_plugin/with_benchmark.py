"""The fixture, where pytest-benchmark is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from stbench.pytest_plugin.gate import Gate


@pytest.fixture
def stbench(request: pytest.FixtureRequest, benchmark: Any, tmp_path: Path) -> Gate:
    """Measures a model in processes of its own; see :class:`stbench.pytest_plugin.gate.Gate`."""
    from stbench.pytest_plugin.gate import Clock, Gate

    return Gate(benchmark, Clock.of(request.node), request.config.rootpath, tmp_path)
