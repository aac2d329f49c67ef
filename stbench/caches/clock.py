"""How long a token takes whose experts are partly on storage: the event model of docs/simulate.md.

A layer learns its experts, asks for those that are missing, computes attention and the experts that are there
while these are read, and the others when they arrive. Nothing in it is fitted: times are a machine's own, by
the counters of a run that had every expert in memory, and rates are what its storage gave.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stbench.agent import sbr
from stbench.agent.wire import RunRecord, SynthSpec

# What the runtime's readers have under way at most, in reads of the kernel of 512 KiB (runtime/src/io): all
# units that these belong to are served at the same time.
PIECE_BYTES = 512 << 10
PIECES_AT_ONCE = {"io_uring": 32, "pread": 4}

# Routers are F32; other matrices take 4.5 bits a weight.
F32_PER_Q4_0 = 32 / 4.5

# Layers that each way of reading ahead names experts for.
GUESS_LAYERS = {"exact": 0, "next-layer": 1, "next-2": 2, "next-4": 4}


@dataclass(frozen=True)
class Machine:
    """What decoding takes. ``storage_bytes_per_s``: the rate at which units are read, several at a time.
    ``token_s``: a token's time with every expert in memory. Of it, ``outside`` is the share in which no
    expert is awaited (the lm_head); of one layer's part, ``lead`` is the share before its experts are known,
    ``tail`` the share of computing one expert and ``router`` that of scoring a layer's experts.
    ``latency_s``: what the first read after a pause takes beyond its bytes; ``pieces_at_once``: reads of
    :data:`PIECE_BYTES` that the device has at a time."""

    storage_bytes_per_s: float
    token_s: float
    outside: float = 0.0
    lead: float = 0.0
    tail: float = 0.0
    router: float = 0.0
    latency_s: float = 0.0
    pieces_at_once: int = PIECES_AT_ONCE["io_uring"]

    def units_at_once(self, bytes_of_unit: int) -> int:
        """Units of which all pieces may be under way together, 1 or more."""
        return max(self.pieces_at_once * PIECE_BYTES // bytes_of_unit, 1)


def shares_of(spec: SynthSpec) -> dict[str, float]:
    """``outside``, ``lead``, ``tail`` and ``router`` of :class:`Machine` by the bytes that a dense token
    reads, since reading weights is what decoding takes its time for."""
    d, kv = spec.n_embd, spec.n_head_kv * spec.head_dim
    q = spec.n_head * spec.head_dim
    attention, router, expert = d * (q + 2 * kv) + d * q, F32_PER_Q4_0 * d * spec.n_expert, 3 * d * spec.n_ff
    layer = attention + router + expert * spec.n_expert_used
    head = d * spec.n_vocab
    # SmallThinker's router reads a layer's input; the others' reads what attention left.
    lead = router if spec.architecture == "smallthinker" else attention + router
    total = spec.n_layer * layer + head
    return {"outside": head / total, "lead": lead / layer, "tail": expert / layer, "router": 0.0}


def measured_shares(records: Iterable[RunRecord]) -> dict[str, float]:
    """The same by the phases that runs with all experts in memory counted, medians; {} without such runs.
    Waiting for other threads counts to no phase, and so to what a layer does beside them."""
    found = [shares for record in records if (shares := _shares(record)) is not None]
    return {name: statistics.median(each[name] for each in found) for name in found[0]} if found else {}


def _shares(record: RunRecord) -> dict[str, float] | None:
    shape, counters = record.shape, record.counters
    if shape is None or counters is None or not shape.n_expert_used:
        return None
    phases = counters.decode
    layers_ns = phases.ns_total - phases.ns_lm_head
    if layers_ns <= 0 or not phases.ns_ffn or not phases.ns_lm_head:
        return None
    # SmallThinker's router comes first, the others' behind attention.
    before = 0 if shape.architecture == "smallthinker" else phases.ns_attention
    return {
        "outside": phases.ns_lm_head / phases.ns_total,
        "lead": (before + phases.ns_router) / layers_ns,
        "tail": phases.ns_ffn / shape.n_expert_used / layers_ns,
        "router": phases.ns_router / layers_ns,
    }


def clock_of(
    machine: Machine,
    n_layer: int,
    n_expert_used: int,
    bytes_of_unit: int,
    prefetch: str = "exact",
    guess_right: float = 0.0,
) -> sbr.Clock:
    """The machine's times in nanoseconds. ``guess_right``: of the experts that are named ahead, the share
    that is used. Raises KeyError for a way of reading ahead that does not exist."""
    layer_ns = 1e9 * machine.token_s * (1 - machine.outside) / n_layer
    experts = n_expert_used * machine.tail
    return sbr.Clock(
        guess_layers=GUESS_LAYERS[prefetch],
        guess_right=guess_right,
        units_at_once=machine.units_at_once(bytes_of_unit),
        ns_head=1e9 * machine.token_s * machine.outside,
        ns_lead=layer_ns * machine.lead,
        ns_rest=max(layer_ns * (1 - machine.lead - experts), 0.0),
        ns_expert=layer_ns * machine.tail,
        ns_router=layer_ns * machine.router,
        ns_latency=1e9 * machine.latency_s,
        ns_unit=1e9 * bytes_of_unit / machine.storage_bytes_per_s,
    )


def layer_ns(clock: sbr.Clock, n_expert_used: int, misses: int) -> float:
    """Of a layer that misses so many of its experts, nanoseconds. Without guesses no layer depends on
    another: each waits for all that it asked for."""
    done = clock.ns_lead + clock.ns_rest + (n_expert_used - misses) * clock.ns_expert
    arrived = clock.ns_lead + clock.ns_latency
    for first in range(0, misses, clock.units_at_once):
        together = min(clock.units_at_once, misses - first)
        arrived += together * clock.ns_unit
        done = max(done, arrived) + together * clock.ns_expert
    return done


def seconds_per_token(
    sets_by_misses: Sequence[int], n_layer: int, bytes_of_unit: int, machine: Machine
) -> float:
    """Of a simulation's outcome (element m: sets that missed m experts), with exact prefetch."""
    used = len(sets_by_misses) - 1
    clock = clock_of(machine, n_layer, used, bytes_of_unit)
    total = sum(count * layer_ns(clock, used, misses) for misses, count in enumerate(sets_by_misses))
    return (clock.ns_head + n_layer * total / sum(sets_by_misses)) / 1e9
