"""Which details of which records fit into a page of a given size.

Small campaigns keep long series; larger ones shorter ones; of the largest only the runs behind the tables and
the newest have details. What was decided is said in sentences for the page.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from stbench.agent.wire import RunRecord
from stbench.report.details import Pool, detail, summary
from stbench.report.markup import json_text
from stbench.wording import count

# Numbers per series of samples and of telemetry, finest first. Below 24 a timeline shows nothing.
LEVELS = ((192, 96), (96, 48), (64, 32), (48, 24))

# Rows of the table of records: 10,000 take 0.9 MB, more would leave nothing for details.
MOST_RECORDS = 10_000


@dataclass(frozen=True)
class Fitted:
    """``pool``, ``rows`` and ``details`` (0: left out) for the page; ``sentences`` say what is not whole."""

    pool: list[Any]
    rows: list[list[Any]]
    details: list[Any]
    sentences: tuple[str, ...]


def fit(
    records: Sequence[RunRecord], frames: Sequence[pd.Series[Any]], first: Collection[int], budget: int
) -> Fitted:
    """``frames[i]`` is the tidy row of ``records[i]``; ``first`` are the numbers of records that come before
    all others when not all have room, ``budget`` is in bytes."""
    for samples, looks in LEVELS:
        pool, rows, size = _summaries(records, frames)
        details: list[Any] = []
        for record, row in zip(records, frames, strict=True):
            before = len(pool.values)
            details.append(detail(record, row, pool, samples, looks))
            size += _size(details[-1]) + sum(_size(value) for value in pool.values[before:])
            if size > budget:
                break
        else:
            return Fitted(pool.values, rows, details, tuple(_thinned(records, samples, looks)))
    return _some(records, frames, first, budget)


def _some(
    records: Sequence[RunRecord], frames: Sequence[pd.Series[Any]], first: Collection[int], budget: int
) -> Fitted:
    samples, looks = LEVELS[-1]
    pool, rows, size = _summaries(records, frames)
    details: list[Any] = [0] * len(records)
    kept = 0
    for i in _by_interest(records, first):
        before = len(pool.values)
        made = detail(records[i], frames[i], pool, samples, looks)
        size += _size(made) + sum(_size(value) for value in pool.values[before:])
        if size > budget:
            break
        details[i] = made
        kept += 1
    left_out = (
        f"To keep this file small, {kept} of {count(len(records), 'run')} have their details here: those "
        "behind the tables first, then the newest. All are in the campaigns' records.jsonl."
    )
    return Fitted(pool.values, rows, details, (left_out, *_thinned(records, samples, looks)))


def _by_interest(records: Sequence[RunRecord], first: Collection[int]) -> list[int]:
    preferred = set(first)
    return sorted(range(len(records)), key=lambda i: (i not in preferred, -i))


def _summaries(
    records: Sequence[RunRecord], frames: Sequence[pd.Series[Any]]
) -> tuple[Pool, list[list[Any]], int]:
    pool = Pool()
    pool.put("")  # number 0: nothing
    rows = [summary(record, row, pool) for record, row in zip(records, frames, strict=True)]
    return pool, rows, _size(rows) + _size(pool.values)


def _thinned(records: Sequence[RunRecord], samples: int, looks: int) -> Iterator[str]:
    longest = max((len(record.samples.decode_ns) for record in records if record.samples), default=0)
    if longest > samples:
        yield (
            f"Of more than {samples} samples the plots show the least and the largest of {samples // 2} "
            "stretches, so that no outlier is lost; percentiles are of all samples."
        )
    longest = max((len(record.timeline.at_ms) for record in records if record.timeline), default=0)
    if longest > looks:
        yield f"Telemetry of more than {looks} looks is shown likewise, in {looks // 2} stretches."


def _size(value: Any) -> int:
    """Bytes of a value in the page, with its comma."""
    return len(json_text(value).encode()) + 1
