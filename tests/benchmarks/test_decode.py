"""Decode and prefill of a 4-layer slice of SmallThinker-4B, per switch, by pytest-benchmark.

``pytest tests/benchmarks --benchmark-compare`` compares with an earlier run of the same machine; nothing here
asserts a time. Four layers at real widths (400 MB) exceed every cache, so memory traffic is that of the real
model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stbench import catalogue
from stbench.agent import sbr, wire

LAYERS = 4
PROMPT = 64


@pytest.fixture(scope="module")
def slice_of_4b(library_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sbr.Model]:
    spec = catalogue.lookup("smallthinker-4b").spec
    assert spec.zero_share is not None
    # The last layers' sparsity, as most of the model has it.
    small = replace(spec, n_layer=LAYERS, zero_share=spec.zero_share[-LAYERS:], name="4b-slice")
    path = tmp_path_factory.mktemp("bench") / "slice.gguf"
    library = sbr.load(str(library_path))
    sbr.synth_write(library, wire.to_json(small), str(path))
    with sbr.Model(library, str(path), populate=True) as model:
        yield model
    path.unlink()


def varied_tokens(count: int, n_vocab: int) -> list[int]:
    return [(7919 * i + 13) % n_vocab for i in range(count)]


@pytest.mark.parametrize(
    ("sparse_ffn", "sparse_lm_head"),
    [(False, False), (True, False), (False, True), (True, True)],
    ids=["dense", "sparse", "lmhead", "sparse+lmhead"],
)
def test_decode(benchmark: Any, slice_of_4b: sbr.Model, sparse_ffn: bool, sparse_lm_head: bool) -> None:
    steps = varied_tokens(16, slice_of_4b.n_vocab)
    with sbr.Session(
        slice_of_4b, n_threads=2, n_ctx=256, sparse_ffn=sparse_ffn, sparse_lm_head=sparse_lm_head
    ) as session:
        session.prefill(varied_tokens(PROMPT, slice_of_4b.n_vocab))

        def decode() -> None:
            session.rewind(PROMPT)
            session.decode(steps)

        benchmark(decode)
        benchmark.extra_info["tokens"] = len(steps)


def test_prefill(benchmark: Any, slice_of_4b: sbr.Model) -> None:
    prompt = varied_tokens(PROMPT, slice_of_4b.n_vocab)
    with sbr.Session(slice_of_4b, n_threads=2, n_ctx=256, n_batch=PROMPT) as session:

        def prefill() -> None:
            session.rewind(0)
            session.prefill(prompt)

        benchmark(prefill)
        benchmark.extra_info["tokens"] = len(prompt)
