"""``stbench profile``: one case with the timeline on; where a token's time goes."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stbench.commands import Subparsers, add_command
from stbench.commands._sweep_options import add_options

if TYPE_CHECKING:
    from stbench.agent.wire import RunRecord
    from stbench.campaigns.live import Live
    from stbench.commands._sweep_options import Ready
    from stbench.profiles.profile import Summary, Timeline, Token
    from stbench.sweeps.plan import Plan
    from stbench.sweeps.sweep import Sweep

_EXAMPLE = """
stbench profile smallthinker-4b --sparse-ffn on --sparse-lm-head on -n 16
stbench profile smallthinker-4b --sparse-ffn on --memory-limit 1GiB --cache auto -n 32 --chart lanes.png
stbench profile results/desk/timelines/x.timeline --trace out.json
"""

_GEN = "16"
_CHART_TOKENS = 2
_ONE_RUN = "makes one run"
_REFUSED = {
    **dict.fromkeys(("models", "preset"), "takes one model, named first"),
    **dict.fromkeys(("replicates", "max_reruns", "max_time", "max_failures"), _ONE_RUN),
}


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench profile``."""
    parser = add_command(
        subparsers,
        "profile",
        run,
        example=_EXAMPLE,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a model as in --models, or the .timeline file of an earlier run"
    )
    add_options(parser, file=False)
    shown = parser.add_argument_group("what to make of it")
    shown.add_argument(
        "--trace",
        type=Path,
        metavar="FILE.json",
        help="Trace Event format, for Perfetto and chrome://tracing",
    )
    shown.add_argument("--chart", type=Path, metavar="FILE", help="a few tokens as lanes: .png or .svg")
    shown.add_argument(
        "--chart-tokens", type=int, default=_CHART_TOKENS, metavar="N", help=f"how many ({_CHART_TOKENS})"
    )


def run(args: argparse.Namespace) -> int:
    """Runs or reads, prints and draws."""
    from stbench.agent.timelines import SUFFIX
    from stbench.console import print_json, stderr_console
    from stbench.errors import EXIT_OK, UsageError
    from stbench.profiles import profile

    if args.chart is not None and args.chart.suffix not in (".png", ".svg"):
        raise UsageError(f"--chart {args.chart}: expected a name that ends in .png or .svg")
    if args.chart_tokens < 1:
        raise UsageError(f"--chart-tokens {args.chart_tokens}: expected 1 or more")
    log = stderr_console(quiet=args.quiet)
    record = None
    path = Path(args.model)
    if not args.model.endswith(SUFFIX):
        path, record = _measured(args)
    else:
        _refuse_axes(args)
        record = _record_of(path)
    timeline = profile.load(path)
    found = profile.tokens(timeline)
    summary = profile.summarise(timeline, found)
    if args.json:
        print_json({"label": timeline.label, "timeline": str(path), **profile.as_json(summary, found)})
    else:
        _print(timeline, summary, record)
    if args.trace is not None:
        _write(args.trace, _trace(timeline, record))
        log.print(f"wrote {args.trace}", markup=False, soft_wrap=True)
    if args.chart is not None:
        _write(args.chart, _chart(args, timeline, found))
        log.print(f"wrote {args.chart}", markup=False, soft_wrap=True)
    return EXIT_OK


def _refuse_axes(args: argparse.Namespace) -> None:
    """A timeline that is there was measured by what it was measured by."""
    from stbench.commands._sweep_options import typed_axes
    from stbench.errors import UsageError
    from stbench.sweeps.sweep import option

    if typed := typed_axes(args):
        raise UsageError(
            f"{option(next(iter(typed)))} does not fit: {args.model} is measured already",
            hint="name a model in its place to measure another case",
        )


def _measured(args: argparse.Namespace) -> tuple[Path, RunRecord]:
    """Runs the case; its timeline's file and its record."""
    from stbench import errors
    from stbench.campaigns.live import Live
    from stbench.commands._sweep_options import devices_of, new_campaign_name, planned
    from stbench.console import stderr_console
    from stbench.records.store import validate_campaign_name

    sweep = _sweep(args)
    (device, *others) = devices_of(args)
    if others:
        raise errors.UsageError(
            "profile runs on one device, and several are enabled", hint=f"--device {device.name}"
        )
    if args.campaign:
        campaign = validate_campaign_name(args.campaign)
    else:
        campaign = new_campaign_name("profile", args.results)
    with (
        Live(stderr_console(quiet=args.quiet)) as live,
        planned(
            args, sweep, campaign, lambda stage, done, total: live.step(stage, done, total), lease=True
        ) as ready,
    ):
        plan = _traced(ready, sweep)
        for note in plan.notes:
            live.note(note)
        plan.check_room()
        record = _record(args.results / campaign, plan, ready, sweep, live)
    if record.status not in ("ok", "wrong-output"):
        raise errors.CellsFailed(f"{record.label}: {record.status}: {record.detail}")
    if record.profile is None:
        why = "; ".join(record.warnings) or "its engine records none"
        raise errors.CellsFailed(f"{record.label}: there is no timeline: {why}")
    return args.results / campaign / record.profile.path, record


def _sweep(args: argparse.Namespace) -> Sweep:
    from stbench.commands._sweep_options import sweep_of, typed_axes
    from stbench.errors import UsageError
    from stbench.sweeps.sweep import WORKLOADS, option

    typed = typed_axes(args)
    for key, why in _REFUSED.items():
        if key in typed:
            raise UsageError(f"{option(key)} does not fit: profile {why}")
    args.axis_models = args.model
    args.axis_replicates, args.axis_max_reruns = 1, 0
    if not typed.keys() & set(WORKLOADS):
        args.axis_gen = _GEN
    sweep = sweep_of(args)
    if any(not gen for _, gen, _ in sweep.workloads):
        raise UsageError("profile is about decoding, and this workload generates nothing", hint="-n 16")
    return sweep


def _traced(ready: Ready, sweep: Sweep) -> Plan:
    """The plan, its only job with the timeline on. Raises :class:`UsageError` for more than one."""
    from stbench.errors import UsageError
    from stbench.sweeps.identity import job_id
    from stbench.sweeps.plan import RECORDED

    if ready.plan.searches:
        raise UsageError("-t auto would search for threads first", hint="-t 4, or -t all")
    if len(ready.plan.jobs) != 1:
        cases = ", ".join(job.case for job in ready.plan.jobs[:4])
        raise UsageError(
            f"profile runs one case, and this makes {len(ready.plan.jobs)}: {cases}",
            hint="one value for each option; --filter selects one of them",
        )
    (job,) = ready.plan.jobs
    if job.program is not None:
        raise UsageError(f"{job.engine} is a program, and has no timeline of ours", hint="--engines sbr")
    traced = replace(job, settings=replace(job.settings, timeline=RECORDED))
    traced = replace(traced, id=job_id(traced, ready.devices[0].target, sweep.seed))
    guesses = {traced.id: ready.plan.guess_s[job.id]} if job.id in ready.plan.guess_s else {}
    return replace(ready.plan, jobs=(traced,), guess_s={**ready.plan.guess_s, **guesses})


def _record(directory: Path, plan: Plan, ready: Ready, sweep: Sweep, live: Live) -> RunRecord:
    """The run's record, in the campaign of that directory."""
    from stbench import errors
    from stbench.campaigns.campaign import UNFINISHED, run_campaign
    from stbench.campaigns.description import description
    from stbench.campaigns.references import References
    from stbench.records.store import Store, read_records

    with Store.open(directory) as store:
        if store.reading.records:
            raise errors.StoreError(
                f"{directory} already has {len(store.reading.records)} records",
                hint="another --campaign NAME",
            )
        store.write_campaign(description(sweep, plan, ready.devices, ready.unreachable, None))
        outcome = run_campaign(plan, ready.devices, store, References(), live, retry_failed=False)
    if outcome.interrupted:
        raise errors.Interrupted("interrupted; nothing was measured")
    for device, why in outcome.lost.items():
        raise errors.DeviceError(f"{device}: {why}")
    (job,) = plan.jobs
    records = [r for r in read_records(directory).latest() if r.id == job.id and r.status != UNFINISHED]
    if not records:
        raise errors.CellsFailed(f"{job.label}: did not run: {outcome.stopped or 'see the notes above'}")
    return records[-1]


def _print(timeline: Timeline, summary: Summary, record: RunRecord | None) -> None:
    from stbench.console import stdout_console
    from stbench.profiles import profile_tables

    console = stdout_console()
    for line in profile_tables.heading(timeline, summary, record):
        console.print(line, markup=False, soft_wrap=True)
    for table in profile_tables.tables(summary):
        console.print(table)
    for line in profile_tables.notes(summary):
        console.print(line, markup=False, soft_wrap=True)


def _record_of(path: Path) -> RunRecord | None:
    """The record that names this file as its timeline: of the campaign in whose directory the file lies."""
    from stbench.records.store import RECORDS, read_records

    directory = path.absolute().parent.parent
    if not (directory / RECORDS).is_file():
        return None
    where = str(path.absolute().relative_to(directory))
    named = [r for r in read_records(directory).latest() if r.profile is not None and r.profile.path == where]
    return named[-1] if named else None


def _trace(timeline: Timeline, record: RunRecord | None) -> bytes:
    import json

    from stbench.profiles.profile_trace import trace_events

    return json.dumps(trace_events(timeline, record), separators=(",", ":")).encode()


def _chart(args: argparse.Namespace, timeline: Timeline, found: list[Token]) -> bytes:
    from stbench import charts
    from stbench.profiles.profile_chart import timeline_figure

    # The last ones: caches are as warm as they get.
    figure = timeline_figure(timeline, found[-args.chart_tokens :], timeline.label or "Timeline")
    data: Any = charts.svg_bytes(figure) if args.chart.suffix == ".svg" else charts.png_bytes(figure)
    return bytes(data)


def _write(path: Path, data: bytes) -> None:
    from stbench.errors import unreadable

    try:
        path.write_bytes(data)
    except OSError as error:
        raise unreadable(path, error) from error
