"""The tensors of Gemma 3n files: not the building blocks of the other models, and run by llama.cpp alone.

A layer reads, beside the hidden state, an input of its own from a second embedding table. That table is most
of the file, but a token reads one row of it: the published tables call the memory of these models "1G / 2G,
theoretically" for that reason.

Types are those of a pure Q4_0 file, like every synthetic model here: token embedding and per-layer table are
Q4_0, too (llama.cpp's quantiser would by default make the tied token embedding Q6_K, which reads 45 % more
bytes in the output matrix). What its quantiser leaves alone is F16 (AltUp, LAuReL, the per-layer projection)
or F32 (norms, AltUp's coefficients).
"""

from __future__ import annotations

from stbench.agent.wire import SynthSpec

ARCHITECTURE = "gemma3n"

# Constants of the architecture (as in runtime/src/synth/spec.h).
PER_LAYER_WIDTH = 256
STREAMS = 4
LAUREL_RANK = 64

# Of which a token reads one row.
TABLE = "per_layer_token_embd.weight"

Tensor = tuple[tuple[int, ...], str]


def tensors(spec: SynthSpec) -> dict[str, Tensor]:
    """Name -> (shape, ne0 first; type) of every tensor, in no particular order."""
    d, kind = spec.n_embd, spec.weight_type
    per_layer = PER_LAYER_WIDTH * spec.n_layer
    found: dict[str, Tensor] = {
        "token_embd.weight": ((d, spec.n_vocab), kind),
        TABLE: ((per_layer, spec.n_vocab), kind),
        "per_layer_model_proj.weight": ((d, per_layer), "f16"),
        "per_layer_proj_norm.weight": ((PER_LAYER_WIDTH,), "f32"),
        "altup_proj.weight": ((d, d, STREAMS - 1), "f16"),
        "altup_unembd_proj.weight": ((d, d, STREAMS - 1), "f16"),
        "output_norm.weight": ((d,), "f32"),
    }
    for layer in range(spec.n_layer):
        found |= {f"blk.{layer}.{name}.weight": tensor for name, tensor in _layer(spec).items()}
    return found


def _layer(spec: SynthSpec) -> dict[str, Tensor]:
    d, f, kind = spec.n_embd, spec.n_ff, spec.weight_type
    q, kv = spec.n_head * spec.head_dim, spec.n_head_kv * spec.head_dim
    matrices = {
        "attn_q": (d, q),
        "attn_k": (d, kv),
        "attn_v": (d, kv),
        "attn_output": (q, d),
        "ffn_gate": (d, f),
        "ffn_up": (d, f),
        "ffn_down": (f, d),
        "inp_gate": (d, PER_LAYER_WIDTH),
        "proj": (PER_LAYER_WIDTH, d),
    }
    halves = {"laurel_l": (d, LAUREL_RANK), "laurel_r": (LAUREL_RANK, d), "altup_router": (d, STREAMS)}
    floats: dict[str, tuple[int, ...]] = {
        "attn_q_norm": (spec.head_dim,),
        "attn_k_norm": (spec.head_dim,),
        "altup_correct_coef": (STREAMS, STREAMS),
        "altup_predict_coef": (STREAMS, STREAMS * STREAMS),
    }
    for norm in (
        "attn_norm",
        "post_attention_norm",
        "laurel_post_norm",
        "ffn_norm",
        "post_ffw_norm",
        "post_norm",
        "altup_correct_scale",
        "altup_router_norm",
    ):
        floats[norm] = (d,)
    return {
        **{name: (shape, kind) for name, shape in matrices.items()},
        **{name: (shape, "f16") for name, shape in halves.items()},
        **{name: (shape, "f32") for name, shape in floats.items()},
    }
