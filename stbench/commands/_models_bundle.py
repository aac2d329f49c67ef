"""``stbench models bundle``: the file that memory-limited runs of a model read, made or verified here."""

from __future__ import annotations

import argparse

from stbench.errors import EXIT_OK, UsageError


def run(args: argparse.Namespace) -> int:
    """Prints the path; what was done, size and rate go to stderr."""
    from dataclasses import asdict

    from rich.markup import escape

    from stbench.builds.build import find_library
    from stbench.campaigns.live import Live
    from stbench.console import print_json, stderr_console
    from stbench.models import bundle_files

    if not args.name:
        raise UsageError(
            "the bundle of which model?", hint="the path of a GGUF file, or a name of `stbench models`"
        )
    if args.seed is not None:
        raise UsageError("--seed goes with `stbench models make`; give its file's path instead")
    console = stderr_console(quiet=args.quiet)
    with Live(console) as live:
        found = bundle_files.make_or_verify(
            args.name,
            find_library(args.library),
            sparse_ffn=None if args.sparse_ffn is None else args.sparse_ffn == "on",
            output=args.output.expanduser().absolute() if args.output is not None else None,
            verify=args.verify,
            on_bytes=lambda stage, done, total: live.step(f"{stage} {args.name}", done, total),
        )
    rate = (
        "" if found.bytes_per_s is None else f" in {found.seconds:.1f} s ({found.bytes_per_s / 1e9:.2f} GB/s)"
    )
    console.print(escape(f"{found.what}: {found.bytes / 1e9:.3g} GB{rate}; {found.layout}"), highlight=False)
    if args.json:
        print_json(asdict(found))
    else:
        print(found.path)
    return EXIT_OK
