"""``stbench history``: speeds over many campaigns, and where they changed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from stbench.commands import add_command

if TYPE_CHECKING:
    from stbench.commands import Subparsers

_EXAMPLE = """
stbench history results
stbench history results --case '*smallthinker-4b/sparse*' --metric prefill_tps
stbench history results/2026-*-night --json
"""


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench history``."""
    parser = add_command(
        subparsers,
        "history",
        run,
        example=_EXAMPLE,
    )
    parser.add_argument(
        "results",
        nargs="+",
        type=Path,
        metavar="RESULTS",
        help="campaigns' directories, records files, or directories of campaigns",
    )
    parser.add_argument("--case", action="append", default=[], metavar="GLOB", help="only labels that fit")
    parser.add_argument(
        "--metric", choices=("decode_tps", "prefill_tps"), default="decode_tps", help="(decode_tps)"
    )
    parser.add_argument(
        "--index",
        type=Path,
        metavar="FILE",
        help="where the index of the records lies (in the cache directory; made again at will)",
    )
    parser.add_argument("--index-only", action="store_true", help="bring the index up to date, print nothing")


def run(args: argparse.Namespace) -> int:
    """Reads by the index, looks for changes, prints."""
    from stbench.commands._indexed import gather
    from stbench.console import print_json, stdout_console
    from stbench.errors import CellsFailed
    from stbench.history.changes import changes_of
    from stbench.history.history_table import history_table, json_of
    from stbench.history.points import series_of
    from stbench.records.store import campaigns_in
    from stbench.tables import render

    paths = [found for path in args.results for found in campaigns_in(path)]
    gathered = gather(paths, quiet=args.quiet, index=args.index)
    if args.index_only:
        return 0
    found = [(series, changes_of(series)) for series in series_of(gathered.frame, args.metric, args.case)]
    if not found:
        what = f"no case fits {' '.join(args.case)}" if args.case else "no finished measurement"
        raise CellsFailed(
            f"{what}, of {len(gathered.frame)} records", hint="stbench grid RESULTS lists cases"
        )
    if args.json:
        print_json(json_of(found))
        return 0
    console = stdout_console()
    for series, changes in found:
        render.print_rich(history_table(series, changes), console)
    return 0
