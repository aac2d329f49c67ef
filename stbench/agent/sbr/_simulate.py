"""What a cache of units would have done with a known routing: ``sbr_simulate``."""

import array
import ctypes
from typing import List, NamedTuple, Optional

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


class Clock(NamedTuple):
    """sbr_simulate_clock, times in nanoseconds."""

    guess_layers: int
    guess_right: float
    units_at_once: int
    ns_head: float
    ns_lead: float
    ns_rest: float
    ns_expert: float
    ns_router: float
    ns_latency: float
    ns_unit: float


class Simulated(NamedTuple):
    """``requests`` of units that were counted, and how many of them were ``hits``. ``sets_by_misses``:
    element m says how many sets (one token, one layer) missed m units. ``ns``: what it took. With a clock
    also, of the counted tokens: the rest, as in sbr_simulate_result."""

    requests: int
    hits: int
    sets_by_misses: List[int]
    ns: int
    hits_on_the_way: int = 0
    loads: int = 0
    guesses: int = 0
    guesses_used: int = 0
    ns_decode: int = 0
    ns_io_busy: int = 0


def simulate(
    library: Library,
    experts: "array.array[int]",
    n_layer: int,
    n_expert: int,
    n_expert_used: int,
    policy: str,
    capacity: int,
    warmup_tokens: int = 0,
    clock: Optional[Clock] = None,
) -> Simulated:
    """Runs a policy of :data:`SIMULATED_POLICIES` with room for ``capacity`` units over ``experts``,
    array("H") of ``[n_tokens][n_layer][n_expert_used]``, ascending in each set. The first ``warmup_tokens``
    fill the cache and are not counted. With a ``clock`` their time is simulated, too, and guesses. Raises
    NativeError (a policy, shape, time or set that is impossible)."""
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
    if clock is not None:
        options.clock = ctypes.pointer(sized(_abi_tools.SimulateClock, **clock._asdict()))
    row = n_layer * n_expert_used
    if experts.typecode != "H" or not row or len(experts) % row:
        raise ValueError(
            "experts: expected an array('H') of whole tokens of %d, got %d" % (row, len(experts))
        )
    result = sized(_abi_tools.SimulateResult)
    # The array itself, without a copy: nobody resizes it during the call.
    native = (ctypes.c_uint16 * len(experts)).from_buffer(experts)
    library.call("sbr_simulate", native, len(experts) // row, ctypes.byref(options), ctypes.byref(result))
    return Simulated(
        result.requests,
        result.hits,
        list(by_misses),
        result.ns,
        result.hits_on_the_way,
        result.loads,
        result.guesses,
        result.guesses_used,
        result.ns_decode,
        result.ns_io_busy,
    )
