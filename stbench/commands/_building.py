"""How far a build is, on stderr: a bar on a terminal; elsewhere lines, ten for a long stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stbench.console import stderr_console


@contextmanager
def reported(*, quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """What a build calls with done, total (0: not known) and stage."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = stderr_console(quiet=quiet)
    if console.is_terminal and not quiet:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("build", total=None)
            yield lambda done, total, what: bar.update(
                task, completed=done, total=total or None, description=what
            )
        return
    last: list[tuple[str, int]] = []

    def lines(done: int, total: int, what: str) -> None:
        tenth = (what, done * 10 // total if total else 0)
        if last != [tenth]:
            last[:] = [tenth]
            console.print(f"{what} ({done} of {total})" if total else what, markup=False, soft_wrap=True)

    yield lines
