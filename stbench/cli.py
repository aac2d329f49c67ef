"""The ``stbench`` program: parse, call, render; no logic.

Only the module of the command that was typed is imported, so ``stbench --help`` is quick and a missing
optional package breaks no other command.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import stbench
from stbench import errors

# Command -> one line for `stbench --help`. The module is stbench/commands/<name>.py, with _ for -.
COMMANDS = {
    "sweep": "measure models on devices and print the table",
    "plan": "print what a sweep would do, its disk and its time, and do nothing",
    "grid": "print stored results in the shape of the published tables",
    "reproduce": "run one published cell under its stated conditions and judge",
    "chart": "draw stored results: speed, memory limit, cache, threads, depth, latency, energy, ...",
    "report": "write one HTML file: verdict, tables, charts, devices and every record behind a number",
    "find-limit": "bisect the smallest memory limit at which a model runs, or reaches a speed",
    "profile": "run one case with the timeline on and say where a token's time goes",
    "export": "write stored results in another program's format",
    "import": "store another program's output as records, marked as imported",
    "compare": "compare two sets of results, or two engines of one, and judge",
    "check": "hold this build against a baseline; fails when a change for the worse is confirmed",
    "baseline": "make, show or update the file that `stbench check` holds builds against",
    "history": "list each case's speed over many campaigns, with the points where it changed",
    "noise": "measure what a device shows without any cause: its noise floor",
    "devices": "list, add, trust, examine and clean devices",
    "models": "list the models that can be measured, or make one",
    "roofline": "measure the limits that speeds are held against: memory, gather, storage",
    "routing": "make, import and show traces of which experts a model uses",
    "simulate": "say what a cache of any size and policy would have hit, and how fast that would decode",
    "quality": "compare the outputs of the sparse switches with the dense ones",
    "perplexity": "measure the perplexity of a model on a text",
    "generate": "write text with a model",
    "inspect": "show what is in a GGUF file",
    "build": "compile the native runtime for a board",
    "peer": "build llama.cpp, the outside referee",
}

# Optional packages -> the extra that brings them.
EXTRAS = {
    "tokenizers": "generate",
    "ruptures": "history",
    "ziglang": "cross",
    "huggingface_hub": "hub",
    "cmake": "peer",
    "ninja": "peer",
    "gguf": "test",
    "pyarrow": "parquet",
}

# What a shell reports for a program that died of SIGPIPE.
EXIT_BROKEN_PIPE = 141

# EX_SOFTWARE: a defect of stbench itself. Not 1, which means "regression".
EXIT_DEFECT = 70


def build_parser(selected: str | None) -> argparse.ArgumentParser:
    """The parser, with the options of ``selected`` only; the other commands are listed by name."""
    parser = argparse.ArgumentParser(
        prog="stbench",
        description="On-device LLM benchmarks with proof for every number.",
        epilog="example:\n  stbench sweep --devices devices.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"stbench {stbench.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, line in COMMANDS.items():
        if name == selected:
            importlib.import_module(f"stbench.commands.{name.replace('-', '_')}").register(subparsers)
        else:
            subparsers.add_parser(name, help=line, add_help=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code (see :mod:`stbench.errors`)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    selected = next((word for word in arguments if not word.startswith("-")), None)
    try:
        code = _run(arguments, selected)
        sys.stdout.flush()
        return code
    except errors.StbenchError as error:
        _complain(str(error), error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        _complain("interrupted", "")
        return errors.EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader left (`stbench models | head -1`). Point stdout elsewhere, so that the interpreter's
        # own flush at exit stays silent.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:
        _complain(_os_error_sentence(error), "")
        return errors.EXIT_USAGE
    except Exception:
        traceback.print_exc()
        _complain("this is a defect of stbench", "please report it with the lines above")
        return EXIT_DEFECT


def _run(arguments: list[str], selected: str | None) -> int:
    try:
        args = build_parser(selected).parse_args(arguments)
        return int(args.run(args))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        raise errors.MissingExtra(
            f"stbench {selected} needs the Python package {package!r}, which is not installed",
            hint=f"pip install 'stbench[{EXTRAS[package]}]'",
        ) from error


def _os_error_sentence(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason


def _complain(message: str, hint: str) -> None:
    lines = message.splitlines() or [""]
    print(f"stbench: {lines[0]}", *lines[1:], sep="\n", file=sys.stderr)
    if hint:
        print(f"try: {hint}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
