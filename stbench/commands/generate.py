"""``stbench generate``: text from a model, as it comes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stbench.commands import Subparsers, _text_options, add_command

_EXAMPLE = """
stbench generate -m SmolLM2-135M-Instruct.Q4_1.gguf -p "The capital of France is" -n 40
stbench generate -m model.gguf --chat -p "Why is the sky blue?" --temperature 0
"""


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench generate``."""
    parser = add_command(subparsers, "generate", run, example=_EXAMPLE)
    parser.add_argument(
        "-m", "--model", type=Path, required=True, metavar="FILE", help="a GGUF file with a tokenizer"
    )
    parser.add_argument("-p", "--prompt", required=True, help="the text to go on from ('-': standard input)")
    parser.add_argument("-n", type=int, default=128, metavar="N", help="most tokens to write (128)")
    parser.add_argument(
        "--chat", action="store_true", help="the prompt is a question to a chat model (ChatML)"
    )
    parser.add_argument("--system", default="", metavar="TEXT", help="with --chat: the system message")
    parser.add_argument(
        "--temperature", type=float, default=0.8, metavar="T", help="0: the most likely token (0.8)"
    )
    parser.add_argument(
        "--top-k", type=int, default=40, metavar="K", help="draw from the K best; 0: all (40)"
    )
    parser.add_argument(
        "--top-p", type=float, default=0.95, metavar="P", help="draw from the best that reach P (0.95)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="the same seed writes the same text (0)"
    )
    _text_options.add_session(parser)
    _text_options.add_sparse(parser)


def run(args: argparse.Namespace) -> int:
    """Streams the text to stdout; with ``--json``, one document at the end."""
    from stbench import native
    from stbench.console import print_json
    from stbench.errors import UsageError
    from stbench.text import generate
    from stbench.text.sampling import Sampling
    from stbench.text.tokenizer import TextTokenizer

    if args.n < 1:
        raise UsageError(f"-n: expected 1 or more, got {args.n}")
    if args.seed < 0:
        raise UsageError(f"--seed: expected 0 or more, got {args.seed}")
    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.seed)
    switches = _text_options.switches(args)
    library = native.open_library(args.library)
    keys = native.metadata(library, args.model)
    tokenizer = TextTokenizer(keys)
    if native.is_synthetic(keys) and not args.quiet:
        print("the weights are synthetic: the text means nothing", file=sys.stderr)
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    if args.chat:
        prompt = tokenizer.chat(prompt, system=args.system)
    pieces = []
    with native.open_model(library, args.model) as model:
        for piece in generate.generate_text(model, tokenizer, prompt, args.n, sampling, switches):
            pieces.append(piece)
            if not args.json:
                print(piece, end="", flush=True)
    if args.json:
        print_json({"prompt": prompt, "text": "".join(pieces), "seed": args.seed})
    else:
        print()
    return 0
