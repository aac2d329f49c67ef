"""``stbench inspect``: keys, tensors and totals of a GGUF file, and what the runtime would do with it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stbench.commands import Subparsers, add_command, add_library

_EXAMPLE = """
stbench inspect model.gguf
stbench inspect model.gguf --json | jq .totals
"""


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench inspect``."""
    parser = add_command(subparsers, "inspect", run, example=_EXAMPLE)
    parser.add_argument("file", type=Path, metavar="FILE.gguf", help="which file")
    parser.add_argument("--items", type=int, default=8, metavar="N", help="array items to show (8)")
    add_library(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the tables, or the whole description with ``--json``."""
    from stbench import native
    from stbench.console import print_json
    from stbench.errors import UsageError
    from stbench.models import inspection

    if args.items < 0:
        raise UsageError(f"--items: expected 0 or more, got {args.items}")
    found = inspection.inspect_file(native.open_library(args.library), args.file, args.items)
    if args.json:
        print_json(found)
    else:
        _print_tables(found)
    return 0


def _print_tables(found: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from stbench.console import stdout_console

    console = stdout_console()
    # Text, not str: what a file says must not be read as markup.
    keys = Table("key", "type", "value", title=Text(f"{found['path']}: GGUF version {found['version']}"))
    for item in found["metadata"]:
        keys.add_row(Text(item["key"]), item["type"], Text(shown(item)))
    tensors = Table("tensor", "type", "shape", "offset", "bytes")
    for tensor in found["tensors"]:
        shape = " x ".join(map(str, tensor["shape"]))
        tensors.add_row(
            Text(tensor["name"]), tensor["type"], shape, f"{tensor['offset']:,}", f"{tensor['bytes']:,}"
        )
    console.print(keys)
    console.print(tensors)
    for line in _summary(found):
        console.print(Text(line))


def shown(item: dict[str, Any], width: int = 100) -> str:
    """A key's value on one line of at most ``width`` characters; arrays with their length."""
    value = item["value"]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    if item["type"] == "array":
        text = f"{item['length']} x {item['item_type']}: {text}"
    return text if len(text) <= width else text[: width - 3] + "..."


def _total(name: str, count: dict[str, Any]) -> str:
    tensors, parameters, size = count["tensors"], count["parameters"], count["bytes"]
    return f"{name:<8} {tensors:>5} tensors {parameters:>16,} parameters {size:>16,} bytes"


def _summary(found: dict[str, Any]) -> Iterator[str]:
    from stbench.models.inspection import DOWN_WORDS

    totals, runtime = found["totals"], found["runtime"]
    yield from (_total(name, count) for name, count in totals["types"].items())
    yield f"{_total('all', totals)} in a file of {found['file_bytes']:,}"
    if found["synthetic"]:
        yield "weights: synthetic"
    if not runtime["supported"]:
        yield f"runtime: cannot run it: {runtime['reason']}"
        return
    yield f"runtime: runs it; {runtime['parameters_active']:,} parameters are active for one token"
    yield f"down matrices: {DOWN_WORDS[runtime['down_layout']]}"
    rank = runtime["lm_head_predictor_rank"]
    yield f"lm_head predictor: {'rank ' + str(rank) if rank else 'none'}"
    yield from (f"warning: {line}" for line in runtime["warnings"])
