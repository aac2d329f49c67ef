"""Columns of several files -> the rows that tables are made of, by the rules that reading records follows
(:func:`stbench.tables.grid.finished`): the same record once, one per run, all ordered by start and id."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stbench.agent.wire import DeviceFacts, RunRecord
from stbench.records.columnar import Array, Column, column_of
from stbench.records.derived import JOINT, jointly
from stbench.records.frame import COLUMNS
from stbench.records.one_run import canonical, one_per_run
from stbench.records.rows import Rows

# Reads one record again, by its row.
ReadAgain = Callable[[int], RunRecord]


@dataclass(frozen=True)
class Gathered:
    """What a table is made of: finished measurements with the frame's columns, each board's newest facts by
    device and fingerprint, sentences on lines that are no record, and on records that claim to be one run.
    ``read``: how many lines are records, whether of finished measurements or not."""

    rows: Rows
    facts: Mapping[tuple[str, str], DeviceFacts]
    problems: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    read: int = 0

    @property
    def frame(self) -> pd.DataFrame:
        """The rows, for functions that take a frame."""
        return self.rows.as_frame()


@dataclass(frozen=True)
class _Claim:
    campaign: str
    device: str
    id: str
    label: str
    replicate: int
    attempt: int


def gathered(
    columns: dict[str, Column], sizes: Sequence[int], problems: Sequence[str], read: ReadAgain
) -> Gathered:
    """``columns``: of all rows of files that have ``sizes`` rows each, by name."""
    total = sum(sizes)
    places = np.flatnonzero(columns["_keep"].take(np.arange(total)))
    places = _ordered(columns, places, read)
    places, claims = _claimed(columns, places)
    if _share_campaigns(columns["campaign"], sizes):
        _judge_again(columns, places, total)
    rows = Rows({name: columns[name] for name in COLUMNS}, places, total)
    return Gathered(rows, _facts(columns, places, total, read), tuple(problems), tuple(claims), total)


def _ordered(columns: Mapping[str, Column], places: Array, read: ReadAgain) -> Array:
    """By start, then id, then content, each record once."""
    started, ids = columns["started_at"].take(places), columns["record_id"].take(places)
    if len(places) < 2 or _increases(started, ids):
        return places
    order = np.argsort(started, kind="stable")
    edges = np.flatnonzero(started[order[1:]] != started[order[:-1]]) + 1
    digests = columns["_digest"].take(places)
    out: list[int] = []
    for begin, end in zip([0, *edges.tolist()], [*edges.tolist(), len(order)], strict=True):
        if end - begin == 1:
            out.append(int(order[begin]))
            continue
        by_id: dict[str, dict[int, int]] = {}
        for number in order[begin:end].tolist():
            by_id.setdefault(ids[number], {}).setdefault(int(digests[number]), number)
        for _, same in sorted(by_id.items()):
            if len(same) == 1:
                out += same.values()
                continue
            texts = {canonical(read(int(places[number]))): number for number in same.values()}
            out += [texts[text] for text in sorted(texts)]
    return np.asarray(places[np.asarray(out, dtype=np.int64)])


def _increases(started: Array, ids: Array) -> bool:
    later = started[:-1] < started[1:]
    if later.all():
        return True
    return bool((later | ((started[:-1] == started[1:]) & (ids[:-1] < ids[1:]))).all())


def _claimed(columns: Mapping[str, Column], places: Array) -> tuple[Array, list[str]]:
    """:func:`one_per_run`, asked only about ids that occur twice."""
    several = pd.Series(columns["record_id"].take(places)).duplicated(keep=False).to_numpy()
    if not several.any():
        return places, []
    doubtful = np.flatnonzero(several)
    names = ("campaign", "device", "record_id", "label", "replicate", "attempt")
    values = [columns[name].take(places[doubtful]).tolist() for name in names]
    kept, said = one_per_run([_Claim(*row) for row in zip(*values, strict=True)])
    keep = ~several
    keep[doubtful[kept]] = True
    return np.asarray(places[keep]), said


def _share_campaigns(campaign: Column, sizes: Sequence[int]) -> bool:
    """Whether what a campaign's runs were judged by stands in several files."""
    seen: set[str] = set()
    begin = 0
    for size in sizes:
        mine = set(pd.unique(campaign.take(np.arange(begin, begin + size))))
        if seen & mine:
            return True
        seen |= mine
        begin += size
    return False


def _judge_again(columns: dict[str, Column], places: Array, total: int) -> None:
    """Replaces what each file's own lines told of its rows."""
    found = jointly(lambda name: columns[name].take(places), np.ones(len(places), dtype=bool))
    for name, values in found.items():
        whole = columns[name].take(np.arange(total))
        whole[places] = values
        columns[name] = column_of(whole, COLUMNS[name])
    assert set(found) == set(JOINT)


def _facts(
    columns: Mapping[str, Column], places: Array, total: int, read: ReadAgain
) -> dict[tuple[str, str], DeviceFacts]:
    """Each board's newest, from its line: there are few boards."""
    names = ("device", "fingerprint")
    rows = Rows({name: columns[name] for name in (*names, "_facts")}, places, total)
    found = {}
    for key, mine in rows[rows["_facts"]].groupby(names):
        facts = read(int(mine.places[-1])).facts
        assert facts is not None
        found[key] = facts
    return found
