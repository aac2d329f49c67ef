"""Reading RESULTS by the index, with its progress on stderr."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stbench.records.record_index import Gathered

# Without a terminal: a line when so much more was read.
_STEP = 1 << 28


def gather(paths: Sequence[Path], *, quiet: bool, index: Path | None = None) -> Gathered:
    """The rows of these directories or files. Raises :class:`stbench.errors.InputError`."""
    import time

    from stbench.console import stderr_console
    from stbench.records.record_index import RecordIndex

    log = stderr_console(quiet=quiet)
    begin, said = time.monotonic(), 0

    def progress(done: int, total: int) -> None:
        nonlocal said
        if total > _STEP and (done - said >= _STEP or done == total):
            said = done
            rate = done / max(time.monotonic() - begin, 1e-9) / 1e6
            log.print(f"indexing: {done / 1e9:.1f} of {total / 1e9:.1f} GB, {rate:.1f} MB/s", soft_wrap=True)

    with RecordIndex(index) as opened:
        found = opened.gather(paths, progress)
        for note in (*opened.notes, *found.problems):
            log.print(note, markup=False, soft_wrap=True)
    return found
