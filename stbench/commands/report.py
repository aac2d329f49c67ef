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
stbench report results/* --out reports/all.html --check
"""


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench report``."""
    parser = add_command(
        subparsers,
        "report",
        run,
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
    parser.add_argument(
        "--check", action="store_true", help="write nothing: exit 1 where the file is not of these records"
    )


def run(args: argparse.Namespace) -> int:
    """Reads, makes the page, writes it; or tells whether a written one is of these records."""
    from stbench.atomic import write_atomically
    from stbench.comparison import noise
    from stbench.console import complain, print_json, stderr_console
    from stbench.errors import EXIT_DEFECT, EXIT_OK
    from stbench.report.reading import read_given
    from stbench.report.report import report_html
    from stbench.tables import stamps

    log = stderr_console(quiet=args.quiet)
    ratio_to = published_pairs(args.ratio_to)
    stamp = _stamp(args, ratio_to)
    if args.check:
        return _check(args, stamp)
    given = read_given(args.results)
    against = read_given([args.against]) if args.against is not None else None
    floors, problems = noise.read_floors() if against is not None else ([], [])
    for problem in (*given.problems, *(against.problems if against else ()), *problems):
        log.print(problem, markup=False, soft_wrap=True)
    made = report_html(given, against, ratio_to, floors)
    data = stamps.stamped(made.html.encode(), stamp)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out, data)
    log.print(f"wrote {args.out} ({len(data) / 1e6:.2f} MB)", markup=False, soft_wrap=True)
    if args.json:
        verdict = {
            heading: [{"kind": sentence.kind, "text": sentence.text} for sentence in sentences]
            for heading, sentences in made.verdict.parts
        }
        print_json(
            {
                "file": str(args.out),
                "bytes": len(data),
                "verdict": verdict,
                "limits": list(made.limits),
                "failed": list(made.failed),
            }
        )
    if not made.failed:
        return EXIT_OK
    complain("\n".join(made.failed), "please report it as a defect; everything else is in the page")
    return EXIT_DEFECT


def _stamp(args: argparse.Namespace, ratio_to: dict[str, str]) -> str:
    from stbench.report.reading import digest_of, name_of
    from stbench.tables import stamps

    return stamps.words(
        digest_of(args.results),
        results=",".join(sorted({name_of(path) for path in args.results})),
        against=digest_of([args.against]) if args.against is not None else "",
        ratio_to=stamps.pairs(ratio_to),
    )


def _check(args: argparse.Namespace, stamp: str) -> int:
    from stbench.console import print_json, stderr_console
    from stbench.errors import EXIT_OK, EXIT_REGRESSION
    from stbench.tables import stamps

    stale = stamps.stale(args.out, stamp)
    if args.json:
        print_json({"file": str(args.out), "stale": stale})
    elif stale:
        print(stale)
    log = stderr_console(quiet=args.quiet)
    log.print(f"{args.out} is {'stale' if stale else 'up to date'}", markup=False, soft_wrap=True)
    return EXIT_REGRESSION if stale else EXIT_OK
