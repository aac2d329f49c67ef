"""The lm_head predictor: which rows of the output are worth computing, learned after the model is done.

scores = fc2 (fc1 x), x being what the output matrix reads; a row whose score is above 0 is kept. It learns to
keep the rows whose logits come within a margin of the largest one; the margin is that which WANTED of all
rows meet. Missing such a row costs more than keeping another, the more so the likelier it is.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.tinythinker.model import TinyThinker, round_to_q4_0

RANK = 32
WANTED = 0.06
MISS_COSTS = 4.0
LIKELY_COSTS = 50.0  # times its probability, on top
LEARNED_FROM = 1 << 15  # tokens


@torch.no_grad()
def hidden_states(model: TinyThinker, tokens: Tensor, length: int = 256) -> tuple[Tensor, Tensor]:
    """What the output matrix reads after each token [n, D], and that matrix [V, D]."""
    rows = tokens[: len(tokens) // length * length].view(-1, length)
    parts = [model.hidden(part)[0].flatten(0, 1) for part in rows.split(16)]
    return torch.cat(parts), model.hidden(rows[:1])[1].detach()


def train(
    model: TinyThinker, tokens: Tensor, held_out: Tensor, saved: Path, *, seed: int, steps: int
) -> tuple[Tensor, Tensor]:
    """fc1 [rank, D] and fc2 [V, rank], kept in ``saved``."""
    if saved.exists():
        fc1, fc2 = torch.load(saved, weights_only=True)
        return fc1, fc2
    random = torch.Generator().manual_seed(seed)
    begin = int(torch.randint(max(1, len(tokens) - LEARNED_FROM), (1,), generator=random))
    x, table = hidden_states(model, tokens[begin : begin + LEARNED_FROM])
    fc1 = (torch.randn(RANK, x.shape[1], generator=random) * x.shape[1] ** -0.5).requires_grad_()
    fc2 = (torch.randn(len(table), RANK, generator=random) * RANK**-0.5).requires_grad_()
    margin = _margin(x[:: max(1, len(x) // 4096)] @ table.t())
    print(f"predictor: rows within {margin:.2f} of the largest logit are wanted", flush=True)
    optimiser = torch.optim.Adam([fc1, fc2])
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 50) * (1 - step / steps)
        part = x[torch.randint(len(x), (512,), generator=random)]
        scores = part @ round_to_q4_0(fc1).t() @ round_to_q4_0(fc2).t()
        logits = part @ table.t()
        wanted = _wanted(logits, margin).float()
        costs = 1 + wanted * (MISS_COSTS * (1 + LIKELY_COSTS * logits.softmax(1)) - 1)
        loss = F.binary_cross_entropy_with_logits(scores, wanted, weight=costs)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if (step + 1) % 100 == 0:
            print(f"predictor step {step + 1}: {_describe(model, fc1, fc2, held_out, margin)}", flush=True)
    torch.save((fc1.detach(), fc2.detach()), saved)
    return fc1.detach(), fc2.detach()


def _margin(logits: Tensor) -> float:
    below = (logits.max(dim=1, keepdim=True).values - logits).flatten()
    return float(below.kthvalue(int(WANTED * len(below))).values)


def _wanted(logits: Tensor, margin: float) -> Tensor:
    return logits > logits.max(dim=1, keepdim=True).values - margin


@torch.no_grad()
def _describe(model: TinyThinker, fc1: Tensor, fc2: Tensor, held_out: Tensor, margin: float) -> str:
    x, table = hidden_states(model, held_out)
    logits = x @ table.t()
    kept = x @ round_to_q4_0(fc1).t() @ round_to_q4_0(fc2).t() > 0
    wanted = _wanted(logits, margin)
    best = logits.argmax(1)
    recall = float((kept & wanted).sum() / wanted.sum())
    top1 = float(kept[torch.arange(len(best)), best].float().mean())
    mass = float((logits.softmax(1) * kept).sum(1).mean())
    shares = f"{float(wanted.float().mean()):.3f} wanted, {float(kept.float().mean()):.3f} kept"
    return f"{shares}, recall {recall:.3f}, best row kept {top1:.4f}, probability kept {mass:.4f}"
