"""``RESULTS`` or ``RESULTS:GLOB`` as typed -> the rows that are meant."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from stbench.agent.wire import RunRecord
from stbench.errors import InputError
from stbench.records import store
from stbench.records.frame import to_frame
from stbench.records.one_run import finished


@dataclass(frozen=True)
class Side:
    """Rows of :func:`stbench.records.frame.to_frame` under the name that messages use. ``problems``:
    sentences on unreadable lines and on records that claim to be one run. ``chosen``: a sentence where rows
    were left out by what was measured beside them."""

    name: str
    frame: pd.DataFrame
    problems: tuple[str, ...] = ()
    chosen: str = ""


def side_of(name: str, records: Iterable[RunRecord]) -> Side:
    """The finished measurements among ``records``, one per run."""
    kept, claims = finished(records)
    frame = to_frame(kept)
    # A run that never reached its threads, and programs that do not say them, have the requested number.
    frame["threads"] = frame["threads"].where(frame["threads"] > 0, frame["threads_requested"])
    return Side(name, frame, tuple(claims))


def read_side(text: str) -> Side:
    """A campaign's directory or a records file; behind a colon a glob that labels or cases must fit.

    Raises :class:`InputError` for what cannot be read and for a glob that fits nothing.
    """
    path, glob = split(text)
    reading = store.read_records(path)
    side = side_of(str(path), reading.latest())
    frame = side.frame
    if glob:
        fits = [
            any(fnmatch.fnmatchcase(name, glob) for name in names)
            for names in zip(frame["label"], frame["case"], strict=True)
        ]
        frame = frame[fits]
    if not len(frame):
        what = f"no record fits {glob!r}" if glob else "no finished measurement"
        labels = ", ".join(sorted(set(side.frame["label"]))[:4])
        raise InputError(f"{path}: {what}", hint=f"labels there: {labels} ..." if labels else "")
    return Side(text, frame, (*reading.problems, *side.problems))


def split(text: str) -> tuple[Path, str]:
    """Paths and labels may both have colons: the path is the shortest head that exists."""
    if not Path(text).exists():
        for i, character in enumerate(text):
            if character == ":" and text[:i] and Path(text[:i]).exists():
                return Path(text[:i]), text[i + 1 :]
    return Path(text), ""
