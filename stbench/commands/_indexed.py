"""Reading RESULTS by the index, with its progress on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from stbench.records.gathering import Gathered
    from stbench.records.record_index import Progress

# Less is read before anybody looks.
_SHOWN = 1 << 24
# Without a terminal: a line when so much more was read.
_STEP = 1 << 28


def gather(paths: Sequence[Path], *, quiet: bool, index: Path | None = None) -> Gathered:
    """The rows of these directories or files. Raises :class:`stbench.errors.InputError`."""
    from stbench.console import stderr_console
    from stbench.records.record_index import RecordIndex
    from stbench.records.store import refuse_only

    log = stderr_console(quiet=quiet)
    with RecordIndex(index) as opened:
        with _bar(log) if log.is_terminal and not quiet else _lines(log) as progress:
            found = opened.gather(paths, progress)
        if not found.read:
            refuse_only(found.problems)
        for note in (*opened.notes, *found.problems):
            log.print(note, markup=False, soft_wrap=True)
    return found


@contextlib.contextmanager
def _lines(log: Console) -> Iterator[Progress]:
    import time

    begin, said = time.monotonic(), 0

    def progress(done: int, total: int) -> None:
        nonlocal said
        if total > _STEP and (done - said >= _STEP or done == total > said):
            said = done
            rate = done / max(time.monotonic() - begin, 1e-9) / 1e6
            log.print(f"indexing: {done / 1e9:.1f} of {total / 1e9:.1f} GB, {rate:.1f} MB/s", soft_wrap=True)

    yield progress


@contextlib.contextmanager
def _bar(log: Console) -> Iterator[Progress]:
    from rich import progress as bars

    columns = (
        bars.TextColumn("indexing"),
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    # It begins with the first bytes of a large file, and is gone in the end.
    bar = bars.Progress(*columns, console=log, transient=True)
    task = bar.add_task("", total=None)

    def progress(done: int, total: int) -> None:
        if total > _SHOWN:
            bar.start()
            bar.update(task, completed=done, total=total)

    try:
        yield progress
    finally:
        bar.stop()
