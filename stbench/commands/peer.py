"""``stbench peer``: build llama.cpp, the outside referee, or say where it is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict

from stbench.builds import peer
from stbench.commands import Subparsers, add_command
from stbench.console import print_json, stderr_console
from stbench.errors import UsageError

_EXAMPLE = """
stbench peer build             fetch the pinned sources, check them, build once (minutes)
stbench peer info --json       version, commit, compiler, flags
"$(stbench peer path)/bin/llama-bench" -m model.gguf -p 512 -n 128
"""


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench peer``."""
    parser = add_command(
        subparsers, "peer", run, help="build llama.cpp, the outside referee", example=_EXAMPLE
    )
    parser.add_argument(
        "action", choices=("build", "path", "info"), help="build it, or say where or what it is"
    )
    parser.add_argument(
        "-j", "--jobs", type=int, default=0, metavar="N", help="compile jobs (default: one per CPU)"
    )


def run(args: argparse.Namespace) -> int:
    """Builds or finds the peer and prints its directory or description."""
    if args.jobs < 0:
        raise UsageError(f"--jobs: expected 0 or more, got {args.jobs}")
    built = _build(args) if args.action == "build" else peer.require_peer()
    if args.json:
        print_json(asdict(built))
    elif args.action == "info":
        for key, value in asdict(built).items():
            print(f"{key:<10} {' '.join(value) if isinstance(value, list) else value}")
    else:
        print(built.directory)
    return 0


def _build(args: argparse.Namespace) -> peer.Peer:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = stderr_console(quiet=args.quiet)
    if not console.is_terminal:
        return peer.build_peer(jobs=args.jobs, progress=_log_lines(console.print))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("llama.cpp", total=None)

        def report(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total or None, description=what)

        return peer.build_peer(jobs=args.jobs, progress=report)


def _log_lines(write: Callable[[str], None]) -> peer.Progress:
    """Without a terminal: a line per stage, and one per tenth of the long stage."""
    last: list[tuple[str, int]] = []

    def report(done: int, total: int, what: str) -> None:
        tenth = (what, done * 10 // total if total else 0)
        if last != [tenth]:
            last[:] = [tenth]
            write(f"{what} ({done}/{total})" if total else what)

    return report
