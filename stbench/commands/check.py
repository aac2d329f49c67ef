"""``stbench check``: hold this build against a baseline, and fail when it is worse."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from stbench.commands import AddUp, add_command
from stbench.commands._sweep_options import add_options

if TYPE_CHECKING:
    from stbench.commands import Subparsers
    from stbench.devices.inventory import Device
    from stbench.gate.baseline_file import Baseline
    from stbench.gate.judging import Finding

_EXAMPLE = """
stbench check --baseline bench/rpi5.json
stbench check --baseline bench/rpi5.json results/2026-02-01-night --max-time 20m
stbench check --baseline bench/rpi5.json --baseline-library main/libsbr.so --github \\
    --summary "$GITHUB_STEP_SUMMARY" --junit check.xml
"""

_MAX_TIME = "10m"


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench check``."""
    parser = add_command(
        subparsers,
        "check",
        run,
        example=_EXAMPLE,
    )
    parser.add_argument(
        "taken",
        nargs="?",
        metavar="RESULTS[:GLOB]",
        help="judge these; without: measure the cases of the baseline, or the part of them that axes name",
    )
    parser.add_argument("--baseline", type=Path, required=True, metavar="FILE", help="of `stbench baseline`")
    parser.add_argument(
        "--baseline-library",
        type=Path,
        metavar="PATH",
        help="the baseline's build, to run beside this one (default: the one that `baseline set` kept)",
    )
    parser.add_argument(
        "--metric",
        action=AddUp,
        default="",
        metavar="LIST",
        help="check these (default: check: of devices.yaml, else decode_tps,peak_rss_bytes)",
    )
    parser.add_argument(
        "--on-inconclusive",
        choices=("pass", "fail"),
        default="fail",
        help="exit with 0 or with 5 when time is over and a case has no verdict (fail: 5)",
    )
    parser.add_argument(
        "--no-confirm",
        action="store_true",
        help="measure nothing again: what looks worse is inconclusive",
    )
    parser.add_argument("--summary", type=Path, metavar="FILE", help="append Markdown, for a pull request")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML")
    parser.add_argument("--github", action="store_true", help="print annotations of GitHub's workflow log")
    add_options(parser, file=False)
    parser.set_defaults(resume=False, retry_failed=False)


def run(args: argparse.Namespace) -> int:
    """Measures or reads, judges, measures again, reports."""
    from stbench.commands._check_runs import Runs
    from stbench.comparison import noise
    from stbench.console import stderr_console
    from stbench.gate import baseline_file, confirming, judging
    from stbench.gate.thresholds import thresholds_of

    log = stderr_console(quiet=args.quiet)
    baseline = baseline_file.read(args.baseline)
    if args.axis_max_time is None:
        args.axis_max_time = _MAX_TIME
    floors, problems = noise.read_floors()
    for problem in problems:
        log.print(problem, markup=False, soft_wrap=True)
    chosen = [name for name in args.metric.split(",") if name]
    judge = judging.Judge(thresholds_of(_devices(args), chosen), floors)
    runs = Runs(args, baseline)
    side, whole = runs.current()
    stored = runs.baseline_side(side)
    findings = judge.findings(stored, side, expected=whole)
    notes: list[str] = []
    waiting = confirming.suspects(findings)
    for bench, part in runs.benches(waiting, notes) if not args.no_confirm else ():
        keys = {finding.key for finding in part}
        mine = [finding for finding in findings if finding.key in keys]
        settled = {finding.key: finding for finding in confirming.settle(mine, bench, judge)}
        findings = [settled.get(finding.key, finding) for finding in findings]
    findings = confirming.without_own_builds(confirming.unconfirmed(findings))
    return _report(args, baseline, findings, notes)


def _devices(args: argparse.Namespace) -> list[Device]:
    """Those of devices.yaml, for their thresholds: RESULTS can be judged where there is no such file."""
    from stbench.commands import DEVICES
    from stbench.devices.inventory import load_inventory

    if args.taken and args.devices == DEVICES and not args.devices.exists():
        return []
    return list(load_inventory(args.devices).devices)


def _report(args: argparse.Namespace, baseline: Baseline, findings: list[Finding], notes: list[str]) -> int:
    import sys

    from stbench.atomic import write_atomically
    from stbench.console import print_json, stdout_console
    from stbench.gate import judging, outputs, summary
    from stbench.tables import render

    fails = args.on_inconclusive == "fail"
    code = judging.exit_code(findings, inconclusive_fails=fails)
    title = "stbench check"
    if args.json:
        print_json(summary.json_of(findings, code, notes))
    else:
        console = stdout_console()
        made = summary.table(findings, f"{title}: {summary.verdict_line(findings)}", notes)
        render.print_rich(made, console)
    if args.summary is not None:
        with args.summary.open("a", encoding="utf-8") as file:
            file.write(summary.markdown(findings, baseline, title, notes))
    if args.junit is not None:
        args.junit.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.junit, outputs.junit(findings, inconclusive_fails=fails).encode())
    if args.github:
        stream = sys.stderr if args.json else sys.stdout
        for line in outputs.github(findings, inconclusive_fails=fails):
            print(line, file=stream)
    return code
