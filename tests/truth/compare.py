"""How far apart two sets of logits are, and sequences on which that is a fair question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stbench import native
from stbench.agent import sbr
from tests.truth import numpy_forward

Values = NDArray[Any]


def worst(ours: Values, reference: Values) -> float:
    """Largest difference, in standard deviations of the reference."""
    return float(np.abs(ours - reference).max() / reference.std())


def rms(ours: Values, reference: Values) -> float:
    """Root of the mean squared difference, in standard deviations of the reference."""
    return float(np.sqrt(np.mean((ours - reference) ** 2)) / reference.std())


def clear_sequences(
    model: numpy_forward.Model, count: int, length: int, *, gap: float = 0.05, seed: int = 7
) -> list[list[int]]:
    """Random sequences on which no routing decision is closer than ``gap``.

    An expert that is swapped for its near-equal changes logits by half a standard deviation and is nobody's
    mistake. 8-bit activations move router scores by about a hundredth of their standard deviation, which
    ``gap`` is counted in.
    """
    random = np.random.default_rng(seed)
    found: list[list[int]] = []
    vocabulary = len(model["token_embd"].values)
    for _ in range(200 * count):
        tokens = [int(t) for t in random.integers(0, vocabulary, length)]
        if not model.n_expert or numpy_forward.forward(model, tokens)[1].router_gap.min() > gap:
            found.append(tokens)
        if len(found) == count:
            return found
    raise AssertionError("no sequences with clear routing")


def runtime_logits(
    library: sbr.Library, path: Path, sequences: list[list[int]], *, decode: bool = False, **options: Any
) -> list[Values]:
    """Our logits of each sequence, by prefill or token by token; f32 KV cache and one thread unless told
    otherwise.
    """
    settings = {"kv_type": "f32", "n_ctx": max(map(len, sequences)), **options}
    results = []
    with native.open_model(library, path) as model, native.open_session(model, **settings) as session:
        for tokens in sequences:
            session.rewind(0)
            results.append(
                native.decode_all(session, tokens) if decode else native.prefill_all(session, tokens)
            )
    return results
