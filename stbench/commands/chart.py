"""``stbench chart``: stored results as pictures."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stbench.commands import add_command
from stbench.commands._ratio_to import add_ratio_to, published_pairs

if TYPE_CHECKING:
    from stbench.charts import Drawn, Kind, Results
    from stbench.commands import Subparsers

ALL = "all"
FORMATS = ("svg", "png")
THEMES = ("light", "dark", "both")

_EXAMPLE = """
stbench chart --list
stbench chart --list results/desk
stbench chart threads results/desk --out charts
stbench chart memory results/board --filter '*/sparse+lmhead/*' --ratio-to board=raspberry-pi-5
stbench chart all results/desk results/night --format svg --theme dark
"""


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench chart``."""
    parser = add_command(
        subparsers,
        "chart",
        run,
        example=_EXAMPLE,
    )
    parser.add_argument("kind", nargs="?", metavar="KIND", help=f"one of --list, or {ALL}")
    parser.add_argument(
        "results", nargs="*", type=Path, metavar="RESULTS", help="a campaign's directory or a records.jsonl"
    )
    parser.add_argument("--out", type=Path, default=Path("charts"), metavar="DIR", help="(charts)")
    parser.add_argument(
        "--format", default=",".join(FORMATS), metavar="LIST", help=f"of {', '.join(FORMATS)} (both)"
    )
    parser.add_argument(
        "--theme",
        choices=THEMES,
        default="both",
        help="for light or dark pages; NAME-dark.svg is dark (both)",
    )
    parser.add_argument(
        "--filter", default="", metavar="GLOB", help="only runs whose label fits, such as 'board:*/t4/*'"
    )
    add_ratio_to(parser, "to draw its published numbers beside it")
    parser.add_argument(
        "--list", action="store_true", help="say which kinds there are, and which of them RESULTS have"
    )


def run(args: argparse.Namespace) -> int:
    """Draws one kind or all, and writes the files."""
    from stbench import charts
    from stbench.atomic import write_atomically
    from stbench.console import complain, stderr_console
    from stbench.errors import EXIT_DEFECT, EXIT_OK, UsageError
    from stbench.records import store
    from stbench.tables import stamps

    log = stderr_console(quiet=args.quiet)
    names = [kind.name for kind in charts.KINDS]
    paths: list[Path] = list(args.results)
    if args.list and args.kind is not None and args.kind not in (*names, ALL):
        paths.insert(0, Path(args.kind))
    elif args.kind is None and not args.list:
        raise UsageError("chart: no kind was given", hint=f"stbench chart {ALL} RESULTS, or --list")
    elif args.kind not in (None, *names, ALL):
        raise UsageError(
            f"{args.kind} is no kind of chart: {', '.join([*names, ALL])}", hint="stbench chart --list"
        )
    formats = [word.strip() for word in args.format.split(",")]
    if unknown := [word for word in formats if word not in FORMATS]:
        raise UsageError(
            f"--format {args.format}: {unknown[0]!r} is none of {', '.join(FORMATS)}", hint="--format svg,png"
        )
    ratio_to = published_pairs(args.ratio_to)
    records, problems = store.latest_of(paths)
    for problem in problems:
        log.print(problem, markup=False, soft_wrap=True)
    results = charts.results_of(records, args.filter)
    if args.list:
        request = charts.Request(results, "light", ratio_to) if paths else None
        _print_list(charts.KINDS, request, as_json=args.json)
        return 0
    if not paths:
        raise UsageError("chart: no results were named", hint=f"stbench chart {args.kind} results/NAME")
    missing, failed = [], []
    written: list[dict[str, Any]] = []
    stamp = {"filter": args.filter, "ratio_to": stamps.pairs(ratio_to)}
    digest = stamps.digest(map(store.records_path, paths))
    for kind in [kind for kind in charts.KINDS if args.kind in (ALL, kind.name)]:
        # Of a kind that raises, the others are drawn all the same.
        try:
            drawn = list(_drawn(kind, results, ratio_to, args.theme, formats))
        except Exception as error:
            failed.append(charts.failure_sentence(kind, error))
            continue
        if not drawn:
            missing.append(kind)
        for each, theme, ending, data in drawn:
            args.out.mkdir(parents=True, exist_ok=True)
            words = stamps.words(digest, chart=each.name, theme=theme, **stamp)
            path = args.out / f"{charts.file_stem(each.name, theme)}.{ending}"
            write_atomically(path, stamps.stamped(data, words))
            log.print(f"wrote {path}", markup=False, soft_wrap=True)
            about = {"kind": each.kind, "theme": theme, "title": each.title, "alt": each.alt}
            written.append({"path": str(path), **about})
    if not written and not failed:
        which = f"no run fits --filter {args.filter}" if args.filter and not results.records else ""
        raise UsageError(
            which or f"these results have nothing for {args.kind}: it needs {_needs(missing)}",
            hint=missing[0].sweep if len(missing) == 1 else "stbench chart --list RESULTS",
        )
    for kind in missing:
        log.print(f"not drawn: {kind.name}: needs {kind.needs}; {kind.sweep}", markup=False, soft_wrap=True)
    if args.json:
        print(json.dumps(written, indent=2, ensure_ascii=False))
    if not failed:
        return EXIT_OK
    complain("\n".join(failed), "please report it as a defect")
    return EXIT_DEFECT


def _drawn(
    kind: Kind, results: Results, ratio_to: Mapping[str, str], wanted: str, formats: Sequence[str]
) -> Iterator[tuple[Drawn, str, str, bytes]]:
    """Each figure, its theme, its ending and its file."""
    from stbench import charts

    writers = {"svg": charts.svg_bytes, "png": charts.png_bytes}
    for theme in [theme for theme in charts.THEMES if wanted in (theme, "both")]:
        for each in kind.draw(charts.Request(results, theme, ratio_to)):
            for ending in formats:
                yield each, theme, ending, writers[ending](each.figure)


def _needs(missing: list[Kind]) -> str:
    return missing[0].needs if len(missing) == 1 else "what --list says of each kind"


def _print_list(kinds: tuple[Kind, ...], request: Any, *, as_json: bool) -> None:
    """Kinds; with results, whether they have something to draw."""
    rows = []
    for kind in kinds:
        row: dict[str, Any] = {"kind": kind.name, "shows": kind.summary}
        row |= {"needs": kind.needs, "sweep": kind.sweep}
        rows.append(row | ({} if request is None else {"drawable": bool(kind.draw(request))}))
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for row in rows:
        state = "" if request is None else ("yes  " if row["drawable"] else "no   ")
        sys.stdout.write(f"{state}{row['kind']:<11}{row['shows']}\n")
        if request is None or not row["drawable"]:
            sys.stdout.write(f"{' ' * (len(state) + 11)}needs {row['needs']}: {row['sweep']}\n")
