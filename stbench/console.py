"""Where text goes: data to stdout, everything else to stderr; colour and bars only on a terminal."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console


def stdout_console() -> Console:
    """For tables. Without a terminal: no colour, and wide enough that no row is folded."""
    width = None if sys.stdout.isatty() else 200
    return Console(file=sys.stdout, width=width, highlight=False, soft_wrap=False)


def stderr_console(*, quiet: bool = False) -> Console:
    """For progress and logs. ``quiet`` leaves only errors, which :mod:`stbench.cli` prints itself."""
    return Console(stderr=True, quiet=quiet, highlight=False)


def print_json(data: Any) -> None:
    """One JSON document on stdout, keys in the order given."""
    json.dump(data, sys.stdout, indent=2, allow_nan=False, ensure_ascii=False)
    sys.stdout.write("\n")
