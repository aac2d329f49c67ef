"""What a cache of units would have done with a known routing: ``sbr_simulate``."""

import array
import ctypes
from typing import List, NamedTuple

from . import _abi, _abi_tools
from ._load import Library
from ._names import number, sized

# What runs in a session, and the two that only a simulation can know enough for.
SIMULATED_POLICIES = {
    "auto": _abi.CACHE_AUTO,
    "lru": _abi.CACHE_LRU,
    "lfu": _abi.CACHE_LFU,
    "reuse": _abi.CACHE_REUSE,
    "static": _abi.CACHE_STATIC,
    "belady": _abi.CACHE_BELADY,
}


class Simulated(NamedTuple):
    """``requests`` of units that were counted, and how many of them were ``hits``. ``sets_by_misses``:
    element m says how many sets (one token, one layer) missed m units. ``ns``: what it took."""

    requests: int
    hits: int
    sets_by_misses: List[int]
    ns: int


def simulate(
    library: Library,
    experts: "array.array[int]",
    n_layer: int,
    n_expert: int,
    n_expert_used: int,
    policy: str,
    capacity: int,
    warmup_tokens: int = 0,
) -> Simulated:
    """Runs a policy of :data:`SIMULATED_POLICIES` with room for ``capacity`` units over ``experts``,
    array("H") of ``[n_tokens][n_layer][n_expert_used]``, ascending in each set. The first ``warmup_tokens``
    fill the cache and are not counted. Raises NativeError (a policy, shape or set that is impossible)."""
    by_misses = (ctypes.c_uint64 * (n_expert_used + 1))()
    options = sized(
        _abi_tools.SimulateOptions,
        n_layer=n_layer,
        n_expert=n_expert,
        n_expert_used=n_expert_used,
        policy=number(SIMULATED_POLICIES, policy, "policy"),
        capacity=min(capacity, 0xFFFFFFFF),
        warmup_tokens=warmup_tokens,
        sets_by_misses=by_misses,
    )
    row = n_layer * n_expert_used
    if experts.typecode != "H" or not row or len(experts) % row:
        raise ValueError(
            "experts: expected an array('H') of whole tokens of %d, got %d" % (row, len(experts))
        )
    result = sized(_abi_tools.SimulateResult)
    # The array itself, without a copy: nobody resizes it during the call.
    native = (ctypes.c_uint16 * len(experts)).from_buffer(experts)
    library.call("sbr_simulate", native, len(experts) // row, ctypes.byref(options), ctypes.byref(result))
    return Simulated(result.requests, result.hits, list(by_misses), result.ns)
