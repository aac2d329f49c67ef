"""``stbench find-limit``: the smallest memory limit at which a case runs, and reaches a speed."""

from __future__ import annotations

import argparse
import dataclasses
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stbench.commands import Subparsers, add_command
from stbench.commands._sweep_options import add_options

if TYPE_CHECKING:
    from stbench.agent.wire import JobSpec, RunRecord
    from stbench.caches.find_limit import Outcome, Resolution
    from stbench.caches.limit_answers import Answer
    from stbench.caches.limit_probe import CaseFailed, Prober
    from stbench.campaigns.live import Live
    from stbench.commands._sweep_options import Ready
    from stbench.records.store import Store
    from stbench.sweeps.sweep import Sweep

_EXAMPLE = """
stbench find-limit --models smallthinker-4b --sparse-ffn on --sparse-lm-head on -n 64
stbench find-limit --models smallthinker-4b --sparse-ffn on -n 64 --reach 10 --from 256MiB --to 2GiB
stbench find-limit --models qwen3-1.7b --n-ctx 512 -n 32 --device rpi5 --campaign smallest
stbench find-limit --models smallthinker-4b,qwen3-1.7b --cache auto,none --warmup 32 -n 64
"""

_REPLICATES = 3
_GEN = "128"
# Axes that say something else here than in a sweep.
_REFUSED = {
    "memory_limit": "is what find-limit looks for: give the range by --from and --to",
    "one_model_at_a_time": "deletes the model after each limit: leave it away",
    "max_failures": "does not fit: a run that needs more memory is a step of the search",
}


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench find-limit``."""
    parser = add_command(subparsers, "find-limit", run, example=_EXAMPLE)
    add_options(parser, file=False, replicates=str(_REPLICATES))
    search = parser.add_argument_group("search")
    search.add_argument("--reach", type=_speed, metavar="X", help="also the smallest for X decoded tokens/s")
    search.add_argument(
        "--from", dest="low", type=_size, metavar="SIZE", help="smallest limit to try (8MiB: too little)"
    )
    search.add_argument(
        "--to", dest="high", type=_size, metavar="SIZE", help="largest (what a run without a limit takes)"
    )
    search.add_argument(
        "--resolution", type=_resolution, metavar="SIZE", help="how near, also as a share (16MiB or 2%%)"
    )
    search.add_argument("--retry-failed", action="store_true", help="run failed jobs of the campaign again")


def _size(text: str) -> int:
    from stbench.sweeps.limited import SMALLEST_LIMIT, parse_bytes

    try:
        size = parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'expected {error}, got "{text}"') from None
    if not SMALLEST_LIMIT <= size < 1 << 50:
        raise argparse.ArgumentTypeError(f"expected 8MiB or more, got {text}")
    return size


def _resolution(text: str) -> Resolution:
    from stbench.caches.find_limit import Resolution
    from stbench.sweeps.limited import parse_bytes

    share = re.fullmatch(r"(\d{1,2}(?:\.\d{1,2})?) ?%", text.strip())
    try:
        found = Resolution(0, float(share[1]) / 100) if share else Resolution(parse_bytes(text), 0.0)
    except ValueError:
        found = Resolution(0, 0.0)
    if found == Resolution(0, 0.0):
        raise argparse.ArgumentTypeError(f'expected a size such as 16MiB or a share such as 2%, got "{text}"')
    return found


def _speed(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f'expected tokens/s above 0, got "{text}"')
    return value


def run(args: argparse.Namespace) -> int:
    """Searches each case, prints steps and answers."""
    from stbench import errors
    from stbench.caches import limit_answers
    from stbench.caches.limit_probe import CaseFailed
    from stbench.campaigns.live import Live
    from stbench.commands._sweep_options import campaign_of, devices_of, planned
    from stbench.console import stderr_console

    sweep = _sweep(args)
    (device, *others) = devices_of(args)
    if others:
        raise errors.UsageError(
            "find-limit searches on one device, and several are enabled",
            hint=f"--device {device.name}",
        )
    if device.memory_limit == "none":
        raise errors.CellsFailed(
            f"{device.name} holds no memory limit ({args.devices}: memory_limit: none), so none can be found",
            hint=f"memory_limit: auto   # in {args.devices}",
        )
    campaign = campaign_of(args, "find-limit")
    answers: list[Answer] = []
    failed: dict[str, CaseFailed] = {}
    stopped: errors.StbenchError | None = None
    with (
        Live(stderr_console(quiet=args.quiet)) as live,
        planned(
            args, sweep, campaign, lambda stage, done, total: live.step(stage, done, total), lease=True
        ) as ready,
    ):
        prober = _prober(args, campaign, sweep, ready, live)
        plan = prober.plan()
        for note in plan.notes:
            live.note(note)
        plan.check_room()
        live.note(f"results in {args.results / campaign}")
        cases = prober.cases(sweep.filter)
        for i, case in enumerate(cases):
            if len(cases) > 1:
                live.note(f"case {i + 1} of {len(cases)}: {case.label}")
            try:
                answers.append(_answer(args, prober, case, ready, live))
            except CaseFailed as error:
                if len(cases) == 1:
                    raise
                failed[case.label] = error
                live.note(f"no answer: {error}")
            except errors.StbenchError as error:
                if not answers and not failed:
                    raise
                stopped = error
                break
    _print(args, campaign, answers, failed)
    if stopped is not None:
        raise stopped
    if failed:
        raise errors.CellsFailed(
            "no answer for " + "; ".join(f"{case}: {error}" for case, error in failed.items()),
            hint=next(iter(failed.values())).hint,
        )
    return limit_answers.exit_code(answers)


def _print(
    args: argparse.Namespace, campaign: str, answers: list[Answer], failed: dict[str, CaseFailed]
) -> None:
    """All answers: of several cases one table, of one case its steps."""
    from stbench.caches import limit_answers
    from stbench.console import print_json, stdout_console

    if args.json:
        cases = [limit_answers.as_json(answer) for answer in answers]
        print_json(
            {"campaign": campaign, "cases": cases, "failed": {case: str(e) for case, e in failed.items()}}
        )
        return
    console = stdout_console()
    if answers:
        one = len(answers) == 1 and not failed
        console.print(limit_answers.table(answers[0]) if one else limit_answers.summary(answers))
    # What explains a sign is the same for all.
    for sentence in dict.fromkeys(text for answer in answers for text in limit_answers.sentences(answer)):
        console.print(sentence, markup=False, soft_wrap=True)


def _sweep(args: argparse.Namespace) -> Sweep:
    """What is searched for: a sweep without limits. Raises :class:`UsageError`."""
    from stbench.commands._sweep_options import sweep_of, typed_axes
    from stbench.errors import UsageError
    from stbench.sweeps.sweep import WORKLOADS

    typed = typed_axes(args)
    for key, why in _REFUSED.items():
        if key in typed:
            raise UsageError(f"--{key.replace('_', '-')} {why}")
    if not typed.keys() & {"models", "preset"}:
        raise UsageError("which model? --models NAME", hint="`stbench models` lists names")
    if args.low is not None and args.high is not None and args.low >= args.high:
        raise UsageError("--from has to be less than --to")
    if args.axis_replicates is None:
        args.axis_replicates = _REPLICATES
    if "preset" not in typed:
        args.axis_cache = typed.get("cache", "auto")
        if not typed.keys() & set(WORKLOADS):
            args.axis_gen = _GEN
    sweep = sweep_of(args)
    if args.reach is not None and any(not gen for _, gen, _ in sweep.workloads):
        raise UsageError("--reach is about decoding, and a workload generates nothing", hint="-n 64, or -pg")
    return replace(sweep, memory_limit=(0,), one_model_at_a_time=False, max_failures=None)


def _prober(args: argparse.Namespace, campaign: str, sweep: Sweep, ready: Ready, live: Live) -> Prober:
    import stbench
    from stbench.caches import limit_probe
    from stbench.campaigns.references import References
    from stbench.errors import StoreError, UsageError
    from stbench.records import store

    if any(job.choice is not None for job in ready.plan.jobs):
        raise UsageError("-t auto would search for threads anew under every limit", hint="-t 4, or -t all")
    # What may differ between two searches that share their records.
    same = dataclasses.asdict(replace(sweep, replicates=1, filter=(), max_time_s=None, max_reruns=None))
    directory = args.results / campaign
    stored = store.read_campaign(directory)
    known = stored.get("find_limit") if stored is not None else None
    if stored is not None and _plain(known) != _plain({"sweep": same}):
        raise StoreError(
            f"{directory} is a campaign of other runs than this search would make",
            hint="another --campaign NAME, or the axes that this one was begun with",
        )
    (device,) = ready.devices

    def describe(open_store: Store, so_far: Sweep) -> None:
        open_store.write_campaign(
            {
                "stbench": stbench.__version__,
                "sweep": dataclasses.asdict(so_far),
                "find_limit": {"sweep": same},
                "devices": {
                    device.target.device.name: {
                        "library_sha256": device.agent.deployment.library_sha256,
                        "agent_sha256": device.agent.deployment.agent_sha256,
                        "fingerprint": device.target.facts.fingerprint,
                    }
                },
            }
        )

    room = limit_probe.Room(
        directory,
        sweep,
        device,
        References(),
        live,
        args.retry_failed,
        None if sweep.max_time_s is None else time.monotonic() + sweep.max_time_s,
    )
    return limit_probe.Prober(room, describe)


def _plain(data: Any) -> Any:
    """As JSON has it."""
    import json

    return json.loads(json.dumps(data))


def _answer(args: argparse.Namespace, prober: Prober, case: JobSpec, ready: Ready, live: Live) -> Answer:
    from stbench.caches import find_limit, limit_answers, limit_probe
    from stbench.sweeps.limited import SMALLEST_LIMIT

    (device,) = ready.devices
    resolution = args.resolution or find_limit.Resolution()
    low, most = args.low or SMALLEST_LIMIT, None
    known = prober.known(case)

    def measure(limit: int) -> Outcome:
        live.note(f"{case.label}: trying a limit of {find_limit.size_text(limit)}")
        outcome = prober.measure(case, limit)
        live.note(f"{case.label}: {limit_answers.step_sentence(outcome)}")
        return outcome

    # The smallest one first: it takes no time where it is too little, and shows whether it is enforced.
    if low not in {outcome.limit_bytes for outcome in known}:
        known.append(measure(low))
    free: RunRecord | None = None
    if args.high is not None:
        high = args.high
    else:
        live.note(f"{case.label}: a run without a limit says how much could be needed at most")
        free = prober.unlimited(case)
        most = device.target.facts.memory_bytes
        high = most if free.status != "ok" else min(limit_probe.enough_bytes(free), most)
    if high <= low:
        high = 2 * low
    result = find_limit.find(measure, low, high, resolution, speed=args.reach, most=most, known=known)
    return limit_answers.Answer(case.label, result, resolution, args.reach, free)
