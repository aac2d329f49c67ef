"""What the sparse switches cost: their logits beside the dense ones, on the same tokens, one step at a time.

The sparse FFN skips exactly what is zero, so its figures are a check; the sparse lm_head and a re-quantised
down matrix change the distribution, and these figures say how much. On synthetic weights they say nothing
about a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stbench import native
from stbench.agent import sbr
from stbench.errors import InputError, UsageError

SYNTHETIC_NOTE = "not meaningful on synthetic weights: these figures describe random numbers, not a model"

# Steps whose logits are held at once, twice.
_SLICE = 16


@dataclass(frozen=True)
class Agreement:
    """Means over ``steps`` decode steps.

    ``top1``: the most likely token is the same. ``overlap``: share of the ``k`` most likely that both have.
    ``kl``: KL(sparse || dense) in nats, which is finite when rows are skipped. ``kept_mass``: the dense
    probability of the rows that were not skipped; its least value is ``kept_mass_min``. ``identical``: every
    logit of every step is. ``rows``: mean number of output rows computed.
    """

    steps: int
    k: int
    top1: float
    overlap: float
    kl: float
    kl_max: float
    kept_mass: float
    kept_mass_min: float
    identical: bool
    rows: float


@dataclass(frozen=True)
class Variant:
    """One way to run the model. ``agreement`` is None when the file cannot be run so; ``reason`` says why."""

    name: str
    agreement: Agreement | None = None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a JSON-ready dict."""
        return asdict(self)


@dataclass
class _Sums:
    """Per-step figures of one variant."""

    top1: list[float]
    overlap: list[float]
    kl: list[float]
    mass: list[float]
    rows: list[float]
    identical: bool = True


def log_softmax(logits: native.Logits) -> NDArray[np.float64]:
    """ln p per row; skipped rows (-inf) stay -inf."""
    values = logits.astype(np.float64)
    shifted = values - values.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _add(sums: _Sums, dense: native.Logits, sparse: native.Logits, k: int) -> None:
    log_dense, log_sparse = log_softmax(dense), log_softmax(sparse)
    for step in range(len(dense)):
        kept = np.isfinite(sparse[step])
        p = np.exp(log_sparse[step][kept])
        sums.kl.append(float((p * (log_sparse[step][kept] - log_dense[step][kept])).sum()))
        sums.mass.append(float(np.exp(log_dense[step][kept]).sum()))
        sums.rows.append(float(kept.sum()))
        sums.top1.append(float(np.argmax(dense[step]) == np.argmax(sparse[step])))
        sums.overlap.append(len(_top(dense[step], k) & _top(sparse[step], k)) / k)
    sums.identical &= bool(np.array_equal(dense, sparse))


def _top(logits: NDArray[np.float32], k: int) -> set[int]:
    best = np.argsort(-logits, kind="stable")[:k]
    return {int(i) for i in best if np.isfinite(logits[i])}


def agreement(dense: native.Logits, sparse: native.Logits, k: int) -> Agreement:
    """Compares two sets of logits [steps, n_vocab]; -inf in ``sparse`` marks skipped rows."""
    sums = _Sums([], [], [], [], [])
    _add(sums, dense, sparse, k)
    return _mean(sums, k)


def _mean(sums: _Sums, k: int) -> Agreement:
    return Agreement(
        steps=len(sums.top1),
        k=k,
        top1=float(np.mean(sums.top1)),
        overlap=float(np.mean(sums.overlap)),
        kl=float(np.mean(sums.kl)),
        kl_max=float(np.max(sums.kl)),
        kept_mass=float(np.mean(sums.mass)),
        kept_mass_min=float(np.min(sums.mass)),
        identical=sums.identical,
        rows=float(np.mean(sums.rows)),
    )


def compare(
    library: sbr.Library,
    path: Path,
    tokens: Sequence[int],
    base: native.Switches,
    *,
    requantise_down: bool = False,
    k: int = 10,
    progress: Callable[[int, int], None] | None = None,
) -> list[Variant]:
    """Runs the dense model and each sparse variant over ``tokens`` side by side.

    ``base`` gives threads, ISA and the lm_head threshold. With ``requantise_down`` the variants run on a
    model whose standard down matrices were re-quantised at load. Raises :class:`UsageError` when there are
    too few tokens.
    """
    if len(tokens) < 2:
        raise UsageError(f"{len(tokens)} tokens are too few to compare anything")
    names = ("sparse", "lmhead", "sparse+lmhead")
    variants = []
    with (
        native.open_model(library, path) as dense,
        native.open_model(library, path, requantise_down=requantise_down) as other,
    ):
        for done, name in enumerate(names):
            switches = replace(base, sparse_ffn="sparse" in name, sparse_lm_head="lmhead" in name)
            variants.append(_variant(dense, other, name, tokens, switches, k))
            if progress is not None:
                progress(done + 1, len(names))
    return variants


def _variant(
    dense: sbr.Model, other: sbr.Model, name: str, tokens: Sequence[int], switches: native.Switches, k: int
) -> Variant:
    plain = replace(switches, sparse_ffn=False, sparse_lm_head=False)
    try:
        with (
            native.open_session(dense, n_ctx=len(tokens), **plain.options()) as reference,
            native.open_session(other, n_ctx=len(tokens), **switches.options()) as session,
        ):
            sums = _Sums([], [], [], [], [])
            for part in _slices(tokens):
                _add(sums, native.decode_all(reference, part), native.decode_all(session, part), k)
    except InputError as error:
        return Variant(name, None, str(error))
    return Variant(name, _mean(sums, k))


def _slices(tokens: Sequence[int]) -> Iterator[list[int]]:
    for begin in range(0, len(tokens), _SLICE):
        yield list(tokens[begin : begin + _SLICE])


def random_tokens(count: int, n_vocab: int, seed: int) -> list[int]:
    """A seeded stream, for models whose tokenizer does not matter."""
    return [int(t) for t in np.random.default_rng(seed).integers(0, n_vocab, count)]
