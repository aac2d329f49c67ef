"""Steps of models, synthesis and loading: one layer at SmallThinker-4B's shape, and the tiny model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stbench.agent import sbr, wire
from stbench.models import catalogue
from tests.benchmarks.conftest import Measure

pytestmark = pytest.mark.quiet

PROMPT = 64
STEPS = 16

LAYER = "one layer of 4B"
TINY = "tiny"


def spec_of(name: str) -> wire.SynthSpec:
    """The layer has a small vocabulary: its step is the layer's own. Its 64 MB of experts exceed most
    caches."""
    if name == TINY:
        return catalogue.lookup("tiny-smallthinker").spec
    spec = catalogue.lookup("smallthinker-4b").spec
    assert spec.zero_share is not None
    # The last layer's sparsity, as most of the model has it.
    return replace(spec, n_layer=1, zero_share=spec.zero_share[-1:], n_vocab=512, name="4b-layer")


@pytest.fixture(scope="module", params=[TINY, LAYER])
def path(
    request: pytest.FixtureRequest, library: sbr.Library, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("bench") / "model.gguf"
    sbr.synth_write(library, wire.to_json(spec_of(request.param)), str(path))
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def model(library: sbr.Library, path: Path) -> Iterator[sbr.Model]:
    with sbr.Model(library, str(path), populate=True) as model:
        yield model


def varied_tokens(count: int, n_vocab: int) -> list[int]:
    return [(7919 * i + 13) % n_vocab for i in range(count)]


@pytest.mark.parametrize("sparse_lm_head", [False, True], ids=["", "lmhead"])
@pytest.mark.parametrize("sparse_ffn", [False, True], ids=["dense", "sparse"])
def test_decode(
    measure: Measure, speed: Callable[..., None], model: sbr.Model, sparse_ffn: bool, sparse_lm_head: bool
) -> None:
    steps = varied_tokens(STEPS, model.n_vocab)
    with sbr.Session(
        model, n_threads=2, n_ctx=256, sparse_ffn=sparse_ffn, sparse_lm_head=sparse_lm_head
    ) as session:
        session.prefill(varied_tokens(PROMPT, model.n_vocab))

        def decode() -> None:
            session.rewind(PROMPT)
            session.decode(steps)

        speed(tokens_s=STEPS / measure(decode) * 1e9)


@pytest.mark.parametrize("sparse_ffn", [False, True], ids=["dense", "sparse"])
def test_prefill(measure: Measure, speed: Callable[..., None], model: sbr.Model, sparse_ffn: bool) -> None:
    prompt = varied_tokens(PROMPT, model.n_vocab)
    with sbr.Session(model, n_threads=2, n_ctx=256, n_batch=PROMPT, sparse_ffn=sparse_ffn) as session:

        def prefill() -> None:
            session.rewind(0)
            session.prefill(prompt)

        speed(tokens_s=PROMPT / measure(prefill) * 1e9)


@pytest.mark.parametrize("load", ["mmap", "read"])
def test_load(
    measure: Measure, speed: Callable[..., None], library: sbr.Library, path: Path, load: str
) -> None:
    """The file is in the page cache, as a load after the first finds it."""

    def load_model() -> None:
        sbr.Model(library, str(path), load=load, populate=True).close()

    speed(gb_s=path.stat().st_size / measure(load_model))


def test_synthesis(
    measure: Measure, speed: Callable[..., None], library: sbr.Library, tmp_path: Path, full: bool
) -> None:
    spec = wire.to_json(spec_of(LAYER if full else TINY))
    path = tmp_path / "model.gguf"
    ns = measure(lambda: sbr.synth_write(library, spec, str(path)))
    speed(gb_s=path.stat().st_size / ns)
