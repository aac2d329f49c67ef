"""How close a run came to the memory's limit, by the bandwidth that was measured beside the same run.

A decoded token reads every weight that it uses once. What streams is counted at the read rate, rows that a
sparse FFN or lm_head picks at the gather rate of rows of the same length, so the least time of a token is
``streamed / read + gathered / gather``, and the share is that over the time it took. KV cache, activations
and computing are left out: 100 % is out of reach, and more than 100 % means that part of the weights came
from a cache, or that neighbouring rows were active together and were read as a run.
"""

from __future__ import annotations

from dataclasses import dataclass

from stbench.agent.wire import RunRecord
from stbench.records.disturbance import gather_gb_per_s, in_cache, last_level_cache, read_gb_per_s
from stbench.records.roofline import TokenBytes, token_bytes

# Matrices whose rows are picked, by what the runtime says it did: up, and down where it is neuron-major.
_GATHERED_MATRICES = {"off": 0, "gate-up": 1, "full": 2}
# Architectures whose bytes per token roofline.token_bytes knows.
_KNOWN_SHAPES = ("smallthinker", "qwen3", "qwen3moe", "llama", "gemma3n")
# Bytes per token of models, by their shapes.
_BYTES: dict[str, TokenBytes] = {}


@dataclass(frozen=True)
class LimitShare:
    """``share`` 1.0: as fast as the memory. None with the reason in ``why``; both empty where there was no
    probe to hold the run against."""

    share: float | None
    why: str = ""


def limit_share(record: RunRecord, decode_tps: float) -> LimitShare:
    """Of a run that decoded ``decode_tps`` tokens/s."""
    read = read_gb_per_s(record)
    if read is None or not decode_tps > 0:
        return LimitShare(None)
    if record.settings.memory_limit_bytes or record.settings.cache:
        return LimitShare(None, "its weights come from storage, whose rate was not probed beside it")
    if record.shape and in_cache(record):
        weights, cache = record.shape.weight_bytes / 1e6, last_level_cache(record) / 2**20
        return LimitShare(
            None, f"its {weights:.0f} MB of weights fit into the last-level cache of {cache:.0f} MiB"
        )
    needed = bytes_per_token(record)
    if needed is None:
        return LimitShare(None, "its engine does not say what a token reads")
    least_s = needed.stream / (read * 1e9)
    if needed.gather:
        gather = gather_gb_per_s(record)
        if gather is None:
            return LimitShare(None, "no gather rate was measured for its rows")
        least_s += needed.gather / (gather * 1e9)
    return LimitShare(least_s * decode_tps)


def bytes_per_token(record: RunRecord) -> TokenBytes | None:
    """Weight bytes that a decoded token of this run read: by the runtime's own count; for a dense run of a
    synthetic model by its shapes. None when neither is known."""
    decode = record.counters.decode if record.counters else None
    spec, switches = record.model.synthetic, record.settings
    if decode is None or decode.tokens <= 0:
        if spec is None or spec.architecture not in _KNOWN_SHAPES:
            return None
        if switches.sparse_ffn or switches.sparse_lm_head:
            return None
        # Adding shapes up takes longer than reading a record.
        key = repr(spec)
        if key not in _BYTES:
            _BYTES[key] = token_bytes(spec)
        return _BYTES[key]
    if record.effective is None or record.effective.sparse_ffn not in _GATHERED_MATRICES:
        return None
    row_bytes = record.bracket.row_bytes if record.bracket else 0
    gathered = _GATHERED_MATRICES[record.effective.sparse_ffn] * decode.neurons_active * row_bytes
    if record.effective.sparse_lm_head:
        # Its rows are as long as the experts' where both have one type; never more than was read.
        gathered += min(decode.lm_head_rows * row_bytes, decode.lm_head_bytes)
    gathered = min(gathered, decode.weight_bytes)
    return TokenBytes((decode.weight_bytes - gathered) / decode.tokens, gathered / decode.tokens)
