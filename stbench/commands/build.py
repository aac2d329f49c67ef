"""``stbench build``: the native runtime for a board, compiled here or there."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from stbench.commands import Subparsers, add_command, add_devices
from stbench.commands._building import reported
from stbench.console import print_json, stderr_console
from stbench.errors import EXIT_OK, UsageError

if TYPE_CHECKING:
    from stbench.builds.crossbuild import Built, Report

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
    parser = add_command(subparsers, "build", run, example=EXAMPLE)
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
    add_devices(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="PATH", help="write a copy of the library there")


def run(args: argparse.Namespace) -> int:
    """Builds, or finds what was built, and prints the path."""
    with reported(quiet=args.quiet) as report:
        built = _on_device(args, report) if args.on else _here(args, report)
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
        raise UsageError(
            "-D sets variables of a toolchain file and needs --toolchain",
            hint="--toolchain FILE -D KEY=VALUE",
        )
    options = {}
    for item in args.options or ():
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise UsageError(f"-D {item}: expected KEY=VALUE")
        options[key] = value
    return build(args.target or DEFAULT_TARGET, report, toolchain=args.toolchain, options=options)


def _on_device(args: argparse.Namespace, report: Report) -> Built:
    from stbench.builds.boardbuild import build_on
    from stbench.devices.inventory import load_inventory

    if args.target or args.toolchain or args.options:
        raise UsageError(
            "--on compiles for the device itself: --target, --toolchain and -D do not go with it"
        )
    return build_on(load_inventory(args.devices).device(args.on), report)
