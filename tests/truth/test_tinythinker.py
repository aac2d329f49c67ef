"""Trained weights of SmallThinker's own architecture: tinythinker's fixture against llama.cpp.

llama.cpp reads the twin, which holds the same values with down in its layout (tests/tinythinker/twin.py).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from stbench.agent import sbr
from stbench.builds.peer import Peer
from tests.tinythinker import measure
from tests.tinythinker.corpus import HELD_OUT_FILE
from tests.tinythinker.measure import FIXTURE
from tests.tinythinker.twin import write_twin
from tests.truth import llama_peer
from tests.truth.compare import rms, runtime_logits


@pytest.fixture
def twin(tmp_path: Path) -> Path:
    return write_twin(FIXTURE, tmp_path / "twin.gguf")


@pytest.fixture(scope="module")
def ruth(library: sbr.Library) -> list[int]:
    return measure.held_out(library)


def test_token_ids_equal_llama_cpp(ruth: list[int], twin: Path, peer: Peer) -> None:
    assert llama_peer.tokenize(twin, HELD_OUT_FILE.read_text(encoding="utf-8")) == ruth


def test_twin_is_the_same_model(ruth: list[int], twin: Path, library: sbr.Library) -> None:
    """The two layouts add the same products in another order; a token in a thousand sees another expert."""
    sequences = [ruth[:200]]
    (ours,) = runtime_logits(library, FIXTURE, sequences)
    (other,) = runtime_logits(library, twin, sequences)
    assert rms(ours, other) < 0.02


def test_perplexity_equals_llama_cpp_within_a_hundredth(
    ruth: list[int], twin: Path, library: sbr.Library, peer: Peer
) -> None:
    ours, theirs = measure.beside_llama_cpp(library, FIXTURE, twin, ruth)
    assert ours.scored == theirs.scored > 3000
    assert abs(ours.value / theirs.value - 1) < 0.01
