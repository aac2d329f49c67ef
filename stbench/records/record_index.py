"""An index of records files, so that a million records are read once: SQLite, and made again at will.

It holds the frame's rows in chunks, a column at a time (:mod:`stbench.records.columnar`), and nothing that
the files do not say: whoever deletes it loses time. A file is known by its size and times and by a digest of
the bytes that were read. Appended lines are read alone; a file that was cut or rewritten is read anew, one
that is gone is forgotten; an index that is damaged, or of another version of the code that makes rows, is
thrown away.

Reading streams (:mod:`stbench.records.index_reading`): few chunks are in memory, and each is committed by
itself, so that a kill costs what was not. What only the whole campaign tells (was the machine itself, the
bound of storage, which line of a job counts) is computed after it, from columns that were kept for that, and
stored beside the others.

Processes may share an index. One at a time changes or replaces it, by a lock beside it; others read what is
committed meanwhile, all columns of one state, and wait where that is half of a file.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stbench.agent.wire import RunRecord
from stbench.errors import InputError
from stbench.paths import cache_dir
from stbench.records import index_reading
from stbench.records.columnar import Column, Damaged, assemble, encode
from stbench.records.derived import DERIVED, EVIDENCE, derive, repetitions
from stbench.records.frame import COLUMNS
from stbench.records.gathering import Gathered, gathered
from stbench.records.index_reading import DTYPES, Readers, Span
from stbench.records.lines import Problems, read_lines
from stbench.records.store import records_path

NAME = "records-index.sqlite"

# RESULTS of this size are read by the index without being told to: some 20,000 records, 5 s of reading.
LARGE_BYTES = 64 << 20

_TABLES = """
CREATE TABLE meta (version TEXT NOT NULL);
CREATE TABLE files (
    id INTEGER PRIMARY KEY, path TEXT UNIQUE NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL, offset INTEGER NOT NULL, lines INTEGER NOT NULL, digest BLOB NOT NULL,
    whole INTEGER NOT NULL, problems TEXT NOT NULL, told TEXT NOT NULL);
CREATE TABLE chunks (
    file INTEGER NOT NULL, chunk INTEGER NOT NULL, rows INTEGER NOT NULL, PRIMARY KEY (file, chunk));
CREATE TABLE columns (
    file INTEGER NOT NULL, name TEXT NOT NULL, chunk INTEGER NOT NULL, kind TEXT NOT NULL,
    data BLOB NOT NULL, PRIMARY KEY (file, name, chunk));
"""

# Beside the frame's columns, what rows of several files are put together by.
_JOINING = ("_keep", "_digest", "_offset", "_facts")
# What the rows of several files that share a campaign are judged by again.
_EVIDENCE = tuple(name for name in EVIDENCE if name not in _JOINING)

# How often to wait for another process that stores more of a file just when it is about to be loaded.
_LOADS = 10

# What to do where the index itself cannot be used; `history` and `grid` have different options for it.
_HINT = (
    "make room or wait; `stbench history --index FILE` keeps the index elsewhere, `stbench grid --no-index` "
    "reads the records without one"
)

# Bytes done and in all, of the files that have to be read.
Progress = Callable[[int, int], None]


def size_of(paths: Sequence[Path]) -> int:
    """Bytes of the records that these mean. Raises :class:`InputError`."""
    return sum(records_path(path).stat().st_size for path in paths)


class RecordIndex:
    """Use it as a context manager. ``notes`` says what had to be thrown away, for people."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_dir() / NAME
        self.notes: list[str] = []
        self._opened: int | None = None
        self._database = self._open()

    def __enter__(self) -> RecordIndex:
        return self

    def __exit__(self, *error: object) -> None:
        self._database.close()

    # ---- the file -------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        found = self._existing()
        if found is not None:
            return found
        with self._alone():
            # Another process may have made it meanwhile.
            return self._existing(spoilt=self._remove) or self._made()

    def _existing(self, spoilt: Callable[[], None] = lambda: None) -> sqlite3.Connection | None:
        """The index as it lies there; None where there is none, or one to throw away, for which ``spoilt``
        is called. A database of somebody else's is neither."""
        database = None
        try:
            database = self._connected()
            found = database.execute("SELECT name FROM sqlite_master WHERE name = 'meta'").fetchone()
            if found and database.execute("SELECT version FROM meta").fetchone() == (_version(),):
                return database
            note = f"{self.path} is of another version of stbench; made anew" if found else ""
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                if database is not None:
                    database.close()
                raise self._unusable(error) from error
            note = f"{self.path} is damaged ({error}); made anew"
        if database is not None:
            database.close()
        if note:
            self.notes = [note]
            spoilt()
        return None

    def _connected(self) -> sqlite3.Connection:
        # Looked up before: if another process replaces the file just now, the new one is not taken for ours.
        opened = self._inode()
        database = sqlite3.connect(self.path, timeout=600, isolation_level=None)
        self._opened = self._inode() if opened is None else opened
        try:
            # A power cut may cost the newest chunks; they are read again.
            database.execute("PRAGMA synchronous = NORMAL")
        except sqlite3.Error:
            database.close()
            raise
        return database

    def _made(self) -> sqlite3.Connection:
        try:
            database = self._connected()
            # By who makes it alone, and for good: two at once would be refused, however long they may wait.
            database.execute("PRAGMA journal_mode = WAL")
            # In one transaction: who is killed within it leaves nothing.
            database.executescript(
                f"BEGIN IMMEDIATE; {_TABLES} INSERT INTO meta VALUES ('{_version()}'); COMMIT;"
            )
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return database

    @contextlib.contextmanager
    def _alone(self, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """For the block, the only one that changes the index; ``waiting`` is called before a wait for
        another. The lock's file stays: who removed it would let two have it."""
        lock = self.path.with_name(self.path.name + ".lock")
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(lock.open("a"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    waiting()
                    fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                raise self._unusable(f"{lock.name}: {error.strerror or error}") from error
            yield

    def _unusable(self, why: Exception | str) -> InputError:
        return InputError(f"{self.path}: the index of records cannot be used: {why}", hint=_HINT)

    def _inode(self) -> int | None:
        """Of the file that has the index's name now."""
        try:
            return self.path.stat().st_ino
        except OSError:
            return None

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _begin_anew(self, error: Exception) -> None:
        with self._alone():
            # Compared before it is closed: until then no other file gets its number.
            ours = self._inode() == self._opened
            self._database.close()
            if ours:
                self.notes.append(f"{self.path} is damaged ({error}); made anew")
                self._remove()
                self._database = self._made()
            else:
                # Another process found the damage, too, and has made the index anew.
                self._database = self._existing(spoilt=self._remove) or self._made()

    @contextlib.contextmanager
    def transaction(self, kind: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """All of it is written, or nothing. ``kind`` "DEFERRED": what is read is of one state."""
        self._database.execute(f"BEGIN {kind}")
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
        files: dict[Path, Path] = {}
        for path in map(records_path, paths):
            files.setdefault(path.resolve(), path)
        failed = False
        for _ in range(_LOADS):
            try:
                self.refresh(list(files), progress)
                with self.transaction("DEFERRED"):
                    found = self._load(files)
            except (sqlite3.DatabaseError, Damaged) as error:
                if failed or not (_is_damage(error) or isinstance(error, sqlite3.IntegrityError)):
                    raise self._unusable(error) from error
                failed = True
                # What somebody without our lock had stored first is no damage: reading goes on behind it.
                if not isinstance(error, sqlite3.IntegrityError):
                    self._begin_anew(error)
                continue
            if found is not None:
                return found
        raise self._unusable("other processes change it all the time")

    def refresh(self, files: Sequence[Path], progress: Progress = lambda done, total: None) -> None:
        """Reads what is new in these files. Raises :class:`InputError`, :class:`sqlite3.DatabaseError`."""
        if all(map(self._is_fresh, files)):
            return
        size = sum(file.stat().st_size for file in files)
        with self._alone(lambda: progress(0, size)):
            # Another process may have read them while this one waited.
            stale = [file for file in files if not self._is_fresh(file)]
            self._forget_removed()
            total, before = sum(file.stat().st_size for file in stale), 0
            for file in stale:
                _Reading(self, file).run(lambda done, before=before: progress(before + done, total))  # type: ignore[misc]
                before += file.stat().st_size

    def _is_fresh(self, file: Path) -> bool:
        query = "SELECT size, mtime_ns, ctime_ns FROM files WHERE path = ? AND whole"
        known = self._database.execute(query, (str(file),)).fetchone()
        stat = file.stat()
        return bool(known == (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))

    def _forget_removed(self) -> None:
        known = self._database.execute("SELECT id, path FROM files").fetchall()
        for file, path in known:
            if not Path(path).is_file():
                self.forget(file)

    def forget(self, file: int) -> None:
        """Deletes what is known of a file."""
        with self.transaction() as database:
            for table in ("chunks", "columns"):
                database.execute(f"DELETE FROM {table} WHERE file = ?", (file,))
            database.execute("DELETE FROM files WHERE id = ?", (file,))

    # ---- rows -------------------------------------------------------------------------------------------

    def _load(self, files: Mapping[Path, Path]) -> Gathered | None:
        """To be called in a transaction. None where another process is about to store more of a file: what
        its rows tell together is not computed yet. A file that grew since it was read is as it was then."""
        query = "SELECT id, told FROM files WHERE path = ? AND whole"
        known = [self._database.execute(query, (str(file),)).fetchone() for file in files]
        if None in known:
            return None
        said: list[str] = []
        for (_, told), shown in zip(known, files.values(), strict=True):
            said += Problems(json.loads(told)).sentences(shown)
        ids = [file for file, _ in known]
        columns = {name: self.column(ids, name) for name in (*COLUMNS, *_JOINING)}
        if len(ids) > 1:
            columns |= {name: self.column(ids, name) for name in _EVIDENCE}
        sizes = [self._rows(file) for file in ids]
        ends = np.cumsum(sizes)

        def read(row: int) -> RunRecord:
            file = list(files)[int(np.searchsorted(ends, row, side="right"))]
            offset = int(columns["_offset"].take(np.array([row]))[0])
            record = next(iter(read_lines(file, offset=offset))).record
            if record is None:
                raise Damaged(f"{file} has no record at byte {offset}")
            return record

        return gathered(columns, sizes, said, read)

    def _rows(self, file: int) -> int:
        query = "SELECT coalesce(sum(rows), 0) FROM chunks WHERE file = ?"
        return int(self._database.execute(query, (file,)).fetchone()[0])

    def column(self, files: Sequence[int], name: str) -> Column:
        """A column of these files, one behind the other. Raises :class:`Damaged`."""
        query = (
            "SELECT kind, data, rows FROM columns JOIN chunks USING (file, chunk) "
            "WHERE file = ? AND name = ? ORDER BY chunk"
        )
        parts = []
        for file in files:
            found = self._database.execute(query, (file, name)).fetchall()
            wanted = self._rows(file)
            if sum(rows for _, _, rows in found) != wanted:
                raise Damaged(f"{name} has not a value for each of {wanted} rows")
            parts += found
        return assemble(parts, DTYPES[name])


class _Reading:
    """One file, from the line behind the last that is known."""

    def __init__(self, index: RecordIndex, path: Path) -> None:
        self._index, self._path = index, path
        self._problems = Problems()

    def run(self, progress: Callable[[int], None]) -> None:
        """Reads to the end of the file, and derives what the whole of it tells."""
        stat = self._path.stat()
        begin, number, made, file, chunk = self._known(stat.st_size)
        end, lines = begin, number
        found = index_reading.spans(self._path, begin, number, made)
        with Readers(self._path, index_reading.processes_for(stat.st_size - begin)) as readers:
            for span, read in readers.chunks(found):
                self._problems.absorb(read.problems)
                with self._index.transaction() as database:
                    if read.rows:
                        database.execute("INSERT INTO chunks VALUES (?, ?, ?)", (file, chunk, read.rows))
                        _write(database, file, chunk, read.columns)
                    self._set(database, file, span)
                chunk += bool(read.rows)
                end, lines = span.end, span.lines
                progress(end)
        told = Problems(self._problems.state())
        # An unfinished line is not kept: its writer may go on with it, and the next one moves it away.
        for line in read_lines(self._path, offset=end, number=lines):
            told.look_at(line)
            break
        with self._index.transaction() as database:
            self._derive(database, file, told)
            database.execute(
                "UPDATE files SET whole = 1, size = ?, mtime_ns = ?, ctime_ns = ?, told = ? WHERE id = ?",
                (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, json.dumps(told.state()), file),
            )
        progress(stat.st_size)

    def _set(self, database: sqlite3.Connection, file: int, span: Span) -> None:
        database.execute(
            "UPDATE files SET offset = ?, lines = ?, digest = ?, problems = ?, whole = 0 WHERE id = ?",
            (span.end, span.lines, span.digest, json.dumps(self._problems.state()), file),
        )

    def _derive(self, database: sqlite3.Connection, file: int, told: Problems) -> None:
        every = np.arange(self._index._rows(file))
        made = derive(lambda name: self._index.column([file], name).take(every))
        told.absorb(repetitions(lambda name: self._index.column([file], name).take(every)).state())
        start = 0
        chunks = "SELECT chunk, rows FROM chunks WHERE file = ? ORDER BY chunk"
        for chunk, rows in database.execute(chunks, (file,)).fetchall():
            part = {
                name: encode(made[name][start : start + rows].tolist(), dtype)
                for name, dtype in DERIVED.items()
            }
            _write(database, file, chunk, part)
            start += rows

    def _known(self, size: int) -> tuple[int, int, Any, int, int]:
        """Where to go on: offset, lines, digest so far, id, next chunk. A file whose known part is no longer
        what it was begins anew."""
        database = self._index._database
        query = "SELECT id, offset, lines, digest, problems FROM files WHERE path = ?"
        known = database.execute(query, (str(self._path),)).fetchone()
        if known is not None:
            file, offset, lines, digest, problems = known
            found = index_reading.digest_of(self._path, offset) if offset <= size else None
            if found is not None and found.digest() == digest:
                self._problems.absorb(json.loads(problems))
                (chunk,) = database.execute(
                    "SELECT coalesce(max(chunk) + 1, 0) FROM chunks WHERE file = ?", (file,)
                ).fetchone()
                return offset, lines, found, file, chunk
            self._index.forget(file)
        empty = hashlib.blake2b()
        nothing = json.dumps(Problems().state())
        with self._index.transaction():
            cursor = database.execute(
                "INSERT INTO files (path, size, mtime_ns, ctime_ns, offset, lines, digest, whole, problems, "
                "told) VALUES (?, 0, 0, 0, 0, 0, ?, 0, ?, ?)",
                (str(self._path), empty.digest(), nothing, nothing),
            )
        assert cursor.lastrowid is not None
        return 0, 0, empty, cursor.lastrowid, 0


def _write(
    database: sqlite3.Connection, file: int, chunk: int, columns: Mapping[str, tuple[str, bytes]]
) -> None:
    database.executemany(
        "INSERT OR REPLACE INTO columns VALUES (?, ?, ?, ?, ?)",
        [(file, name, chunk, *encoded) for name, encoded in columns.items()],
    )


def _is_damage(error: Exception) -> bool:
    """Whether the file is no index any more. A full disk, a lock and a row that is there already are not of
    that kind: to throw the index away would mend none of them."""
    if isinstance(error, Damaged):
        return True
    return any(words in str(error) for words in ("malformed", "not a database"))


@functools.cache
def _version() -> str:
    """Of the code that makes rows: an index made by other code is not believed."""
    package = Path(__file__).parents[1]
    sources = [*sorted((package / "records").glob("*.py")), *sorted((package / "agent").glob("wire*.py"))]
    sources += [package / "models" / "catalogue.py", package / "sweeps" / "sweep.py"]
    made = hashlib.blake2b(digest_size=16)
    for path in sources:
        made.update(path.read_bytes())
    return made.hexdigest()
