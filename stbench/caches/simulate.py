"""What a cache would have done with a known routing, and how fast that would decode (docs/simulate.md).

The built-in policies run natively; a policy of the user's own runs in a Python loop with the same rules: the
experts of a layer are acquired together, those that are there first, and cannot evict each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stbench.agent import sbr
from stbench.agent.routing import Routing
from stbench.agent.sbr import Library
from stbench.agent.wire import SynthSpec
from stbench.caches import clock as clocks
from stbench.caches.clock import Machine
from stbench.errors import InputError, UsageError
from stbench.models import catalogue
from stbench.native import native_errors
from stbench.sweeps import limited

# In the order of tables and charts.
POLICIES = ("lru", "lfu", "reuse", "static", "belady")
KNOWN_POLICIES = ("auto", *POLICIES)
# No cache can run them: they know the whole trace.
ORACLES = ("static", "belady")

# A bundle's units are read past the page cache: whole blocks.
UNIT_ALIGNMENT = 4096

SWEEP_SHARES = (0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.40, 0.50, 0.60, 0.75, 0.90, 1.0)


@dataclass(frozen=True)
class Outcome:
    """``sets_by_misses``: element m says how many sets (one token, one layer) missed m of their experts. Only
    tokens after the warm-up are counted. ``seconds``: what the simulation took. Of one with a clock
    (:mod:`stbench.caches.clock`): ``loads``, units read, guesses included, and ``token_s``, a token's
    time."""

    requests: int
    hits: int
    sets_by_misses: tuple[int, ...]
    seconds: float
    loads: int | None = None
    token_s: float | None = None

    @property
    def hit_rate(self) -> float:
        """0 to 1."""
        return self.hits / self.requests if self.requests else 0.0


Simulator = Callable[[Routing, int, int], Outcome]


@dataclass(frozen=True)
class Point:
    """One cache size with one policy. Bytes are None where a unit's size is not known, tokens/s where the
    rates are not. ``bound_tokens_per_s``: as if computing and reading overlapped wholly."""

    policy: str
    units: int
    share: float
    cache_bytes: int | None
    hit_rate: float
    bytes_per_token: float | None
    tokens_per_s: float | None
    bound_tokens_per_s: float | None
    seconds: float


def native(library: Library, policy: str, clock: sbr.Clock | None = None) -> Simulator:
    """A built-in policy as a function of routing, capacity in units, and warm-up tokens; with a clock (not
    for the oracles) it guesses, too. It raises :class:`UsageError` and, for a damaged routing, the same."""
    if policy not in KNOWN_POLICIES:
        raise UsageError(
            f"--policy {policy}: expected {', '.join(KNOWN_POLICIES)} or FILE.py:CLASS",
            hint="docs/simulate.md",
        )

    def run(trace: Routing, capacity: int, warmup: int) -> Outcome:
        shape = (trace.n_layer, trace.n_expert, trace.n_expert_used)
        with native_errors():
            found = sbr.simulate(library, trace.experts, *shape, policy, capacity, warmup, clock)
        outcome = Outcome(found.requests, found.hits, tuple(found.sets_by_misses), found.ns / 1e9)
        if clock is None:
            return outcome
        token_s = found.ns_decode / 1e9 / (trace.n_tokens - warmup)
        return replace(outcome, loads=found.loads, token_s=token_s)

    return run


# ---- sizes ----


def unit_bytes(spec: SynthSpec) -> int:
    """What one expert takes in a bundle. Raises :class:`UsageError` for a model without experts."""
    if not spec.n_expert:
        raise UsageError(f"{spec.name} has no experts, so no cache of experts")
    size, weights = catalogue.BLOCKS[spec.weight_type]
    return -(-3 * spec.n_embd * spec.n_ff * size // weights // UNIT_ALIGNMENT) * UNIT_ALIGNMENT


def capacities(text: str, n_units: int, per_set: int, bytes_of_unit: int | None) -> list[int]:
    """``64MiB,25%,512`` -> numbers of units, ascending: sizes in bytes, shares of all units, or numbers of
    units. "": a sweep from one set to all. Raises :class:`UsageError`."""
    if not text:
        sweep = {max(round(share * n_units), per_set) for share in SWEEP_SHARES}
        return sorted({min(per_set, n_units), *sweep})
    return sorted({min(_capacity(item.strip(), n_units, bytes_of_unit), n_units) for item in text.split(",")})


def _capacity(item: str, n_units: int, bytes_of_unit: int | None) -> int:
    if re.fullmatch(r"[0-9]{1,9}", item):
        units = int(item)
    elif re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,4})? ?%", item):
        share = float(item[:-1]) / 100
        if share > 1:
            raise UsageError(f"--cache {item}: a share is at most 100%")
        units = int(share * n_units + 1e-9)
    else:
        try:
            size = limited.parse_bytes(item)
        except ValueError:
            raise UsageError(
                f"--cache {item}: expected a size such as 256MiB, a share such as 25%, or a number of units"
            ) from None
        if bytes_of_unit is None:
            raise UsageError(
                f"--cache {item}: how many experts that is depends on their size",
                hint="--model NAME or --unit-bytes N; or --cache 25%,512 (shares, numbers of experts)",
            )
        units = size // bytes_of_unit
    if units < 1:
        raise UsageError(f"--cache {item}: has no room for a single expert")
    return units


# ---- everything about one size and policy ----


def seconds_per_token(outcome: Outcome, n_layer: int, bytes_of_unit: int, machine: Machine) -> float:
    """By the simulation's own clock, or as its misses would take with exact prefetch."""
    if outcome.token_s is not None:
        return outcome.token_s
    return clocks.seconds_per_token(outcome.sets_by_misses, n_layer, bytes_of_unit, machine)


def point(
    policy: str,
    trace: Routing,
    units: int,
    outcome: Outcome,
    bytes_of_unit: int | None,
    machine: Machine | None,
) -> Point:
    """Everything that follows from one outcome."""
    per_token = trace.n_layer * trace.n_expert_used
    missed = (1 - outcome.hit_rate) * per_token
    if outcome.loads is not None:
        missed = outcome.loads / outcome.requests * per_token
    missed_bytes = None if bytes_of_unit is None else missed * bytes_of_unit
    speed = bound = None
    if machine is not None and bytes_of_unit is not None and missed_bytes is not None:
        speed = 1 / seconds_per_token(outcome, trace.n_layer, bytes_of_unit, machine)
        bound = 1 / max(machine.token_s, missed_bytes / machine.storage_bytes_per_s)
    return Point(
        policy=policy,
        units=units,
        share=units / (trace.n_layer * trace.n_expert),
        cache_bytes=None if bytes_of_unit is None else units * bytes_of_unit,
        hit_rate=outcome.hit_rate,
        bytes_per_token=missed_bytes,
        tokens_per_s=speed,
        bound_tokens_per_s=bound,
        seconds=outcome.seconds,
    )


def default_warmup(trace: Routing) -> int:
    """Tokens that fill the cache before anything is counted: a quarter of the routing, 256 at most."""
    return min(trace.n_tokens // 4, 256)


def sweep(
    trace: Routing,
    simulators: dict[str, Simulator],
    units: Sequence[int],
    bytes_of_unit: int | None = None,
    machine: Machine | None = None,
    warmup: int = 0,
) -> list[Point]:
    """Every size with every policy. Raises :class:`UsageError`, and what a policy raises."""
    if not 0 <= warmup < trace.n_tokens:
        raise UsageError(
            f"--warmup {warmup}: expected 0 up to the tokens of the routing less one ({trace.n_tokens - 1})"
        )
    return [
        point(name, trace, n, run(trace, n, warmup), bytes_of_unit, machine)
        for n in units
        for name, run in simulators.items()
    ]


def tokens_of_a_run(trace: Routing, begin: int, end: int) -> Routing:
    """What a model that replays the routing uses at positions ``begin`` to ``end``: it starts over after the
    last token."""
    row = trace.n_layer * trace.n_expert_used
    whole, experts = trace.n_tokens, trace.experts[:0]
    while begin < end:
        start = begin % whole
        count = min(whole - start, end - begin)
        experts.extend(trace.experts[start * row : (start + count) * row])
        begin += count
    return Routing(trace.n_layer, trace.n_expert, trace.n_expert_used, experts, source=trace.source)


def as_json(points: Sequence[Point]) -> list[dict[str, Any]]:
    """For --json; keys are the fields of :class:`Point`."""
    return [dict(vars(each)) for each in points]


def fitted(trace: Routing, spec: SynthSpec, name: str) -> Routing:
    """The routing as a model of the catalogue would replay it. Raises :class:`InputError`."""
    from stbench.agent.routing import RoutingError

    try:
        return trace.fit_to(spec.n_layer, spec.n_expert, spec.n_expert_used)
    except RoutingError as error:
        raise InputError(f"{name}: {error}") from error
