"""What a measured cell says of the published one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stbench.agent.wire import RunRecord
from stbench.comparison.intervals import Estimate, median_estimate
from stbench.errors import EXIT_INCONCLUSIVE, EXIT_OK, EXIT_REGRESSION
from stbench.records.frame import to_frame
from stbench.reproduction.conditions import same_machine
from stbench.reproduction.published_cells import PublishedCell
from stbench.tables.cells import is_wrong, undisturbed
from stbench.tables.table import TIMES
from stbench.wording import clean, number

REPRODUCED = "reproduced"
FASTER = "faster"
SLOWER = "slower"
INCONCLUSIVE = "inconclusive"
NOT_COMPARABLE = "not comparable"

EXIT_CODES = {
    REPRODUCED: EXIT_OK,
    FASTER: EXIT_OK,
    SLOWER: EXIT_REGRESSION,
    INCONCLUSIVE: EXIT_INCONCLUSIVE,
    NOT_COMPARABLE: EXIT_INCONCLUSIVE,
}

# Medians within this share of the published number reproduce it. A convention: its own spread was never
# published.
TOLERANCE = 0.10


@dataclass(frozen=True)
class Verdict:
    """``kind`` is a key of EXIT_CODES; ``sentence`` says it with its numbers; ``reasons`` are why it is not
    comparable; ``estimate``: tokens/s, None where no run counts; ``ratio``: its median over the published."""

    kind: str
    sentence: str
    reasons: tuple[str, ...]
    estimate: Estimate | None
    ratio: float | None


def judge(
    cell: PublishedCell,
    records: Sequence[RunRecord],
    tolerance: float = TOLERANCE,
    among: Sequence[RunRecord] = (),
) -> Verdict:
    """The verdict on the replicates of a cell (at least one), ``tolerance`` being a share. ``among``: all
    records of their campaigns, by which it is judged what was disturbed."""
    frame = to_frame(among or records)
    frame = frame[frame["record_id"].isin({record.id for record in records})]
    usable = frame[frame["usable"] & frame["decode_tps"].notna()]
    reasons = _obstacles(cell, records)
    if is_wrong(frame):
        reasons.append("it computed wrong output")
        usable = usable.iloc[:0]
    elif not len(usable):
        ends = ", ".join(sorted({f"{r.status}: {clean(r.detail, 160)}" for r in records}))
        reasons.append(f"no run has a speed ({ends})")
    elif undisturbed(usable)["disturbed"].any():
        reasons.append("something else disturbed every run")
    if len(usable) and cell.row.limited and set(usable["limit_verdict"]) != {"held"}:
        reasons.append("the memory limit was not held in every run")
    estimate = median_estimate(undisturbed(usable)["decode_tps"].astype(float)) if len(usable) else None
    ratio = estimate.median / cell.speed if estimate is not None and cell.speed else None
    kind = NOT_COMPARABLE if reasons or estimate is None else _kind(estimate, cell.speed or 0.0, tolerance)
    return Verdict(
        kind, _sentence(kind, cell, estimate, ratio, tolerance, reasons), tuple(reasons), estimate, ratio
    )


def _obstacles(cell: PublishedCell, records: Sequence[RunRecord]) -> list[str]:
    found = []
    if cell.speed is None:
        found.append('the published cell is "-": there is no number to hold it against')
    record = next((r for r in records if r.facts is not None), records[0])
    if not same_machine(cell, record.device, record.facts):
        found.append(f"{clean(record.device, 40)} is another machine than {cell.device.name}")
    return found


def _kind(estimate: Estimate, published: float, tolerance: float) -> str:
    low, high = published * (1 - tolerance), published * (1 + tolerance)
    if low <= estimate.median <= high:
        return REPRODUCED
    # The whole interval (or range) must lie outside, or a few more runs could turn the verdict.
    if estimate.low > high:
        return FASTER
    return SLOWER if estimate.high < low else INCONCLUSIVE


def _sentence(
    kind: str,
    cell: PublishedCell,
    estimate: Estimate | None,
    ratio: float | None,
    tolerance: float,
    reasons: Sequence[str],
) -> str:
    measured = _measured(estimate)
    if estimate is None or ratio is None:
        return f"{kind}: {'; '.join(reasons)}" + (f"; {measured} here" if measured else "")
    against = f"{measured}, {number(ratio)} {TIMES} the published {cell.speed:.2f}"
    away = 100 * abs(ratio - 1)
    if kind == NOT_COMPARABLE:
        return f"{kind}: {'; '.join(reasons)}. For what it is worth: {against}"
    if kind == REPRODUCED:
        return f"{kind} within {away:.1f} %: {against} (within {100 * tolerance:g} % counts)"
    if kind == INCONCLUSIVE:
        near = f"{100 * tolerance:g} %"
        return (
            f"{kind}: {against}; the {estimate.kind} reaches within {near} of it: more runs (-r) would tell"
        )
    return f"{kind} by {away:.0f} %: {against}"


def _measured(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    text = f"{number(estimate.median)} tokens/s"
    around = f"{number(estimate.low)}, {number(estimate.high)}"
    if estimate.kind == "interval":
        return f"{text} [{around}]"
    return (
        f"{text} (range of {estimate.n}: {around.replace(', ', '…')})"
        if estimate.n > 1
        else f"{text} (one run)"
    )
