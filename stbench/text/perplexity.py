"""Perplexity of a model on a text, counted as llama.cpp's tool counts it.

The text's tokens are cut into chunks of ``context``; a remainder is left out. Each chunk starts afresh, and
the tokens of its second half are scored: every one of them has at least half a context before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stbench import native
from stbench.agent import sbr
from stbench.errors import UsageError

# Logits of this many tokens are held at once: 39 MB at a vocabulary of 151936.
_SLICE = 64


@dataclass(frozen=True)
class Perplexity:
    """``standard_error`` is of ``value``, from the spread over tokens as if they were independent; None of
    a single token."""

    value: float
    standard_error: float | None
    chunks: int
    context: int
    scored: int


def chunk(tokens: Sequence[int], context: int) -> list[list[int]]:
    """Whole chunks of ``context`` tokens. Raises :class:`UsageError` when there is not one."""
    if context < 4:
        raise UsageError(f"--context: expected 4 or more, got {context}")
    whole = len(tokens) // context
    if whole == 0:
        raise UsageError(
            f"the text has {len(tokens)} tokens, fewer than one chunk of {context}",
            hint="a longer text, or a smaller --context",
        )
    return [list(tokens[i * context : (i + 1) * context]) for i in range(whole)]


def negative_log_likelihoods(logits: native.Logits, following: Sequence[int]) -> NDArray[np.float64]:
    """-ln p of each following token. logits [n, n_vocab]: what following[i] was drawn from."""
    values = logits.astype(np.float64)
    top = values.max(axis=1)
    total = np.log(np.exp(values - top[:, None]).sum(axis=1)) + top
    return np.asarray(total - values[np.arange(len(values)), list(following)], dtype=np.float64)


def summarise(losses: NDArray[np.float64], chunks: int, context: int) -> Perplexity:
    """Perplexity from the -ln p of all scored tokens."""
    value = float(np.exp(losses.mean()))
    error = value * float(losses.std(ddof=1) / np.sqrt(len(losses))) if len(losses) > 1 else None
    return Perplexity(value, error, chunks, context, len(losses))


def measure(
    model: sbr.Model,
    tokens: Sequence[int],
    context: int,
    switches: native.Switches,
    *,
    prefix: Sequence[int] = (),
    unscored: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Perplexity on ``tokens``. ``prefix`` replaces the first tokens of each chunk (a begin-of-text token);
    ``unscored`` is how many tokens of a chunk only give context to the others (default: half)."""
    parts = chunk(tokens, context)
    first = context // 2 if unscored is None else unscored
    losses = []
    with native.open_session(model, n_ctx=context, **switches.options()) as session:
        for done, part in enumerate(parts):
            fed = [*prefix, *part[len(prefix) :]]
            session.rewind(0)
            with native.native_errors():
                session.prefill(fed[:first])
            for begin in range(first, context - 1, _SLICE):
                end = min(begin + _SLICE, context - 1)
                logits = native.prefill_all(session, fed[begin:end])
                losses.append(negative_log_likelihoods(logits, fed[begin + 1 : end + 1]))
            if progress is not None:
                progress(done + 1, len(parts))
    return summarise(np.concatenate(losses), len(parts), context)
