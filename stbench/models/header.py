"""A GGUF's header -> what planning needs of it: which switches it has, how many weights a token reads."""

from __future__ import annotations

from collections.abc import Sequence

from stbench.agent.describe import ModelHeader
from stbench.models import gemma3n
from stbench.models.catalogue import Sizes
from stbench.sweeps.sweep import Traits

PREDICTOR = "lm_head_profiler.weight"


def facts_of(header: ModelHeader) -> tuple[Traits, Sizes]:
    """Traits and sizes. Experts that a token does not choose and rows of a table that it does not look up
    are not active."""
    names = [tensor.name for tensor in header.tensors]
    predictor = any(name.endswith(PREDICTOR) for name in names)
    experts = header.n_expert or 1
    used = header.n_expert_used or experts
    params = active = size = 0
    units = {True: 0, False: 0}
    tied = "output.weight" not in names
    for tensor in header.tensors:
        count = _product(tensor.shape)
        share = used / experts if "_exps." in tensor.name else 1.0
        if tensor.name.endswith(PREDICTOR):
            share = 0.0
        if (tensor.name == "token_embd.weight" and not tied) or tensor.name == gemma3n.TABLE:
            share = tensor.shape[0] / count if count else 0.0
        params += count
        active += int(count * share)
        size += tensor.bytes
        # What our runtime does not run has no bundle; norms stay in memory.
        bundled = header.architecture != gemma3n.ARCHITECTURE and len(tensor.shape) > 1
        if bundled and tensor.name.startswith("blk."):
            units["_exps." in tensor.name] += tensor.bytes
    traits = Traits(header.architecture == "smallthinker", predictor, units[True] > 0)
    return traits, Sizes(max(params, 1), active, size, units[True] or units[False])


def _product(shape: Sequence[int]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count
