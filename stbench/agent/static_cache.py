"""What a cache that always holds the same experts would have met: those that a run used most.

No such cache can run, since it has to know beforehand which they will be, and the fewer tokens a run decodes
the more it owes to chance. It is what a limited run is held against (docs/limited-sweeps.md).
"""

from typing import List, Sequence

from . import sbr


class Usage:
    """How often each expert was chosen in a session, over all phases that its counters are reset between."""

    def __init__(self) -> None:
        self._before: List[int] = []

    def reset(self, session: sbr.Session) -> None:
        """Call it just before the session's counters are reset."""
        self._before = _sums(self._before, counts(session))

    def hits(self, session: sbr.Session, units: int) -> int:
        """Of the choices since the last reset, those of the ``units`` experts chosen most since the start."""
        return static_hits(self._before, counts(session), units)


def counts(session: sbr.Session) -> List[int]:
    """Since the last reset, all layers one after the other."""
    found: List[int] = []
    for layer in range(int(session.model.info.n_layer)):
        found.extend(session.expert_counts(layer))
    return found


def static_hits(before: Sequence[int], now: Sequence[int], units: int) -> int:
    """Of ``now`` what the ``units`` largest of ``before + now`` take; of equals the one used more now."""
    total = _sums(before, now)
    order = sorted(range(len(now)), key=lambda unit: (-total[unit], -now[unit], unit))
    return sum(now[unit] for unit in order[:units])


def _sums(one: Sequence[int], other: Sequence[int]) -> List[int]:
    return [a + b for a, b in zip(one, other)] if one else list(other)
