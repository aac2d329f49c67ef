"""Where text goes: data to stdout, everything else to stderr; colour and bars only on a terminal."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def stdout_console() -> Console:
    """For tables. Without a terminal: no colour, and wide enough that no row is folded."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 200
    return Console(file=sys.stdout, width=width, highlight=False, soft_wrap=False)


def stderr_console(*, quiet: bool = False) -> Console:
    """For progress and logs. ``quiet`` leaves only errors, which :func:`complain` prints."""
    from rich.console import Console

    return Console(stderr=True, quiet=quiet, highlight=False)


def print_json(data: Any) -> None:
    """One JSON document on stdout, keys in the order given."""
    json.dump(data, sys.stdout, indent=2, allow_nan=False, ensure_ascii=False)
    sys.stdout.write("\n")


def complain(message: str, hint: str, who: str = "stbench") -> None:
    """A failure on stderr, with the next thing to try where there is one."""
    lines = message.splitlines() or [""]
    print(f"{who}: {lines[0]}", *lines[1:], sep="\n", file=sys.stderr)
    if hint:
        print(f"try: {hint}", file=sys.stderr)
