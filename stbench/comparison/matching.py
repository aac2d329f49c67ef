"""Which rows of two sets of results answer the same question, and which replicates ran next to each other."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pandas as pd

from stbench.errors import InputError, UsageError
from stbench.records.limited_columns import LIMITED
from stbench.records.sides import Side
from stbench.wording import case_label, clean

METRICS = {"decode_tps": "decode, tokens/s", "prefill_tps": "prefill, tokens/s"}

# What a workload must have for there to be such a number; anything else every run has.
_PARTS = {"decode_tps": "n_gen", "prefill_tps": "n_prompt"}

# Columns of the frame that name a case, and columns that must agree besides.
NAMES = ("device", "engine", "model", "switches", "workload", "threads", *LIMITED)
CONDITIONS = (
    "provenance",
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
    "arguments",
)
FIELDS = (*NAMES, *CONDITIONS)

# Free between two sides, where it is mostly what is asked about; within one side it makes them no sample.
_BUILD = "library"
ONE_BUILD = "give each build a campaign of its own: stbench sweep --campaign NAME"

# Samples that alternate in time are paired with their neighbours when this share of the larger one has one.
_ALTERNATING = 2 / 3


def known(ignore: Collection[str], metric: str) -> None:
    """Raises :class:`UsageError` for fields and metrics that there are not."""
    unknown = sorted(set(ignore) - set(FIELDS))
    if unknown:
        raise UsageError(
            f"--ignore {', '.join(unknown)}: no field that is compared; known: {', '.join(FIELDS)}"
        )
    if metric not in METRICS:
        raise UsageError(f"--metric {metric}: expected one of {', '.join(METRICS)}")


Matched = list[tuple[str, pd.DataFrame, pd.DataFrame]]


def matched(a: Side, b: Side, metric: str, names: list[str], notes: list[str]) -> Matched:
    """Label and both groups of every case that both sides have and that has this metric at all ("": all
    cases); what one side has alone goes into ``notes``. Raises :class:`InputError` where nothing is in
    both."""
    part = _PARTS.get(metric, "")
    groups = []
    for side in (a, b):
        rows = side.frame[side.frame[part] > 0] if part else side.frame
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
    return case_label(rows["label"].iloc[0])


def _nothing_in_common(
    a: Side, b: Side, of_a: dict[Any, Any], of_b: dict[Any, Any], names: list[str], metric: str
) -> str:
    for side, groups in ((a, of_a), (b, of_b)):
        if not groups:
            return f"{side.name} has no record with {METRICS.get(metric, 'a case').partition(',')[0]}"
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


def differences(
    case: str, a: Side, b: Side, rows_a: pd.DataFrame, rows_b: pd.DataFrame, ignore: Collection[str]
) -> list[str]:
    """One sentence per field in which usable rows of a case differ, within a side or between them. The build
    may differ between sides alone: one label measured by two builds, of which a campaign that is resumed
    after an upgrade is made, is no sample of either."""
    usable_a, usable_b = rows_a[rows_a["usable"]], rows_b[rows_b["usable"]]
    said = [
        f"{case}: {found} within {side.name}; {ONE_BUILD}"
        for side, rows in ((a, usable_a), (b, usable_b))
        for found in unlike(rows, [_BUILD])
    ]
    for name in FIELDS:
        if name in ignore:
            continue
        values = [sorted(set(map(str, rows[name]))) for rows in (usable_a, usable_b)]
        for side, rows in ((a, usable_a), (b, usable_b)):
            said += [f"{case}: {found} within {side.name}" for found in unlike(rows, [name])]
        if all(len(found) == 1 for found in values) and values[0] != values[1]:
            one, other = _apart(values[0][0], values[1][0])
            said.append(f"{case}: {name} is {one} in {a.name}, {other} in {b.name}")
    if any(name in ignore for name in NAMES):
        said += [
            f"{case}: {side.name} has several cases that differ in ignored fields only: "
            + ", ".join(sorted(set(rows["label"])))
            for side, rows in ((a, usable_a), (b, usable_b))
            if rows["label"].nunique() > 1
        ]
    # Both sides may be of one file.
    return list(dict.fromkeys(said))


def unlike(rows: pd.DataFrame, names: Iterable[str]) -> list[str]:
    """Of rows of one case: which of these columns differ among them, each as "NAME is X and Y"."""
    found = ((name, sorted(set(map(str, rows[name])))) for name in names)
    return [f"{name} is {' and '.join(map(_value, values))}" for name, values in found if len(values) > 1]


def _apart(one: str, other: str) -> tuple[str, str]:
    """Two values as a sentence shows them: where they begin alike for long, from where they differ."""
    shown = _value(one), _value(other)
    if shown[0] != shown[1]:
        return shown
    alike = next(
        (i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), min(len(one), len(other))
    )
    start = max(alike - 20, 0)
    return f"…{_value(one[start:])}", f"…{_value(other[start:])}"


def _value(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 and text.isalnum() else clean(text, 60) or "none"


def mixed(rows: pd.DataFrame) -> str:
    """Of rows of one case: of which builds they are, as "library is X and Y"; "" where it is one build."""
    return "".join(unlike(rows[rows["usable"]], [_BUILD]))


def pairing(a: pd.DataFrame, b: pd.DataFrame) -> list[tuple[int, int]] | None:
    """Index labels of replicates that ran next to each other; None where the samples were taken apart. Raises
    :class:`InputError` where a group is of several builds, and thus no sample of one."""
    for rows in (a, b):
        if builds := mixed(rows):
            raise InputError(f"{_label(rows)}: {builds}: no sample of one build", hint=ONE_BUILD)
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
    """Pairs of index labels with the same replicate number, which ran in the same round. Where a number is
    there again (of settings that are ignored on request), the first is with the first and so on: a run in two
    pairs would count as two runs."""
    numbered_a, numbered_b = (
        zip(rows["replicate"].tolist(), rows.index.tolist(), strict=True)
        for rows in (a[a["usable"]], b[b["usable"]])
    )
    of_b: dict[int, list[int]] = {}
    for number, index in numbered_b:
        of_b.setdefault(number, []).append(index)
    return [(index, of_b[number].pop(0)) for number, index in numbered_a if of_b.get(number)]
