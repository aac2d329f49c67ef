"""A plain, slow forward pass in numpy: what the runtime should compute, written to be read.

It reads a GGUF file through the ``gguf`` package, widens every weight to float64 and follows the model's
equations token by token, with no cache, no batches and no skipping. Architectures: smallthinker, qwen3,
qwen3moe, llama.

``quantised_activations`` rounds the input of every quantised matrix to 8 bits in blocks of 32, as
docs/arithmetic.md (rule 3) says the runtime does. With it, what is left between the two is rounding; without
it, the difference is what 8-bit activations cost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FLOAT_TYPES = {"F32", "F16", "BF16"}
GATING_SOFTMAX = 1


@dataclass
class Trace:
    """What a forward pass saw, for the tests that count or that need to know how close a decision was."""

    # Smallest gap between the last expert taken and the first one left, per token, over the layers; in
    # standard deviations of the router's scores.
    router_gap: Array
    # [layer, token]: experts chosen, ascending; neurons with gate > 0 among those examined.
    experts: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    active: dict[tuple[int, int], int] = field(default_factory=dict)
    # [token, vocabulary]: the lm_head predictor's scores, where the file has one.
    scores: Array | None = None


@dataclass(frozen=True)
class Weight:
    """A dequantised matrix [..., rows, columns] and the name of the type that it was stored in."""

    values: Array
    type: str

    def __getitem__(self, index: int) -> Weight:
        return Weight(self.values[index], self.type)


class Model:
    """A GGUF file's hyperparameters and dequantised weights."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self.keys: dict[str, Any] = {name: item.contents() for name, item in reader.fields.items()}
        self.arch: str = self.keys["general.architecture"]
        self.tensors = {
            tensor.name: Weight(
                gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64), tensor.tensor_type.name
            )
            for tensor in reader.tensors
        }
        self.n_layer = int(self.key("block_count"))
        self.n_embd = int(self.key("embedding_length"))
        self.n_head = int(self.key("attention.head_count"))
        self.n_head_kv = int(self.key("attention.head_count_kv", self.n_head))
        self.head_dim = int(self.key("attention.key_length", self.n_embd // self.n_head))
        self.n_rot = int(self.key("rope.dimension_count", self.head_dim))
        self.rope_base = float(self.key("rope.freq_base", 10000.0))
        self.eps = float(self.key("attention.layer_norm_rms_epsilon"))
        self.window = int(self.key("attention.sliding_window", 0))
        self.n_expert = int(self.key("expert_count", 0))
        self.n_expert_used = int(self.key("expert_used_count", 0))
        # qwen3moe: always softmax, SiLU, and a router that reads what the experts read.
        self.router_after_attention = self.arch == "qwen3moe"
        self.relu_experts = self.arch == "smallthinker"
        self.softmax_router = self.key("expert_gating_func", 2) == GATING_SOFTMAX or self.arch == "qwen3moe"

    def key(self, name: str, absent: Any = None) -> Any:
        value = self.keys.get(f"{self.arch}.{name}", absent)
        assert value is not None, name
        return value

    def __getitem__(self, name: str) -> Weight:
        return self.tensors[f"{name}.weight"]

    def get(self, *names: str) -> Weight | None:
        return next((self.tensors[f"{n}.weight"] for n in names if f"{n}.weight" in self.tensors), None)

    # smallthinker with a window: layers 0, 4, 8, ... see everything and have no positions; qwen3, llama:
    # never.
    def is_global_without_positions(self, layer: int) -> bool:
        return self.arch == "smallthinker" and self.window > 0 and layer % 4 == 0


def forward(
    model: Model, tokens: list[int], *, quantised_activations: bool = False, window: int | None = None
) -> tuple[Array, Trace]:
    """Logits [token, vocabulary] and the trace. ``window`` overrides the file's sliding window."""
    n = len(tokens)
    trace = Trace(router_gap=np.full(n, np.inf))
    window = model.window if window is None else window

    def times(weight: Weight, x: Array) -> Array:
        if quantised_activations and weight.type not in FLOAT_TYPES:
            x = rounded_to_8_bits(x)
        return x @ weight.values.T

    x = model["token_embd"].values[tokens]  # [n, D]: the residual stream
    for layer in range(model.n_layer):
        prefix = f"blk.{layer}"
        router_input = x
        h = rms_norm(x, model[f"{prefix}.attn_norm"].values, model.eps)
        x = x + times(model[f"{prefix}.attn_output"], attention(model, layer, h, times, window))
        h = rms_norm(x, model[f"{prefix}.ffn_norm"].values, model.eps)
        if model.n_expert:
            x = x + mixture(
                model, layer, h if model.router_after_attention else router_input, h, times, trace
            )
        else:
            hidden = silu(times(model[f"{prefix}.ffn_gate"], h)) * times(model[f"{prefix}.ffn_up"], h)
            x = x + times(model[f"{prefix}.ffn_down"], hidden)

    x = rms_norm(x, model["output_norm"].values, model.eps)
    predictor = model.get("lm_head_profiler", "blk.lm_head_profiler")
    if predictor is not None:
        trace.scores = predictor_scores(model, predictor, x, times)
    return times(model.get("output") or model["token_embd"], x), trace


def attention(model: Model, layer: int, h: Array, times: Any, window: int) -> Array:
    """Grouped-query attention of every position over those before it. h [n, D] -> [n, heads * head_dim]."""
    n, dim, prefix = len(h), model.head_dim, f"blk.{layer}"
    q = times(model[f"{prefix}.attn_q"], h).reshape(n, model.n_head, dim)
    k = times(model[f"{prefix}.attn_k"], h).reshape(n, model.n_head_kv, dim)
    v = times(model[f"{prefix}.attn_v"], h).reshape(n, model.n_head_kv, dim)
    if model.arch in ("qwen3", "qwen3moe"):
        q = rms_norm(q, model[f"{prefix}.attn_q_norm"].values, model.eps)
        k = rms_norm(k, model[f"{prefix}.attn_k_norm"].values, model.eps)
    unlimited = window == 0 or model.is_global_without_positions(layer) or model.arch != "smallthinker"
    if not model.is_global_without_positions(layer):
        q, k = rope(model, q), rope(model, k)

    position = np.arange(n)
    visible = position[None, :] <= position[:, None]
    if not unlimited:
        visible &= position[:, None] - position[None, :] < window
    out = np.empty((n, model.n_head, dim))
    for head in range(model.n_head):
        group = head // (model.n_head // model.n_head_kv)
        score = q[:, head] @ k[:, group].T / np.sqrt(dim)
        out[:, head] = softmax(np.where(visible, score, -np.inf)) @ v[:, group]
    return out.reshape(n, -1)


def mixture(model: Model, layer: int, router_input: Array, h: Array, times: Any, trace: Trace) -> Array:
    """Experts, ReLU or SiLU, chosen by ``router_input``. router_input, h [n, D] -> [n, D]."""
    prefix = f"blk.{layer}"
    scores = times(model[f"{prefix}.ffn_gate_inp"], router_input)
    probabilities = softmax(scores) if model.softmax_router else 1 / (1 + np.exp(-scores))
    gate, up = model[f"{prefix}.ffn_gate_exps"], model[f"{prefix}.ffn_up_exps"]
    down = model[f"{prefix}.ffn_down_exps"]
    # Per expert [D, F] (rows are outputs), or transposed, [F, D]: told apart by the shape, which is why D ==
    # F means the standard layout.
    transposed = down.values.shape[1] != model.n_embd
    y = np.zeros_like(h)
    for t in range(len(h)):
        order = np.lexsort((np.arange(model.n_expert), -probabilities[t]))
        chosen = sorted(int(e) for e in order[: model.n_expert_used])
        if model.n_expert_used < model.n_expert:
            ranked = scores[t][order]
            gap = (ranked[model.n_expert_used - 1] - ranked[model.n_expert_used]) / ranked.std()
            trace.router_gap[t] = min(trace.router_gap[t], gap)
        trace.experts[layer, t] = chosen
        trace.active[layer, t] = 0
        total = probabilities[t, chosen].sum()
        for e in chosen:
            g = times(gate[e], h[t])
            hidden = (np.maximum(g, 0) if model.relu_experts else silu(g)) * times(up[e], h[t])
            trace.active[layer, t] += int((g > 0).sum()) if model.relu_experts else g.size
            # Neuron-major: the hidden vector scales rows of down and is not rounded (rule 8).
            out = hidden @ down[e].values if transposed else times(down[e], hidden)
            y[t] += probabilities[t, e] / total * out
    return y


def predictor_scores(model: Model, predictor: Weight, x: Array, times: Any) -> Array:
    """fc2 (fc1 x): fc1 [r, D], then fc2 [V, r], in one flat tensor."""
    vocabulary = len(model["token_embd"].values)
    flat = predictor.values.reshape(-1)
    rank = flat.size // (model.n_embd + vocabulary)
    fc1 = Weight(flat[: rank * model.n_embd].reshape(rank, model.n_embd), predictor.type)
    fc2 = Weight(flat[rank * model.n_embd :].reshape(vocabulary, rank), predictor.type)
    scores: Array = times(fc2, times(fc1, x))
    return scores


def rope(model: Model, x: Array) -> Array:
    """Rotates [n, heads, head_dim]: llama turns neighbours (0,1), (2,3), ...; the others halves (i, i +
    n_rot/2).
    """
    half = model.n_rot // 2
    angle = np.arange(len(x))[:, None] * model.rope_base ** (-2.0 * np.arange(half) / model.n_rot)
    cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    first = slice(0, model.n_rot, 2) if model.arch == "llama" else slice(0, half)
    second = slice(1, model.n_rot, 2) if model.arch == "llama" else slice(half, model.n_rot)
    y = x.copy()
    y[..., first] = x[..., first] * cos - x[..., second] * sin
    y[..., second] = x[..., second] * cos + x[..., first] * sin
    return y


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    y: Array = e / e.sum(axis=-1, keepdims=True)
    return y


def silu(x: Array) -> Array:
    y: Array = x / (1 + np.exp(-x))
    return y


def rounded_to_8_bits(x: Array) -> Array:
    """Blocks of 32: 127 steps on either side of zero."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    step = np.abs(blocks).max(axis=-1, keepdims=True) / 127
    with np.errstate(invalid="ignore", divide="ignore"):
        rounded = np.where(step > 0, np.rint(blocks / step) * step, 0)
    return rounded.reshape(x.shape)
