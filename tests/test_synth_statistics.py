"""What synthetic weights promise, measured by running them: zero neurons, hot experts, kept rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from stbench.agent import sbr
from stbench.agent.wire import SynthSpec
from tests.shapes import SMALLTHINKER

# Deep enough that a drift of the residual stream would show, wide enough that shares are shares.
DEEP = dataclasses.replace(
    SMALLTHINKER,
    name="deep",
    n_layer=24,
    n_embd=256,
    head_dim=64,
    n_ff=192,
    n_vocab=2000,
    n_ctx_train=2048,
    seed=11,
    n_expert=16,
    n_expert_used=4,
    predictor_rank=128,
    zero_share=[970, 950, 920, 880] + [620 + 5 * layer for layer in range(20)],
    hot_experts=4,
    hot_share=700,
)
N_TOKENS = 384
N_DECODED = 48


@pytest.fixture(scope="module")
def library(library_path: Path) -> sbr.Library:
    return sbr.load(str(library_path))


@dataclasses.dataclass
class Measured:
    """Shares in 1/1000; ``logits`` of the last prompt positions, [n, n_vocab]."""

    zeros: list[float]
    hot: float
    kept: float
    logits: np.ndarray


def measure(library: sbr.Library, spec: SynthSpec, path: Path) -> Measured:
    sbr.synth_write(library, dataclasses.asdict(spec), str(path))
    tokens = np.random.default_rng(3).integers(0, spec.n_vocab, N_TOKENS + N_DECODED).tolist()
    with (
        sbr.Model(library, str(path)) as model,
        sbr.Session(model, n_ctx=512, sparse_ffn=True, sparse_lm_head=spec.predictor_rank > 0) as session,
    ):
        session.prefill(tokens[: N_TOKENS - 32])
        logits = np.frombuffer(session.prefill(tokens[N_TOKENS - 32 : N_TOKENS], "all").logits, np.float32)
        zeros = [1000 - 1000 * active / examined for examined, active in session.layer_counters()]
        hot = []
        for layer in range(spec.n_layer):
            counts = np.sort(session.expert_counts(layer))
            hot.append(counts[spec.n_expert - spec.hot_experts :].sum() / counts.sum())
        session.reset_counters()
        session.decode(tokens[N_TOKENS:])
        kept = session.counters().lm_head_rows / (N_DECODED * spec.n_vocab)
    return Measured(zeros, 1000 * float(np.mean(hot)), 1000 * kept, logits.reshape(32, -1).copy())


@pytest.mark.parametrize("weight_type", ["q4_0", "q8_0", "f16", "f32"])
def test_set_shares_come_out(weight_type: str, tmp_path: Path, library: sbr.Library) -> None:
    found = measure(library, dataclasses.replace(DEEP, weight_type=weight_type), tmp_path / "model.gguf")
    assert DEEP.zero_share is not None
    assert np.max(np.abs(np.subtract(found.zeros, DEEP.zero_share))) < 15
    assert found.hot == pytest.approx(DEEP.hot_share, abs=50)
    assert found.kept == pytest.approx(DEEP.lm_head_keep, abs=20)


@pytest.mark.parametrize("keep", [20, 500, 1000])
def test_the_predictor_keeps_what_it_should(keep: int, tmp_path: Path, library: sbr.Library) -> None:
    found = measure(
        library, dataclasses.replace(DEEP, n_layer=2, zero_share=None, lm_head_keep=keep), tmp_path / "m"
    )
    assert found.kept == pytest.approx(keep, abs=30)
    assert np.allclose(found.zeros, 500, atol=15)


def test_without_skew_experts_are_used_evenly(tmp_path: Path, library: sbr.Library) -> None:
    even = dataclasses.replace(DEEP, n_layer=4, zero_share=[700] * 4, hot_experts=4, hot_share=0)
    # The four most used of sixteen take more than a quarter by chance.
    assert measure(library, even, tmp_path / "model.gguf").hot < 400


def dense_logits(library: sbr.Library, spec: SynthSpec, path: Path) -> np.ndarray:
    """Of 32 positions of a model without switches."""
    sbr.synth_write(library, dataclasses.asdict(spec), str(path))
    tokens = np.random.default_rng(3).integers(0, spec.n_vocab, 64).tolist()
    with sbr.Model(library, str(path)) as model, sbr.Session(model, n_ctx=64) as session:
        session.prefill(tokens[:32])
        logits = session.prefill(tokens[32:], "all").logits
    return np.frombuffer(logits, np.float32).reshape(32, -1)


@pytest.mark.parametrize("architecture", ["smallthinker", "qwen3", "qwen3moe", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_of_a_sane_size_and_varied(
    architecture: str, tied: bool, tmp_path: Path, library: sbr.Library
) -> None:
    spec = dataclasses.replace(DEEP, tied_output=tied)
    if architecture == "smallthinker":
        logits = measure(library, spec, tmp_path / "model.gguf").logits
    else:
        moe = ("n_expert", "n_expert_used", "predictor_rank", "hot_experts", "hot_share", "lm_head_keep")
        dense = dict.fromkeys(moe, 0) | {"transposed_down": False, "zero_share": None, "n_ff": 768}
        if architecture == "qwen3moe":
            dense |= {"n_expert": 16, "n_expert_used": 4, "n_ff": 192}
        spec = dataclasses.replace(spec, architecture=architecture, **dense)
        logits = dense_logits(library, spec, tmp_path / "model.gguf")
    assert logits.std(axis=1).min() > 1.5
    assert logits.std(axis=1).max() < 3
    assert len(set(logits.argmax(axis=1).tolist())) > 24
