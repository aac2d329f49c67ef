"""``stbench export``: stored results in another program's format."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stbench.commands import add_command

if TYPE_CHECKING:
    from stbench.commands import Subparsers

# The keys of stbench.exchange.formats.FORMATS; a test holds them together.
FORMATS = (
    "llama-bench-jsonl",
    "llama-bench-sql",
    "pytest-benchmark",
    "github-action-benchmark",
    "bencher",
    "junit",
    "parquet",
)

_EXAMPLE = """
stbench export results/desk --to junit --out junit.xml
stbench export results/main results/branch --to llama-bench-sql | sqlite3 both.sqlite
stbench export results/* --to parquet --anonymise --out results.parquet
"""


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench export``."""
    parser = add_command(
        subparsers,
        "export",
        run,
        example=_EXAMPLE,
    )
    parser.add_argument(
        "results", nargs="+", type=Path, metavar="RESULTS", help="a campaign's directory or a records.jsonl"
    )
    parser.add_argument(
        "--to", required=True, choices=FORMATS, help="what each cannot hold is in docs/exchange.md"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write here in place of stdout")
    parser.add_argument(
        "--anonymise",
        action="store_true",
        help="take out host, user and device names, paths, addresses, serial numbers and keys",
    )


def run(args: argparse.Namespace) -> int:
    """Reads, selects, writes."""
    from stbench.atomic import write_atomically
    from stbench.console import print_json, stderr_console
    from stbench.errors import CellsFailed, UsageError
    from stbench.exchange import formats, selection
    from stbench.exchange.anonymised import anonymised
    from stbench.records import store

    chosen = formats.FORMATS[args.to]
    if args.out is None and (args.json or args.to == "parquet"):
        raise UsageError(f"--to {args.to} needs --out FILE here", hint=f"--out results.{args.to}")
    log = stderr_console(quiet=args.quiet)
    records, problems = store.latest_of(args.results)
    for problem in problems:
        log.print(problem, markup=False, soft_wrap=True)
    found = selection.select(anonymised(records) if args.anonymise else records)
    if not chosen.whole:
        for note in found.notes:
            log.print(note, markup=False, soft_wrap=True)
        if not found.cases:
            raise CellsFailed(
                f"no case has a number that --to {args.to} could hold",
                hint="--to junit and --to parquet also hold runs that failed",
            )
    written = chosen.write(found)
    data = written if isinstance(written, bytes) else written.encode("utf-8")
    if args.out is None:
        sys.stdout.flush()
        sys.stdout.write(data.decode("utf-8"))
    else:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.out, data)
        log.print(f"wrote {args.out}; not in it: {chosen.lost}", markup=False, soft_wrap=True)
    if args.json:
        print_json(
            {"file": str(args.out), "runs": len(found.runs), "cases": len(found.cases), "notes": found.notes}
        )
    return 0
