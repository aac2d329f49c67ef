"""Text from a model, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stbench import native
from stbench.agent import sbr
from stbench.errors import UsageError
from stbench.text.sampling import Sampler, Sampling
from stbench.text.tokenizer import TextTokenizer


def generate_tokens(
    model: sbr.Model,
    prompt: Sequence[int],
    count: int,
    *,
    ends: frozenset[int],
    sampling: Sampling,
    switches: native.Switches,
) -> Iterator[int]:
    """Up to ``count`` tokens after ``prompt``, each as soon as it is known; stops before a token of ``ends``.

    Raises :class:`UsageError` for an empty prompt or one beyond the model's context.
    """
    if not prompt:
        raise UsageError("the prompt is empty")
    longest = int(model.info.n_ctx_train)
    if len(prompt) + count > longest:
        raise UsageError(
            f"{len(prompt)} prompt tokens and -n {count} exceed the model's context of {longest} tokens",
            hint=f"-n {longest - len(prompt)}" if longest > len(prompt) else "a shorter prompt",
        )
    sampler = Sampler(sampling)
    with native.open_session(model, n_ctx=len(prompt) + count, **switches.options()) as session:
        logits = native.prefill_last(session, prompt)
        for made in range(1, count + 1):
            token = sampler.pick(logits)
            if token in ends:
                return
            yield token
            if made < count:
                logits = native.decode_all(session, [token])[0]


def generate_text(
    model: sbr.Model,
    tokenizer: TextTokenizer,
    prompt: str,
    count: int,
    sampling: Sampling,
    switches: native.Switches,
) -> Iterator[str]:
    """Pieces of the text that follows ``prompt`` (special tokens spelled in it count as such)."""
    tokens = [*tokenizer.prefix, *tokenizer.encode(prompt)]
    made = generate_tokens(model, tokens, count, ends=tokenizer.ends, sampling=sampling, switches=switches)
    return tokenizer.stream(made)
