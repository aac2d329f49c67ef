"""``stbench grid``: stored results in the shape of the published tables."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stbench.commands import add_command

if TYPE_CHECKING:
    from stbench.commands import Subparsers

FORMATS = ("rich", "md", "csv", "json")

_EXAMPLE = """
stbench grid results/2026-01-31-quick
stbench grid results/* --format md > table.md
stbench grid results/desk --ratio-to pi=raspberry-pi-5
stbench grid results/desk --out reports/desk
stbench grid results/desk --engine fastest
"""


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench grid``."""
    parser = add_command(
        subparsers,
        "grid",
        run,
        help="print stored results in the shape of the published tables",
        example=_EXAMPLE,
    )
    parser.add_argument(
        "results", nargs="+", type=Path, metavar="RESULTS", help="a campaign's directory or a records.jsonl"
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="rich",
        help="rich: for a terminal (default); csv has a line per cell",
    )
    parser.add_argument(
        "--engine",
        default="all",
        metavar="NAME",
        help="only this engine; fastest: of each row the fastest, named in its cell (all: a column each)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write the tables and the chart to DIR")
    parser.add_argument(
        "--ratio-to",
        action="append",
        default=[],
        metavar="DEVICE=PUBLISHED",
        help="say which published device a measured one is, for a ratio column (raspberry-pi-5, rk3588, ...)",
    )


def run(args: argparse.Namespace) -> int:
    """Reads the records and prints their tables."""
    from stbench.console import stderr_console, stdout_console
    from stbench.records import store
    from stbench.tables import engine_view, grid, render, reporting

    log = stderr_console(quiet=args.quiet)
    ratio_to = _ratio_to(args.ratio_to)
    records = []
    for path in args.results:
        reading = store.read_records(path)
        records += reading.latest()
        for problem in reading.problems:
            log.print(problem, markup=False)
    records = engine_view.of_engine(records, args.engine)
    tables = grid.build_tables(records, ratio_to)
    if args.engine == engine_view.FASTEST:
        tables = engine_view.fastest(tables)
    if args.out is not None:
        for path in reporting.write_reports(records, args.out, ratio_to):
            log.print(f"wrote {path}", markup=False)
    chosen = "json" if args.json else args.format
    if chosen == "rich":
        console = stdout_console()
        for table in tables:
            render.print_rich(table, console)
    else:
        writers = {"md": render.markdown, "csv": render.csv_text, "json": render.json_text}
        sys.stdout.write(writers[chosen](tables))
    return 0


def _ratio_to(items: list[str]) -> dict[str, str]:
    from stbench.errors import UsageError
    from stbench.tables.published import published_tables

    known = sorted({device.key for table in published_tables() for device in table.devices})
    pairs = {}
    for item in items:
        device, equals, published = item.partition("=")
        if not device or not equals or published not in known:
            raise UsageError(
                f"--ratio-to {item}: expected DEVICE=PUBLISHED with a published device: {', '.join(known)}",
                hint="--ratio-to pi=raspberry-pi-5",
            )
        pairs[device] = published
    return pairs
