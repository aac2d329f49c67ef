"""Counters and memory of a run: messages that :mod:`.wire` re-exports."""

from dataclasses import dataclass
from typing import List, Optional


@dataclass(frozen=True)
class PhaseCounters:
    """Sums over one phase (``sbr_counters``). ``nonfinite`` above 0: an infinity or a NaN was met."""

    tokens: int
    weight_bytes: int
    embedding_bytes: int
    attention_bytes: int
    router_bytes: int
    ffn_bytes: int
    lm_head_bytes: int
    kv_bytes_read: int
    kv_bytes_written: int
    neurons_examined: int
    neurons_active: int
    lm_head_rows: int
    ns_total: int
    ns_attention: int
    ns_router: int
    ns_ffn: int
    ns_lm_head: int
    ns_barrier: int
    nonfinite: int = 0


@dataclass(frozen=True)
class Counters:
    """The timed phases apart; the lists hold one number per layer, both phases together."""

    prefill: PhaseCounters
    decode: PhaseCounters
    layer_neurons_examined: List[int]
    layer_neurons_active: List[int]


@dataclass(frozen=True)
class Memory:
    """``peak_rss_bytes`` is VmHWM of the measuring process, mapped weights included, after the last timed
    token. Of it, ``baseline_rss_bytes`` were there before the library was loaded (the Python interpreter) and
    ``capture_bytes`` hold logits for the check. Of an engine that is a program: the same of its largest
    process."""

    peak_rss_bytes: int
    rss_anon_bytes: Optional[int] = None
    rss_file_bytes: Optional[int] = None
    baseline_rss_bytes: Optional[int] = None
    capture_bytes: int = 0
