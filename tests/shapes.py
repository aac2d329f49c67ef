"""Shapes of small synthetic models, of which tests vary one member or two."""

from __future__ import annotations

from dataclasses import replace

from stbench.agent.wire import SynthSpec

QWEN3 = SynthSpec(
    architecture="qwen3",
    name="golden",
    n_layer=2,
    n_embd=64,
    n_head=4,
    n_head_kv=2,
    head_dim=32,
    n_ff=96,
    n_vocab=300,
    n_ctx_train=512,
    weight_type="q4_0",
    seed=42,
    rope_freq_base=1.5e6,
    tied_output=False,
)
SMALLTHINKER = replace(
    QWEN3,
    architecture="smallthinker",
    tied_output=True,
    n_expert=8,
    n_expert_used=2,
    transposed_down=True,
    predictor_rank=64,
    zero_share=[950, 700],
    hot_experts=2,
    hot_share=600,
    lm_head_keep=100,
)
