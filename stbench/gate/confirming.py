"""A suspicion is measured again before it counts: what regressed, and what has no verdict yet.

Where the baseline's build can be run, both builds run by turns and their replicates are pairs: what slows the
machine down slows both. Where it cannot, this build alone runs again and is held against the stored samples;
a drift of the machine is then not told from a change, and that is said.

Replicates are added until the verdict is settled, the time is over, or more would not help. Looks are few,
each at up to twice the replicates of the last: a test that is asked after every pair finds a change in
anything sooner or later.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Protocol

from stbench.comparison.inference import FEWEST, MOST_REPETITIONS
from stbench.gate.judging import INCONCLUSIVE, REGRESSED, Finding, Judge, replaced
from stbench.records.sides import Side

DRIFT = (
    "measured again without the baseline's build beside it: a drift of the machine is not told from a change "
    "(--baseline-library PATH)"
)
NOT_AGAIN = "a suspected regression that was not measured again"
SAME_BUILD = (
    "the build is the baseline's own, byte for byte: the machine, its system or the model's file changed"
)


class Bench(Protocol):
    """Runs cases again. ``paired``: with the baseline's build by turns."""

    paired: bool

    def more(self, labels: Sequence[str], replicates: int) -> tuple[Side, Side] | None:
        """Brings these cases to so many new replicates, of either build where ``paired``; the baseline's side
        and this build's. None where the time is over before anything ran."""
        ...

    def time_left(self) -> bool:
        """Whether another round may begin."""
        ...


def suspects(findings: Sequence[Finding]) -> list[Finding]:
    """What another measurement may settle: not what failed, nor what is not comparable."""
    return [
        f
        for f in findings
        if f.verdict in (REGRESSED, INCONCLUSIVE) and (f.comparison is not None or f.again)
    ]


def settle(findings: Sequence[Finding], bench: Bench, judge: Judge) -> list[Finding]:
    """The findings with each suspicion replaced by what the second measurement says of it.

    A suspected regression that could not be measured again in time, or not well enough, is inconclusive: it
    was not confirmed, and it was not refuted."""
    open_ = {finding.key: finding for finding in suspects(findings)}
    suspected = {key for key, finding in open_.items() if finding.verdict == REGRESSED}
    known: dict[tuple[str, str], Finding] = {}
    n = FEWEST
    while open_ and bench.time_left():
        sides = bench.more(sorted({label for label, _ in open_}), n)
        if sides is None:
            break
        anew = judge.findings(*sides, expected=False, only=set(open_))
        for finding in anew:
            for key in [finding.key] if finding.metric else _of_label(open_, finding.label):
                # Of a case as a whole: it failed this time, and each of its metrics with it.
                known[key] = dataclasses.replace(finding, metric=open_[key].metric, measured_again=True)
        unsettled = {key for key in open_ if key in known and known[key].verdict == INCONCLUSIVE}
        wanted = [_next(known[key], n) for key in unsettled]
        more = min((value for value in wanted if value is not None), default=None)
        if more is None:
            break
        open_ = {key: open_[key] for key in unsettled if _next(known[key], n) is not None}
        n = more
    for key in suspected - set(known):
        before = next(f for f in findings if f.key == key)
        known[key] = dataclasses.replace(before, verdict=INCONCLUSIVE, reason=NOT_AGAIN)
    explained = {
        key: dataclasses.replace(finding, reason=_reason(finding, bench.paired, key in suspected))
        for key, finding in known.items()
    }
    return replaced(findings, explained)


def _of_label(keys: Collection[tuple[str, str]], label: str) -> list[tuple[str, str]]:
    return [key for key in keys if key[0] == label]


def _next(finding: Finding, n: int) -> int | None:
    """How many replicates the next look has; None where more would not settle it. From 2 more on, and at most
    twice as many: what would settle it is a guess from few."""
    found = finding.comparison
    if found is None or n >= MOST_REPETITIONS:
        return None
    if not found.paired and found.b.n > 3 * found.a.n:
        # The stored samples do not grow, and their uncertainty is what is left.
        return None
    # None: more than anybody waits for by the spread so far, which of few replicates says little.
    wanted = found.repetitions or MOST_REPETITIONS
    return min(max(wanted, n + 2), 2 * n, MOST_REPETITIONS)


def _reason(finding: Finding, paired: bool, suspected: bool) -> str:
    if finding.reason:
        return finding.reason
    if suspected and finding.verdict == INCONCLUSIVE:
        return "suspected at first, neither confirmed nor refuted by measuring again"
    if suspected and finding.verdict != REGRESSED:
        return "suspected at first, not confirmed by measuring again"
    return DRIFT if finding.verdict == REGRESSED and not paired else ""


def unconfirmed(findings: Sequence[Finding]) -> list[Finding]:
    """Suspicions that nothing was measured again for are no verdict."""
    return [
        dataclasses.replace(finding, verdict=INCONCLUSIVE, reason=finding.reason or NOT_AGAIN)
        if finding.verdict == REGRESSED and not finding.measured_again
        else finding
        for finding in findings
    ]


def without_own_builds(findings: Sequence[Finding]) -> list[Finding]:
    """A regression of one and the same build is none of the build: no verdict, with the reason."""

    def same(finding: Finding) -> bool:
        found = finding.comparison
        return found is not None and bool(found.a.library) and found.a.library == found.b.library

    return [
        dataclasses.replace(finding, verdict=INCONCLUSIVE, reason=SAME_BUILD)
        if finding.verdict == REGRESSED and same(finding)
        else finding
        for finding in findings
    ]
