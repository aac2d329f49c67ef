"""The commands of ``stbench``: one module each, with ``register(subparsers)`` and ``run(args) -> int``.

Modules parse, call the library and render; logic lives in the library modules. Their heavy imports belong
into ``run``, so that ``--help`` stays quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeAlias

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(
    subparsers: Subparsers,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    help: str,
    example: str,
) -> argparse.ArgumentParser:
    """Adds a sub-command with the shared options ``--json`` and ``--quiet`` and an example in its help.

    ``run`` gets the parsed arguments and returns the exit code.
    """
    parser = subparsers.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog="example:\n  " + example.strip().replace("\n", "\n  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON on stdout instead of a table")
    parser.add_argument("--quiet", action="store_true", help="no progress and no logs on stderr")
    parser.set_defaults(run=run)
    return parser
