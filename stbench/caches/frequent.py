"""What always holding the most frequent experts is worth without hindsight.

The static oracle counts a trace's uses and is judged by the same trace: it also keeps what chance alone made
frequent. Of 1024 tokens of uniform routing, in which no expert is better than another, it hits 3 points more
than the share that it holds. Here no token is judged by a count that it took part in.
"""

from __future__ import annotations

import time

import numpy as np

from stbench.agent.routing import Routing
from stbench.caches.routings import experts_array
from stbench.caches.simulate import Outcome

# Parts of the trace, each judged by the counts of the others; what a part is counted without is 3 % then.
PARTS = 32


def by_other_tokens(trace: Routing, capacity: int, warmup: int) -> Outcome:
    """A :data:`stbench.caches.simulate.Simulator`: each token finds the experts that the tokens of the other
    parts used most (the lower unit on a tie). Parts are drawn token by token, so that neighbours, which are
    often alike, seldom share one. A trace of fewer tokens has a part for each."""
    begin = time.monotonic()
    first = np.arange(trace.n_layer)[None, :, None] * trace.n_expert
    units = experts_array(trace).astype(np.int64) + first
    n_units = trace.n_layer * trace.n_expert
    tokens = np.arange(trace.n_tokens)
    # Knuth's multiplier: the same parts on every machine, and none in step with a period of the text.
    part_of = tokens if trace.n_tokens <= PARTS else (tokens * 2654435761 % 2**32) >> 27
    uses = np.bincount(units.ravel(), minlength=n_units)
    sets = np.zeros(trace.n_expert_used + 1, dtype=np.int64)
    for part in np.unique(part_of[warmup:]):
        mine = part_of == part
        others = uses - np.bincount(units[mine].ravel(), minlength=n_units)
        kept = np.zeros(n_units, dtype=bool)
        kept[np.lexsort((np.arange(n_units), -others))[:capacity]] = True
        missed = (~kept[units[mine & (tokens >= warmup)]]).sum(axis=2)
        sets += np.bincount(missed.ravel(), minlength=sets.size)
    requests = int(sets.sum()) * trace.n_expert_used
    misses = int((np.arange(sets.size) * sets).sum())
    counted = tuple(int(count) for count in sets)
    return Outcome(requests, requests - misses, counted, time.monotonic() - begin)
