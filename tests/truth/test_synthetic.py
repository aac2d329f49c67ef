"""Files written by the runtime itself: llama.cpp loads the standard layout, and computes what we compute."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from stbench.agent import sbr
from stbench.agent.wire import SynthSpec
from stbench.builds.peer import Peer
from stbench.errors import InputError
from stbench.models import catalogue
from tests.truth import llama_peer, numpy_forward
from tests.truth.compare import clear_sequences, rms, runtime_logits, worst

TINY = ("tiny-smallthinker", "tiny-smallthinker:standard", "tiny-qwen3", "tiny-qwen3moe", "tiny-llama")

# SmallThinker-4B as it is, but for depth and vocabulary: 3 of 32 layers, 4096 of 151936 tokens. 190 MB.
FEW_LAYERS = {"n_layer": 3, "n_vocab": 4096, "zero_share": [970, 650, 700]}


def make(library: sbr.Library, spec: SynthSpec, path: Path) -> Path:
    sbr.synth_write(library, dataclasses.asdict(spec), str(path))
    return path


def tokens_for(spec: SynthSpec, count: int, seed: int) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, spec.n_vocab, count)]


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_agree_with_numpy(name: str, tmp_path: Path, library: sbr.Library) -> None:
    path = make(library, catalogue.lookup(name).spec, tmp_path / "model.gguf")
    model = numpy_forward.Model(path)
    sequences = clear_sequences(model, 8, 4, gap=0.02)
    references = [numpy_forward.forward(model, t, quantised_activations=True)[0] for t in sequences]
    for sparse in {False, "smallthinker" in name}:
        ours = runtime_logits(library, path, sequences, sparse_ffn=sparse)
        assert rms(np.concatenate(ours), np.concatenate(references)) < 0.04
        agreeing = sum(worst(a, b) < 1e-5 for a, b in zip(ours, references, strict=True))
        assert agreeing >= len(sequences) / 2


@pytest.mark.parametrize("name", [name for name in TINY if name != "tiny-smallthinker"])
def test_tiny_models_agree_with_llama_cpp(
    name: str, tmp_path: Path, library: sbr.Library, peer: Peer
) -> None:
    path = make(library, catalogue.lookup(name).spec, tmp_path / "model.gguf")
    sequences = clear_sequences(numpy_forward.Model(path), 4, 6, gap=0.02)
    theirs = np.concatenate(llama_peer.logits(path, sequences))
    for sparse in {False, "smallthinker" in name}:
        ours = np.concatenate(runtime_logits(library, path, sequences, sparse_ffn=sparse))
        assert rms(ours, theirs) < 0.05


def test_llama_cpp_runs_tiny_gemma3n(tmp_path: Path, library: sbr.Library, peer: Peer) -> None:
    """Its logits are finite, differ from token to token and depend on what came before; we refuse the file by
    name."""
    spec = catalogue.lookup("tiny-gemma3n").spec
    path = make(library, spec, tmp_path / "model.gguf")
    first = tokens_for(spec, 12, 1)
    second = [first[0] ^ 1, *first[1:]]
    a, b = llama_peer.logits(path, [first, second])
    assert np.isfinite(a).all()
    # Scores of deviation 2 before the soft cap at 30; unrelated logits are 1.4 deviations apart.
    assert 0.5 < a.std() < 6
    assert rms(a[1:], a[:-1]) > 0.3
    assert rms(a[-1], b[-1]) > 1e-4
    tokens, _ = llama_peer.greedy(path, first, 4)
    assert len(tokens) == 4
    with pytest.raises(InputError, match="architecture 'gemma3n' is not supported"):
        runtime_logits(library, path, [first])


def test_both_layouts_hold_the_same_weights(tmp_path: Path, library: sbr.Library) -> None:
    """What llama.cpp says of the standard twin is therefore said of the transposed file as well."""
    names = ("tiny-smallthinker", "tiny-smallthinker:standard")
    transposed, standard = (
        numpy_forward.Model(make(library, catalogue.lookup(name).spec, tmp_path / f"{i}.gguf"))
        for i, name in enumerate(names)
    )
    assert set(transposed.tensors) - set(standard.tensors) == {"lm_head_profiler.weight"}
    for name, weight in standard.tensors.items():
        values = transposed.tensors[name].values
        if "ffn_down_exps" in name:
            values = values.swapaxes(1, 2)
        assert np.array_equal(weight.values, values), name


def compare_4b(shape: dict[str, object], folder: Path, library: sbr.Library) -> None:
    """Dense and sparse FFN on a file of the real widths against llama.cpp on its standard twin."""
    entry = catalogue.lookup("smallthinker-4b")
    spec = dataclasses.replace(entry.spec, **shape)  # type: ignore[arg-type]
    twin = catalogue.standard_twin(dataclasses.replace(entry, spec=spec)).spec
    sequences = [tokens_for(spec, 12, seed) for seed in (1, 2)]

    def ours(path: Path, **options: bool) -> np.ndarray:
        return np.concatenate(runtime_logits(library, path, sequences, n_threads=2, **options))

    standard = make(library, twin, folder / "standard.gguf")
    theirs, rounded = (
        np.concatenate(llama_peer.logits(standard, sequences, threads=2, kv=kv)) for kv in ("f32", "f16")
    )
    dense = ours(standard)
    check_against_llama_cpp(dense, theirs, rounded)
    assert np.array_equal(ours(standard, sparse_ffn=True), dense)
    standard.unlink()

    transposed = make(library, spec, folder / "transposed.gguf")
    dense = ours(transposed)
    check_against_llama_cpp(dense, theirs, rounded)
    assert np.array_equal(ours(transposed, sparse_ffn=True), dense)
    assert np.array_equal(ours(transposed, sparse_ffn=True, decode=True), dense)
    transposed.unlink()


def check_against_llama_cpp(ours: np.ndarray, theirs: np.ndarray, theirs_rounded: np.ndarray) -> None:
    """Not farther from llama.cpp than llama.cpp is from itself when it rounds its cache to f16.

    Random routers decide closely: some of the 32 x 4 choices per token turn on the last bits, each of them
    changes the logits, and errors grow with depth. Measured medians (rms, in standard deviations): 3 layers
    0.02, and llama.cpp from itself 0.02; 32 layers 0.17, and 0.26. Unrelated logits are 1.4 apart.
    """

    def distance(other: np.ndarray) -> np.ndarray:
        return np.asarray(np.sqrt(((other - theirs) ** 2).mean(axis=1)) / theirs.std())

    error, sensitivity = distance(ours), distance(theirs_rounded)
    assert np.median(error) < 0.02 + 1.5 * np.median(sensitivity), (error, sensitivity)
    assert error.max() < 0.8, error
    # Where no choice turned and their best token leads clearly, it is ours.
    top = np.sort(theirs, axis=1)
    sure = (error < 0.05) & ((top[:, -1] - top[:, -2]) / theirs.std() > 6 * error)
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1))[sure].all()


def test_4b_widths_agree_with_llama_cpp(tmp_path: Path, library: sbr.Library, peer: Peer) -> None:
    compare_4b(FEW_LAYERS, tmp_path, library)


@pytest.mark.slow
def test_whole_4b_agrees_with_llama_cpp(tmp_path: Path, library: sbr.Library, peer: Peer) -> None:
    compare_4b({}, tmp_path, library)
