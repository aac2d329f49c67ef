"""``stbench sweep``: measure, store, print the table."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stbench import errors
from stbench.commands import Subparsers, add_command
from stbench.commands._sweep_options import (
    DEVICES,
    RESULTS,
    Ready,
    add_options,
    campaign_of,
    planned,
    sweep_of,
    typed_axes,
)
from stbench.commands.plan import print_plan
from stbench.console import print_json, stderr_console, stdout_console
from stbench.wording import count

if TYPE_CHECKING:
    from stbench.agent.wire import RunRecord
    from stbench.campaigns.campaign import Outcome
    from stbench.campaigns.live import Live
    from stbench.sweeps.sweep import Sweep

EXAMPLE = """
stbench sweep --devices devices.yaml
stbench sweep --preset published-4b -r 10 --campaign night
stbench sweep --models smallthinker-4b --sparse-ffn on,off -t 1-8*2 -n 128
stbench sweep --models smallthinker-4b -t auto -n 128
stbench sweep --resume
"""


REPORTS = Path("reports")


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench sweep``."""
    parser = add_command(subparsers, "sweep", run, example=EXAMPLE)
    add_options(parser, replicates="the preset's, or 5")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the sweep of --campaign, or of the newest one, on the devices that it began with",
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="with --resume: run failed jobs again, too"
    )
    parser.add_argument(
        "--wait",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="wait so long for a board on which somebody else runs a job (0: leave it for --resume)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop, as `stbench plan`")
    parser.add_argument(
        "--references-only",
        action="store_true",
        help="make models and expected outputs, print the files of the latter, measure nothing",
    )
    parser.add_argument(
        "--reports", type=Path, default=REPORTS, metavar="DIR", help=f"where reports go ({REPORTS})"
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 86400:
        raise argparse.ArgumentTypeError(f'expected seconds, 0 to 86400, got "{text}"')
    return value


def run(args: argparse.Namespace) -> int:
    """Runs a campaign to its end, or as far as it goes."""
    from stbench.campaigns.live import Live

    if args.retry_failed and not args.resume:
        raise errors.UsageError("--retry-failed needs --resume", hint="stbench sweep --resume --retry-failed")
    campaign, sweep = _campaign(args)
    console = stderr_console(quiet=args.quiet)
    with (
        Live(console) as live,
        planned(
            args,
            sweep,
            campaign,
            lambda stage, done, total: live.step(stage, done, total),
            lease=not args.dry_run,
            note=live.note,
            wait_s=args.wait,
        ) as ready,
    ):
        if args.dry_run:
            print_plan(ready.plan, as_json=args.json)
            ready.plan.check_room()
            return errors.EXIT_OK
        ready.plan.check_room()
        if args.references_only:
            return _references_only(ready, live)
        outcome, records = measure(args, campaign, sweep, ready, live)
    return _report(args, campaign, ready, outcome, records)


def _references_only(ready: Ready, live: Live) -> int:
    from stbench.campaigns.agentclient import JobInterrupted
    from stbench.campaigns.campaign import compute_references
    from stbench.campaigns.references import References

    references = References()
    try:
        keys = compute_references(ready.plan, ready.devices, references, live)
    except JobInterrupted as stop:
        raise errors.Interrupted(f"interrupted; {stop.record.label} is not done") from None
    for path in map(references.path_of, keys):
        if path.exists():
            print(path)
    return errors.EXIT_OK


def _campaign(args: argparse.Namespace) -> tuple[str, Sweep]:
    """Name and sweep: new, or stored ones for ``--resume``, where only limits may be given anew."""
    from stbench.records.store import newest_campaign, read_campaign, validate_campaign_name
    from stbench.sweeps.sweep import resumed_sweep, sweep_from_json

    if not args.resume:
        sweep = sweep_of(args)
        return campaign_of(args, sweep.preset), sweep
    campaign = validate_campaign_name(args.campaign) if args.campaign else newest_campaign(args.results)
    directory = args.results / campaign
    stored = read_campaign(directory)
    if stored is None:
        raise errors.StoreError(
            f"{directory} has no campaign.json: there is no sweep to go on with",
            hint="without --resume the sweep starts; an existing directory may be meant by another --results",
        )
    sweep = sweep_from_json(stored.get("sweep"), directory)
    if not args.device and (chosen := _chosen(stored)):
        # Without a word, a board's campaign would grow by this machine and every board enabled since.
        args.device = chosen
        stderr_console(quiet=args.quiet).print(
            f"{campaign} is of --device {shlex.join(chosen)}; --device '*' goes on with all enabled devices",
            soft_wrap=True,
            markup=False,
        )
    return campaign, resumed_sweep(sweep, typed_axes(args), args.sweep_file)


def _chosen(stored: dict[str, Any]) -> list[str]:
    """The ``--device`` that a campaign began with; none: it is of all enabled devices."""
    globs = stored.get("chosen_devices")
    return [str(glob) for glob in globs] if isinstance(globs, list) else []


def _resume_command(args: argparse.Namespace, campaign: str) -> str:
    """What goes on with this campaign from the same directory, as it would be typed."""
    argv = ["stbench", "sweep", "--resume", "--campaign", campaign]
    for name, value, default in (
        ("--devices", args.devices, DEVICES),
        ("--results", args.results, RESULTS),
        ("--reports", args.reports, REPORTS),
        ("--library", args.library, None),
    ):
        if value != default:
            argv += [name, str(value)]
    for glob in args.device or ():
        argv += ["--device", glob]
    return shlex.join(argv)


def measure(
    args: argparse.Namespace, campaign: str, sweep: Sweep, ready: Ready, live: Live
) -> tuple[Outcome, list[RunRecord]]:
    """Runs what has no record yet; returns how that ended and all records of the campaign."""
    from stbench.campaigns.campaign import run_campaign
    from stbench.campaigns.description import description
    from stbench.campaigns.references import References
    from stbench.records.store import Store, read_records

    directory = args.results / campaign
    with Store.open(directory) as store:
        if store.reading.records and not args.resume:
            raise errors.StoreError(
                f"{directory} already has {len(store.reading.records)} records",
                hint="--resume goes on with it; another --campaign NAME starts a new one",
            )
        for note in (*store.reading.problems, *ready.plan.notes):
            live.note(note)
        stored = store.read_campaign() if args.resume else None
        described = description(sweep, ready.plan, ready.devices, ready.unreachable, stored)
        # A part that is resumed with --device leaves the campaign as wide as it began.
        described["chosen_devices"] = _chosen(stored) if stored is not None else list(args.device or ())
        store.write_campaign(described)
        live.note(f"{count(len(ready.plan.jobs), 'job')}, results in {directory}")
        if ready.plan.order_sentence():
            live.note(ready.plan.order_sentence())
        for sentence in ready.plan.search_sentences():
            live.note(sentence)
        live.note(ready.plan.rerun_sentence())
        outcome = run_campaign(
            ready.plan,
            ready.devices,
            store,
            References(),
            live,
            max_time_s=sweep.max_time_s,
            max_failures=sweep.max_failures,
            retry_failed=args.retry_failed,
        )
        return outcome, read_records(directory).latest()


def _report(
    args: argparse.Namespace, campaign: str, ready: Ready, outcome: Outcome, records: list[RunRecord]
) -> int:
    from stbench.campaigns.campaign import UNFINISHED
    from stbench.yamlfile import printable

    planned_ids = {job.id for job in ready.plan.jobs}
    mine = [record for record in records if record.id in planned_ids and record.status != UNFINISHED]
    log = stderr_console(quiet=args.quiet)
    finished = [record for record in records if record.status != UNFINISHED]
    written: list[Path] = []
    if finished:
        from stbench.tables.reporting import write_reports

        written = write_reports(finished, args.reports / campaign)
    if args.json:
        print_json(_summary(campaign, ready, outcome, mine, written))
    elif finished:
        from stbench.tables.grid import render_grid

        render_grid(finished, stdout_console())
        _print_ratios(campaign, finished)
    for path in written:
        log.print(f"wrote {path}", soft_wrap=True, markup=False)

    again = _resume_command(args, campaign)
    if outcome.interrupted:
        text = f"interrupted; {len(mine)} of {len(planned_ids)} records are stored"
        if outcome.unattended:
            text += f"; something may still run on {', '.join(outcome.unattended)}"
        raise errors.Interrupted(text, hint=again)
    if outcome.stopped:
        log.print(
            f"stopped: {outcome.stopped}; {outcome.left} jobs left; go on with: {again}",
            soft_wrap=True,
            markup=False,
        )
    if outcome.disturbed:
        tried = f"in spite of {count(outcome.reruns, 're-run')}" if outcome.reruns else "not run again"
        log.print(
            f"disturbed, {tried}, and marked: {', '.join(outcome.disturbed)}",
            soft_wrap=True,
            markup=False,
        )
    for device, why in outcome.lost.items():
        log.print(f"{device} has jobs left: {printable(why)}", soft_wrap=True, markup=False)
    if outcome.lost and not outcome.ran and set(outcome.lost) == set(ready.plan.devices):
        raise errors.DeviceError(f"nothing could be measured on {', '.join(outcome.lost)}", hint=again)
    bad = sorted({record.label for record in mine if record.status != "ok"})
    missing = _not_run(ready, outcome, mine)
    if bad or missing:
        parts = [f"failed: {', '.join(bad)}"] * bool(bad) + [f"not run: {', '.join(missing)}"] * bool(missing)
        raise errors.CellsFailed("; ".join(parts), hint=f"{again} --retry-failed" if bad else again)
    return errors.EXIT_OK


def _not_run(ready: Ready, outcome: Outcome, records: list[RunRecord]) -> list[str]:
    """Labels without a record, and those of lost devices that have some to come. Without its facts nobody
    knows the cases of a device that could not be reached: a glob stands for them."""
    recorded, labels = {record.id for record in records}, {record.label for record in records}
    missing = {
        job.label
        for job in ready.plan.jobs
        if job.label not in labels or (job.device in outcome.lost and job.id not in recorded)
    }
    return [*sorted(missing), *(f"{device}:*" for device in sorted(ready.unreachable))]


def _print_ratios(campaign: str, records: list[RunRecord]) -> None:
    """Ours beside llama.cpp, where both were measured."""
    from stbench.comparison import versus
    from stbench.devices.engine_names import ENGINE, LLAMA_BENCH
    from stbench.records.sides import side_of
    from stbench.tables import render

    if {ENGINE, LLAMA_BENCH} <= {record.engine for record in records if record.status == "ok"}:
        try:
            found = versus.engine_ratios(side_of(campaign, records), ENGINE, LLAMA_BENCH)
        except errors.InputError as error:
            stderr_console().print(f"no ratios: {error}", markup=False, soft_wrap=True)
            return
        render.print_rich(versus.ratio_table(found, ENGINE, LLAMA_BENCH), stdout_console())


def _summary(
    campaign: str, ready: Ready, outcome: Outcome, records: list[RunRecord], written: list[Path]
) -> dict[str, Any]:
    from stbench.campaigns.live import tokens_per_s
    from stbench.records.disturbance import judge

    return {
        "campaign": campaign,
        "ran": outcome.ran,
        "already_done": outcome.skipped,
        "left": outcome.left,
        "reruns": outcome.reruns,
        "stopped": outcome.stopped,
        "lost": outcome.lost,
        "unreachable": dict(ready.unreachable),
        "records": [
            {
                "id": record.id,
                "label": record.label,
                "replicate": record.replicate,
                "status": record.status,
                "detail": record.detail,
                "tokens_per_s": tokens_per_s(record),
                "check": record.check.verdict if record.check else "unchecked",
                "attempt": record.attempt,
                "disturbed": list(verdict.reasons),
            }
            for record, verdict in zip(records, judge(records), strict=True)
        ],
        "written": [str(path) for path in written],
    }
