"""``stbench simulate``: what caches of any size and policy would have done with a routing trace."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stbench.commands import AddUp, Subparsers, add_command, add_library
from stbench.errors import EXIT_OK

if TYPE_CHECKING:
    from stbench.agent.routing import Routing
    from stbench.agent.sbr import Clock, Library
    from stbench.agent.wire import SynthSpec
    from stbench.caches.clock import Machine
    from stbench.caches.measured_caches import Measured
    from stbench.caches.simulate import Point, Simulator

_EXAMPLE = """
stbench simulate real.routing
stbench simulate real.routing --cache 128MiB,256MiB,50% --policy lru,reuse,mine.py:Fifo
stbench simulate real.routing --storage-rate 1.5 --compute-rate 30 --plot cache.png
stbench simulate results/desk/routing/x.routing --from results/desk --json
"""


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench simulate``."""
    parser = add_command(subparsers, "simulate", run, example=_EXAMPLE)
    parser.add_argument(
        "trace", type=Path, metavar="TRACE", help="`stbench routing` makes, imports and shows them"
    )
    parser.add_argument(
        "--cache",
        action=AddUp,
        default="",
        metavar="LIST",
        help="sizes (256MiB), shares of all experts (25%%), numbers of experts: 512 (a sweep)",
    )
    parser.add_argument(
        "--policy",
        action=AddUp,
        default="",
        metavar="LIST",
        help="lru, lfu, reuse, static, belady, or your own FILE.py:CLASS, which is slow (the five)",
    )
    parser.add_argument(
        "--model", metavar="NAME", help="a model of the catalogue; one of another shape replays the trace"
    )
    parser.add_argument("--unit-bytes", type=int, metavar="N", help="bytes of one expert, without a model")
    parser.add_argument("--storage-rate", type=float, metavar="GB/s", help="at which experts are read")
    parser.add_argument(
        "--compute-rate", type=float, metavar="TOKENS/s", help="decode speed with all weights in memory"
    )
    parser.add_argument(
        "--prefetch",
        choices=("exact", "next-layer", "next-2", "next-4"),
        default="exact",
        help="what is read before it is needed; all but exact need the rates (exact)",
    )
    parser.add_argument(
        "--guess-right",
        type=float,
        metavar="SHARE",
        help="of the experts named ahead, what is used (as runs of --from with this --prefetch say)",
    )
    parser.add_argument(
        "--from",
        dest="campaign",
        type=Path,
        metavar="RESULTS",
        help="both rates, and measured points, of a campaign",
    )
    parser.add_argument(
        "--warmup",
        type=int,
        metavar="N",
        help="first tokens that fill the cache and do not count (a quarter, 256 at most)",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it: .png or .svg")
    parser.add_argument("--csv", action="store_true", help="print CSV: a line for each size and policy")
    add_library(parser)


def run(args: argparse.Namespace) -> int:
    """Simulates, predicts, prints and draws."""
    from stbench import native
    from stbench.caches import frequent, measured_caches, routings, simulate
    from stbench.console import stderr_console
    from stbench.errors import UsageError
    from stbench.records import store

    if args.json and args.csv:
        raise UsageError("--json or --csv, not both")
    if args.plot is not None and args.plot.suffix not in (".png", ".svg"):
        raise UsageError(f"--plot {args.plot}: expected a name that ends in .png or .svg")
    log = stderr_console(quiet=args.quiet)
    trace = routings.load(args.trace)
    spec, replayed = _spec(args, trace)
    if replayed is not trace:
        log.print(
            f"as {args.model} replays it (docs/routing.md): {_shape(trace)} -> {_shape(replayed)}",
            markup=False,
        )
    runs, digests = [], set()
    if args.campaign is not None:
        records, problems = store.latest_of([args.campaign])
        for problem in problems:
            log.print(problem, markup=False, soft_wrap=True)
        name = args.model or (trace.model if spec else "")
        runs = measured_caches.usable_runs(records, name, replayed)
        digests = measured_caches.same_choices(records, args.campaign, args.trace)
        spec = spec or next((record.model.synthetic for record, _ in runs), None)
    bytes_of_unit = _unit_bytes(args, spec, [record for record, _ in runs])
    machine, source = _machine(args, spec, runs, bytes_of_unit)
    library = native.open_library(args.library)
    clock = _clock(args, replayed, bytes_of_unit, machine, runs)
    simulators = _simulators(args, library, clock)
    per_set = replayed.n_expert_used
    units = simulate.capacities(args.cache, replayed.n_layer * replayed.n_expert, per_set, bytes_of_unit)
    warmup = simulate.default_warmup(replayed) if args.warmup is None else args.warmup
    points = simulate.sweep(replayed, simulators, units, bytes_of_unit, machine, warmup)
    foreseen = {}
    if {"lru", "static"} < simulators.keys():
        foreseen = {n: frequent.by_other_tokens(replayed, n, warmup).hit_rate for n in units}
    measured = measured_caches.measured(
        runs,
        digests,
        replayed,
        lambda policy, clock: simulate.native(library, policy, clock),
        measured_caches.shares(runs, spec),
    )
    if args.campaign is not None and not measured:
        log.print(
            f"no run of {args.campaign} with a cache recorded or replayed this trace, so none is marked; "
            "`stbench sweep --record-routing`, or --replay-routing with it",
            markup=False,
        )
    about = _about(args, replayed, bytes_of_unit, machine, source) | {
        "warmup_tokens": warmup,
        "static_without_hindsight": [{"units": n, "hit_rate": rate} for n, rate in foreseen.items()],
    }
    _print(args, points, measured, about, machine, foreseen)
    if args.plot is not None:
        made_from = [args.trace, *([store.records_path(args.campaign)] if args.campaign else [])]
        _plot(args.plot, points, measured, about, made_from)
        log.print(f"wrote {args.plot}", markup=False)
    return EXIT_OK


def _shape(trace: Routing) -> str:
    return f"{trace.n_layer} layers of {trace.n_expert_used} of {trace.n_expert} experts"


def _spec(args: argparse.Namespace, trace: Routing) -> tuple[SynthSpec | None, Routing]:
    """The model's shapes, and the routing as that model replays it."""
    from stbench.caches import simulate
    from stbench.models import catalogue

    if args.model:
        spec = catalogue.lookup(args.model).spec
        simulate.unit_bytes(spec)
        return spec, simulate.fitted(trace, spec, args.model)
    if trace.model in catalogue.names():
        spec = catalogue.lookup(trace.model).spec
        if (spec.n_layer, spec.n_expert, spec.n_expert_used) == (
            trace.n_layer,
            trace.n_expert,
            trace.n_expert_used,
        ):
            return spec, trace
    return None, trace


def _unit_bytes(args: argparse.Namespace, spec: SynthSpec | None, records: list[Any]) -> int | None:
    from stbench.caches import simulate
    from stbench.errors import UsageError

    if args.unit_bytes is not None:
        if args.unit_bytes < 1:
            raise UsageError(f"--unit-bytes {args.unit_bytes}: expected 1 or more")
        return int(args.unit_bytes)
    seen = {record.cache.unit_bytes for record in records if record.cache is not None}
    if len(seen) == 1:
        return int(seen.pop())
    return simulate.unit_bytes(spec) if spec is not None else None


def _machine(
    args: argparse.Namespace, spec: SynthSpec | None, runs: list[Any], bytes_of_unit: int | None
) -> tuple[Machine | None, str]:
    """The rates, and where they are from in words."""
    from stbench.caches import clock, measured_caches
    from stbench.errors import UsageError

    given = (args.storage_rate, args.compute_rate)
    for option, rate in zip(("--storage-rate", "--compute-rate"), given, strict=True):
        if rate is not None and not 0 < rate < 1e6:
            raise UsageError(f"{option} {rate}: expected a number above 0")
    if args.campaign is None and None in given:
        if given == (None, None):
            return None, ""
        raise UsageError(
            "tokens/s need both --storage-rate and --compute-rate",
            hint="or --from RESULTS, for measured ones",
        )
    if bytes_of_unit is None:
        raise UsageError(
            "tokens/s depend on the size of an expert, which is not known: the trace names no model of the "
            "catalogue",
            hint="--model NAME or --unit-bytes N",
        )
    storage, compute, source = args.storage_rate, args.compute_rate, "as given"
    latency_s, pieces = 0.0, clock.PIECES_AT_ONCE["io_uring"]
    if None in given:
        found = measured_caches.rates(runs)
        storage = storage or found.storage_bytes_per_s / 1e9
        compute = compute or found.tokens_per_s
        source, pieces = found.source, found.pieces_at_once
        if args.storage_rate is None:
            latency_s = found.latency_s
    shares = measured_caches.shares(runs, spec)
    return clock.Machine(
        storage * 1e9, 1 / compute, **shares, latency_s=latency_s, pieces_at_once=pieces
    ), source


def _clock(
    args: argparse.Namespace,
    trace: Routing,
    bytes_of_unit: int | None,
    machine: Machine | None,
    runs: list[Any],
) -> Clock | None:
    """What simulating guesses takes; None without."""
    from stbench.caches import clock, measured_caches
    from stbench.errors import UsageError

    right = args.guess_right
    if right is not None and not 0 <= right <= 1:
        raise UsageError(f"--guess-right {right}: expected a share, 0 to 1")
    if args.prefetch == "exact":
        if right is not None:
            raise UsageError(
                f"--guess-right {right}: --prefetch exact guesses nothing",
                hint="--prefetch next-layer, next-2 or next-4; or leave --guess-right away",
            )
        return None
    if machine is None or bytes_of_unit is None:
        raise UsageError(
            f"--prefetch {args.prefetch}: guesses are read while storage is idle, so its rate must be known",
            hint="--from RESULTS; or --storage-rate, --compute-rate and --model",
        )
    if right is None:
        right = measured_caches.guessed_right(runs, args.prefetch)
    if right is None:
        raise UsageError(
            f"--prefetch {args.prefetch}: no record tells how often such guesses are right",
            hint="--guess-right 0.8; or --from RESULTS with runs of that --prefetch",
        )
    return clock.clock_of(machine, trace.n_layer, trace.n_expert_used, bytes_of_unit, args.prefetch, right)


def _simulators(args: argparse.Namespace, library: Library, clock: Clock | None) -> dict[str, Simulator]:
    """By name. Oracles, and policies of the user's own, are simulated with exact prefetch."""
    from stbench.caches import simulate, user_policy
    from stbench.errors import UsageError

    names = [name.strip() for name in args.policy.split(",")] if args.policy else list(simulate.POLICIES)
    found: dict[str, Simulator] = {}
    for name in names:
        own = ":" in name or name.endswith(".py")
        shown = name.rpartition(":")[2] if own else name
        if shown in found:
            raise UsageError(f"--policy: {shown} is named twice")
        guessing = None if name in simulate.ORACLES else clock
        found[shown] = user_policy.load(name) if own else simulate.native(library, name, guessing)
    return found


def _about(
    args: argparse.Namespace, trace: Routing, bytes_of_unit: int | None, machine: Machine | None, source: str
) -> dict[str, Any]:
    """What tables and charts rest on."""
    return {
        "trace": str(args.trace),
        "digest": trace.digest(),
        "source": trace.source,
        "model": args.model or trace.model,
        "n_tokens": trace.n_tokens,
        "n_layer": trace.n_layer,
        "n_expert": trace.n_expert,
        "n_expert_used": trace.n_expert_used,
        "unit_bytes": bytes_of_unit,
        "machine": dict(vars(machine)) if machine is not None else None,
        "rates_from": source,
        "prefetch": args.prefetch,
    }


def _print(
    args: argparse.Namespace,
    points: list[Point],
    measured: list[Measured],
    about: dict[str, Any],
    machine: Machine | None,
    foreseen: dict[int, float],
) -> None:
    from stbench.caches import cache_tables, simulate
    from stbench.console import print_json, stdout_console

    if args.json:
        shown = [dict(vars(each)) for each in measured]
        print_json({**about, "points": simulate.as_json(points), "measured": shown})
    elif args.csv:
        print(cache_tables.csv_text(points), end="")
    else:
        console = stdout_console()
        for line in cache_tables.heading(about):
            console.print(line, markup=False)
        for table in cache_tables.tables(points, measured, foreseen):
            console.print(table)
        for line in cache_tables.notes(points, measured, machine):
            console.print(line, markup=False)


def _plot(
    path: Path, points: list[Point], measured: list[Measured], about: dict[str, Any], made_from: list[Path]
) -> None:
    from stbench import charts
    from stbench.caches import cache_chart, cache_tables
    from stbench.errors import unreadable
    from stbench.tables import stamps

    title = "Cache of experts" + (f", {about['model']}" if about["model"] else "")
    figure = cache_chart.cache_figure(points, measured, title, cache_tables.heading(about))
    data = charts.svg_bytes(figure) if path.suffix == ".svg" else charts.png_bytes(figure)
    try:
        path.write_bytes(stamps.stamped(data, stamps.words(stamps.digest(made_from), chart="simulate")))
    except OSError as error:
        raise unreadable(path, error) from error
