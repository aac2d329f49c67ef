"""An index of records files, so that a million records are read once: SQLite, and made again at will.

It holds the frame's rows in chunks, a column at a time (:mod:`stbench.records.columnar`), and nothing that
the files do not say: whoever deletes it loses time. A file is known by its size and time and by a digest of
the bytes that were read. Appended lines are read alone; a file that was cut or rewritten is read anew; an
index that is damaged, or of another version of the code that makes rows, is thrown away.

Reading streams: one chunk is in memory, and is committed before the next begins, so that a kill costs one
chunk. What only the whole campaign tells (was the machine itself, the bound of storage, which line of a job
counts) is computed after it, from columns that were kept for that, and stored beside the others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stbench.agent import wire
from stbench.agent.wire import DeviceFacts
from stbench.errors import InputError
from stbench.paths import cache_dir
from stbench.records.columnar import Array, Damaged, decode, encode
from stbench.records.derived import DERIVED, EVIDENCE, JOINT, counts, derive, evidence_of
from stbench.records.frame import COLUMNS, own_row
from stbench.records.lines import Line, Problems, read_lines
from stbench.records.store import records_path

NAME = "records-index.sqlite"

# Rows in memory at a time: 8192 take about 60 MB while they are Python objects.
CHUNK = 8192
# RESULTS of this size are read by the index without being told to: some 20,000 records, 5 s of reading.
LARGE_BYTES = 64 << 20

_OWN = {name: dtype for name, dtype in COLUMNS.items() if name not in JOINT}
_STORED = {**_OWN, **EVIDENCE, "_digest": "int64"}

_TABLES = """
CREATE TABLE meta (version TEXT NOT NULL);
CREATE TABLE files (
    id INTEGER PRIMARY KEY, path TEXT UNIQUE NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    offset INTEGER NOT NULL, lines INTEGER NOT NULL, digest BLOB NOT NULL, whole INTEGER NOT NULL,
    problems TEXT NOT NULL, torn TEXT NOT NULL);
CREATE TABLE chunks (
    file INTEGER NOT NULL, chunk INTEGER NOT NULL, rows INTEGER NOT NULL, PRIMARY KEY (file, chunk));
CREATE TABLE columns (
    file INTEGER NOT NULL, name TEXT NOT NULL, chunk INTEGER NOT NULL, kind TEXT NOT NULL,
    data BLOB NOT NULL, PRIMARY KEY (file, name, chunk));
CREATE TABLE facts (
    file INTEGER NOT NULL, device TEXT NOT NULL, fingerprint TEXT NOT NULL, started_at TEXT NOT NULL,
    record TEXT NOT NULL, facts TEXT NOT NULL, PRIMARY KEY (file, device, fingerprint));
"""

# Bytes done and in all, of the files that have to be read.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Gathered:
    """What a table is made of: finished measurements as the frame has them, each board's newest facts by
    device and fingerprint, sentences on lines that are no record, and on records that claim to be one run."""

    frame: pd.DataFrame
    facts: Mapping[tuple[str, str], DeviceFacts]
    problems: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()


def size_of(paths: Sequence[Path]) -> int:
    """Bytes of the records that these mean. Raises :class:`InputError`."""
    return sum(records_path(path).stat().st_size for path in paths)


class RecordIndex:
    """Use it as a context manager. ``notes`` says what had to be thrown away, for people."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_dir() / NAME
        self.notes: list[str] = []
        self._database = self._open()

    def __enter__(self) -> RecordIndex:
        return self

    def __exit__(self, *error: object) -> None:
        self._database.close()

    # ---- the file -------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        for attempt in range(2):
            database: sqlite3.Connection | None = None
            try:
                database = sqlite3.connect(self.path, timeout=600, isolation_level=None)
                database.execute("PRAGMA journal_mode = WAL")
                # A power cut may cost the newest chunks; they are read again.
                database.execute("PRAGMA synchronous = NORMAL")
                found = database.execute("SELECT name FROM sqlite_master WHERE name = 'meta'").fetchone()
                if found and database.execute("SELECT version FROM meta").fetchone() == (_version(),):
                    return database
                if not found:
                    database.executescript(f"BEGIN IMMEDIATE; {_TABLES} COMMIT;")
                    database.execute("INSERT INTO meta VALUES (?)", (_version(),))
                    return database
                self.notes.append(f"{self.path} is of another version of stbench; made anew")
            except sqlite3.OperationalError as error:
                if database is not None:
                    database.close()
                raise InputError(
                    f"{self.path}: {error}", hint="--no-index reads the records without it"
                ) from error
            except sqlite3.DatabaseError as error:
                self.notes.append(f"{self.path} is damaged ({error}); made anew")
            if database is not None:
                database.close()
            self._remove()
            assert attempt == 0
        raise AssertionError("an index that was just made is of this version")

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _begin_anew(self, error: Exception) -> None:
        self.notes.append(f"{self.path} is damaged ({error}); made anew")
        self._database.close()
        self._remove()
        self._database = self._open()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield self._database
        except BaseException:
            # A damaged file may have ended the transaction itself.
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    # ---- what a caller asks -----------------------------------------------------------------------------

    def gather(self, paths: Sequence[Path], progress: Progress = lambda done, total: None) -> Gathered:
        """Brings the index up to date with these directories or files, and returns their rows.

        Raises :class:`InputError` for what cannot be read."""
        files = list(dict.fromkeys(records_path(path).resolve() for path in paths))
        try:
            self.refresh(files, progress)
            return self._load(files)
        except (sqlite3.DatabaseError, Damaged) as error:
            self._begin_anew(error)
            self.refresh(files, progress)
            return self._load(files)

    def refresh(self, files: Sequence[Path], progress: Progress = lambda done, total: None) -> None:
        """Reads what is new in these files. Raises :class:`InputError`, :class:`sqlite3.DatabaseError`."""
        stale = [file for file in files if not self._is_fresh(file)]
        total, before = sum(file.stat().st_size for file in stale), 0
        for file in stale:
            _Reading(self, file).run(lambda done, before=before: progress(before + done, total))  # type: ignore[misc]
            before += file.stat().st_size

    def _is_fresh(self, file: Path) -> bool:
        query = "SELECT size, mtime_ns FROM files WHERE path = ? AND whole"
        known = self._database.execute(query, (str(file),)).fetchone()
        stat = file.stat()
        return bool(known == (stat.st_size, stat.st_mtime_ns))

    # ---- rows -------------------------------------------------------------------------------------------

    def _load(self, files: Sequence[Path]) -> Gathered:
        ids: list[int] = []
        problems: list[str] = []
        facts: dict[tuple[str, str], tuple[str, str, str]] = {}
        for file in files:
            row = self._database.execute(
                "SELECT id, problems, torn FROM files WHERE path = ?", (str(file),)
            ).fetchone()
            ids.append(row[0])
            problems += [*json.loads(row[1]), *([row[2]] if row[2] else [])]
            for device, fingerprint, *newest in self._database.execute(
                "SELECT device, fingerprint, started_at, record, facts FROM facts WHERE file = ?", (row[0],)
            ):
                key = (device, fingerprint)
                facts[key] = max(facts.get(key, ("", "", "")), tuple(newest))
        keep = {file: self._column(file, "_keep") for file in ids}
        made: dict[str, Array] = {}
        for name in ("started_at", "record_id", "_digest"):
            made[name] = self._kept(ids, name, keep)
        order = _order(made["started_at"], made["record_id"], made["_digest"])
        columns = {}
        for name, dtype in COLUMNS.items():
            values = made.pop(name, None)
            values = self._kept(ids, name, keep) if values is None else values
            columns[name] = pd.Series(values if order is None else values[order], dtype=dtype, copy=False)
        frame, claims = _one_per_run(pd.DataFrame(columns, copy=False))
        read = {key: wire.from_json(DeviceFacts, json.loads(found[2])) for key, found in facts.items()}
        return Gathered(frame, read, tuple(problems), tuple(claims))

    def _kept(self, ids: Sequence[int], name: str, keep: Mapping[int, Array]) -> Array:
        parts = [self._column(file, name)[keep[file]] for file in ids]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _column(self, file: int, name: str) -> Array:
        dtype = _STORED.get(name) or DERIVED[name]
        rows = self._database.execute(
            "SELECT kind, data, rows FROM columns JOIN chunks USING (file, chunk) "
            "WHERE file = ? AND name = ? ORDER BY chunk",
            (file, name),
        )
        parts = [decode(kind, data, n, dtype) for kind, data, n in rows]
        (wanted,) = self._database.execute(
            "SELECT coalesce(sum(rows), 0) FROM chunks WHERE file = ?", (file,)
        ).fetchone()
        if sum(map(len, parts)) != wanted:
            raise Damaged(f"{name} has not a value for each of {wanted} rows")
        return np.concatenate(parts) if parts else np.empty(0, dtype=dtype)


class _Reading:
    """One file, from the line behind the last that is known."""

    def __init__(self, index: RecordIndex, path: Path) -> None:
        self._index, self._database, self._path = index, index._database, path
        self._values: dict[str, list[Any]] = {name: [] for name in _STORED}
        self._facts: dict[tuple[str, str], tuple[str, str, str]] = {}
        self._problems = Problems(path)

    def run(self, progress: Callable[[int], None]) -> None:
        """Reads to the end of the file, and derives what the whole of it tells."""
        stat = self._path.stat()
        offset, lines, self._hash, self._file, self._chunk = self._known(stat.st_size)
        said, torn = json.loads(self._row("problems")[0]), ""
        with self._path.open("rb") as raw:
            raw.seek(offset)
            for line in read_lines(self._path, offset=offset, number=lines):
                if line.torn:
                    # Its writer may go on with it, and the next one moves it away: not kept.
                    torn = f"{self._path}:{line.number}: {line.problem}"
                    break
                self._add(line)
                self._hash.update(raw.read(line.size))
                offset, lines = line.offset + line.size, line.number
                if len(self._values["record_id"]) >= CHUNK:
                    self._store(offset, lines, stat.st_mtime_ns)
                    progress(offset)
        self._store(offset, lines, stat.st_mtime_ns)
        with self._index._transaction() as database:
            self._derive()
            database.execute(
                "UPDATE files SET whole = 1, size = ?, problems = ?, torn = ? WHERE id = ?",
                (stat.st_size, json.dumps([*said, *self._problems.sentences()]), torn, self._file),
            )
        progress(stat.st_size)

    def _derive(self) -> None:
        made, start = derive(lambda name: self._index._column(self._file, name)), 0
        chunks = "SELECT chunk, rows FROM chunks WHERE file = ? ORDER BY chunk"
        for chunk, rows in self._database.execute(chunks, (self._file,)).fetchall():
            part = {name: values[start : start + rows].tolist() for name, values in made.items()}
            _write_columns(self._database, self._file, chunk, part, DERIVED)
            start += rows

    def _row(self, names: str) -> Any:
        return self._database.execute(f"SELECT {names} FROM files WHERE id = ?", (self._file,)).fetchone()

    def _known(self, size: int) -> tuple[int, int, Any, int, int]:
        """Where to go on: offset, lines, digest so far, id, next chunk. A file whose known part is no longer
        what it was begins anew."""
        query = "SELECT id, offset, lines, digest FROM files WHERE path = ?"
        known = self._database.execute(query, (str(self._path),)).fetchone()
        if known is not None:
            file, offset, lines, digest = known
            found = _digest(self._path, offset) if offset <= size else None
            if found is not None and found.digest() == digest:
                (chunk,) = self._database.execute(
                    "SELECT coalesce(max(chunk) + 1, 0) FROM chunks WHERE file = ?", (file,)
                ).fetchone()
                return offset, lines, found, file, chunk
            with self._index._transaction() as database:
                for table in ("chunks", "columns", "facts"):
                    database.execute(f"DELETE FROM {table} WHERE file = ?", (file,))
                database.execute("DELETE FROM files WHERE id = ?", (file,))
        empty = hashlib.blake2b()
        with self._index._transaction() as database:
            cursor = database.execute(
                "INSERT INTO files (path, size, mtime_ns, offset, lines, digest, whole, problems, torn) "
                "VALUES (?, 0, 0, 0, 0, ?, 0, '[]', '')",
                (str(self._path), empty.digest()),
            )
        assert cursor.lastrowid is not None
        return 0, 0, empty, cursor.lastrowid, 0

    def _add(self, line: Line) -> None:
        self._problems.look_at(line)
        record = line.record
        if record is None:
            return
        row = own_row(record) | evidence_of(record)
        row["_digest"] = int.from_bytes(line.digest[:8], "little", signed=True)
        for name, values in self._values.items():
            values.append(row[name])
        if record.facts is not None and counts(record.purpose, record.status):
            key = (record.device, record.facts.fingerprint)
            newest = (record.started_at, record.id)
            if key not in self._facts or self._facts[key][:2] < newest:
                self._facts[key] = (*newest, json.dumps(wire.to_json(record.facts)))

    def _store(self, offset: int, lines: int, mtime_ns: int) -> None:
        rows = len(self._values["record_id"])
        with self._index._transaction() as database:
            if rows:
                database.execute("INSERT INTO chunks VALUES (?, ?, ?)", (self._file, self._chunk, rows))
                _write_columns(database, self._file, self._chunk, self._values, _STORED)
            for (device, fingerprint), newest in self._facts.items():
                database.execute(
                    "INSERT INTO facts VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                    "started_at = excluded.started_at, record = excluded.record, facts = excluded.facts "
                    "WHERE (excluded.started_at, excluded.record) > (started_at, record)",
                    (self._file, device, fingerprint, *newest),
                )
            database.execute(
                "UPDATE files SET offset = ?, lines = ?, digest = ?, mtime_ns = ?, whole = 0 WHERE id = ?",
                (offset, lines, self._hash.copy().digest(), mtime_ns, self._file),
            )
        self._chunk += bool(rows)
        self._values = {name: [] for name in _STORED}
        self._facts = {}


def _write_columns(
    database: sqlite3.Connection,
    file: int,
    chunk: int,
    values: Mapping[str, Sequence[Any]],
    dtypes: Mapping[str, str],
) -> None:
    database.executemany(
        "INSERT OR REPLACE INTO columns VALUES (?, ?, ?, ?, ?)",
        [(file, name, chunk, *encode(values[name], dtype)) for name, dtype in dtypes.items()],
    )


def _digest(path: Path, size: int) -> Any:
    """Of the first ``size`` bytes, to go on with."""
    made = hashlib.blake2b()
    with path.open("rb") as file:
        left = size
        while left and (data := file.read(min(left, 1 << 20))):
            made.update(data)
            left -= len(data)
    return made


def _version() -> str:
    """Of the code that makes rows: an index made by other code is not believed."""
    here = Path(__file__).parent
    sources = [*sorted(here.glob("*.py")), here.parent / "agent" / "wire.py"]
    sources.append(here.parent / "models" / "catalogue.py")
    made = hashlib.blake2b(digest_size=16)
    for path in sources:
        made.update(path.read_bytes())
    return made.hexdigest()


# ---- several files --------------------------------------------------------------------------------------


def _order(started: Array, ids: Array, digests: Array) -> Array | None:
    """Places by start, id and digest, each exact repetition once; None where rows are so already."""
    again = len(np.unique(digests)) < len(digests)
    if not again and len(started) > 1:
        earlier = started[:-1] < started[1:]
        same = started[:-1] == started[1:]
        if (earlier | (same & (ids[:-1] <= ids[1:]))).all():
            return None
    keys = list(zip(started.tolist(), ids.tolist(), digests.tolist(), strict=True))
    places = sorted(range(len(keys)), key=keys.__getitem__)
    kept = [place for i, place in enumerate(places) if not i or keys[place] != keys[places[i - 1]]]
    return np.asarray(kept, dtype=np.int64)


def _one_per_run(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """As :func:`stbench.tables.merging.one_per_run` does with records."""
    from stbench.tables.table import clean

    if not frame["record_id"].duplicated().any():
        return frame, []
    key = ["campaign", "device", "record_id"]
    several = frame[frame.duplicated(key, keep=False)]
    claims = [
        f"{clean(str(rows['label'].iloc[0]), 120)}: {len(rows)} different records of campaign "
        f"{clean(str(rows['campaign'].iloc[0]), 60) or '-'} claim to be replicate "
        f"{rows['replicate'].iloc[0]}: the newest is taken."
        for _, rows in several.groupby(key, sort=False)
        if rows["attempt"].nunique() < len(rows)
    ]
    kept = frame[~frame.duplicated(key, keep="last")]
    return kept.reset_index(drop=True), sorted(claims)
