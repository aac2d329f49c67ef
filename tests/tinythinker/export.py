"""From trained weights to a GGUF file in the shape of the released SmallThinker files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.tinythinker.gguf_writer import GgufFile
from tests.tinythinker.model import EPS, Shape, TinyThinker
from tests.tinythinker.vocabulary import gguf_keys

SIGMOID = 2


def write_gguf(
    model: TinyThinker,
    fc1: Tensor,
    fc2: Tensor,
    tokenizer_file: Path,
    path: Path,
    *,
    down: str = "transposed",
) -> int:
    """Writes ``path`` and returns its size in bytes. Matrices are Q4_0, norms and routers F32.

    ``down``: "transposed", rows are what a neuron writes, and the predictor; "standard", llama.cpp's layout
    without predictor, quantised along the other axis: weights that differ by their rounding.
    """
    file = GgufFile({**_keys(model.shape), **gguf_keys(tokenizer_file)})
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if name.endswith("ffn_down_exps") and down == "standard":
            values = values.transpose(1, 2)
        plain = values.dim() == 1 or name.endswith("ffn_gate_inp")
        file.add(f"{name}.weight", _numpy(values), "f32" if plain else "q4_0")
    if down == "transposed":
        both = torch.cat([fc1.flatten(), fc2.flatten()])
        file.add("lm_head_profiler.weight", _numpy(both), "q4_0")
    return file.write(path)


def _numpy(values: Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.numpy(), dtype=np.float32)


def _keys(shape: Shape) -> dict[str, object]:
    numbers: dict[str, object] = {
        "block_count": shape.n_layer,
        "context_length": shape.n_ctx,
        "embedding_length": shape.n_embd,
        "feed_forward_length": shape.n_ff,
        "expert_feed_forward_length": shape.n_ff,
        "expert_count": shape.n_expert,
        "expert_used_count": shape.n_expert_used,
        "expert_gating_func": SIGMOID,
        "attention.head_count": shape.n_head,
        "attention.head_count_kv": shape.n_head_kv,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": EPS,
        "rope.dimension_count": shape.head_dim,
        "rope.freq_base": shape.rope_freq_base,
        "vocab_size": shape.n_vocab,
    }
    general = {
        "general.architecture": "smallthinker",
        "general.name": "tinythinker",
        "general.alignment": 32,
        "general.description": "Trained on the King James Bible by tests/tinythinker of stbench.",
        "general.license": "apache-2.0",
    }
    return {**general, **{f"smallthinker.{key}": value for key, value in numbers.items()}}
