"""``stbench noise``: what a device shows without any cause."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from stbench.commands import add_command
from stbench.commands._sweep_options import add_options

if TYPE_CHECKING:
    from rich.table import Table

    from stbench.commands import Subparsers
    from stbench.comparison.noise import Noise
    from stbench.records.sides import Side

_EXAMPLE = """
stbench noise --models qwen3-0.6b -n 32
stbench noise --models smallthinker-4b -t 1,2 -r 30
stbench noise results/2026-01-31-night
"""

_LEGEND = """\
floor: 95 % of medians of random A/A halves differ by less; drift: first half in time against the second;
alarms: A/A comparisons of neighbours that were called a change. `stbench compare` calls no change smaller
than the floor, and of campaigns that were not interleaved none smaller than the drift."""

# Two halves of ten.
_REPLICATES = 20


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench noise``."""
    parser = add_command(subparsers, "noise", run, example=_EXAMPLE)
    parser.add_argument(
        "taken",
        nargs="*",
        metavar="RESULTS[:GLOB]",
        help="take these, of at least 12 replicates a case; without: measure a sweep of 20",
    )
    add_options(parser, file=False, replicates=str(_REPLICATES))
    parser.add_argument("--metric", choices=("decode_tps", "prefill_tps"), help="only this one (both)")
    parser.add_argument("--dry-run", action="store_true", help="store nothing")
    parser.set_defaults(resume=False, retry_failed=False)


def run(args: argparse.Namespace) -> int:
    """Measures or reads, splits, stores, prints."""
    from stbench.comparison import noise
    from stbench.console import print_json, stderr_console, stdout_console
    from stbench.errors import CellsFailed

    log = stderr_console(quiet=args.quiet)
    found: list[Noise] = []
    notes: list[str] = []
    for side in _sides(args):
        notes += side.problems
        for metric in (args.metric,) if args.metric else ("decode_tps", "prefill_tps"):
            more, short = noise.noise_of(side, metric)
            found += more
            notes += short
    for note in dict.fromkeys(notes):
        log.print(note, markup=False, soft_wrap=True)
    if not found:
        raise CellsFailed("no case has enough usable, undisturbed replicates", hint="stbench noise -r 20")
    if not args.dry_run:
        log.print(f"stored in {noise.store(found)}", markup=False, soft_wrap=True)
    if args.json:
        print_json([dataclasses.asdict(one) for one in found])
    else:
        console = stdout_console()
        console.print(_table(found))
        console.print(_LEGEND)
    return 0


def _sides(args: argparse.Namespace) -> list[Side]:
    from stbench.errors import UsageError
    from stbench.records.sides import read_side

    if not args.taken:
        return [_measured(args)]
    typed = sorted(key for key, value in vars(args).items() if key.startswith("axis_") and value is not None)
    if typed:
        option = "--" + typed[0].removeprefix("axis_").replace("_", "-")
        raise UsageError(f"{option} says what to measure, but RESULTS are given, which are taken as they are")
    return [read_side(text) for text in args.taken]


def _measured(args: argparse.Namespace) -> Side:
    from stbench import errors
    from stbench.campaigns.live import Live
    from stbench.commands._sweep_options import campaign_of, planned, sweep_of
    from stbench.commands.sweep import measure
    from stbench.console import stderr_console
    from stbench.records.sides import side_of

    if args.axis_replicates is None:
        args.axis_replicates = _REPLICATES
    sweep = sweep_of(args)
    campaign = campaign_of(args, "noise")
    with (
        Live(stderr_console(quiet=args.quiet)) as live,
        planned(
            args, sweep, campaign, lambda stage, done, total: live.step(stage, done, total), lease=True
        ) as ready,
    ):
        outcome, records = measure(args, campaign, sweep, ready, live)
    if outcome.interrupted:
        raise errors.Interrupted(
            f"interrupted; `stbench noise {args.results / campaign}` takes what was measured",
            hint=f"stbench sweep --resume --campaign {campaign} --results {args.results}",
        )
    return side_of(campaign, records)


def _table(found: list[Noise]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title="Noise, A/A", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("case", "engine", "speed"):
        table.add_column(name)
    for name in ("halves of", "spread", "floor", "drift", "alarms"):
        table.add_column(name, justify="right")
    for one in found:
        cells: list[Any] = [one.label, one.engine, one.metric.removesuffix("_tps"), str(one.half)]
        cells += [f"{100 * share:.2f} %" for share in (one.spread, one.floor, one.drift, one.alarms)]
        table.add_row(*cells)
    return table
