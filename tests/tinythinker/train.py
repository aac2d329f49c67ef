"""Trains tinythinker, a SmallThinker of 3.8 million parameters, and writes tests/data/tinythinker.gguf.

    pip install torch numpy tokenizers      # a CPU build of PyTorch will do
    python -m tests.tinythinker.train

Three parts, each kept in --work and taken up where it was left: the text and its tokenizer, the model (stop
it with Ctrl-C at any time; the same command goes on), and the lm_head predictor. docs/tinythinker.md has the
numbers.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from tests.tinythinker import corpus, predictor, vocabulary
from tests.tinythinker.export import write_gguf
from tests.tinythinker.model import Routing, Shape, TinyThinker
from tests.tinythinker.muon import MuonAdamW

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT_EVERY = 100

# Weight of the routers' mean squared scores in the loss. Without it the stream that they read grows until all
# sigmoids are 1.0 in single precision, and which of them are the largest is nobody's decision.
ROUTER_SIZE = 1e-3


def main() -> None:
    args = _arguments()
    # Also in a shell's background, where SIGINT is ignored, and for a plain kill.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    args.work.mkdir(parents=True, exist_ok=True)
    shape = Shape()
    tokens, held_out = prepare(args.work, shape.n_vocab)
    model = TinyThinker(shape)
    reached = train(model, tokens, held_out, args)
    if reached is None:
        return
    model.quantise = True
    print(f"after {reached} steps: held-out perplexity {perplexity(model, held_out):.3f}", flush=True)
    saved = args.work / f"predictor-{reached}.pt"
    fc1, fc2 = predictor.train(model, tokens, held_out, saved, seed=args.seed, steps=args.predictor_steps)
    size = write_gguf(model, fc1, fc2, args.work / "tokenizer.json", args.output, down=args.down)
    print(f"{args.output}: {size:,} bytes")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="train tinythinker")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "tinythinker", help="what is kept between runs"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "tests" / "data" / "tinythinker.gguf")
    parser.add_argument(
        "--down", choices=("transposed", "standard"), default="transposed", help="layout in the file"
    )
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--stop-at", type=int, help="make the file of what was learned by this step")
    parser.add_argument("--predictor-steps", type=int, default=600)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--context", type=int, default=256, help="length of a sequence, until --settle")
    parser.add_argument(
        "--settle",
        type=float,
        default=0.3,
        help="last share of steps: weights rounded to Q4_0, sequences of full length",
    )
    parser.add_argument(
        "--decay", type=float, default=0.55, help="last share of steps: falling learning rate"
    )
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--balance", type=float, default=1e-4, help="weight of the load-balancing loss")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


def prepare(work: Path, n_vocab: int) -> tuple[Tensor, Tensor]:
    """Token ids of the training text and of the held-out book; the tokenizer is left in ``work``."""
    saved = work / "tokens.npz"
    if not saved.exists():
        books = corpus.books(corpus.unpack(corpus.fetch(work / "text").read_bytes()))
        held_out = books.pop(corpus.HELD_OUT_BOOK)
        corpus.HELD_OUT_FILE.write_text(held_out, encoding="utf-8")
        tokenizer = vocabulary.learn(books.values(), n_vocab)
        tokenizer.save(str(work / "tokenizer.json"))
        text = corpus.END_OF_TEXT.join(books.values())
        np.savez(saved, training=_ids(tokenizer, text), held_out=_ids(tokenizer, held_out))
    found = np.load(saved)
    training, held_out = (torch.from_numpy(found[name].astype(np.int64)) for name in ("training", "held_out"))
    print(f"{len(training):,} tokens to learn from, {len(held_out):,} held out", flush=True)
    return training, held_out


def _ids(tokenizer: Tokenizer, text: str) -> np.ndarray:
    return np.array(tokenizer.encode(text).ids, dtype=np.uint16)


def batch(tokens: Tensor, seed: int, step: int, rows: int, length: int) -> Tensor:
    """[rows, length + 1] from random places, the same for the same seed and step."""
    random = torch.Generator().manual_seed(seed * 1_000_003 + step)
    begins = torch.randint(len(tokens) - length - 1, (rows,), generator=random)
    return torch.stack([tokens[b : b + length + 1] for b in begins.tolist()])


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Up in 30 steps, constant, and down to a fiftieth."""
    left = (args.steps - step) / (args.steps * args.decay)
    return args.lr * min(1.0, (step + 1) / 30, 0.02 + 0.98 * left)


def train(model: TinyThinker, tokens: Tensor, held_out: Tensor, args: argparse.Namespace) -> int | None:
    """Goes on from the last checkpoint. Returns the steps that are done, None when it was interrupted."""
    optimiser = _optimiser(model)
    checkpoint = args.work / "checkpoint.pt"
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        first = saved["step"]
        print(f"going on at step {first}", flush=True)

    def save(step: int) -> None:
        state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step}
        torch.save(state, checkpoint.with_suffix(".part"))
        checkpoint.with_suffix(".part").replace(checkpoint)

    last = min(args.steps, args.stop_at or args.steps)
    step, seen, begun = first, 0, time.monotonic()
    try:
        for step in range(first, last):
            settling = step >= args.steps * (1 - args.settle)
            model.quantise = settling
            length = model.shape.n_ctx if settling else args.context
            part = batch(tokens, args.seed, step, args.batch_tokens // length, length)
            lr = learning_rate(step, args)
            loss, routings = _step(model, optimiser, part, lr, args.balance)
            seen += part[:, 1:].numel()
            if step % 20 == 0:
                rate = seen / (time.monotonic() - begun)
                print(f"step {step}: loss {loss:.3f}, {_describe(routings)}, {rate:.0f} tokens/s", flush=True)
            if (step + 1) % CHECKPOINT_EVERY == 0:
                save(step + 1)
                print(f"step {step + 1}: held-out perplexity {perplexity(model, held_out):.2f}", flush=True)
    except KeyboardInterrupt:
        print(f"stopped in step {step}; steps since the last checkpoint are lost", flush=True)
        return None
    if last > first:
        save(last)
    return max(first, last)


def _optimiser(model: TinyThinker) -> MuonAdamW:
    matrices, gentle = [], []
    for block in model.blk:
        for name, parameter in block.named_parameters():
            (gentle if "norm" in name or name == "ffn_gate_inp" else matrices).append(parameter)
    return MuonAdamW(matrices, [model.token_embd], [*gentle, model.output_norm], decay=0.05)


def _step(
    model: TinyThinker, optimiser: MuonAdamW, part: Tensor, lr: float, balance: float
) -> tuple[float, list[Routing]]:
    logits, routings = model(part[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten())
    total = loss + sum(balance * routing.balance + ROUTER_SIZE * routing.size for routing in routings)
    optimiser.zero_grad(set_to_none=True)
    total.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.step()
    return float(loss.detach()), routings


def _describe(routings: list[Routing]) -> str:
    """The busiest quarter's part of the work, least and most of all layers, the largest router's scores, and
    the share of zero neurons per layer."""
    quarter = [
        float(r.counts.sort(descending=True).values[: len(r.counts) // 4].sum() / r.counts.sum())
        for r in routings
    ]
    zeros = " ".join(f"{routing.zeros:.2f}" for routing in routings)
    size = max(float(routing.size.detach()) for routing in routings) ** 0.5
    return f"busiest 8 experts {min(quarter):.2f}-{max(quarter):.2f}, scores {size:.1f}, zeros {zeros}"


@torch.no_grad()
def perplexity(model: TinyThinker, tokens: Tensor, length: int = 256) -> float:
    """Of whole chunks, their second halves scored, as ``stbench perplexity --context`` counts."""
    parts = tokens[: len(tokens) // length * length].view(-1, length)
    logits = model(parts)[0][:, length // 2 : -1]
    return math.exp(F.cross_entropy(logits.flatten(0, 1), parts[:, length // 2 + 1 :].flatten()))


if __name__ == "__main__":
    main()
