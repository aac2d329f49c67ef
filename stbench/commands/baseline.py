"""``stbench baseline``: what later builds are held against."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stbench.commands import add_command

if TYPE_CHECKING:
    from stbench.commands import Subparsers
    from stbench.gate.baseline_file import Baseline
    from stbench.gate.taking import Change

_EXAMPLE = """
stbench baseline set bench/rpi5.json results/2026-01-31-night
stbench baseline show bench/rpi5.json
stbench baseline update bench/rpi5.json results/2026-03-01-night:'*/t4/*' --dry-run
"""


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench baseline``."""
    parser = add_command(
        subparsers,
        "baseline",
        run,
        example=_EXAMPLE,
    )
    parser.add_argument("action", choices=("set", "show", "update"), help="what to do with it")
    parser.add_argument("file", type=Path, metavar="FILE", help="the baseline, to commit")
    parser.add_argument(
        "results", nargs="*", metavar="RESULTS[:GLOB]", help="of set and update: a campaign's directory"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be written, write nothing")
    parser.add_argument(
        "--allow-disturbed",
        action="store_true",
        help="also take cases with fewer than 6 undisturbed runs; `check` decides them by turns alone",
    )
    parser.add_argument(
        "--library",
        type=Path,
        metavar="PATH",
        help="the libsbr.so that measured them, to be kept for `check` (default: the installed one)",
    )


def run(args: argparse.Namespace) -> int:
    """Makes, shows or updates."""
    from stbench.errors import UsageError
    from stbench.gate import baseline_file

    if args.action == "show":
        if args.results or args.allow_disturbed:
            raise UsageError("stbench baseline show takes a FILE alone")
        _show(args, baseline_file.read(args.file))
        return 0
    if not args.results:
        raise UsageError(
            f"stbench baseline {args.action}: of which RESULTS?",
            hint=f"stbench baseline {args.action} {args.file} results/...",
        )
    return _write(args)


def _write(args: argparse.Namespace) -> int:
    from stbench.console import print_json, stderr_console, stdout_console
    from stbench.errors import UsageError
    from stbench.gate import baseline_file
    from stbench.gate.taking import take, updated

    log = stderr_console(quiet=args.quiet)
    old = baseline_file.read(args.file) if args.action == "update" else None
    if args.action == "set" and args.file.exists():
        raise UsageError(
            f"{args.file} is there already",
            hint=f"stbench baseline update {args.file} RESULTS says what changes; or remove it",
        )
    new, notes = take(args.results, allow_disturbed=args.allow_disturbed)
    changes: list[Change] = []
    if old is not None:
        new, changes = updated(old, new)
    for note in notes:
        log.print(note, markup=False, soft_wrap=True)
    if not args.dry_run:
        args.file.parent.mkdir(parents=True, exist_ok=True)
        baseline_file.write(new, args.file)
        log.print(f"wrote {args.file}", markup=False, soft_wrap=True)
        _keep_library(args, new)
    if args.json:
        said = [{"case": one.label, "change": one.kind, "text": one.text} for one in changes]
        print_json({"file": str(args.file), "written": not args.dry_run, "changes": said, **_summary(new)})
    elif old is not None:
        console = stdout_console()
        for one in changes:
            line = f"{one.label}: {one.kind}" + (f": {one.text}" if one.text else "")
            console.print(line, markup=False, soft_wrap=True)
        kept = len(new.cases) - len(changes)
        console.print(f"{kept} other cases stay as they are", soft_wrap=True)
    else:
        _show(args, new)
    return 0


def _keep_library(args: argparse.Namespace, made: Baseline) -> None:
    """Where the library at hand is the one of the baseline, a copy stays in the cache."""
    from stbench.builds.build import find_library
    from stbench.console import stderr_console
    from stbench.errors import BuildError
    from stbench.gate.taking import keep_library
    from stbench.paths import cache_dir

    log = stderr_console(quiet=args.quiet)
    try:
        library = find_library(args.library)
    except BuildError as error:
        if args.library is not None:
            raise
        log.print(str(error), markup=False, soft_wrap=True)
        return
    if library.sha256 in {str(case.settings["library"]) for case in made.cases}:
        keep_library(library.sha256, library.path, cache_dir())
        log.print("kept its library, so that `stbench check` can run both builds by turns", soft_wrap=True)
    elif args.library is not None:
        log.print(f"{args.library} did not measure these results, and is not kept", soft_wrap=True)


def _show(args: argparse.Namespace, made: Baseline) -> None:
    from rich import box
    from rich.table import Table

    from stbench.console import print_json, stdout_console
    from stbench.wording import clean

    summary = _summary(made)
    if args.json:
        print_json(summary)
        return
    console = stdout_console()
    table = Table(title=clean(str(args.file), 120), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("case", "library", "measured"):
        table.add_column(name)
    for name in ("n", "decode", "prefill", "first token", "peak memory"):
        table.add_column(name, justify="right")
    for case in summary["cases"]:
        n = f"{case['n']}, {case['disturbed']} disturbed" if case["disturbed"] else str(case["n"])
        shown = [clean(case["case"], 120), case["library"][:12], case["measured"][:10], n]
        shown += [case["shown"].get(name, "—") for name in _SHOWN]
        table.add_row(*shown)
    console.print(table)
    for name, about in summary["devices"].items():
        console.print(
            f"{clean(name, 40)}: {clean(str(about.get('cpu_model', '')), 80)}, fingerprint "
            f"{clean(str(about.get('fingerprint', '')), 40)}",
            markup=False,
            soft_wrap=True,
        )


_SHOWN = ("decode_tps", "prefill_tps", "ttft_ms", "peak_rss_bytes")


def _summary(made: Baseline) -> dict[str, Any]:
    from statistics import median

    from stbench.gate.summary import amount
    from stbench.gate.thresholds import METRICS

    cases = []
    for case in made.cases:
        medians = {
            name: median(values)
            for name in METRICS
            if (values := [sample[name] for sample in case.samples if name in sample])
        }
        cases.append(
            {
                "case": case.label,
                "campaign": str(case.settings["campaign"]),
                "library": str(case.settings["library"]),
                "measured": max(str(sample.get("started_at", "")) for sample in case.samples),
                "n": len(case.samples),
                "disturbed": case.disturbed,
                "medians": medians,
                "shown": {name: amount(value, METRICS[name]) for name, value in medians.items()},
            }
        )
    return {"stbench": made.stbench, "devices": dict(made.devices), "cases": cases}
