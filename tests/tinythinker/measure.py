"""The numbers of docs/tinythinker.md: what the file learned, what it can skip, which experts it uses.

``python -m tests.tinythinker.measure [--llama-cpp] [--record FILE]``
"""

from __future__ import annotations

import argparse
import array
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stbench import native
from stbench.agent import routing, sbr
from stbench.builds.peer import file_sha256
from stbench.text.perplexity import Perplexity, chunk, measure, negative_log_likelihoods, summarise
from stbench.text.tokenizer import TextTokenizer
from tests.tinythinker.corpus import HELD_OUT_FILE
from tests.tinythinker.twin import write_twin
from tests.truth import llama_peer

FIXTURE = HELD_OUT_FILE.with_name("tinythinker.gguf")

# Beside llama.cpp nearly every token is scored: two recipes of 8-bit activations move single ones by a
# hundredth.
CONTEXT = 256
UNSCORED = 16


def held_out(library: sbr.Library, path: Path = FIXTURE) -> list[int]:
    """The book of Ruth in the file's tokens."""
    tokenizer = TextTokenizer(native.metadata(library, path))
    return tokenizer.encode(HELD_OUT_FILE.read_text(encoding="utf-8"), special=False)


@dataclass(frozen=True)
class SparseHead:
    """Decoding a text with the sparse lm_head. ``known``: share of next tokens whose row was computed; the
    rest would cost an infinite loss. Perplexity over the known ones, with the sparse and the dense lm_head.
    """

    known: float
    sparse: float
    dense: float


def sparse_head(library: sbr.Library, path: Path, tokens: Sequence[int]) -> SparseHead:
    """Over the second half of ``tokens``, which are one sequence."""
    losses = []
    with native.open_model(library, path) as model:
        for sparse in (True, False):
            with native.open_session(model, n_ctx=len(tokens), n_threads=1, sparse_lm_head=sparse) as session:
                logits = native.decode_all(session, tokens)
            half = len(tokens) // 2
            losses.append(negative_log_likelihoods(logits[half:-1], tokens[half + 1 :]))
    known = np.isfinite(losses[0])
    on, off = (float(np.exp(loss[known].mean())) for loss in losses)
    return SparseHead(float(known.mean()), on, off)


@dataclass(frozen=True)
class Counts:
    """Over a text, per layer: ``zeros`` [layer], the share of neurons whose gate is not positive; ``experts``
    [layer, expert], how often each was chosen."""

    zeros: NDArray[np.float64]
    experts: NDArray[np.int64]


def count(library: sbr.Library, path: Path, tokens: Sequence[int]) -> Counts:
    """In sequences of the model's whole context."""
    with native.open_model(library, path) as model:
        n_ctx, n_layer = model.info.n_ctx_train, model.info.n_layer
        with native.open_session(model, n_ctx=n_ctx, n_threads=1) as session:
            for begin in range(0, len(tokens), n_ctx):
                session.rewind(0)
                session.prefill(tokens[begin : begin + n_ctx], "none")
            neurons = np.array(session.layer_counters(), dtype=np.int64)
            experts = np.array([session.expert_counts(layer) for layer in range(n_layer)])
    return Counts(1 - neurons[:, 1] / neurons[:, 0], experts)


def record(library: sbr.Library, path: Path, tokens: Sequence[int], source: str) -> routing.Routing:
    """Which experts the first context of ``tokens`` used."""
    with native.open_model(library, path) as model:
        info = model.info
        with native.open_session(model, n_ctx=info.n_ctx_train, n_threads=1, record_routing=True) as session:
            session.prefill(tokens[: info.n_ctx_train], "none")
            chosen = array.array("H", session.routing())
        return routing.Routing(
            info.n_layer, info.n_expert, info.n_expert_used, chosen, "tinythinker", file_sha256(path), source
        )


def kept_from_last_token(trace: routing.Routing) -> NDArray[np.float64]:
    """Per layer: share of chosen experts that the token before chose, too; by chance that is n_expert_used
    / n_expert."""
    sets = np.array(trace.experts).reshape(-1, trace.n_layer, trace.n_expert_used)
    before, now = sets[:-1, :, :, None], sets[1:, :, None, :]
    return np.asarray((before == now).any(axis=2).mean(axis=(0, 2)))


def beside_llama_cpp(
    library: sbr.Library, ours: Path, theirs: Path, tokens: Sequence[int]
) -> tuple[Perplexity, Perplexity]:
    """Ours of one file and llama.cpp's of another, in its layout."""
    with native.open_model(library, ours) as model:
        mine = measure(model, tokens, CONTEXT, native.Switches(threads=1), unscored=UNSCORED)
    parts = chunk(tokens, CONTEXT)
    losses = [
        negative_log_likelihoods(logits[UNSCORED:-1], part[UNSCORED + 1 :])
        for part, logits in zip(parts, llama_peer.logits(theirs, parts, kv="f16"), strict=True)
    ]
    return mine, summarise(np.concatenate(losses), len(parts), CONTEXT)


def main() -> None:
    parser = argparse.ArgumentParser(description="measure tinythinker")
    parser.add_argument("--model", type=Path, default=FIXTURE)
    parser.add_argument("--library", type=Path, help="a libsbr.so other than the installed one")
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="write the routing of the first 1024 tokens"
    )
    parser.add_argument("--llama-cpp", action="store_true", help="and llama.cpp's perplexity, of the twin")
    args = parser.parse_args()
    library = native.open_library(args.library)
    tokens = held_out(library, args.model)
    head = sparse_head(library, args.model, tokens[:1024])
    print(
        f"sparse lm_head: {head.known:.2%} of next tokens kept;"
        f" perplexity {head.sparse:.3f}, dense {head.dense:.3f}"
    )
    counts = count(library, args.model, tokens)
    trace = record(library, args.model, tokens, "the book of Ruth, King James Version, first 1024 tokens")
    kept = kept_from_last_token(trace)
    print("layer  zeros  busiest 8  busiest 4  least used  kept from the last token")
    for layer, used in enumerate(counts.experts):
        shares = np.sort(used)[::-1] / used.sum()
        print(
            f"{layer:>5}  {counts.zeros[layer]:.1%}  {shares[:8].sum():>9.1%}  {shares[:4].sum():>9.1%}"
            f"  {shares[-1]:>10.2%}  {kept[layer]:.1%}"
        )
    if args.llama_cpp:
        with tempfile.TemporaryDirectory() as folder:
            twin = write_twin(args.model, Path(folder) / "twin.gguf")
            ours, theirs = beside_llama_cpp(library, args.model, twin, tokens)
        print(f"perplexity {ours.value:.4f}, llama.cpp {theirs.value:.4f} ({ours.scored} tokens)")
    if args.record:
        routing.write(str(args.record), trace)
        print(f"{args.record}: {trace.n_tokens} tokens, {args.record.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
