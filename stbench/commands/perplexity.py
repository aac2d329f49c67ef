"""``stbench perplexity``: how well a model predicts a text."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stbench.commands import Subparsers, _text_options, add_command

_EXAMPLE = """
stbench perplexity -m model.gguf -f text.txt
stbench perplexity -m model.gguf -f text.txt --context 256 --sparse-ffn --json
"""


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench perplexity``."""
    parser = add_command(subparsers, "perplexity", run, example=_EXAMPLE)
    parser.add_argument(
        "-m", "--model", type=Path, required=True, metavar="FILE", help="a GGUF file with a tokenizer"
    )
    parser.add_argument("-f", "--file", type=Path, required=True, metavar="TEXT", help="a UTF-8 text file")
    parser.add_argument("-c", "--context", type=int, default=512, metavar="N", help="tokens per chunk (512)")
    parser.add_argument(
        "--sparse-ffn", action="store_true", help="skip neurons whose ReLU output is zero (exact)"
    )
    _text_options.add_session(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the perplexity and its standard error."""
    from dataclasses import asdict

    from stbench import native
    from stbench.console import print_json
    from stbench.text import perplexity
    from stbench.text.textfile import read_text
    from stbench.text.tokenizer import TextTokenizer

    library = native.open_library(args.library)
    keys = native.metadata(library, args.model)
    tokenizer = TextTokenizer(keys)
    tokens = tokenizer.encode(read_text(args.file), special=False)
    synthetic = native.is_synthetic(keys)

    def progress(done: int, total: int) -> None:
        if not args.quiet and sys.stderr.isatty():
            print(f"\rchunk {done}/{total}", end="\n" if done == total else "", file=sys.stderr)

    with native.open_model(library, args.model) as model:
        found = perplexity.measure(
            model,
            tokens,
            args.context,
            native.Switches(threads=args.threads, isa=args.isa, sparse_ffn=args.sparse_ffn),
            prefix=tokenizer.prefix,
            progress=progress,
        )
    if args.json:
        print_json({**asdict(found), "synthetic": synthetic})
        return 0
    error = "" if found.standard_error is None else f" +- {found.standard_error:.4f}"
    print(
        f"perplexity {found.value:.4f}{error}"
        f" ({found.scored} tokens of {found.chunks} chunks of {found.context})"
    )
    if synthetic:
        print("not meaningful: the weights are synthetic")
    return 0
