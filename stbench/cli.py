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
from pathlib import Path

import stbench
from stbench import errors
from stbench.commands import COMMANDS, GROUPS, Help, Parser
from stbench.console import complain
from stbench.paths import instead_of

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


def build_parser(selected: str | None) -> argparse.ArgumentParser:
    """The parser, with the options of ``selected`` only; the other commands are listed by name."""
    parser = Parser(
        prog="stbench",
        usage="stbench COMMAND [options]",
        description="On-device LLM benchmarks with proof for every number.",
        epilog=_overview(),
        formatter_class=Help,
    )
    parser.add_argument("--version", action="version", version=f"stbench {stbench.__version__}")
    subparsers = parser.add_subparsers(
        prog="stbench", dest="command", metavar="COMMAND", required=True, help=argparse.SUPPRESS
    )
    for name in COMMANDS:
        if name == selected:
            importlib.import_module(f"stbench.commands.{name.replace('-', '_')}").register(subparsers)
        else:
            subparsers.add_parser(name, add_help=False)
    return parser


def _overview() -> str:
    """Commands by what they are for, a first line to type, and what exit codes mean."""
    lines = []
    for group, commands in GROUPS.items():
        lines += [f"{group}:", *(f"  {name:<12}{line}" for name, line in commands.items()), ""]
    lines += ["example:", "  stbench sweep --devices devices.yaml", "  stbench sweep --help", ""]
    lines += ["exit codes:", *(f"  {code:<12}{meaning}" for code, meaning in errors.EXIT_CODES.items())]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code (see :mod:`stbench.errors`)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        build_parser(None).print_help(sys.stderr)
        return errors.EXIT_USAGE
    if arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version"):
        complain(f"{arguments[0]} stands before the command, and options stand behind it", "stbench --help")
        return errors.EXIT_USAGE
    selected = arguments[0]
    try:
        code = _run(arguments, selected)
        sys.stdout.flush()
        return code
    except errors.StbenchError as error:
        complain(str(error), error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        complain("interrupted", "")
        return errors.EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader left (`stbench models | head -1`). Point stdout elsewhere, so that the interpreter's
        # own flush at exit stays silent.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:
        missing = isinstance(error, FileNotFoundError) and isinstance(error.filename, str)
        complain(_os_error_sentence(error), instead_of(Path(error.filename)) if missing else "")
        return errors.EXIT_USAGE
    except Exception:
        traceback.print_exc()
        complain("this is a defect of stbench", "please report it with the lines above")
        return errors.EXIT_DEFECT


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


if __name__ == "__main__":
    sys.exit(main())
