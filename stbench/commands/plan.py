"""``stbench plan``: what a sweep would do."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from stbench.commands import Subparsers, add_command
from stbench.commands._sweep_options import add_options, campaign_of, planned, sweep_of
from stbench.console import print_json, stderr_console, stdout_console

if TYPE_CHECKING:
    from stbench.sweeps.plan import Plan

EXAMPLE = """
stbench plan --preset published-4b
stbench plan --models smallthinker-4b --sparse-ffn on,off -t 1-8*2 -n 128
"""


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench plan``."""
    parser = add_command(subparsers, "plan", run, example=EXAMPLE)
    add_options(parser, replicates="the preset's, or 5")


def run(args: argparse.Namespace) -> int:
    """Prints the plan."""
    from stbench.campaigns.live import Live

    sweep = sweep_of(args)
    campaign = campaign_of(args, sweep.preset)
    with (
        Live(stderr_console(quiet=args.quiet)) as live,
        planned(
            args, sweep, campaign, lambda stage, done, total: live.step(stage, done, total), lease=False
        ) as ready,
    ):
        plan = ready.plan
    print_plan(plan, as_json=args.json)
    plan.check_room()
    return 0


def print_plan(plan: Plan, *, as_json: bool) -> None:
    """On stdout, for people or as JSON."""
    from rich.table import Table

    from stbench.campaigns.live import duration

    if as_json:
        print_json(plan.describe())
        return
    console = stdout_console()
    table = Table(
        title=f"{plan.campaign}: {len(plan.jobs)} jobs, seed {plan.seed}", title_justify="left", box=None
    )
    table.add_column("case", no_wrap=True)
    table.add_column("replicates", justify="right")
    table.add_column("expected", justify="right")
    for label, jobs in plan.cases().items():
        table.add_row(label, str(len(jobs)), duration(sum(plan.guess_s[job.id] for job in jobs)))
    console.print(table)
    for device, models in plan.to_make.items():
        for model in models:
            verb, kind = ("gets", model.source) if model.source else ("makes", "synthetic")
            size = f"{model.file_bytes / 1e9:.2f} GB"
            console.print(f"{device}: {verb} {model.ref.name}, {size}, {kind}", markup=False, soft_wrap=True)
    for device, made in plan.bundles.items():
        for bundle in made:
            console.print(f"{device}: makes the {bundle.name}, {bundle.bytes / 1e9:.2f} GB", soft_wrap=True)
    for sentence in plan.room_sentences():
        console.print(sentence)
    console.print(
        f"expected time: {duration(plan.expected_s())} (a guess; references that do not ship add to it)"
    )
    if plan.order_sentence():
        console.print(plan.order_sentence())
    for sentence in plan.search_sentences():
        console.print(sentence)
    console.print(plan.rerun_sentence())
    for note in plan.notes:
        console.print(f"note: {note}")
