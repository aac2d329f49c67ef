"""The smallest memory limit at which a case runs, and at which it reaches a speed, by bisection. Pure:
:func:`find` is given what measures, and every answer can be read from the outcomes alone.

Bisection trusts that more memory never hurts, and replicates say how far that is true, so answers are
careful ones. A limit counts as enough when *every* larger one that was probed was enough, too; what
contradicts that is told. A speed is reached when the interval of the replicates' median, below six replicates
their range, lies above it, and missed when it lies below it. A limit whose interval straddles the speed is
neither: the answer is then between two limits, and no limit is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from stbench.comparison.intervals import Estimate, median_estimate
from stbench.sweeps.limited import bytes_label

MIB = 1 << 20
# A bisection from 8 MiB to 1 TiB in steps of a page takes 28 steps, three of them one after the other 84.
MOST_STEPS = 100
_PAGE = 4096


@dataclass(frozen=True)
class Outcome:
    """What happened under one limit. ``ran``: every replicate did; ``why``: what the first one that did not
    said; ``good`` of ``tried`` ran. ``speeds`` are tokens/s of decoding, of which ``left_out`` disturbed ones
    are not; peak, cache and hit rate (0 to 1) are medians, None where nobody knows. ``reused``: all of it
    was known from before."""

    limit_bytes: int
    ran: bool
    why: str = ""
    good: int = 0
    tried: int = 0
    speeds: tuple[float, ...] = ()
    left_out: int = 0
    peak_bytes: int | None = None
    cache_bytes: int | None = None
    hit_rate: float | None = None
    reused: bool = False

    @property
    def speed(self) -> Estimate | None:
        """The median with what surrounds it; None without a speed."""
        return median_estimate(self.speeds) if self.speeds else None


Measure = Callable[[int], Outcome]
Enough = Callable[[Outcome], bool]


@dataclass(frozen=True)
class Resolution:
    """How near the limit that is enough and the one below it that is not have to be: ``bytes``, or ``share``
    of the larger one, whichever is more."""

    bytes: int = 16 * MIB
    share: float = 0.02

    def at(self, limit: int) -> int:
        """In bytes, at least a page: no limit is held finer."""
        return max(self.bytes, int(self.share * limit), _PAGE)


@dataclass(frozen=True)
class Edge:
    """The smallest limit that is enough, and the largest one below it that is not; None: there is none."""

    enough: Outcome | None
    below: Outcome | None


@dataclass(frozen=True)
class Found:
    """All ``outcomes`` by their limits, and the answers from ``low`` to ``high`` bytes: ``runs``; for a speed
    that was asked for ``reached`` (surely) and ``open`` (reached, or nobody can say), and ``lost``: it was
    surely reached in this limit, but not in the largest one. ``contradictions`` are sentences."""

    outcomes: tuple[Outcome, ...]
    low: int
    high: int
    runs: Edge
    reached: Edge | None = None
    open: Edge | None = None
    contradictions: tuple[str, ...] = field(default=())
    lost: Outcome | None = None

    @property
    def inconclusive(self) -> bool:
        """Whether replicates straddle the speed where its limit would be, or it was reached and lost."""
        if self.lost is not None:
            return True
        if self.reached is None or self.open is None or self.open.enough is None:
            return False
        return self.reached.enough != self.open.enough


def runs(outcome: Outcome) -> bool:
    """Whether the case runs there."""
    return outcome.ran


def reaches(speed: float) -> Enough:
    """Whether it surely decodes that many tokens/s there."""
    return lambda outcome: outcome.ran and outcome.speed is not None and outcome.speed.low >= speed


def may_reach(speed: float) -> Enough:
    """Whether it is not sure that it decodes fewer there."""
    return lambda outcome: outcome.ran and outcome.speed is not None and outcome.speed.high >= speed


def find(
    measure: Measure,
    low: int,
    high: int,
    resolution: Resolution,
    *,
    speed: float | None = None,
    most: int | None = None,
    known: Iterable[Outcome] = (),
) -> Found:
    """Bisects within ``low`` and ``high`` bytes. Where nothing runs in ``high``, which was a guess, it is
    doubled up to ``most``. ``known`` outcomes are not measured again."""
    outcomes = {outcome.limit_bytes: outcome for outcome in known}

    def settle(enough: Enough) -> None:
        for _ in range(MOST_STEPS):
            step = next_limit(list(outcomes.values()), low, high, resolution, enough)
            if step is None:
                return
            outcomes[step] = measure(step)

    settle(runs)
    while most is not None and high < most and not _any_ran(outcomes, low, high):
        high = min(2 * high, most)
        settle(runs)
    if speed is not None:
        settle(reaches(speed))
        settle(may_reach(speed))
    return found(list(outcomes.values()), low, high, speed)


def _any_ran(outcomes: dict[int, Outcome], low: int, high: int) -> bool:
    return any(outcome.ran for limit, outcome in outcomes.items() if low <= limit <= high)


def found(outcomes: Sequence[Outcome], low: int, high: int, speed: float | None) -> Found:
    """The answers within ``low`` and ``high`` that outcomes give; contradictions are looked for in all."""
    every = sorted(outcomes, key=lambda outcome: outcome.limit_bytes)
    inside = [outcome for outcome in every if low <= outcome.limit_bytes <= high]
    told = contradictions(every, runs, lambda outcome: not outcome.ran, "ran")
    told += [
        f"in {size_text(outcome.limit_bytes)} {outcome.good} of {outcome.tried} runs ended well, "
        "which counts as none"
        for outcome in every
        if not outcome.ran and outcome.good
    ]
    if speed is None:
        return Found(tuple(every), low, high, edge(inside, runs), contradictions=tuple(told))
    sure, may = reaches(speed), may_reach(speed)
    told += contradictions(
        every, sure, lambda outcome: outcome.ran and not may(outcome), f"reached {speed:g} tokens/s"
    )
    reached, may_be = edge(inside, sure), edge(inside, may)
    lost = next((outcome for outcome in reversed(inside) if sure(outcome)), None)
    return Found(
        tuple(every),
        low,
        high,
        edge(inside, runs),
        reached,
        may_be,
        tuple(told),
        lost if may_be.enough is None else None,
    )


def edge(outcomes: Sequence[Outcome], enough: Enough) -> Edge:
    """Where limits begin to be enough, looked for from the largest one down."""
    first: Outcome | None = None
    for outcome in sorted(outcomes, key=lambda outcome: outcome.limit_bytes, reverse=True):
        if not enough(outcome):
            return Edge(first, outcome)
        first = outcome
    return Edge(first, None)


def next_limit(
    outcomes: Sequence[Outcome], low: int, high: int, resolution: Resolution, enough: Enough
) -> int | None:
    """What to measure next; None when the answer is as near as it has to be, or there is none."""
    inside = [outcome for outcome in outcomes if low <= outcome.limit_bytes <= high]
    measured = {outcome.limit_bytes for outcome in inside}
    if low not in measured:
        return low
    here = edge(inside, enough)
    if here.below is None:
        return None
    if here.enough is None:
        return high if high not in measured else None
    below, above = here.below.limit_bytes, here.enough.limit_bytes
    near = resolution.at(above)
    return middle(below, above, near) if above - below > near else None


def middle(below: int, above: int, near: int) -> int:
    """Between two limits that are further apart than ``near``, on round numbers where there are some, so that
    another search finds what this one measured."""
    step = max(_PAGE, 1 << (max(near // 2, 1).bit_length() - 1))
    half = (below + above) // 2 // step * step
    return half if below < half < above else (below + above) // 2


def contradictions(outcomes: Sequence[Outcome], good: Enough, bad: Enough, what: str) -> list[str]:
    """A sentence for each limit that was not enough although a smaller one was. ``outcomes`` by their
    limits."""
    told = []
    for i, outcome in enumerate(outcomes):
        smaller = next((other for other in outcomes[:i] if good(other)), None)
        if bad(outcome) and smaller is not None:
            told.append(
                f"not monotone: it {what} in {size_text(smaller.limit_bytes)}, but not in "
                f"{size_text(outcome.limit_bytes)}"
            )
    return told


def size_text(size: int) -> str:
    """``96 MiB``, or with a decimal where it is no whole number of them."""
    return f"{size // MIB} MiB" if size % MIB == 0 else f"{size / MIB:.2f} MiB ({bytes_label(size)})"
