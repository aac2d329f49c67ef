"""``stbench reproduce``: one published cell, measured under its stated conditions on a device at hand."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stbench.commands import Subparsers, add_command, add_devices, add_library
from stbench.commands._sweep_options import RESULTS

if TYPE_CHECKING:
    from stbench.agent.wire import RunRecord
    from stbench.reproduction.conditions import Condition
    from stbench.reproduction.published_cells import PublishedCell
    from stbench.reproduction.verdict import Verdict
    from stbench.sweeps.sweep import Sweep

_EXAMPLE = """
stbench reproduce "raspberry-pi-5 / SmallThinker 4B sparse limited" --device rpi5
stbench reproduce "i9-14900 / Qwen3 0.6B" -n 32 -r 3
stbench reproduce "rk3588 / SmallThinker 4B sparse" --from results/desk
stbench reproduce --list
"""

_REPLICATES = 6


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench reproduce``."""
    parser = add_command(
        subparsers,
        "reproduce",
        run,
        example=_EXAMPLE,
    )
    parser.add_argument(
        "cell", nargs="?", metavar="CELL", help='a published cell: "DEVICE / ROW"; case and order are free'
    )
    parser.add_argument("--list", action="store_true", help="print all published cells and stop")
    add_devices(parser)
    parser.add_argument("--device", default="local", metavar="NAME", help="where to run it (local)")
    parser.add_argument(
        "-n", "--gen", type=int, metavar="N", help="generate fewer tokens than published (256)"
    )
    parser.add_argument(
        "-r", "--replicates", type=int, default=_REPLICATES, metavar="N", help=f"processes ({_REPLICATES})"
    )
    parser.add_argument(
        "-t", "--threads", metavar="N", help="other than stated: a number, all or auto (as published)"
    )
    parser.add_argument(
        "--within", type=float, default=10.0, metavar="PERCENT", help="what counts as reproduced (10)"
    )
    parser.add_argument("--max-time", metavar="TIME", help="start no run after this long (90s, 15m)")
    parser.add_argument("--max-reruns", type=int, metavar="N", help="repeat at most so many disturbed runs")
    parser.add_argument("--campaign", metavar="NAME", help="directory under results/ (default: date)")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="(results)")
    add_library(parser)
    parser.add_argument(
        "--from", dest="stored", type=Path, metavar="RESULTS", help="judge stored runs; measure nothing"
    )


def run(args: argparse.Namespace) -> int:
    """Finds the cell, measures it, prints conditions and verdict; the exit code follows the verdict."""
    from stbench import errors
    from stbench.console import print_json, stdout_console
    from stbench.reproduction import conditions, published_cells, stored_cells, verdict

    if args.list:
        for cell in published_cells.published_cells():
            print(cell.name)
        return errors.EXIT_OK
    if not args.cell:
        raise errors.UsageError('expected a published cell: "DEVICE / ROW"', hint="stbench reproduce --list")
    for option, value, most in (("-n", args.gen, 65536), ("-r", args.replicates, 1000)):
        if value is not None and not 1 <= value <= most:
            raise errors.UsageError(f"{option} {value}: expected 1 to {most}")
    if not 0 < args.within < 100:
        raise errors.UsageError(f"--within {args.within:g}: expected percent, above 0 and below 100")
    cell = published_cells.find_cell(args.cell)
    among = _read(args) if args.stored is not None else _measured(args, cell)
    records = among
    if args.stored is not None:
        records = stored_cells.records_of_cell(cell, among, str(args.stored), args.device)
    found = verdict.judge(cell, records, args.within / 100, among)
    under = conditions.conditions(cell, records)
    if args.json:
        print_json(_json(cell, records, found, under))
    else:
        _print(cell, records[0].device, found, under)
        stdout_console().print(found.sentence, markup=False, soft_wrap=True)
    return verdict.EXIT_CODES[found.kind]


def _measured(args: argparse.Namespace, cell: PublishedCell) -> list[RunRecord]:
    """Runs the cell; the records of its campaign."""
    from stbench import errors
    from stbench.campaigns.campaign import UNFINISHED
    from stbench.campaigns.live import Live
    from stbench.commands._sweep_options import Ready, new_campaign_name, planned
    from stbench.commands.sweep import measure
    from stbench.console import stderr_console
    from stbench.records.store import validate_campaign_name
    from stbench.reproduction.conditions import with_stated_threads

    sweep = _sweep(args, cell)
    args.device, args.resume, args.retry_failed = [args.device], False, False
    campaign = (
        validate_campaign_name(args.campaign)
        if args.campaign
        else new_campaign_name("reproduce", args.results)
    )
    with (
        Live(stderr_console(quiet=args.quiet)) as live,
        planned(
            args, sweep, campaign, lambda stage, done, total: live.step(stage, done, total), lease=True
        ) as ready,
    ):
        if len(ready.devices) > 1:
            names = ", ".join(device.target.device.name for device in ready.devices)
            raise errors.UsageError(f"a cell is reproduced on one device, and these fit: {names}")
        live.note(f"{cell.name}, on {ready.devices[0].target.device.name}")
        plan = ready.plan
        if cell.device.threads and not args.threads:
            plan = with_stated_threads(plan, cell.device.threads)
        plan.check_room()
        ready = Ready(plan, ready.devices, ready.unreachable)
        outcome, records = measure(args, campaign, sweep, ready, live)
    records = [record for record in records if record.purpose == "measure" and record.status != UNFINISHED]
    if outcome.interrupted:
        raise errors.Interrupted(f"interrupted; {len(records)} records are in {args.results / campaign}")
    if not records:
        why = "; ".join([*outcome.lost.values(), *filter(None, [outcome.stopped]), *plan.notes])
        raise errors.CellsFailed(f"{cell.name}: nothing was measured" + (f": {why}" if why else ""))
    return records


def _sweep(args: argparse.Namespace, cell: PublishedCell) -> Sweep:
    from stbench.reproduction.conditions import sweep_options
    from stbench.sweeps.sweep import build_sweep

    options: dict[str, Any] = sweep_options(
        cell, gen=args.gen, replicates=args.replicates, threads=args.threads
    )
    for key in ("max_time", "max_reruns"):
        if getattr(args, key) is not None:
            options[key] = getattr(args, key)
    return build_sweep(options)


def _read(args: argparse.Namespace) -> list[RunRecord]:
    from stbench.console import stderr_console
    from stbench.records.store import read_records

    reading = read_records(args.stored)
    for problem in reading.problems:
        stderr_console(quiet=args.quiet).print(problem, markup=False, soft_wrap=True)
    return reading.latest()


def _print(cell: PublishedCell, device: str, found: Verdict, under: list[Condition]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from stbench.console import stdout_console
    from stbench.reproduction.conditions import DIFFERS, SAME, UNSTATED

    console = stdout_console()
    styles = {SAME: "dim", DIFFERS: "bold", UNSTATED: ""}
    table = Table(title=Text(f"{cell.name}, on {device}"), title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("Condition", "published", "here", ""):
        table.add_column(name, overflow="fold")
    # What differs first: that is what a reader of the verdict needs.
    for state in (DIFFERS, UNSTATED, SAME):
        for one in under:
            if one.state == state:
                texts = (one.name, one.published or "-", one.here, one.state)
                table.add_row(*(Text(text, style=styles[state]) for text in texts))
    console.print(table)


def _json(
    cell: PublishedCell, records: list[RunRecord], found: Verdict, under: list[Condition]
) -> dict[str, Any]:
    import dataclasses

    return {
        "cell": cell.name,
        "table": cell.table,
        "published_tps": cell.speed,
        "device": records[0].device,
        "campaign": records[0].campaign,
        "records": [record.id for record in records],
        "verdict": dataclasses.asdict(found),
        "conditions": [dataclasses.asdict(one) for one in under],
    }
