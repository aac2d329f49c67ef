"""Tiny random models, written with the ``gguf`` package: every architecture, weight type and variant.

Widths are multiples of 256, the block length of the K types, and the expert width differs from the
embedding's, so that the two down layouts can be told apart. Weights are normal with variance 1/columns, which
keeps activations near one; the router's are larger, so that its decisions are seldom close.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.truth import kquants

Floats = NDArray[np.float32]

TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
    "q4_1": gguf.GGMLQuantizationType.Q4_1,
    "q4_k": gguf.GGMLQuantizationType.Q4_K,
    "q6_k": gguf.GGMLQuantizationType.Q6_K,
}


@dataclass(frozen=True)
class Tiny:
    """What to write. ``window`` 0: none; ``predictor_rank`` 0: none; both for smallthinker only."""

    arch: str
    type: str = "f32"
    n_layer: int = 3
    n_embd: int = 256
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 64
    n_ff: int = 512
    n_vocab: int = 384
    n_expert: int = 8
    n_expert_used: int = 3
    tied_output: bool = True
    transposed_down: bool = False
    softmax_router: bool = False
    gating_key: bool = True
    window: int = 0
    predictor_rank: int = 0
    rope_freq_base: float = 10000.0
    n_ctx: int = 8192
    seed: int = 1


class _Writer:
    """Adds random tensors in the model's type."""

    def __init__(self, spec: Tiny, path: Path) -> None:
        self.spec = spec
        self.random = np.random.default_rng(spec.seed)
        self.gguf = gguf.GGUFWriter(path, spec.arch)

    def matrix(self, name: str, *shape: int, scale: float = 1.0, kind: str | None = None) -> None:
        """``shape`` as numpy has it: rows before columns, the reverse of GGUF's."""
        values = self.random.standard_normal(shape, dtype=np.float32) * np.float32(scale / np.sqrt(shape[-1]))
        self.add(name, values, kind or self.spec.type)

    def norm(self, name: str, width: int) -> None:
        self.add(name, self.random.uniform(0.7, 1.3, width).astype(np.float32), "f32")

    def add(self, name: str, values: Floats, kind: str) -> None:
        if kind == "f32":
            self.gguf.add_tensor(f"{name}.weight", values)
            return
        data = kquants.quantize(values, kind) if kind in kquants.KINDS else gguf.quantize(values, TYPES[kind])
        self.gguf.add_tensor(f"{name}.weight", data, raw_dtype=TYPES[kind])


def write(spec: Tiny, path: Path) -> Path:
    """Writes the model; the same spec gives the same weights."""
    writer = _Writer(spec, path)
    _keys(writer.gguf, spec)
    d, q, kv = spec.n_embd, spec.n_head * spec.head_dim, spec.n_head_kv * spec.head_dim
    # Small, so that what the layers add outweighs the token itself in a tied output.
    writer.matrix("token_embd", spec.n_vocab, d, scale=0.1 * np.sqrt(d))
    for layer in range(spec.n_layer):
        block = f"blk.{layer}"
        writer.norm(f"{block}.attn_norm", d)
        writer.norm(f"{block}.ffn_norm", d)
        writer.matrix(f"{block}.attn_q", q, d)
        writer.matrix(f"{block}.attn_k", kv, d)
        writer.matrix(f"{block}.attn_v", kv, d)
        writer.matrix(f"{block}.attn_output", d, q)
        if spec.arch in ("qwen3", "qwen3moe"):
            writer.norm(f"{block}.attn_q_norm", spec.head_dim)
            writer.norm(f"{block}.attn_k_norm", spec.head_dim)
        if spec.arch in ("smallthinker", "qwen3moe"):
            _experts(writer, spec, block)
        else:
            writer.matrix(f"{block}.ffn_gate", spec.n_ff, d)
            writer.matrix(f"{block}.ffn_up", spec.n_ff, d)
            writer.matrix(f"{block}.ffn_down", d, spec.n_ff)
    writer.norm("output_norm", d)
    if not spec.tied_output:
        writer.matrix("output", spec.n_vocab, d)
    if spec.predictor_rank:
        rank = spec.predictor_rank
        fc1 = writer.random.standard_normal((rank, d), dtype=np.float32) / np.sqrt(d)
        fc2 = writer.random.standard_normal((spec.n_vocab, rank), dtype=np.float32) / np.sqrt(rank)
        flat = np.concatenate([fc1.reshape(-1), fc2.reshape(-1)]).astype(np.float32)
        writer.add("lm_head_profiler", flat, "q4_0")
    writer.gguf.write_header_to_file()
    writer.gguf.write_kv_data_to_file()
    writer.gguf.write_tensors_to_file()
    writer.gguf.close()
    return path


def _experts(writer: _Writer, spec: Tiny, block: str) -> None:
    e, f, d = spec.n_expert, spec.n_ff, spec.n_embd
    writer.matrix(f"{block}.ffn_gate_inp", e, d, scale=3.0, kind="f32")
    writer.matrix(f"{block}.ffn_gate_exps", e, f, d)
    writer.matrix(f"{block}.ffn_up_exps", e, f, d)
    # Transposed rows are scaled as if they were columns: both layouts sum over the neurons.
    shape, scale = ((e, f, d), np.sqrt(d / f)) if spec.transposed_down else ((e, d, f), 1.0)
    writer.matrix(f"{block}.ffn_down_exps", *shape, scale=scale)


def _keys(out: gguf.GGUFWriter, spec: Tiny) -> None:
    out.add_name(f"tiny {spec.arch} {spec.type}")
    out.add_block_count(spec.n_layer)
    out.add_context_length(spec.n_ctx)
    out.add_embedding_length(spec.n_embd)
    out.add_feed_forward_length(spec.n_ff)
    out.add_head_count(spec.n_head)
    out.add_head_count_kv(spec.n_head_kv)
    out.add_key_length(spec.head_dim)
    out.add_value_length(spec.head_dim)
    out.add_rope_dimension_count(spec.head_dim)
    out.add_rope_freq_base(spec.rope_freq_base)
    out.add_layer_norm_rms_eps(1e-6)
    out.add_vocab_size(spec.n_vocab)
    out.add_tokenizer_model("none")
    if spec.arch in ("smallthinker", "qwen3moe"):
        out.add_expert_feed_forward_length(spec.n_ff)
        out.add_expert_count(spec.n_expert)
        out.add_expert_used_count(spec.n_expert_used)
    if spec.arch == "smallthinker":
        if spec.gating_key:
            kind = (
                gguf.ExpertGatingFuncType.SOFTMAX
                if spec.softmax_router
                else gguf.ExpertGatingFuncType.SIGMOID
            )
            out.add_expert_gating_func(kind)
        if spec.window:
            out.add_sliding_window(spec.window)
