"""``stbench quality``: sparse against dense logits on the same tokens."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from stbench.commands import Subparsers, _text_options, add_command

if TYPE_CHECKING:
    from stbench.text.quality import Variant

_EXAMPLE = """
stbench quality -m model.gguf -f text.txt
stbench quality -m model.gguf -f text.txt --lm-head-threshold -2 --json
"""


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench quality``."""
    parser = add_command(subparsers, "quality", run, example=_EXAMPLE)
    parser.add_argument("-m", "--model", type=Path, required=True, metavar="FILE", help="a GGUF file")
    parser.add_argument("-f", "--file", type=Path, metavar="TEXT", help="a UTF-8 text (random tokens)")
    parser.add_argument("-n", type=int, default=256, metavar="N", help="steps to compare (256)")
    parser.add_argument("-k", type=int, default=10, metavar="K", help="size of the compared top lists (10)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random tokens (0)")
    parser.add_argument(
        "--lm-head-threshold",
        type=float,
        default=0.0,
        metavar="X",
        help="keep rows with a score above X (0)",
    )
    parser.add_argument(
        "--requantise-down",
        action="store_true",
        help="run the variants with re-quantised (transposed) down matrices",
    )
    _text_options.add_session(parser)


def run(args: argparse.Namespace) -> int:
    """Prints a line per variant, and how far the figures can be trusted."""
    from stbench import native
    from stbench.console import print_json, stderr_console
    from stbench.errors import UsageError
    from stbench.text import quality
    from stbench.text.textfile import read_text
    from stbench.text.tokenizer import TextTokenizer

    if args.n < 2 or args.k < 1:
        raise UsageError(f"-n {args.n} -k {args.k}: expected at least 2 steps and a top list of at least 1")
    if args.seed < 0:
        raise UsageError(f"--seed: expected 0 or more, got {args.seed}")
    library = native.open_library(args.library)
    keys = native.metadata(library, args.model)
    if args.file is not None:
        tokens = TextTokenizer(keys).encode(read_text(args.file), special=False)[: args.n]
    else:
        with native.open_model(library, args.model) as model:
            tokens = quality.random_tokens(args.n, model.n_vocab, args.seed)
    console = stderr_console(quiet=args.quiet)
    variants = quality.compare(
        library,
        args.model,
        tokens,
        native.Switches(threads=args.threads, isa=args.isa, lm_head_threshold=args.lm_head_threshold),
        requantise_down=args.requantise_down,
        k=args.k,
        progress=lambda done, total: console.print(f"variant {done}/{total}"),
    )
    notes = []
    if native.is_synthetic(keys):
        notes.append(quality.SYNTHETIC_NOTE)
    if args.file is None:
        notes.append("the tokens are random, not text: give a text with -f")
    if args.json:
        document = {
            "model": str(args.model),
            "synthetic": native.is_synthetic(keys),
            "steps": len(tokens),
            "lm_head_threshold": args.lm_head_threshold,
            "requantise_down": args.requantise_down,
            "notes": notes,
            "variants": [variant.to_json() for variant in variants],
        }
        print_json(document)
        return 0
    _print_table(variants, args.k)
    for note in notes:
        print(note)
    return 0


def _print_table(variants: list[Variant], k: int) -> None:
    from rich.table import Table

    from stbench.console import stdout_console

    table = Table(
        "against dense", "top-1", f"top-{k}", "KL, nats", "worst KL", "mass kept", "rows", "identical"
    )
    for variant in variants:
        found = variant.agreement
        if found is None:
            table.add_row(variant.name, variant.reason)
            continue
        table.add_row(
            variant.name,
            f"{found.top1:.2%}",
            f"{found.overlap:.2%}",
            f"{found.kl:.2e}",
            f"{found.kl_max:.2e}",
            f"{found.kept_mass:.2%}",
            f"{found.rows:.0f}",
            "yes" if found.identical else "no",
        )
    stdout_console().print(table)
