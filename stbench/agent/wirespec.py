"""What a synthetic model is made from."""

from dataclasses import dataclass
from typing import List, Optional


@dataclass(frozen=True)
class SynthSpec:
    """A synthetic model: shapes, seed and statistics (``sbr_synth_spec`` in sbr.h; shares in 1/1000)."""

    architecture: str
    name: str
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_vocab: int
    n_ctx_train: int
    weight_type: str
    seed: int
    rope_freq_base: float
    rms_eps: float = 1e-6
    n_expert: int = 0
    n_expert_used: int = 0
    sliding_window: int = 0
    tied_output: bool = True
    transposed_down: bool = False
    predictor_rank: int = 0
    zero_share: Optional[List[int]] = None
    hot_experts: int = 0
    hot_share: int = 0
    lm_head_keep: int = 0
