"""The answers of a search for a memory limit as table, sentences and JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from stbench import errors
from stbench.agent.wire import RunRecord
from stbench.caches.find_limit import MIB, Edge, Found, Outcome, Resolution, size_text
from stbench.campaigns.live import tokens_per_s
from stbench.wording import count, number

# What a reason in the table and in the log may take; the sentences have all of it.
_SHORT = 110
# Enough replicates for an interval instead of a range.
_SETTLING = 9


@dataclass(frozen=True)
class Answer:
    """Of one ``case``: what was found. ``speed``: tokens/s that were asked for, None where none were;
    ``free``: the run without a limit, None where none was needed."""

    case: str
    found: Found
    resolution: Resolution
    speed: float | None
    free: RunRecord | None


def step_sentence(outcome: Outcome) -> str:
    """What happened under a limit, for a log."""
    where = size_text(outcome.limit_bytes)
    if not outcome.ran:
        return f"does not run in {where}: {_cut(outcome.why)}"
    return f"runs in {where}" + (f": {_speed_text(outcome)} tokens/s" if outcome.speeds else "")


def _cut(text: str) -> str:
    return text if len(text) <= _SHORT else text[: _SHORT - 1] + "…"


def _speed_text(outcome: Outcome) -> str:
    speed = outcome.speed
    if speed is None:
        return "—"
    if speed.n == 1:
        return number(speed.median)
    low, high = number(speed.low), number(speed.high)
    return f"{number(speed.median)} " + (f"({low}…{high})" if speed.kind == "range" else f"[{low}, {high}]")


def table(answer: Answer) -> Table:
    """Every probed limit."""
    out = Table(title=Text(answer.case), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("limit", "peak MiB", "cache MiB", "tokens/s", "hit rate %", "ran"):
        out.add_column(name, justify="right")
    out.add_column("why not", overflow="fold")
    for outcome in answer.found.outcomes:
        out.add_row(
            size_text(outcome.limit_bytes),
            _mib(outcome.peak_bytes),
            _mib(outcome.cache_bytes),
            _speed_text(outcome),
            "—" if outcome.hit_rate is None else f"{100 * outcome.hit_rate:.0f}",
            f"{outcome.good} of {outcome.tried}",
            Text(_cut(outcome.why)),
        )
    return out


def summary(answers: Sequence[Answer]) -> Table:
    """A row for each of several cases."""
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    out.add_column("case", overflow="fold")
    speeds = sorted({answer.speed for answer in answers if answer.speed is not None})
    for name in ("runs in", "not in", "peak MiB", "cache MiB", *(f"{x:g} tokens/s in" for x in speeds)):
        out.add_column(name, justify="right")
    for answer in answers:
        enough, below = answer.found.runs.enough, answer.found.runs.below
        out.add_row(
            Text(answer.case),
            _limit_text(enough),
            _limit_text(below),
            _mib(enough.peak_bytes if enough is not None else None),
            _mib(enough.cache_bytes if enough is not None else None),
            *(_reached_text(answer.found) for _ in speeds),
        )
    return out


def _limit_text(outcome: Outcome | None) -> str:
    return "—" if outcome is None else size_text(outcome.limit_bytes)


def _reached_text(found: Found) -> str:
    if found.inconclusive:
        return "inconclusive"
    return _limit_text(found.reached.enough if found.reached is not None else None)


def _mib(size: int | None) -> str:
    return "—" if size is None else f"{size / MIB:.1f}"


def sentences(answer: Answer) -> list[str]:
    """The answers, with the neighbour that was not enough, and what is to be said of them."""
    found = answer.found
    out = [_runs_sentence(answer)]
    if answer.speed is not None and found.runs.enough is not None:
        out.append(_reach_sentence(answer, answer.speed))
    out += found.contradictions
    if found.contradictions:
        out.append("the limits named are those from which on every larger one that was tried was enough")
    if any(outcome.left_out for outcome in found.outcomes):
        dropped = sum(outcome.left_out for outcome in found.outcomes)
        out.append(f"{count(dropped, 'disturbed run')} left out of the speeds")
    kinds = {speed.kind for o in found.outcomes if (speed := o.speed) is not None and speed.n > 1}
    if "range" in kinds:
        out.append("(a…b) is the range of fewer than 6 replicates, not a confidence interval")
    if "interval" in kinds:
        out.append("[a, b] contains the true median with a probability of 95 % at least")
    return out


def _runs_sentence(answer: Answer) -> str:
    found, case = answer.found, answer.case
    enough, below = found.runs.enough, found.runs.below
    if enough is None:
        why = f": {below.why}" if below is not None else ""
        return f"{case} does not run in {size_text(found.high)}, the largest limit that was tried{why}"
    parts = [f"peak {_mib(enough.peak_bytes)} MiB"] if enough.peak_bytes is not None else []
    parts += [f"cache {_mib(enough.cache_bytes)} MiB"] if enough.cache_bytes is not None else []
    text = f"{case} runs in {size_text(enough.limit_bytes)}" + (f" ({', '.join(parts)})" if parts else "")
    if below is None:
        return text + ", the smallest limit that was tried: --from has smaller ones"
    return f"{text}, and does not in {size_text(below.limit_bytes)}: {below.why}"


def _reach_sentence(answer: Answer, wanted: float) -> str:
    found, case = answer.found, answer.case
    assert found.reached is not None
    assert found.open is not None
    enough, below = found.reached.enough, found.reached.below
    what = f"{case}: {wanted:g} tokens/s"
    if found.lost is not None and below is not None:
        return (
            f"{what}: inconclusive: reached in {size_text(found.lost.limit_bytes)} {_how_fast(found.lost)}, "
            f"but not in {size_text(below.limit_bytes)} {_how_fast(below)}; a busy machine does that, and so "
            "do few tokens with a cache that is still filling (-n, --warmup)"
        )
    if found.inconclusive:
        known_below = found.open.below
        low = f"{size_text(known_below.limit_bytes)} {_how_fast(known_below)}" if known_below else "nothing"
        top = f"{size_text(enough.limit_bytes)} {_how_fast(enough)}" if enough else "no limit that was tried"
        return (
            f"{what}: inconclusive: replicates straddle it; surely missed in {low}, surely reached in {top} "
            f"(-r {_SETTLING} or more narrows that)"
        )
    if enough is None:
        best = max((o.speed.median for o in found.outcomes if o.speed is not None), default=math.nan)
        text = f"{what} are not reached in {size_text(found.high)}; the best median was {number(best)}"
        free = tokens_per_s(answer.free) if answer.free is not None else None
        return text + (f", without a limit {number(free)}" if free is not None else "")
    text = f"{what} are reached in {size_text(enough.limit_bytes)} {_how_fast(enough)}"
    if below is None:
        return text + ", the smallest limit that was tried"
    return f"{text}, and not in {size_text(below.limit_bytes)} {_how_fast(below)}"


def _how_fast(outcome: Outcome) -> str:
    if not outcome.ran:
        return "(does not run)"
    one = ", one run" if len(outcome.speeds) == 1 else ""
    return f"({_speed_text(outcome)}{one})"


def exit_code(answers: Sequence[Answer]) -> int:
    """3 where a case has no limit that is enough, else 5 where replicates could not say, else 0."""
    founds = [answer.found for answer in answers]
    missing = any(
        found.runs.enough is None
        or (found.reached is not None and found.reached.enough is None and not found.inconclusive)
        for found in founds
    )
    if missing:
        return errors.EXIT_CELLS_FAILED
    return errors.EXIT_INCONCLUSIVE if any(f.inconclusive for f in founds) else errors.EXIT_OK


def as_json(answer: Answer) -> dict[str, Any]:
    """JSON-ready; sizes in bytes, speeds in tokens/s."""
    found = answer.found
    made: dict[str, Any] = {
        "case": answer.case,
        "from_bytes": found.low,
        "to_bytes": found.high,
        "resolution": dataclasses.asdict(answer.resolution),
        "without_limit_tokens_per_s": tokens_per_s(answer.free) if answer.free is not None else None,
        "steps": [_step_json(outcome) for outcome in found.outcomes],
        "runs": _edge_json(found.runs),
    }
    if answer.speed is not None and found.reached is not None and found.open is not None:
        made["reach"] = {
            "tokens_per_s": answer.speed,
            "verdict": _verdict(found),
            **(_between(found) if found.inconclusive else _edge_json(found.reached)),
        }
    return made | {"contradictions": list(found.contradictions), "sentences": sentences(answer)}


def _verdict(found: Found) -> str:
    if found.inconclusive:
        return "inconclusive"
    return "reached" if found.reached is not None and found.reached.enough is not None else "not-reached"


def _between(found: Found) -> dict[str, Any]:
    assert found.reached is not None
    assert found.open is not None
    reached = found.lost or found.reached.enough
    return {
        "limit_bytes": None,
        "missed_bytes": found.open.below.limit_bytes if found.open.below is not None else None,
        "reached_bytes": reached.limit_bytes if reached is not None else None,
    }


def _edge_json(edge: Edge) -> dict[str, Any]:
    return {
        "limit_bytes": edge.enough.limit_bytes if edge.enough is not None else None,
        "below_bytes": edge.below.limit_bytes if edge.below is not None else None,
        "why_not_below": edge.below.why if edge.below is not None else "",
    }


def _step_json(outcome: Outcome) -> dict[str, Any]:
    speed = outcome.speed
    return dataclasses.asdict(outcome) | {"speed": dataclasses.asdict(speed) if speed else None}
