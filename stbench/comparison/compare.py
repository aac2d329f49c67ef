"""Two sets of results -> a verdict per case: improved, regressed, unchanged or inconclusive.

Rows are compared only when they answer the same question. What names a case
(:data:`stbench.comparison.matching.NAMES`) brings the rows together; everything else that changes a speed
(:data:`stbench.comparison.matching.CONDITIONS`) must then agree, or the comparison is refused with the field
and both values, unless that field is ignored on request. What is compared *is* free: library build, campaign,
time.

Replicates of one campaign with the same number ran next to each other, and those of two campaigns whose runs
alternate in time did too: these are pairs. Otherwise both samples stand for themselves, and the comparison
says so: a drift of the machine between them cannot be told from a change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stbench.comparison import inference
from stbench.comparison.inference import INCONCLUSIVE, Floats
from stbench.comparison.matching import NAMES, differences, known, matched, pairing
from stbench.errors import CellsFailed, InputError
from stbench.records.disturbance import MEMORY, RATES, same_bandwidth
from stbench.records.sides import Side
from stbench.tables import cells
from stbench.wording import count

# The default threshold: the smallest change that matters, as a share.
THRESHOLD = 0.02


@dataclass(frozen=True)
class Sample:
    """One side of a comparison. ``median`` in tokens/s; ``disturbed`` and ``failed`` replicates are left
    out; ``unpaired`` ones are usable but have no partner on the other side."""

    n: int
    median: float
    disturbed: int
    failed: int
    unpaired: int
    library: tuple[str, ...]
    isa: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """One case. ``ratio`` is median B / median A; ``low`` and ``high`` surround it: an "interval" of at least
    95 % coverage, or below 6 replicates the "range" of ratios that occurred. ``p`` is of the signed-rank test
    for pairs, else of Mann-Whitney; ``q`` is ``p`` adjusted for all cases compared together. ``threshold``
    and ``floor`` are shares. ``repetitions`` would settle an inconclusive verdict (None: it is settled, or
    more than 1000)."""

    case: str
    metric: str
    a: Sample
    b: Sample
    paired: bool
    n: int
    ratio: float
    low: float
    high: float
    kind: str
    p: float
    mann_whitney_p: float
    q: float
    threshold: float
    floor: float
    verdict: str
    repetitions: int | None

    @property
    def test(self) -> str:
        """The test behind ``p``."""
        return "signed-rank" if self.paired else "mann-whitney"


@dataclass(frozen=True)
class Comparisons:
    """All cases that both sides have, in the order of A; ``failed`` says which of them have no speed on one
    side, and why; ``notes`` are sentences on everything else."""

    cases: tuple[Comparison, ...]
    failed: tuple[str, ...]
    notes: tuple[str, ...]


# A row of the case, whether it is paired, replicates per side -> the device's noise floor, a share.
Floor = Callable[["pd.Series[Any]", bool, int], float]


# A row of the case and its noise floor -> the smallest change that matters, a share.
Threshold = Callable[["pd.Series[Any]", float], float]


def no_floor(row: pd.Series[Any], paired: bool, n: int) -> float:
    """For devices whose noise nobody measured."""
    return 0.0


def compare(
    a: Side,
    b: Side,
    *,
    metric: str = "decode_tps",
    threshold: float | None = None,
    ignore: Collection[str] = (),
    floor: Floor = no_floor,
) -> Comparisons:
    """Compares every case that both sides have.

    ``threshold`` None: 2 %, or the case's noise floor where that is higher. Raises :class:`UsageError` for an
    unknown field or metric, :class:`InputError` for unlike rows and where nothing can be compared,
    :class:`CellsFailed` where a side computed wrong output or has no usable replicate of any case.
    """
    known(ignore, metric)
    notes = list(dict.fromkeys(side.chosen for side in (a, b) if side.chosen))
    pairs = matched(a, b, metric, [name for name in NAMES if name not in ignore], notes)
    problems = [line for case, x, y in pairs for line in differences(case, a, b, x, y, ignore)]
    if problems:
        raise InputError(
            "unlike rows are not compared:\n" + "\n".join(problems),
            hint="select like rows with RESULTS:GLOB, or say --ignore FIELD where the difference is meant",
        )
    failed: list[str] = []
    prepared = [prepare(case, x, y, metric, failed, pairing(x, y)) for case, x, y in pairs]
    found = [case for case in prepared if case is not None]
    if not found:
        raise CellsFailed("no case has a speed on both sides; " + "; ".join(failed))
    return Comparisons(tuple(judge(found, threshold, floor)), tuple(failed), tuple(notes))


@dataclass(frozen=True)
class Prepared:
    """The usable replicates of one case, pairs in equal places if ``paired``. ``row`` is one of A's."""

    case: str
    metric: str
    row: pd.Series[Any]
    a: Sample
    b: Sample
    paired: bool
    values_a: Floats
    values_b: Floats


def prepare(
    case: str,
    a: pd.DataFrame,
    b: pd.DataFrame,
    metric: str,
    failed: list[str],
    together: Sequence[tuple[int, int]] | None,
) -> Prepared | None:
    """What can be compared of two groups of rows; None, and a sentence in ``failed``, where one has no usable
    replicate or computed wrong output. ``together``: index labels that belong together; None: none do."""
    for side, rows in (("A", a), ("B", b)):
        if cells.is_wrong(rows):
            failed.append(f"{case}: {side} computed wrong output, which has no speed")
            return None
        if not len(_usable(rows, metric)) and (together is None or not len(_steady(rows, metric))):
            disturbed = int((rows["usable"] & rows["disturbed"]).sum())
            of = f"{count(len(rows), 'record')}, {disturbed} disturbed"
            failed.append(f"{case}: {side} has no usable replicate of {of}")
            return None
    used_a, used_b = _usable(a, metric), _usable(b, metric)
    lone_a = lone_b = 0
    if together is not None:
        both = _fair_pairs(_steady(a, metric), _steady(b, metric), together)
        firsts, seconds = [i for i, _ in both], [j for _, j in both]
        lone_a, lone_b = len(used_a.index.difference(firsts)), len(used_b.index.difference(seconds))
        used_a, used_b = a.loc[firsts], b.loc[seconds]
        if not both:
            failed.append(f"{case}: no replicate is usable on both sides of its pair")
            return None
    return Prepared(
        case,
        metric,
        used_a.iloc[0],
        _sample(a, used_a, metric, lone_a),
        _sample(b, used_b, metric, lone_b),
        together is not None,
        used_a[metric].to_numpy(dtype=np.float64),
        used_b[metric].to_numpy(dtype=np.float64),
    )


def every_pair(
    case: str, a: pd.DataFrame, b: pd.DataFrame, metric: str, together: Sequence[tuple[int, int]]
) -> Prepared | None:
    """All pairs of runs that ended well, disturbed or not; None where there is none or output was wrong.

    What comes and goes hits either half of a pair alike, because their order is drawn: it widens the interval
    of the ratio, but does not move it to one side."""
    if cells.is_wrong(a) or cells.is_wrong(b):
        return None
    good_a, good_b = (set(rows.index[rows["usable"] & rows[metric].notna()]) for rows in (a, b))
    both = [(i, j) for i, j in together if i in good_a and j in good_b]
    if not both:
        return None
    used_a, used_b = a.loc[[i for i, _ in both]], b.loc[[j for _, j in both]]
    return Prepared(
        case,
        metric,
        used_a.iloc[0],
        _sample(a, used_a, metric, 0),
        _sample(b, used_b, metric, 0),
        True,
        used_a[metric].to_numpy(dtype=np.float64),
        used_b[metric].to_numpy(dtype=np.float64),
    )


def judge(
    prepared: Sequence[Prepared], threshold: float | Threshold | None, floor: Floor = no_floor
) -> list[Comparison]:
    """Compares cases together: their p values are adjusted for each other. ``threshold`` None: 2 %, or the
    noise floor where that is higher."""
    own = [
        inference.signed_rank_p(np.log(case.values_b) - np.log(case.values_a))
        if case.paired
        else inference.mann_whitney_p(case.values_a, case.values_b)
        for case in prepared
    ]
    adjusted = inference.benjamini_hochberg(own)
    made = []
    for case, p, q in zip(prepared, own, adjusted, strict=True):
        n = min(len(case.values_a), len(case.values_b))
        estimate = inference.paired_ratio if case.paired else inference.unpaired_ratio
        ratio = estimate(case.values_a, case.values_b)
        noise = floor(case.row, case.paired, n)
        if threshold is None:
            matters = max(THRESHOLD, noise)
        else:
            matters = threshold(case.row, noise) if callable(threshold) else threshold
        verdict = str(inference.verdicts(ratio, np.array(q), matters, noise))
        needed = None
        if verdict == INCONCLUSIVE:
            needed = inference.repetitions(ratio, _spread(case), n, len(prepared), matters, noise)
        made.append(
            Comparison(
                case=case.case,
                metric=case.metric,
                a=case.a,
                b=case.b,
                paired=case.paired,
                n=n,
                ratio=math.exp(ratio.estimate),
                low=math.exp(ratio.low),
                high=math.exp(ratio.high),
                kind=ratio.kind,
                p=p,
                mann_whitney_p=inference.mann_whitney_p(case.values_a, case.values_b),
                q=q,
                threshold=matters,
                floor=noise,
                verdict=verdict,
                repetitions=needed,
            )
        )
    return made


def _spread(case: Prepared) -> float:
    """The standard deviation of the logarithm of B / A; 5 % where one replicate says nothing of it."""
    a, b = np.log(case.values_a), np.log(case.values_b)
    if min(len(a), len(b)) < 2:
        return 0.05
    if case.paired:
        return float(np.std(b - a, ddof=1))
    return float(np.sqrt(np.var(a, ddof=1) + np.var(b, ddof=1)))


def _sample(rows: pd.DataFrame, used: pd.DataFrame, metric: str, lone: int) -> Sample:
    disturbed = rows[rows["usable"] & rows["disturbed"] & ~rows.index.isin(used.index)]
    return Sample(
        n=len(used),
        median=float(used[metric].median()),
        disturbed=len(disturbed),
        failed=int((~rows["usable"]).sum()),
        unpaired=lone,
        library=tuple(sorted({str(text)[:12] for text in used["library"]} - {""})),
        isa=tuple(sorted({str(text) for text in used["isa"]} - {""})),
    )


def _usable(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    return rows[rows["usable"] & ~rows["disturbed"] & rows[metric].notna()]


def _steady(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Also those whose only fault is another level of bandwidth than their campaign's."""
    return rows[rows["usable"] & (~rows["disturbed"] | rows["off_level"]) & rows[metric].notna()]


def _fair_pairs(
    a: pd.DataFrame, b: pd.DataFrame, together: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Pairs of two undisturbed runs, or of two steady ones that saw the same machine, by what either is
    judged by."""
    off_a, off_b = dict(a["off_level"]), dict(b["off_level"])

    def alike(i: int, j: int) -> bool:
        rates = {RATES.get(by, RATES[MEMORY]) for by in (a["judged_by"][i], b["judged_by"][j])}
        return all(same_bandwidth(a[rate][i], b[rate][j]) for rate in rates)

    return [
        (i, j)
        for i, j in together
        if i in off_a and j in off_b and (not (off_a[i] or off_b[j]) or alike(i, j))
    ]
