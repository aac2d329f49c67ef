"""What only SmallThinker has: windows, NoPE layers, two down layouts, counted neurons, the predictor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stbench import native
from stbench.agent import sbr
from stbench.builds.peer import Peer
from stbench.errors import InputError
from tests.truth import llama_peer, numpy_forward
from tests.truth.compare import clear_sequences, rms, runtime_logits, worst
from tests.truth.tiny import Tiny, write

ROUNDING = 1e-5

# Two layers more than a period of four, so that a global layer lies behind windowed ones.
WINDOWED = Tiny("smallthinker", window=5, n_layer=6, n_expert=4, n_expert_used=2)


@pytest.mark.parametrize("decode", [False, True])
def test_window_counts_the_present_token(decode: bool, tmp_path: Path, library: sbr.Library) -> None:
    path = write(WINDOWED, tmp_path / "model.gguf")
    model = numpy_forward.Model(path)
    sequences = clear_sequences(model, 1, 14, gap=0.0005)
    (ours,) = runtime_logits(library, path, sequences, decode=decode)
    reference, _ = numpy_forward.forward(model, sequences[0])
    assert worst(ours, reference) < ROUNDING
    # The test can fail: neighbouring windows differ by far more than rounding, from the token that feels
    # them.
    for other in (4, 6):
        changed, _ = numpy_forward.forward(model, sequences[0], window=other)
        assert worst(changed[:4], reference[:4]) < ROUNDING
        assert worst(changed, reference) > 0.1


@pytest.mark.slow
def test_window_of_4096_equals_llama_cpp_beyond_it(tmp_path: Path, library: sbr.Library, peer: Peer) -> None:
    """llama.cpp takes the key as a flag and uses 4096 whatever it says, so only a long sequence shows the
    window.
    """
    spec = Tiny(
        "smallthinker", window=4096, n_layer=5, n_embd=64, n_head=2, n_head_kv=1, head_dim=32, n_ff=96
    )
    path = write(spec, tmp_path / "model.gguf")
    tokens = [int(t) for t in np.random.default_rng(3).integers(0, spec.n_vocab, 4160)]
    (ours,) = runtime_logits(library, path, [tokens])
    (theirs,) = llama_peer.logits(path, [tokens])
    # Among 20,800 decisions some are closer than float32 can tell: those tokens, and few others, differ.
    apart = np.abs(ours - theirs).max(axis=1) / theirs.std()
    assert np.median(apart[4100:]) < 1e-4
    assert np.mean(apart[4100:] < 1e-2) > 0.9


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_transposed_down_agrees_with_numpy(kind: str, tmp_path: Path, library: sbr.Library) -> None:
    path = write(Tiny("smallthinker", kind, transposed_down=True), tmp_path / "model.gguf")
    model = numpy_forward.Model(path)
    sequences = clear_sequences(model, 8, 4)
    references = [numpy_forward.forward(model, t, quantised_activations=True)[0] for t in sequences]
    for sparse in (False, True):
        ours = runtime_logits(library, path, sequences, sparse_ffn=sparse)
        assert rms(np.concatenate(ours), np.concatenate(references)) < 0.04
        agreeing = sum(worst(a, b) < ROUNDING for a, b in zip(ours, references, strict=True))
        assert agreeing >= len(sequences) / 2


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "q4_0", "q4_1", "q4_k", "q6_k"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("decode", [False, True])
def test_sparse_ffn_is_dense_ffn_to_the_bit(
    kind: str, transposed: bool, decode: bool, tmp_path: Path, library: sbr.Library
) -> None:
    path = write(Tiny("smallthinker", kind, transposed_down=transposed), tmp_path / "model.gguf")
    tokens = [[int(t) for t in np.random.default_rng(4).integers(0, 384, 12)]]
    if transposed and kind in {"q4_1", "q4_k", "q6_k"}:
        # These have no neuron-major kernel; the file is refused by name.
        with pytest.raises(InputError, match=kind):
            runtime_logits(library, path, tokens)
        return
    (dense,) = runtime_logits(library, path, tokens, decode=decode)
    (sparse,) = runtime_logits(library, path, tokens, decode=decode, sparse_ffn=True)
    assert np.array_equal(dense, sparse)


@pytest.mark.parametrize("sparse", [False, True])
def test_active_neurons_are_counted(sparse: bool, tmp_path: Path, library: sbr.Library) -> None:
    spec = Tiny("smallthinker", transposed_down=True)
    path = write(spec, tmp_path / "model.gguf")
    reference = numpy_forward.Model(path)
    (tokens,) = clear_sequences(reference, 1, 10, gap=0.0005)
    trace = numpy_forward.forward(reference, tokens)[1]
    with (
        native.open_model(library, path) as model,
        native.open_session(model, kv_type="f32", n_ctx=16, sparse_ffn=sparse) as session,
    ):
        native.prefill_all(session, tokens[:6])
        native.decode_all(session, tokens[6:])
        counted = session.layer_counters()
        experts = [session.expert_counts(layer) for layer in range(spec.n_layer)]
    for layer in range(spec.n_layer):
        active = sum(trace.active[layer, t] for t in range(len(tokens)))
        assert counted[layer] == (len(tokens) * spec.n_expert_used * spec.n_ff, active)
        chosen = [e for t in range(len(tokens)) for e in trace.experts[layer, t]]
        assert experts[layer] == [chosen.count(e) for e in range(spec.n_expert)]


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.0])
def test_predictor_keeps_what_numpy_says(threshold: float, tmp_path: Path, library: sbr.Library) -> None:
    path = write(Tiny("smallthinker", predictor_rank=32), tmp_path / "model.gguf")
    reference = numpy_forward.Model(path)
    (tokens,) = clear_sequences(reference, 1, 6, gap=0.0005)
    dense, trace = numpy_forward.forward(reference, tokens, quantised_activations=True)
    assert trace.scores is not None
    with (
        native.open_model(library, path) as model,
        native.open_session(
            model, kv_type="f32", n_ctx=8, sparse_lm_head=True, lm_head_threshold=threshold
        ) as session,
    ):
        decoded = session.decode(tokens, capture=range(len(tokens)), scores=True)
        ours = np.frombuffer(decoded.logits, dtype=np.float32).reshape(dense.shape)
        scores = np.frombuffer(decoded.scores, dtype=np.float32).reshape(dense.shape)
        rows = session.counters().lm_head_rows
    kept = np.isfinite(ours)
    assert rows == kept.sum()
    assert np.array_equal(kept, scores > threshold)
    assert (ours[~kept] == -np.inf).all()
    assert worst(ours[kept], dense[kept]) < ROUNDING
    # The predictor is Q4_0 with an 8-bit input of its own: a flip there moves scores by up to a hundredth.
    assert worst(scores, trace.scores) < 0.05
    assert rms(scores, trace.scores) < 0.01
    clear = np.abs(trace.scores - threshold) > 0.05
    assert np.array_equal(kept[clear], (trace.scores > threshold)[clear])
    assert 0.05 < kept.mean() < 0.95


def test_missing_gating_key_means_sigmoid_and_is_said(tmp_path: Path, library: sbr.Library) -> None:
    paths = [write(Tiny("smallthinker", gating_key=key), tmp_path / f"{key}.gguf") for key in (True, False)]
    tokens = [[1, 2, 3, 4]]
    assert np.array_equal(*(runtime_logits(library, path, tokens)[0] for path in paths))
    for path, expected in zip(paths, (0, 1), strict=True):
        with native.open_model(library, path) as model:
            said = [line for line in model.warnings() if "expert_gating_func" in line]
            assert len(said) == expected
