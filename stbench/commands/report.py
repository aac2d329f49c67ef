"""``stbench report``: one HTML file with everything that results show."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from stbench.commands import add_command
from stbench.commands._ratio_to import add_ratio_to, published_pairs

if TYPE_CHECKING:
    from stbench.commands import Subparsers

_EXAMPLE = """
stbench report results/2026-01-31-quick
stbench report results/* --out reports/all.html
stbench report results/before --against results/after --out change.html
"""


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench report``."""
    parser = add_command(
        subparsers,
        "report",
        run,
        help="write one HTML file: verdict, tables, charts, devices and every record behind a number",
        example=_EXAMPLE,
    )
    parser.add_argument(
        "results", nargs="+", type=Path, metavar="RESULTS", help="a campaign's directory or a records.jsonl"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="FILE.html", help="(report.html)"
    )
    parser.add_argument(
        "--against", type=Path, metavar="RESULTS_B", help="also say what changed from RESULTS to these"
    )
    add_ratio_to(parser, "for a ratio column (raspberry-pi-5, rk3588, ...)")


def run(args: argparse.Namespace) -> int:
    """Reads, makes the page, writes it."""
    from stbench.comparison import noise
    from stbench.console import print_json, stderr_console
    from stbench.report.reading import read_given
    from stbench.report.report import report_html
    from stbench.tables.reporting import write_atomically

    log = stderr_console(quiet=args.quiet)
    ratio_to = published_pairs(args.ratio_to)
    given = read_given(args.results)
    against = read_given([args.against]) if args.against is not None else None
    floors, problems = noise.read_floors() if against is not None else ([], [])
    for problem in (*given.problems, *(against.problems if against else ()), *problems):
        log.print(problem, markup=False, soft_wrap=True)
    made = report_html(given, against, ratio_to, floors)
    data = made.html.encode()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out, data)
    log.print(f"wrote {args.out} ({len(data) / 1e6:.2f} MB)", markup=False, soft_wrap=True)
    if args.json:
        verdict = {
            heading: [{"kind": sentence.kind, "text": sentence.text} for sentence in sentences]
            for heading, sentences in made.verdict.parts
        }
        print_json(
            {"file": str(args.out), "bytes": len(data), "verdict": verdict, "limits": list(made.limits)}
        )
    return 0
