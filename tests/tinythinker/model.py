"""SmallThinker in PyTorch, for training: the runtime's equations, and Q4_0 as a gradient sees it.

Only ``train.py`` needs this, and PyTorch; stbench does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6


@dataclass(frozen=True)
class Shape:
    """Of the released 4B model: the experts' number, the choice of 4, one KV head for several heads, the tied
    output, RoPE's base. The widths are small; 32 experts of 32 neurons in 8 layers are 3.1 million weights.
    """

    n_layer: int = 8
    n_embd: int = 128
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 32
    n_expert: int = 32
    n_expert_used: int = 4
    n_ff: int = 32
    n_vocab: int = 2048
    rope_freq_base: float = 1.5e6
    n_ctx: int = 1024


def round_to_q4_0(w: Tensor) -> Tensor:
    """The values that Q4_0 holds instead of ``w``; the gradient passes as if it were ``w`` itself."""
    blocks = w.detach().reshape(-1, 32)
    extreme = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    d = extreme / -8
    inverse = torch.where(d == 0, 0.0, 1 / d)
    nibbles = (blocks * inverse + 8.5).floor().clamp(0, 15)
    rounded = ((nibbles - 8) * d.half().float()).reshape(w.shape)
    return w + (rounded - w.detach())


class _Grouped(torch.autograd.Function):
    """Rows of x [N, A], sorted by expert, times that expert's matrix of w [E, A, B]: expert e has the rows up
    to ends[e]. Plain loops: 32 products of some hundred rows keep a core as busy as one large one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, ends: list[int]) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.ends = ends
        out = x.new_empty(len(x), w.shape[2])
        for e, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
            torch.mm(x[begin:end], w[e], out=out[begin:end])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, w = ctx.saved_tensors
        grad = grad.contiguous()
        dx, dw = torch.empty_like(x), torch.empty_like(w)
        for e, (begin, end) in enumerate(zip([0, *ctx.ends], ctx.ends, strict=False)):
            torch.mm(grad[begin:end], w[e].t(), out=dx[begin:end])
            torch.mm(x[begin:end].t(), grad[begin:end], out=dw[e])
        return dx, dw, None


class _Deal(torch.autograd.Function):
    """x [T, D] -> [T * K, D]: row i is x[order[i] // K]. Its gradient is a sum of K rows per token, which the
    inverse permutation gathers instead of adding into place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.k = k
        return x.index_select(0, order // k)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse).view(-1, ctx.k, grad.shape[1]).sum(1), None, None, None


@dataclass
class Routing:
    """What one layer's router did: ``counts`` [E] of selections, the balancing loss, the mean square of its
    scores, the share of zero neurons."""

    counts: Tensor
    balance: Tensor
    size: Tensor
    zeros: float


class Layer(nn.Module):
    """Router, attention, experts. Matrices are stored as GGUF has them, rows of inputs; down is transposed:
    row j is what neuron j writes."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        s, d = shape, shape.n_embd
        self.shape = shape
        q, kv = s.n_head * s.head_dim, s.n_head_kv * s.head_dim

        def matrix(*size: int, scale: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(*size) * scale)

        # What writes to the residual stream starts small: 2 * n_layer such sums.
        small = (2 * s.n_layer) ** -0.5
        self.attn_norm = nn.Parameter(torch.ones(d))
        self.ffn_norm = nn.Parameter(torch.ones(d))
        self.attn_q = matrix(q, d, scale=d**-0.5)
        self.attn_k = matrix(kv, d, scale=d**-0.5)
        self.attn_v = matrix(kv, d, scale=d**-0.5)
        self.attn_output = matrix(d, q, scale=q**-0.5 * small)
        self.ffn_gate_inp = matrix(s.n_expert, d, scale=d**-0.5)
        self.ffn_gate_exps = matrix(s.n_expert, s.n_ff, d, scale=d**-0.5)
        self.ffn_up_exps = matrix(s.n_expert, s.n_ff, d, scale=d**-0.5)
        self.ffn_down_exps = matrix(s.n_expert, s.n_ff, d, scale=s.n_ff**-0.5 * small)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, quantise: bool) -> tuple[Tensor, Routing]:
        """x [batch, length, D] -> the same, and what the router did. cos, sin [length, head_dim / 2]."""
        s = self.shape
        w = round_to_q4_0 if quantise else lambda matrix: matrix
        batch, length, d = x.shape
        # Before attention, and of the stream as it is: the experts are known one attention block ahead.
        scores = x.view(-1, d) @ self.ffn_gate_inp.t()
        p = scores.sigmoid()
        chosen, experts = p.topk(s.n_expert_used, sorted=False)
        weights = chosen / chosen.sum(1, keepdim=True)

        h = F.rms_norm(x, (d,), self.attn_norm, EPS)

        def heads(matrix: Tensor, n: int) -> Tensor:
            return (h @ w(matrix).t()).view(batch, length, n, s.head_dim).transpose(1, 2)

        q = _rotate(heads(self.attn_q, s.n_head), cos, sin)
        k = _rotate(heads(self.attn_k, s.n_head_kv), cos, sin)
        v = heads(self.attn_v, s.n_head_kv)
        shared = s.n_head // s.n_head_kv
        k, v = (t.repeat_interleave(shared, dim=1) for t in (k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + attended.transpose(1, 2).reshape(batch, length, -1) @ w(self.attn_output).t()

        h = F.rms_norm(x, (d,), self.ffn_norm, EPS).view(-1, d)
        order = experts.flatten().argsort(stable=True)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order))
        counts = experts.flatten().bincount(minlength=s.n_expert)
        ends = counts.cumsum(0).tolist()
        dealt = _Deal.apply(h, order, inverse, s.n_expert_used)
        gate_up = torch.cat([w(self.ffn_gate_exps), w(self.ffn_up_exps)], dim=1).transpose(1, 2)
        gate, up = _Grouped.apply(dealt, gate_up, ends).chunk(2, dim=1)
        gate = gate.relu()
        out = _Grouped.apply(gate * up, w(self.ffn_down_exps), ends)
        out = out.index_select(0, inverse).view(-1, s.n_expert_used, d)
        mixed = (weights[:, None, :] @ out).view(batch, length, d)

        # 1 when all experts are used alike, n_expert when one is.
        share = counts / counts.sum()
        likely = (p / p.sum(1, keepdim=True)).mean(0)
        balance = s.n_expert * (share * likely).sum()
        zeros = float((gate.detach() == 0).float().mean())
        return x + mixed, Routing(counts, balance, scores.square().mean(), zeros)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE of the NEOX kind: the first half of a head is turned against its second."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class TinyThinker(nn.Module):
    """``quantise``: all matrices but the routers act as rounded to Q4_0."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.quantise = False
        # The stream begins as large as what layers add to it; the norm keeps the tied output's logits small.
        self.token_embd = nn.Parameter(torch.randn(shape.n_vocab, shape.n_embd) * 0.5)
        self.output_norm = nn.Parameter(torch.full((shape.n_embd,), 0.2))
        self.blk = nn.ModuleList(Layer(shape) for _ in range(shape.n_layer))

    def hidden(self, tokens: Tensor) -> tuple[Tensor, Tensor, list[Routing]]:
        """tokens [batch, length] -> what the output matrix reads [batch, length, D], that matrix [V, D], and
        what the routers did."""
        s = self.shape
        table = round_to_q4_0(self.token_embd) if self.quantise else self.token_embd
        x = F.embedding(tokens, table)
        frequency = s.rope_freq_base ** (-torch.arange(0, s.head_dim, 2) / s.head_dim)
        angle = torch.arange(tokens.shape[1])[:, None] * frequency
        cos, sin = angle.cos(), angle.sin()
        routings = []
        for layer in self.blk:
            x, routing = layer(x, cos, sin, self.quantise)
            routings.append(routing)
        return F.rms_norm(x, (s.n_embd,), self.output_norm, EPS), table, routings

    def forward(self, tokens: Tensor) -> tuple[Tensor, list[Routing]]:
        """Logits [batch, length, V]."""
        h, table, routings = self.hidden(tokens)
        return h @ table.t(), routings
