"""``stbench import``: another program's output as records."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from stbench.commands import add_command

if TYPE_CHECKING:
    from stbench.commands import Subparsers

_EXAMPLE = """
llama-bench -m model.gguf -o jsonl > theirs.jsonl
stbench import llama-bench theirs.jsonl --campaign theirs
stbench grid results/theirs
"""


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench import``."""
    parser = add_command(
        subparsers,
        "import",
        run,
        example=_EXAMPLE,
    )
    parser.add_argument("what", choices=("llama-bench",), help="llama-bench: its JSON lines, JSON or SQL")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--campaign", metavar="NAME", help="results/NAME (imported-FILE)")


def run(args: argparse.Namespace) -> int:
    """Reads, stores what is not there yet."""
    from stbench.console import print_json, stderr_console
    from stbench.errors import EXIT_CELLS_FAILED, EXIT_OK, CellsFailed
    from stbench.exchange.llama_import import import_llama_bench
    from stbench.records import store

    log = stderr_console(quiet=args.quiet)
    name = args.campaign or "imported-" + (re.sub(r"[^A-Za-z0-9._-]+", "-", args.file.stem)[:80] or "file")
    directory = Path("results") / store.validate_campaign_name(name)
    found = import_llama_bench(args.file, name)
    for problem in found.problems:
        log.print(problem, markup=False, soft_wrap=True)
    if not found.records:
        raise CellsFailed(f"{args.file}: none of its rows is a result")
    with store.Store.open(directory) as opened:
        for problem in opened.reading.problems:
            log.print(problem, markup=False, soft_wrap=True)
        known = {record.id for record in opened.reading.records}
        new = [record for record in found.records if record.id not in known]
        for record in new:
            opened.append(record)
    there = len(found.records) - len(new)
    log.print(
        f"{len(new)} runs stored in {directory}" + (f", {there} were there already" if there else ""),
        markup=False,
    )
    if args.json:
        print_json(
            {"directory": str(directory), "stored": len(new), "known": there, "problems": found.problems}
        )
    return EXIT_CELLS_FAILED if found.problems else EXIT_OK
