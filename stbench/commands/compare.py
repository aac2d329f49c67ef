"""``stbench compare``: two sets of results, or two engines of one, with a verdict per case."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from stbench.commands import AddUp, add_command

if TYPE_CHECKING:
    from stbench.commands import Subparsers
    from stbench.records.sides import Side
    from stbench.tables.table import Table

_EXAMPLE = """
stbench compare results/before results/after
stbench compare results/main results/branch --fail-on regressed --json
stbench compare results/desk:'*/t1/*' results/desk:'*/t2/*' --ignore threads
stbench compare results/versus --engines sbr,llama-bench
"""

_FORMATS = ("rich", "md", "json")


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench compare``."""
    parser = add_command(
        subparsers,
        "compare",
        run,
        example=_EXAMPLE,
    )
    parser.add_argument(
        "results",
        nargs="+",
        metavar="RESULTS[:GLOB]",
        help="A and B: a campaign's directory or a records.jsonl, with a glob for labels",
    )
    parser.add_argument(
        "--engines", metavar="OURS,OTHERS", help="compare two engines of one RESULTS, with bars and goals"
    )
    parser.add_argument("--metric", choices=("decode_tps", "prefill_tps"), help="(decode_tps)")
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="PERCENT",
        help="smallest change that matters (2, or the device's noise floor where that is higher)",
    )
    parser.add_argument(
        "--ignore",
        action=AddUp,
        default="",
        metavar="LIST",
        help="compare rows that differ in these fields",
    )
    parser.add_argument(
        "--bandwidth",
        metavar="LOW:HIGH",
        help="only runs beside which memory was read at so many GB/s, such as 60: or 32:45",
    )
    parser.add_argument(
        "--fail-on",
        action="append",
        default=[],
        choices=("regressed", "inconclusive"),
        help="exit with 1 when a case regressed, with 5 when one is inconclusive",
    )
    parser.add_argument("--format", choices=_FORMATS, default="rich", help="rich: for a terminal (default)")


def run(args: argparse.Namespace) -> int:
    """Reads, compares, prints; the exit code follows ``--fail-on``."""
    from stbench import errors

    if args.engines is not None:
        return _engines(args)
    if len(args.results) != 2:
        raise errors.UsageError(
            f"expected two RESULTS, A and B, got {len(args.results)}",
            hint="stbench compare results/before results/after; or one RESULTS with --engines",
        )
    if args.threshold is not None and not 0 < args.threshold <= 100:
        raise errors.UsageError(f"--threshold {args.threshold:g}: expected percent, above 0 up to 100")
    return _sides(args)


def _sides(args: argparse.Namespace) -> int:
    from stbench import errors
    from stbench.comparison import compare, noise, verdict_table
    from stbench.console import stderr_console
    from stbench.records.sides import read_side

    log = stderr_console(quiet=args.quiet)
    a, b = (_chosen(args, read_side(text)) for text in args.results)
    floors, problems = noise.read_floors()
    # Both sides may be of one file.
    for problem in dict.fromkeys((*a.problems, *b.problems, *problems)):
        log.print(problem, markup=False, soft_wrap=True)
    metric = args.metric or "decode_tps"
    found = compare.compare(
        a,
        b,
        metric=metric,
        threshold=None if args.threshold is None else args.threshold / 100,
        ignore=[name for name in args.ignore.split(",") if name],
        floor=noise.floor_of(floors, metric),
    )
    _print(args, verdict_table.verdict_table(found, a.name, b.name), verdict_table.json_of(found))
    verdicts = {case.verdict for case in found.cases}
    if "regressed" in args.fail_on and "regressed" in verdicts:
        return errors.EXIT_REGRESSION
    if "inconclusive" in args.fail_on and "inconclusive" in verdicts:
        return errors.EXIT_INCONCLUSIVE
    return errors.EXIT_CELLS_FAILED if found.failed else errors.EXIT_OK


def _engines(args: argparse.Namespace) -> int:
    from stbench import errors
    from stbench.comparison import versus
    from stbench.console import stderr_console
    from stbench.records.sides import read_side

    names = args.engines.split(",")
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise errors.UsageError(
            f"--engines {args.engines}: expected two engines", hint="--engines sbr,llama-bench"
        )
    if len(args.results) != 1:
        raise errors.UsageError("--engines compares within one RESULTS: engines of one interleaved campaign")
    refused = [
        option
        for option, given in (
            ("--fail-on regressed", "regressed" in args.fail_on),
            ("--ignore", args.ignore),
            ("--threshold", args.threshold is not None),
        )
        if given
    ]
    if refused:
        raise errors.UsageError(
            f"{', '.join(refused)}: not with --engines, whose ratios are held against bars"
        )
    side = _chosen(args, read_side(args.results[0]))
    for problem in side.problems:
        stderr_console(quiet=args.quiet).print(problem, markup=False, soft_wrap=True)
    found = versus.engine_ratios(side, *names, metrics=(args.metric,) if args.metric else None)
    _print(args, versus.ratio_table(found, *names), versus.json_of(found))
    if "inconclusive" in args.fail_on and any(row.bar_verdict == "inconclusive" for row in found.rows):
        return errors.EXIT_INCONCLUSIVE
    return errors.EXIT_OK


def _chosen(args: argparse.Namespace, side: Side) -> Side:
    from stbench.comparison import bandwidth

    return side if args.bandwidth is None else bandwidth.within(side, bandwidth.parse(args.bandwidth))


def _print(args: argparse.Namespace, table: Table, data: dict[str, Any]) -> None:
    import sys

    from stbench.console import print_json, stdout_console
    from stbench.tables import render

    if args.json or args.format == "json":
        print_json(data)
    elif args.format == "md":
        sys.stdout.write(render.markdown([table]))
    else:
        render.print_rich(table, stdout_console())
