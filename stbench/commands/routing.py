"""``stbench routing``: traces of which experts were used, made, imported and shown."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from stbench.commands import Subparsers, add_command
from stbench.errors import EXIT_OK

if TYPE_CHECKING:
    from stbench.agent.routing import Routing
    from stbench.caches.routings import Description

_EXAMPLE = """
stbench routing make --kind hot --model smallthinker-4b --tokens 1024 -o hot.routing
stbench routing import log.csv --model smallthinker-4b -o real.routing
stbench routing show real.routing
"""


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench routing``."""
    parser = add_command(subparsers, "routing", run, example=_EXAMPLE)
    parser.add_argument("action", choices=("show", "make", "import"), help="what to do with a trace")
    parser.add_argument("file", nargs="?", type=Path, help="show: a trace; import: CSV or JSON Lines")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="make, import: the trace to write")
    parser.add_argument(
        "--model", metavar="NAME", help="make, import: a model of the catalogue, for its shape"
    )
    parser.add_argument("--experts", type=int, metavar="N", help="experts of a layer (import: highest + 1)")
    made = parser.add_argument_group("make")
    made.add_argument(
        "--kind",
        choices=("uniform", "hot"),
        default="uniform",
        help="hot: as the SmallThinker report shows (uniform)",
    )
    made.add_argument("--layers", type=int, metavar="N", help="without --model: layers")
    made.add_argument("--used", type=int, metavar="N", help="without --model: experts that a token uses")
    made.add_argument("--tokens", type=int, default=1024, metavar="N", help="how many (1024)")
    made.add_argument(
        "--seed", type=int, default=1, metavar="N", help="the same seed makes the same trace (1)"
    )
    made.add_argument(
        "--stay",
        type=float,
        default=0.0,
        metavar="P",
        help="probability that a layer keeps the set of the token before (0)",
    )
    made.add_argument(
        "--tasks", type=int, default=1, metavar="N", help="stretches with hot experts of their own (1)"
    )


def run(args: argparse.Namespace) -> int:
    """Does the action; ``make`` and ``import`` describe what they wrote."""
    from stbench.caches import routings
    from stbench.console import print_json, stderr_console
    from stbench.errors import UsageError

    if (args.file is None) != (args.action == "make"):
        raise UsageError(
            f"stbench routing {args.action} " + ("takes no file" if args.file else "needs a file to read"),
            hint=_EXAMPLE.strip().splitlines()[0 if args.action == "make" else 2],
        )
    if args.action == "show":
        trace = routings.load(args.file)
    else:
        if args.output is None:
            raise UsageError("where to?", hint="-o FILE.routing")
        trace = _made(args) if args.action == "make" else _imported(args)
        routings.save(args.output, trace)
        stderr_console(quiet=args.quiet).print(f"wrote {args.output}", markup=False)
    description = routings.describe(trace)
    if args.json:
        print_json(vars(description))
    else:
        for line in _lines(description):
            print(line)
    return EXIT_OK


def _made(args: argparse.Namespace) -> Routing:
    from stbench.caches import routings
    from stbench.errors import UsageError
    from stbench.models import catalogue

    given = (args.layers, args.experts, args.used)
    if args.model is not None:
        if any(n is not None for n in given):
            raise UsageError(
                "--model says the shape; --layers, --experts and --used are for a shape without a name"
            )
        spec = catalogue.lookup(args.model).spec
        shape = (spec.n_layer, spec.n_expert, spec.n_expert_used)
        if not spec.n_expert:
            raise UsageError(
                f"{args.model} has no experts", hint="--model smallthinker-4b; `stbench models` lists more"
            )
    elif any(n is None for n in given):
        raise UsageError(
            "for which shape?", hint="--model smallthinker-4b, or --layers 32 --experts 32 --used 4"
        )
    else:
        shape = given
    return routings.make(
        args.kind, *shape, args.tokens, args.seed, stay=args.stay, tasks=args.tasks, model=args.model or ""
    )


def _imported(args: argparse.Namespace) -> Routing:
    from stbench.caches import routings
    from stbench.errors import InputError, UsageError
    from stbench.models import catalogue

    if args.experts is not None and args.experts < 1:
        raise UsageError(f"--experts {args.experts}: expected 1 or more")
    spec = catalogue.lookup(args.model).spec if args.model else None
    n_expert = args.experts or (spec.n_expert if spec else 0)
    trace = routings.import_log(args.file, n_expert, args.model or "")
    found = (trace.n_layer, trace.n_expert, trace.n_expert_used)
    if spec is not None and found != (spec.n_layer, spec.n_expert, spec.n_expert_used):
        raise InputError(
            f"{args.file}: {found[0]} layers with {found[2]} of {found[1]} experts, but {args.model} has "
            f"{spec.n_layer} with {spec.n_expert_used} of {spec.n_expert}",
            hint="without --model it is imported as it is",
        )
    return trace


def _lines(found: Description) -> list[str]:
    whose = f" of {found.model}" if found.model else ""
    lines = [
        f"{found.n_tokens} tokens{whose}, {found.n_layer} layers, "
        f"{found.n_expert_used} of {found.n_expert} experts" + (f" ({found.source})" if found.source else ""),
        f"digest {found.digest}",
        f"units used: {found.units_used} of {found.n_layer * found.n_expert}",
    ]
    for who, share in found.taken_by_top.items():
        lines.append(f"each layer's most used {who} take {share:.1%} of selections")
    lines.append(
        f"used by fewer than 14 % of tokens: {found.below_cold:.1%} of units; "
        f"by 40 to 60 %: {found.in_hot:.1%}"
    )
    lines.append("units by the share of tokens that use them:")
    most = max(found.rate_histogram)
    for i, count in enumerate(found.rate_histogram):
        bar = "#" * round(40 * count / most)
        lines.append(f"  {10 * i:>3}-{10 * i + 10:<3} % {count:>6} {bar}".rstrip())
    lines.append(
        f"selections that the token before used, too: {found.reuse_previous:.1%} "
        f"({found.reuse_expected:.1%} if tokens were independent)"
    )
    return lines
