"""``stbench grid``: stored results in the shape of the published tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stbench.commands import add_command
from stbench.commands._ratio_to import add_ratio_to, published_pairs

if TYPE_CHECKING:
    from stbench.agent.wire import RunRecord
    from stbench.commands import Subparsers
    from stbench.tables.pages import Maker, Page
    from stbench.tables.table import Table

FORMATS = ("rich", "md", "csv", "json", "latex", "html")

_EXAMPLE = """
stbench grid results/2026-01-31-quick
stbench grid results/* --format md > table.md
stbench grid results/desk results/desk-limited --table 4b --format latex
stbench grid results/desk --ratio-to pi=raspberry-pi-5
stbench grid results/desk --out reports/desk
stbench grid results/desk --update README.md
stbench grid --check README.md
"""


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench grid``."""
    parser = add_command(
        subparsers,
        "grid",
        run,
        example=_EXAMPLE,
    )
    parser.add_argument(
        "results", nargs="*", type=Path, metavar="RESULTS", help="a campaign's directory or a records.jsonl"
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="rich",
        help="rich: for a terminal (default); csv has a line per cell; html is a fragment without styles",
    )
    parser.add_argument(
        "--table",
        action="append",
        default=[],
        metavar="NAME",
        help="only this table: 4b, 21b, limited or other (all); repeatable",
    )
    parser.add_argument(
        "--engine",
        default="all",
        metavar="NAME",
        help="only this engine; fastest: of each row the fastest, named in its cell (all: a column each)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write the tables and the chart to DIR")
    add_ratio_to(parser, "for a ratio column (raspberry-pi-5, rk3588, ...)")
    parser.add_argument(
        "--index",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="read by an index in the cache directory, made at the first time (RESULTS of more than 64 MiB)",
    )
    pages = parser.add_mutually_exclusive_group()
    pages.add_argument(
        "--update",
        type=Path,
        metavar="FILE.md",
        help="rewrite tables and charts between its lines <!-- grid: begin --> and <!-- grid: end -->, from "
        "RESULTS or from what the markers name",
    )
    pages.add_argument(
        "--check", type=Path, metavar="FILE.md", help="exit 1 and show a diff where --update would change it"
    )


def run(args: argparse.Namespace) -> int:
    """Reads the records and prints their tables, or puts them into a page."""
    from stbench.errors import UsageError

    if args.update is not None or args.check is not None:
        return _page(args)
    if not args.results:
        raise UsageError("expected RESULTS: a campaign's directory", hint="stbench grid results/NAME")
    return _print(args)


def _print(args: argparse.Namespace) -> int:
    from stbench.console import stderr_console, stdout_console
    from stbench.tables import grid, html, latex, render

    log = stderr_console(quiet=args.quiet)
    if _by_index(args):
        every = _indexed(args)
    else:
        records = _read(args.results, quiet=args.quiet)
        every = grid.build_tables(records, published_pairs(args.ratio_to), args.engine)
    tables = _chosen(every, args.engine, args.table)
    if args.out is not None:
        from stbench.tables import reporting

        for path in reporting.write_tables(every, args.out, published_pairs(args.ratio_to)):
            log.print(f"wrote {path}", markup=False)
    chosen = "json" if args.json else args.format
    if chosen == "rich":
        console = stdout_console()
        for table in tables:
            render.print_rich(table, console)
    else:
        writers = {
            "md": render.markdown,
            "csv": render.csv_text,
            "json": render.json_text,
            "latex": latex.latex,
            "html": html.grid_html,
        }
        sys.stdout.write(writers[chosen](tables))
    return 0


def _page(args: argparse.Namespace) -> int:
    from stbench.console import stderr_console
    from stbench.errors import EXIT_OK, EXIT_REGRESSION, UsageError
    from stbench.tables import pages

    option = "--update" if args.update is not None else "--check"
    for name, given in (
        ("--format", args.format != "rich"),
        ("--out", args.out is not None),
        ("--json", args.json),
        ("--table", args.table),
        ("--engine", args.engine != "all"),
        ("--ratio-to", args.ratio_to),
    ):
        if given:
            raise UsageError(
                f"{name} does not go with {option}: a block's marker says what it shows",
                hint="<!-- grid: begin results/NAME table=4b engine=sbr ratio-to=pi:raspberry-pi-5 -->",
            )
    page = pages.read_page(args.update or args.check)
    if args.results:
        page = pages.with_results(page, args.results)
    made = pages.updated(page, _maker(page, quiet=args.quiet))
    log = stderr_console(quiet=args.quiet)
    written = made.write() if args.update is not None else []
    for path in written:
        log.print(f"wrote {path}", markup=False, soft_wrap=True)
    stale = made.stale() if args.update is None else []
    if not stale:
        if not written:
            log.print(f"{page.path} is up to date", markup=False, soft_wrap=True)
        return EXIT_OK
    print("\n".join(stale))
    log.print(
        f"{page.path} is stale; bring it up to date: stbench grid --update {page.path}",
        markup=False,
        soft_wrap=True,
    )
    return EXIT_REGRESSION


def _maker(page: Page, *, quiet: bool) -> Maker:
    """Makes blocks of a page, and says what of; results that several blocks share are read once."""
    from stbench.records import store
    from stbench.tables import engine_view, page_charts, render, stamps
    from stbench.tables.pages import Made, Source

    read: dict[tuple[str, ...], list[RunRecord]] = {}

    def make(source: Source) -> Made:
        base = page.path.resolve().parent
        paths = [base / name for name in source.results]
        if source.results not in read:
            read[source.results] = _read(paths, quiet=quiet)
        (engine,) = source.get("engine")[-1:] or ["all"]
        records = engine_view.of_engine(read[source.results], engine)
        ratio_to = [text.replace(":", "=", 1) for text in source.get("ratio-to")]
        tables = []
        if source.tables_shown:
            tables = _tables(read[source.results], engine, source.get("table"), ratio_to)
        return page_charts.made(
            source,
            records,
            published_pairs(ratio_to),
            stamps.digest(map(store.records_path, paths)),
            render.markdown(tables) if tables else "",
        )

    return make


def _read(paths: Sequence[Path], *, quiet: bool) -> list[RunRecord]:
    from stbench.console import stderr_console
    from stbench.records import store

    records, problems = store.latest_of(paths)
    for problem in problems:
        stderr_console(quiet=quiet).print(problem, markup=False, soft_wrap=True)
    return records


def _tables(
    records: Sequence[RunRecord], engine: str, names: Sequence[str], ratio_to: Sequence[str]
) -> list[Table]:
    from stbench.tables import grid

    return _chosen(grid.build_tables(records, published_pairs(ratio_to), engine), engine, names)


def _chosen(tables: list[Table], engine: str, names: Sequence[str]) -> list[Table]:
    from stbench.tables import engine_view, grid

    if engine == engine_view.FASTEST:
        tables = engine_view.fastest(tables)
    return grid.named(tables, names)


def _by_index(args: argparse.Namespace) -> bool:
    from stbench.records.record_index import LARGE_BYTES, size_of

    return bool(args.index) if args.index is not None else size_of(args.results) > LARGE_BYTES


def _indexed(args: argparse.Namespace) -> list[Table]:
    from stbench.commands._indexed import gather
    from stbench.tables import engine_view, grid

    found = gather(args.results, quiet=args.quiet)
    frame = engine_view.rows_of_engine(found.frame, args.engine)
    return grid.tables_of(frame, found.facts, found.claims, published_pairs(args.ratio_to))
