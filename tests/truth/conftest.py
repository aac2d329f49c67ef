"""The runtime in this process, and the referees, for the truth tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stbench import native
from stbench.agent import sbr
from stbench.builds.peer import Peer, build_peer
from stbench.errors import StbenchError
from tests.conftest import require
from tests.truth import smollm


@pytest.fixture(scope="session")
def library(library_path: Path) -> sbr.Library:
    return native.open_library(library_path)


@pytest.fixture(scope="session")
def peer() -> Peer:
    """llama.cpp: built on first use (minutes), found in the cache from then on."""
    try:
        return build_peer()
    except StbenchError as error:
        require(False, f"no llama.cpp to compare with: {error}")
        raise


@pytest.fixture(scope="session")
def smollm_path() -> Path:
    """SmolLM2-135M-Instruct, downloaded on first use (93 MB)."""
    try:
        return smollm.model_path()
    except smollm.Unavailable as error:
        require(False, str(error))
        raise


@pytest.fixture(autouse=True)
def remove_models(tmp_path: Path) -> Iterator[None]:
    """pytest keeps the folders of three runs, and these files add up to gigabytes."""
    yield
    for path in tmp_path.glob("*.gguf"):
        path.unlink()
