"""``stbench roofline``: the limits that speeds are held against."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from stbench.commands import AddUp, add_command, add_devices, add_library

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from stbench.campaigns.live import Live
    from stbench.commands import Subparsers
    from stbench.records.roofline import Rate, Roofline
    from stbench.sweeps.prepare import Prepared

_EXAMPLE = """
stbench roofline
stbench roofline -t 1-8*2 --seconds 2
stbench roofline --no-storage --json
"""

# Its synthetic file, which the quick sweep needs anyway, is what storage is read from.
_STORAGE_MODEL = "qwen3-0.6b"


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench roofline``."""
    parser = add_command(subparsers, "roofline", run, example=_EXAMPLE)
    add_devices(parser)
    parser.add_argument("--device", action="append", metavar="GLOB", help="only these of its enabled devices")
    parser.add_argument(
        "-t", "--threads", action=AddUp, metavar="LIST", help="thread counts (1, 2, 4, ... all)"
    )
    parser.add_argument(
        "--seconds", type=float, default=0.5, metavar="S", help="how long each probe runs (0.5)"
    )
    parser.add_argument("--no-storage", action="store_true", help="leave storage out; makes no file")
    add_library(parser)


def run(args: argparse.Namespace) -> int:
    """Measures every selected device in turn."""
    from stbench.builds.build import find_library
    from stbench.campaigns.live import Live
    from stbench.commands._sweep_options import devices_of
    from stbench.console import print_json, stderr_console, stdout_console
    from stbench.errors import UsageError
    from stbench.sweeps.prepare import prepared
    from stbench.sweeps.sweep import parse_range

    if not 0.01 <= args.seconds <= 60:
        raise UsageError(f"--seconds {args.seconds:g}: expected 0.01 to 60")
    try:
        threads = parse_range(args.threads, 1) if args.threads else []
    except ValueError as error:
        raise UsageError(f"--threads {args.threads}: expected {error}") from None
    models = [] if args.no_storage else [_STORAGE_MODEL]
    library = find_library(args.library)
    found = []
    with (
        Live(stderr_console(quiet=args.quiet)) as live,
        prepared(devices_of(args), models, library, lambda stage, done, total: None) as devices,
    ):
        for device in devices:
            found.append(_measure(device, threads, args.seconds, live))
    if args.json:
        print_json([_json(roofline) for roofline in found])
    else:
        for roofline in found:
            _print(roofline, stdout_console())
    return 0


def _measure(device: Prepared, threads: list[int], seconds: float, live: Live) -> Roofline:
    from stbench.records import roofline
    from stbench.sweeps import prepare

    path = ""
    for model in device.target.models.values():
        made = prepare.make(device.agent, model, lambda stage, done, total: live.step(stage, done, total))
        path = made.ref.path
    live.step(f"{device.agent.name}: measuring", 0, 0)
    return roofline.measure(
        device.agent,
        device.target.facts,
        threads=threads,
        cpus=device.target.device.cpus,
        seconds=seconds,
        storage_path=path,
    )


def _json(roofline: Roofline) -> dict[str, object]:
    from stbench.records.roofline import bounds

    upper = [{**dataclasses.asdict(bound), "bytes_total": bound.bytes.total} for bound in bounds(roofline)]
    return {**dataclasses.asdict(roofline), "bounds": upper}


def _print(roofline: Roofline, console: Console) -> None:
    from stbench.records.roofline import bounds

    console.print(f"{roofline.device}: {roofline.cpu}", markup=False)
    _print_rates(console, f"Memory, {roofline.buffer_bytes >> 20} MiB working set", roofline)
    _print_storage(console, roofline)
    table = _table("Upper bounds of decode speed, empty context", "model", "switches")
    for name in ("MB/token", "of it gathered", "tokens/s at read rate", "rows at gather rate", "threads"):
        table.add_column(name, justify="right")
    for bound in bounds(roofline):
        table.add_row(
            bound.model,
            bound.switches,
            f"{bound.bytes.total / 1e6:.1f}",
            f"{bound.bytes.gather / 1e6:.1f}",
            f"{bound.tokens_per_s:.1f}",
            f"{bound.tokens_per_s_gathered:.1f}",
            str(bound.threads),
        )
    console.print(table)
    console.print(
        "Bytes from the shapes and the set sparsity (synthetic models); weights only, compute not counted.\n"
        "Rows taken in order and ahead of time cost less than random ones: sparse decode can lie between."
    )


def _print_rates(console: Console, title: str, roofline: Roofline) -> None:
    from stbench.records.roofline import ROW_BYTES

    table = _table(title)
    for name in ("threads", "read GB/s", f"gather GB/s ({ROW_BYTES}-byte rows)", "gather / read"):
        table.add_column(name, justify="right")
    for read, gather in zip(roofline.read, roofline.gather, strict=True):
        share = f"{100 * gather.gb_per_s / read.gb_per_s:.0f} %" if gather.gb_per_s and read.gb_per_s else ""
        table.add_row(str(read.threads), _rate(read), _rate(gather), share)
    console.print(table)


def _print_storage(console: Console, roofline: Roofline) -> None:
    if not roofline.storage:
        return
    how = "direct" if roofline.storage[0].direct else "through the page cache (direct reads are refused)"
    table = _table(f"Storage, random reads, {how}")
    for name in ("bytes", "at a time", "GB/s", "reads/s"):
        table.add_column(name, justify="right")
    for rate in roofline.storage:
        reads = f"{rate.operations_per_s:.0f}" if rate.operations_per_s else ""
        table.add_row(str(rate.row_bytes), str(rate.threads), _rate(rate), reads)
    console.print(table)
    console.print(f"read from {roofline.storage_path}", markup=False, soft_wrap=True)


def _table(title: str, *text_columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in text_columns:
        table.add_column(name)
    return table


def _rate(rate: Rate) -> str:
    from stbench.wording import clean

    return f"{rate.gb_per_s:.2f}" if rate.gb_per_s is not None else clean(rate.detail, 80)
