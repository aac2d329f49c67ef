"""Lines of a records file -> columns for the index, in this process or in several.

One process finds where chunks of lines end and hashes them (:func:`spans`); reading them, which is nine
tenths of the work, is done by :class:`Readers`, each a process of its own. A reader that dies is done
without; one whose parent dies ends, because nobody writes to it any more.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stbench
from stbench.records.columnar import encode
from stbench.records.derived import DERIVED, EVIDENCE, JOINT, evidence_of
from stbench.records.frame import COLUMNS, own_row
from stbench.records.lines import MAX_LINE_BYTES, Problems, mark_of, read_lines, result_of

# Rows of a chunk: 8192 take about 60 MB while they are Python objects.
CHUNK = 8192
CHUNK_BYTES = 64 << 20
# Processes are started for so many bytes: reading these takes longer than starting one.
SEVERAL_BYTES = 64 << 20
MOST_READERS = 4

# What is kept of a line beside the frame's columns: its digest, where it stands, and what it measured.
PLACE = {"_digest": "int64", "_line": "int64", "_offset": "int64", "_result": "object"}
STORED = {**{name: dtype for name, dtype in COLUMNS.items() if name not in JOINT}, **EVIDENCE, **PLACE}
DTYPES = {**STORED, **DERIVED}


@dataclass(frozen=True)
class Span:
    """Whole lines of a file: from byte ``begin``, behind ``number`` lines, to byte ``end``. ``digest`` is of
    the file up to there, which has ``lines`` lines."""

    begin: int
    number: int
    end: int
    lines: int
    digest: bytes


@dataclass(frozen=True)
class Chunk:
    """What a span holds: for each column of STORED kind and bytes, and what was wrong with its lines."""

    rows: int
    columns: Mapping[str, tuple[str, bytes]]
    problems: Mapping[str, Any]


def spans(path: Path, offset: int, number: int, made: Any) -> Iterator[Span]:
    """All whole lines from ``offset`` on, behind ``number`` lines, in chunks. ``made`` is the digest of what
    is before them."""
    with path.open("rb") as file:
        file.seek(offset)
        begin, first, before = offset, number, None
        while data := file.readline(MAX_LINE_BYTES):
            ends = data.endswith(b"\n")
            if not ends and before is None:
                before = (made.copy(), offset)
            made.update(data)
            offset += len(data)
            if not ends:
                continue
            before = None
            number += 1
            if number - first >= CHUNK or offset - begin >= CHUNK_BYTES:
                yield Span(begin, first, offset, number, made.copy().digest())
                begin, first = offset, number
        if before is not None:
            made, offset = before
        if offset > begin:
            yield Span(begin, first, offset, number, made.copy().digest())


def digest_of(path: Path, size: int) -> Any:
    """Of the first ``size`` bytes, to go on with."""
    made = hashlib.blake2b()
    with path.open("rb") as file:
        left = size
        while left and (data := file.read(min(left, 1 << 20))):
            made.update(data)
            left -= len(data)
    return made


def read_span(path: Path, span: Span) -> Chunk:
    """Reads the lines of a span. Raises :class:`stbench.errors.InputError`."""
    values: dict[str, list[Any]] = {name: [] for name in STORED}
    problems = Problems()
    for line in read_lines(path, offset=span.begin, number=span.number):
        if line.offset >= span.end:
            break
        problems.look_at(line)
        record = line.record
        if record is None:
            continue
        row = own_row(record) | evidence_of(record)
        row["_digest"], row["_line"], row["_offset"] = mark_of(line), line.number, line.offset
        row["_result"] = result_of(record)
        for name, column in values.items():
            column.append(row[name])
    rows = len(values["record_id"])
    columns = {name: encode(values[name], dtype) for name, dtype in STORED.items()} if rows else {}
    return Chunk(rows, columns, problems.state())


class Readers:
    """Processes that read spans of a file, given back in their order. With 0 of them all is read here."""

    def __init__(self, path: Path, processes: int) -> None:
        self._path = path
        self._processes = [_start() for _ in range(processes)]

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.kill()
            # What it had begun to write is nobody's any more.
            with contextlib.suppress(OSError):
                process.communicate()

    def chunks(self, found: Iterator[Span]) -> Iterator[tuple[Span, Chunk]]:
        """Reads these spans, some of them ahead."""
        waiting: deque[tuple[Span, int]] = deque()
        ahead = 2 * len(self._processes)
        for number, span in enumerate(found):
            waiting.append((span, self._ask(number, span)))
            if len(waiting) > ahead:
                yield self._answer(*waiting.popleft())
        while waiting:
            yield self._answer(*waiting.popleft())

    def _ask(self, number: int, span: Span) -> int:
        """Which process reads it; -1: none."""
        if not self._processes:
            return -1
        at = number % len(self._processes)
        try:
            _send(self._processes[at].stdin, (str(self._path), span))
        except OSError:
            return -1
        return at

    def _answer(self, span: Span, at: int) -> tuple[Span, Chunk]:
        if at >= 0:
            with contextlib.suppress(EOFError, pickle.UnpicklingError, OSError):
                begin, chunk = pickle.load(self._processes[at].stdout)  # type: ignore[arg-type]
                assert begin == span.begin
                return span, chunk
        return span, read_span(self._path, span)


def processes_for(size: int) -> int:
    """How many are worth it for so many bytes."""
    return min(len(os.sched_getaffinity(0)), MOST_READERS) if size >= SEVERAL_BYTES else 0


def _start() -> subprocess.Popen[bytes]:
    # The same code as here, wherever that was found.
    paths = [str(Path(stbench.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import main; main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # What goes wrong goes wrong again here, where it has a message.
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        # An interrupt is its parent's matter.
        start_new_session=True,
    )


def _send(file: Any, data: object) -> None:
    pickle.dump(data, file, protocol=pickle.HIGHEST_PROTOCOL)
    file.flush()


def main() -> None:
    """A reader: spans on stdin, chunks on stdout, until stdin ends."""
    with contextlib.suppress(EOFError):
        while True:
            path, span = pickle.load(sys.stdin.buffer)
            _send(sys.stdout.buffer, (span.begin, read_span(Path(path), span)))
