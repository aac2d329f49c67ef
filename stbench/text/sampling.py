"""Choosing the next token: temperature, top-k, top-p, from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stbench.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """``temperature`` 0 takes the most likely token; ``top_k`` 0 and ``top_p`` 1 switch their cut off."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"--temperature: expected a number of at least 0, got {self.temperature:g}")
        if self.top_k < 0:
            raise UsageError(f"--top-k: expected 0 (off) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p: expected more than 0 and at most 1, got {self.top_p:g}")


def probabilities(logits: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float64]:
    """What each token is drawn with, [n_vocab]; -inf logits (rows that were skipped) are never drawn.

    Top-k first, then top-p over what is left: the fewest most likely tokens that together reach ``top_p``.
    Among equal logits the lower id goes first.
    """
    values = logits.astype(np.float64)
    if sampling.temperature == 0:
        chosen = np.zeros(len(values))
        chosen[int(np.argmax(values))] = 1.0
        return chosen
    order = np.argsort(-values, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    scaled = (values[order] - values[order[0]]) / sampling.temperature
    weights = np.exp(scaled)
    weights /= weights.sum()
    if sampling.top_p < 1:
        # Kept while what came before has not reached top_p: at least one.
        keep = np.cumsum(weights) - weights < sampling.top_p
        order, weights = order[keep], weights[keep]
        weights /= weights.sum()
    result = np.zeros(len(values))
    result[order] = weights
    return result


class Sampler:
    """Draws tokens; the same seed and logits give the same tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.Generator(np.random.PCG64(sampling.seed))

    def pick(self, logits: NDArray[np.float32]) -> int:
        """The next token id."""
        if self._sampling.temperature == 0:
            return int(np.argmax(logits))
        weights = probabilities(logits, self._sampling)
        candidates = np.flatnonzero(weights)
        point = self._random.random() * weights[candidates].sum()
        index = int(np.searchsorted(np.cumsum(weights[candidates]), point, side="right"))
        return int(candidates[min(index, len(candidates) - 1)])
