"""``stbench build``: the native runtime for a board, compiled here or there."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from stbench.commands import Subparsers, add_command
from stbench.console import print_json, stderr_console
from stbench.errors import EXIT_OK, InventoryError, UsageError

if TYPE_CHECKING:
    from stbench.builds.crossbuild import Built, Report
    from stbench.devices.inventory import Device

EXAMPLE = """
stbench build                                 for every aarch64 board
stbench build --target x86_64-linux-gnu       for every x86-64 Linux
stbench build --on phone                      there, with its own compiler (Termux)
stbench build --target aarch64-linux-android --toolchain $NDK/build/cmake/android.toolchain.cmake \\
    -D ANDROID_ABI=arm64-v8a -D ANDROID_PLATFORM=android-28
"""

DEFAULT_TARGET = "aarch64-linux-gnu"


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench build``."""
    parser = add_command(
        subparsers, "build", run, help="compile the native runtime for a board", example=EXAMPLE
    )
    parser.add_argument(
        "--target", metavar="TRIPLE", help=f"({DEFAULT_TARGET}); x86_64-linux-gnu; others with --toolchain"
    )
    parser.add_argument(
        "--toolchain", type=Path, metavar="FILE", help="a CMake toolchain file instead of zig (the NDK's)"
    )
    parser.add_argument(
        "-D", dest="options", action="append", metavar="KEY=VALUE", help="with --toolchain: its variables"
    )
    parser.add_argument("--on", metavar="DEVICE", help="compile on this device, with its compiler and cmake")
    parser.add_argument(
        "--devices", type=Path, default=Path("devices.yaml"), metavar="FILE", help="(devices.yaml)"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="PATH", help="write a copy of the library there")


def run(args: argparse.Namespace) -> int:
    """Builds, or finds what was built, and prints the path."""
    report, close = _reporter(args.quiet)
    try:
        built = _on_device(args, report) if args.on else _here(args, report)
    finally:
        close()
    path = built.library.path
    if args.output is not None:
        target = args.output.expanduser()
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        part.write_bytes(path.read_bytes())
        part.chmod(0o755)
        part.replace(target)
        path = target
    console = stderr_console(quiet=args.quiet)
    state = "was built before" if built.already else "built"
    console.print(
        f"{built.info.target}: {state}, {path.stat().st_size / 1e6:.2f} MB, "
        f"sha256 {built.library.sha256[:16]}..., {built.info.compiler or built.info.toolchain}",
        markup=False,
        soft_wrap=True,
    )
    if built.note:
        console.print(f"note: {built.note}", markup=False, soft_wrap=True)
    if args.json:
        print_json({**asdict(built.info), "path": str(path), "already_there": built.already})
    else:
        print(path)
    return EXIT_OK


def _here(args: argparse.Namespace, report: Report) -> Built:
    from stbench.builds.crossbuild import build

    if args.options and args.toolchain is None:
        raise UsageError("-D sets variables of a toolchain file and needs --toolchain")
    options = {}
    for item in args.options or ():
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise UsageError(f"-D {item}: expected KEY=VALUE")
        options[key] = value
    return build(args.target or DEFAULT_TARGET, report, toolchain=args.toolchain, options=options)


def _on_device(args: argparse.Namespace, report: Report) -> Built:
    from stbench.builds.boardbuild import build_on

    if args.target or args.toolchain or args.options:
        raise UsageError(
            "--on compiles for the device itself: --target, --toolchain and -D do not go with it"
        )
    return build_on(_device(args), report)


def _device(args: argparse.Namespace) -> Device:
    from stbench.devices.inventory import load_inventory
    from stbench.yamlfile import unknown_name

    inventory = load_inventory(args.devices)
    for device in inventory.devices:
        if device.name == args.on:
            return device
    names = [device.name for device in inventory.devices]
    raise InventoryError([f"--on: {unknown_name('device', args.on, names)}"])


def _reporter(quiet: bool) -> tuple[Report, Callable[[], None]]:
    """A bar on a terminal; elsewhere a line per stage and per quarter of the long one."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = stderr_console(quiet=quiet)
    if console.is_terminal and not quiet:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        bar = Progress(*columns, console=console, transient=True)
        task = bar.add_task("build", total=None)
        bar.start()
        return (
            lambda done, total, what: bar.update(task, completed=done, total=total or None, description=what)
        ), bar.stop
    last: list[tuple[str, int]] = []

    def lines(done: int, total: int, what: str) -> None:
        quarter = (what, done * 4 // total if total else 0)
        if last != [quarter]:
            last[:] = [quarter]
            console.print(f"{what} ({done} of {total})" if total else what, markup=False, soft_wrap=True)

    return lines, lambda: None
