"""Two sets of results -> a verdict per case: improved, regressed, unchanged or inconclusive.

Rows are compared only when they answer the same question. What names a case (:data:`NAMES`) brings the rows
together; everything else that changes a speed (:data:`CONDITIONS`) must then agree, or the comparison is
refused with the field and both values, unless that field is ignored on request. What is compared *is* free:
library build, campaign, time.

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

from stbench import cells, inference
from stbench.disturbance import same_bandwidth
from stbench.errors import CellsFailed, InputError, UsageError
from stbench.inference import INCONCLUSIVE, Floats
from stbench.limited_columns import LIMITED
from stbench.sides import Side
from stbench.table import clean, count

# The default threshold: the smallest change that matters, as a share.
THRESHOLD = 0.02

METRICS = {"decode_tps": "decode, tokens/s", "prefill_tps": "prefill, tokens/s"}

# Columns of the frame that name a case, and columns that must agree besides.
NAMES = ("device", "engine", "model", "switches", "workload", "threads", *LIMITED)
CONDITIONS = (
    "fingerprint",
    "digest",
    "seed",
    "isa_requested",
    "n_ctx",
    "n_batch",
    "kv_type",
    "kv_touch",
    "cpus",
    "load",
    "populate",
    "requantise_down",
    "lm_head_threshold",
)
FIELDS = (*NAMES, *CONDITIONS)

# Samples that alternate in time are paired with their neighbours when this share of the larger one has one.
_ALTERNATING = 2 / 3


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
    _known(ignore, metric)
    notes: list[str] = []
    pairs = _matched(a, b, metric, [name for name in NAMES if name not in ignore], notes)
    problems = [line for case, x, y in pairs for line in _differences(case, a, b, x, y, ignore)]
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


def judge(prepared: Sequence[Prepared], threshold: float | None, floor: Floor = no_floor) -> list[Comparison]:
    """Compares cases together: their p values are adjusted for each other."""
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
        matters = max(THRESHOLD, noise) if threshold is None else threshold
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
    """Pairs of two undisturbed runs, or of two steady ones that saw the same bandwidth."""
    off_a, off_b = dict(a["off_level"]), dict(b["off_level"])
    rate_a, rate_b = dict(a["read_gb_per_s"]), dict(b["read_gb_per_s"])
    return [
        (i, j)
        for i, j in together
        if i in off_a and j in off_b and (not (off_a[i] or off_b[j]) or same_bandwidth(rate_a[i], rate_b[j]))
    ]


# ---- which rows belong together ---------------------------------------------------------------------------


def _known(ignore: Collection[str], metric: str) -> None:
    unknown = sorted(set(ignore) - set(FIELDS))
    if unknown:
        raise UsageError(
            f"--ignore {', '.join(unknown)}: no field that is compared; known: {', '.join(FIELDS)}"
        )
    if metric not in METRICS:
        raise UsageError(f"--metric {metric}: expected one of {', '.join(METRICS)}")


_Matched = list[tuple[str, pd.DataFrame, pd.DataFrame]]


def _matched(a: Side, b: Side, metric: str, names: list[str], notes: list[str]) -> _Matched:
    """Label and both groups of every case that both sides have and that has this metric at all."""
    part = "n_gen" if metric == "decode_tps" else "n_prompt"
    groups = []
    for side in (a, b):
        rows = side.frame[side.frame[part] > 0]
        keyed = {key: group for key, group in rows.groupby(names, sort=False)} if names else {(): rows}
        groups.append({key: group for key, group in keyed.items() if len(group)})
    of_a, of_b = groups
    common = [key for key in of_a if key in of_b]
    for side, mine, theirs in ((a, of_a, of_b), (b, of_b, of_a)):
        alone = [_label(group) for key, group in mine.items() if key not in theirs]
        if alone and common:
            notes.append(f"only in {side.name}: {', '.join(alone)}")
    if not common:
        raise InputError(_nothing_in_common(a, b, of_a, of_b, names, metric), hint=_HINT)
    return [(_label(of_a[key]), of_a[key], of_b[key]) for key in common]


_HINT = "`stbench grid RESULTS` lists cases; --ignore FIELD compares across that field"


def _label(rows: pd.DataFrame) -> str:
    return clean(str(rows["label"].iloc[0]), 120)


def _nothing_in_common(
    a: Side, b: Side, of_a: dict[Any, Any], of_b: dict[Any, Any], names: list[str], metric: str
) -> str:
    for side, groups in ((a, of_a), (b, of_b)):
        if not groups:
            return f"{side.name} has no record with {METRICS[metric].partition(',')[0]}"
    nearest = min(
        ((x, y) for x in of_a for y in of_b),
        key=lambda pair: sum(m != n for m, n in zip(pair[0], pair[1], strict=True)),
    )
    said = [
        f"{name} {_value(x)} in {a.name}, {_value(y)} in {b.name}"
        for name, x, y in zip(names, *nearest, strict=True)
        if x != y
    ]
    return "no case is in both; the nearest two differ in " + "; ".join(said)


def _differences(
    case: str, a: Side, b: Side, rows_a: pd.DataFrame, rows_b: pd.DataFrame, ignore: Collection[str]
) -> list[str]:
    """One sentence per field in which usable rows of a case differ, within a side or between them."""
    said = []
    usable_a, usable_b = rows_a[rows_a["usable"]], rows_b[rows_b["usable"]]
    for name in FIELDS:
        if name in ignore:
            continue
        values = [sorted({_value(value) for value in rows[name]}) for rows in (usable_a, usable_b)]
        for side, found in zip((a, b), values, strict=True):
            if len(found) > 1:
                said.append(f"{case}: {name} is {' and '.join(found)} within {side.name}")
        if all(len(found) == 1 for found in values) and values[0] != values[1]:
            said.append(f"{case}: {name} is {values[0][0]} in {a.name}, {values[1][0]} in {b.name}")
    if any(name in ignore for name in NAMES):
        said += [
            f"{case}: {side.name} has several cases that differ in ignored fields only: "
            + ", ".join(sorted(set(rows["label"])))
            for side, rows in ((a, usable_a), (b, usable_b))
            if rows["label"].nunique() > 1
        ]
    return said


def _value(value: Any) -> str:
    text = clean(str(value), 60)
    return text[:12] if len(text) == 64 else text or "unknown"


def pairing(a: pd.DataFrame, b: pd.DataFrame) -> list[tuple[int, int]] | None:
    """Index labels of replicates that ran next to each other; None where the samples were taken apart."""
    if (
        a["campaign"].nunique() == b["campaign"].nunique() == 1
        and a["campaign"].iloc[0] == b["campaign"].iloc[0]
    ):
        return _by_replicate(a, b)
    usable = [rows[rows["usable"]] for rows in (a, b)]
    runs = sorted(
        (str(time), which, index)
        for which, rows in enumerate(usable)
        for index, time in zip(rows.index.tolist(), rows["started_at"], strict=True)
    )
    found, i = [], 0
    while i + 1 < len(runs):
        (_, first, one), (_, second, other) = runs[i : i + 2]
        if first != second:
            found.append((one, other) if first == 0 else (other, one))
            i += 1
        i += 1
    return found if len(found) >= max(2, _ALTERNATING * max(map(len, usable))) else None


def _by_replicate(a: pd.DataFrame, b: pd.DataFrame) -> list[tuple[int, int]]:
    """Pairs of index labels with the same replicate number, which ran in the same round."""
    of_b = dict(zip(b["replicate"].tolist(), b.index.tolist(), strict=True))
    numbered = zip(a["replicate"].tolist(), a.index.tolist(), strict=True)
    return [(index, of_b[number]) for number, index in numbered if number in of_b]
