"""Muon for the matrices, AdamW for the rest, in one optimiser.

Muon steps along the nearest orthogonal matrix to the momentum, so that all directions of a matrix learn at
one pace, which pays when there are few steps.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Five steps of this quintic bring singular values from 0 to 1 near 1.
_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonal(g: Tensor) -> Tensor:
    """[..., A, B]: each matrix with its singular values replaced by numbers near 1."""
    wide = g.shape[-2] <= g.shape[-1]
    x = g if wide else g.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide else x.mT


class MuonAdamW(torch.optim.Optimizer):
    """``matrices`` [..., A, B] by Muon, ``tables`` and, a tenth as fast, ``gentle`` by AdamW without decay;
    one learning rate for all: Muon's steps are scaled to the size that AdamW's usually have."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        tables: Iterable[nn.Parameter],
        gentle: Iterable[nn.Parameter],
        decay: float,
    ) -> None:
        groups = [
            {"params": list(matrices), "muon": True, "pace": 1.0},
            {"params": list(tables), "muon": False, "pace": 1.0},
            {"params": list(gentle), "muon": False, "pace": 0.1},
        ]
        super().__init__(groups, {"lr": 0.0, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            lr = group["lr"] * group["pace"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                if group["muon"]:
                    self._muon(p, p.grad, self.state[p], lr, group["decay"])
                else:
                    self._adam(p, p.grad, self.state[p], lr)

    @staticmethod
    def _muon(p: nn.Parameter, g: Tensor, state: dict[str, Tensor], lr: float, decay: float) -> None:
        if not state:
            state["momentum"] = torch.zeros_like(p)
        momentum = state["momentum"].mul_(0.95).add_(g)
        update = orthogonal(g + 0.95 * momentum)
        p.mul_(1 - lr * decay).sub_(update, alpha=0.2 * max(p.shape[-2:]) ** 0.5 * lr)

    @staticmethod
    def _adam(p: nn.Parameter, g: Tensor, state: dict[str, Tensor], lr: float) -> None:
        if not state:
            state.update(step=torch.zeros(()), first=torch.zeros_like(p), second=torch.zeros_like(p))
        state["step"] += 1
        t = float(state["step"])
        state["first"].lerp_(g, 0.1)
        state["second"].lerp_(g * g, 0.05)
        scale = (state["second"] / (1 - 0.95**t)).sqrt_().add_(1e-10)
        p.addcdiv_(state["first"], scale, value=-lr / (1 - 0.9**t))
