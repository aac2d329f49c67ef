"""Tiny random models of every architecture and type: the runtime against numpy and against llama.cpp.

Tolerances are in standard deviations of the logits. Measured on 2026-11-22 (Zen 4), largest over
architectures:

                        numpy          numpy, 8-bit activations     llama.cpp
    f32                 2e-6 (worst)                                2e-6 (worst)
    f16                 2e-6                                        6e-4 (rms): f16 activations
    bf16                2e-6                                        5e-3 (rms): bf16 activations
    q8_0, q4_0, q4_1    0.018 (rms)    1e-6 (worst), but for flips  0.018 (rms): 8 bits, other scales
    q4_k, q6_k          0.018 (rms)    1e-6 (worst), but for flips  0.030 (rms): 8 bits, blocks of 256

A flip: the float of an activation lies within float32 rounding of a step of its 8-bit grid, and the float64
of numpy falls on the other side (about one in 1e5 does). That moves the logits of this and all later tokens
by up to 0.05. Sequences are therefore short and several, and half of them must agree to the last bits (at
least 6 of 8 did).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stbench.agent import sbr
from stbench.builds.peer import Peer
from tests.truth import llama_peer, numpy_forward
from tests.truth.compare import clear_sequences, rms, runtime_logits, worst
from tests.truth.tiny import TYPES, Tiny, write

ARCHITECTURES = ("smallthinker", "qwen3", "qwen3moe", "llama")
FLOAT_TYPES = ("f32", "f16", "bf16")
QUANTISED_TYPES = tuple(kind for kind in TYPES if kind not in FLOAT_TYPES)

ROUNDING = 1e-5
EIGHT_BITS_RMS = 0.04
FLIPS_RMS = 0.015  # 0.004 measured
LLAMA_CPP_RMS = {
    "f32": 1e-5,
    "f16": 2e-3,
    "bf16": 1.5e-2,
    "q8_0": 0.04,
    "q4_0": 0.04,
    "q4_1": 0.04,
    "q4_k": 0.06,
    "q6_k": 0.06,
}

VARIANTS = {
    "smallthinker-softmax": Tiny("smallthinker", softmax_router=True),
    "smallthinker-untied": Tiny("smallthinker", tied_output=False),
    "smallthinker-all-experts": Tiny("smallthinker", n_expert=4, n_expert_used=4),
    "smallthinker-one-expert": Tiny("smallthinker", n_expert_used=1),
    "smallthinker-windowed": Tiny("smallthinker", window=4096, n_layer=6),
    "qwen3-untied": Tiny("qwen3", tied_output=False),
    "qwen3moe-untied": Tiny("qwen3moe", tied_output=False),
    "qwen3moe-all-experts": Tiny("qwen3moe", n_expert=4, n_expert_used=4),
    "qwen3moe-many-experts": Tiny("qwen3moe", n_ff=256, n_expert=32, n_expert_used=8),
    "llama-ungrouped": Tiny("llama", n_head_kv=4, rope_freq_base=5e5),
}


def numpy_logits(model: numpy_forward.Model, sequences: list[list[int]], **options: bool) -> list[np.ndarray]:
    return [numpy_forward.forward(model, tokens, **options)[0] for tokens in sequences]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_numpy_agrees_with_llama_cpp(arch: str, tmp_path: Path, peer: Peer) -> None:
    """The two referees share no line of code; where they agree to rounding, the equations are right."""
    path = write(Tiny(arch), tmp_path / "model.gguf")
    model = numpy_forward.Model(path)
    sequences = clear_sequences(model, 2, 16, gap=0.001)
    for theirs, reference in zip(
        llama_peer.logits(path, sequences), numpy_logits(model, sequences), strict=True
    ):
        assert worst(theirs, reference) < ROUNDING


@pytest.mark.parametrize("kind", FLOAT_TYPES)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_float_weights_agree_with_numpy(arch: str, kind: str, tmp_path: Path, library: sbr.Library) -> None:
    path = write(Tiny(arch, kind), tmp_path / "model.gguf")
    model = numpy_forward.Model(path)
    sequences = clear_sequences(model, 2, 16, gap=0.001)
    for ours, reference in zip(
        runtime_logits(library, path, sequences), numpy_logits(model, sequences), strict=True
    ):
        assert worst(ours, reference) < ROUNDING


@pytest.mark.parametrize("kind", QUANTISED_TYPES)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_quantised_weights_agree_with_numpy(
    arch: str, kind: str, tmp_path: Path, library: sbr.Library
) -> None:
    path = write(Tiny(arch, kind), tmp_path / "model.gguf")
    model = numpy_forward.Model(path)
    sequences = clear_sequences(model, 8, 4)
    ours = runtime_logits(library, path, sequences)
    exact = numpy_logits(model, sequences)
    rounded = numpy_logits(model, sequences, quantised_activations=True)
    assert rms(np.concatenate(ours), np.concatenate(exact)) < EIGHT_BITS_RMS
    assert rms(np.concatenate(ours), np.concatenate(rounded)) < FLIPS_RMS
    assert sum(worst(a, b) < ROUNDING for a, b in zip(ours, rounded, strict=True)) >= len(sequences) / 2


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_type_agrees_with_llama_cpp(
    arch: str, kind: str, tmp_path: Path, library: sbr.Library, peer: Peer
) -> None:
    path = write(Tiny(arch, kind), tmp_path / "model.gguf")
    sequences = clear_sequences(numpy_forward.Model(path), 4, 6)
    ours = runtime_logits(library, path, sequences)
    theirs = llama_peer.logits(path, sequences)
    assert rms(np.concatenate(ours), np.concatenate(theirs)) < LLAMA_CPP_RMS[kind]


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_agree_with_numpy_and_llama_cpp(
    name: str, tmp_path: Path, library: sbr.Library, peer: Peer
) -> None:
    path = write(VARIANTS[name], tmp_path / "model.gguf")
    model = numpy_forward.Model(path)
    sequences = clear_sequences(model, 2, 12, gap=0.001)
    ours = np.concatenate(runtime_logits(library, path, sequences))
    assert worst(ours, np.concatenate(numpy_logits(model, sequences))) < ROUNDING
    assert worst(ours, np.concatenate(llama_peer.logits(path, sequences))) < ROUNDING


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_half_precision_cache_agrees_with_llama_cpp(
    arch: str, tmp_path: Path, library: sbr.Library, peer: Peer
) -> None:
    """Both round keys and values once, when they are stored: 4e-4 (rms) between them."""
    path = write(Tiny(arch), tmp_path / "model.gguf")
    sequences = clear_sequences(numpy_forward.Model(path), 2, 12, gap=0.02)
    ours = runtime_logits(library, path, sequences, kv_type="f16")
    theirs = llama_peer.logits(path, sequences, kv="f16")
    assert rms(np.concatenate(ours), np.concatenate(theirs)) < 2e-3


@pytest.mark.parametrize("kind", ["f32", "q4_0", "q6_k"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_greedy_tokens_equal_llama_cpp(
    arch: str, kind: str, tmp_path: Path, library: sbr.Library, peer: Peer
) -> None:
    """Our argmax after each of llama.cpp's tokens, wherever its lead exceeds what the type's rounding can
    turn.
    """
    path = write(Tiny(arch, kind), tmp_path / "model.gguf")
    # Activations in blocks of 256 (q6_k) differ most: 0.15 at worst between the two.
    lead = 1e-4 if kind == "f32" else 0.3
    decided = 0
    for prompt in clear_sequences(numpy_forward.Model(path), 4, 4):
        tokens, theirs = llama_peer.greedy(path, prompt, 12)
        ours = runtime_logits(library, path, [[*prompt, *tokens]], decode=True)[0][len(prompt) - 1 : -1]
        top = np.sort(theirs, axis=1)
        clear = (top[:, -1] - top[:, -2]) / theirs.std() > lead
        # Routing of generated tokens is not chosen: stop where an expert was swapped.
        same = np.abs(ours - theirs).max(axis=1) / theirs.std() < lead
        upto = len(same) if same.all() else int(np.argmin(same))
        chosen = clear[:upto]
        assert (ours.argmax(axis=1)[:upto][chosen] == np.array(tokens)[:upto][chosen]).all()
        decided += int(chosen.sum())
    assert decided >= 12, "too few decisions were clear: this test would prove nothing"
