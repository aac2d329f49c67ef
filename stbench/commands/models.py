"""``stbench models``: the catalogue; ``make`` writes one of its files, ``bundle`` the bundle of one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stbench.commands import Subparsers, _models_bundle, add_command, add_library
from stbench.console import print_json, stderr_console, stdout_console
from stbench.errors import EXIT_OK, UsageError

if TYPE_CHECKING:
    from stbench.models.catalogue import Entry

EXAMPLE = """
stbench models
stbench models make smallthinker-4b:standard -o 4b.gguf
stbench models bundle smallthinker-4b
stbench models bundle my-model.gguf --sparse-ffn off --verify
"""


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench models``."""
    parser = add_command(subparsers, "models", run, example=EXAMPLE)
    parser.add_argument(
        "action", nargs="?", choices=("list", "make", "bundle"), default="list", help="what to do (list)"
    )
    parser.add_argument("name", nargs="?", help="with make: which model; with bundle: also a GGUF file")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="PATH",
        help="the file to write, or the directory to put it into (the cache)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="with make: other weights of the same kind")
    parser.add_argument(
        "--sparse-ffn",
        choices=("on", "off"),
        help="with bundle: what it is made for (on where the model can skip neurons)",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="with bundle: make none, compare the one that is there with its model and its checksums",
    )
    add_library(parser)


def run(args: argparse.Namespace) -> int:
    """Lists, or makes and prints the path."""
    if args.action == "bundle":
        return _models_bundle.run(args)
    if args.sparse_ffn is not None or args.verify:
        raise UsageError(
            "--sparse-ffn and --verify are of a bundle", hint="stbench models bundle NAME --verify"
        )
    if args.action == "make":
        return _make(args)
    if args.name or args.output or args.seed is not None:
        raise UsageError("a list takes no name, --output or --seed", hint="stbench models make NAME")
    return _list(args)


def _list(args: argparse.Namespace) -> int:
    from rich.table import Table

    from stbench.models import catalogue

    entries = [catalogue.lookup(name) for name in catalogue.names()]
    if args.json:
        print_json([_as_json(entry) for entry in entries])
        return EXIT_OK
    table = Table(box=None)
    for column in (
        "model",
        "layers",
        "hidden",
        "heads/kv",
        "ffn",
        "experts",
        "vocab",
        "total",
        "active",
        "GB",
    ):
        table.add_column(column, no_wrap=True, justify="left" if column == "model" else "right")
    table.add_column("what it is")
    for entry in entries:
        spec, sizes = entry.spec, entry.sizes
        table.add_row(
            entry.name,
            str(spec.n_layer),
            str(spec.n_embd),
            f"{spec.n_head}/{spec.n_head_kv}",
            str(spec.n_ff),
            f"{spec.n_expert_used} of {spec.n_expert}" if spec.n_expert else "-",
            str(spec.n_vocab),
            _count(sizes.params),
            _count(sizes.params_active),
            f"{sizes.weight_bytes / 1e9:.2f}",
            _what(entry),
        )
    console = stdout_console()
    console.print(table)
    console.print(
        "Weights are synthetic: random, with the statistics of the profile. They measure speed, not quality."
    )
    return EXIT_OK


def _what(entry: Entry) -> str:
    parts = [f"shapes of {entry.source}"] * bool(entry.source) + [entry.spec.weight_type, entry.note]
    return "; ".join(part for part in parts if part)


def _count(params: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if params >= size:
            return f"{params / size:.2f} {unit}"
    return f"{params / 1e3:.0f} k"


def _as_json(entry: Entry) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "name": entry.name,
        "like": entry.source,
        "profile": entry.profile,
        "synthetic": True,
        "note": entry.note,
        "params": entry.sizes.params,
        "params_active": entry.sizes.params_active,
        "weight_bytes": entry.sizes.weight_bytes,
        "spec": asdict(entry.spec),
    }


def _make(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from stbench.builds.build import find_library
    from stbench.campaigns.agentclient import Agent
    from stbench.campaigns.deploy import deploy
    from stbench.campaigns.live import Live
    from stbench.connectors.local import LocalConnector
    from stbench.devices.inventory import Device
    from stbench.models import catalogue
    from stbench.sweeps.prepare import file_name, free_space_for

    if not args.name:
        raise UsageError("which model?", hint="`stbench models` lists them")
    if args.seed is not None and args.seed < 0:
        raise UsageError(f"--seed: expected a number from 0 up, got {args.seed}")
    entry = catalogue.lookup(args.name)
    spec = entry.spec if args.seed is None else replace(entry.spec, seed=args.seed)
    # A connector only for its directories and processes: making a file measures nothing and needs no lease.
    connector = LocalConnector(Device("local"))
    agent = Agent("local", connector, deploy(connector, find_library(args.library)))
    default = Path(connector.models_dir) / file_name(entry.name, spec)
    path = (args.output or default).expanduser().absolute()
    if path.is_dir():
        path = path / default.name
    free_space_for(agent, entry.name, str(path), entry.sizes.weight_bytes)
    with Live(stderr_console(quiet=args.quiet)) as live:
        made = agent.make(
            str(path), spec, lambda stage, done, total: live.step(f"{stage} {path.name}", done, total)
        )
    if args.json:
        print_json(
            {
                "path": made.path,
                "bytes": made.bytes,
                "sha256": made.sha256,
                "already_there": made.already_there,
            }
        )
    else:
        print(made.path)
    return EXIT_OK
