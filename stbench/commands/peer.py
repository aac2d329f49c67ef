"""``stbench peer``: build llama.cpp, the outside referee, or say where it is."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from stbench.commands import Subparsers, add_command
from stbench.commands._building import reported
from stbench.console import print_json
from stbench.errors import UsageError

_EXAMPLE = """
stbench peer build             fetch the pinned sources, check them, build once (minutes)
stbench peer info --json       version, commit, compiler, flags
"$(stbench peer path)/bin/llama-bench" -m model.gguf -p 512 -n 128
"""


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench peer``."""
    parser = add_command(subparsers, "peer", run, example=_EXAMPLE)
    parser.add_argument(
        "action", choices=("build", "path", "info"), help="build it, or say where or what it is"
    )
    parser.add_argument("-j", "--jobs", type=int, default=0, metavar="N", help="compile jobs (one per CPU)")


def run(args: argparse.Namespace) -> int:
    """Builds or finds the peer and prints its directory or description."""
    from stbench.builds import peer

    if args.jobs < 0:
        raise UsageError(f"--jobs: expected 0 or more, got {args.jobs}")
    if args.action == "build":
        with reported(quiet=args.quiet) as progress:
            built = peer.build_peer(jobs=args.jobs, progress=progress)
    else:
        built = peer.require_peer()
    if args.json:
        print_json(asdict(built))
    elif args.action == "info":
        for key, value in asdict(built).items():
            print(f"{key:<10} {' '.join(value) if isinstance(value, list) else value}")
    else:
        print(built.directory)
    return 0
