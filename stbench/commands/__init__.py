"""The commands of ``stbench``: one module each, with ``register(subparsers)`` and ``run(args) -> int``.

Modules parse, call the library and render; logic lives in the library modules. Their heavy imports belong
into ``run``, so that ``--help`` stays quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


class AddUp(argparse.Action):
    """Of an option whose value is a list as typed: given again, it adds to what it had. ``separator`` is what
    stands between the list's items."""

    def __init__(self, *args: Any, separator: str = ",", **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._separator = separator

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """See :class:`argparse.Action`."""
        before = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, f"{before}{self._separator}{values}" if before else values)


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
