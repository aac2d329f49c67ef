"""The options that ``sweep`` and ``plan`` share, and what they do before anything is measured."""

from __future__ import annotations

import argparse
import datetime
import fnmatch
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stbench.commands import DEVICES as DEVICES
from stbench.commands import AddUp, add_devices, add_library
from stbench.errors import InventoryError, StbenchError, StoreError, UsageError

if TYPE_CHECKING:
    from stbench.devices.inventory import Device
    from stbench.sweeps.plan import Plan
    from stbench.sweeps.prepare import Prepared
    from stbench.sweeps.sweep import Sweep

# Options whose values go to stbench.sweeps.sweep as they were typed: heading -> (flags, key, metavar, help).
_AXES: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "what to measure": (
        (
            "--preset",
            "preset",
            "NAME",
            "published-4b, published-21b, limited-4b, limited-4b-small-context, limited-21b, "
            "cache-sizes-4b, versus-llama-cpp, versus-llama-cpp-21b or quick (quick, where no models are "
            "named)",
        ),
        ("--models", "models", "LIST", "names of `stbench models` or paths of GGUF files"),
        ("--engines", "engines", "LIST", "sbr, llama-bench, or a program of the devices file (sbr)"),
        (
            "--sparse-ffn",
            "sparse_ffn",
            "LIST",
            "on: skip neurons whose ReLU output is zero; auto: where that is faster (off)",
        ),
        (
            "--sparse-lm-head",
            "sparse_lm_head",
            "LIST",
            "on: compute only the output rows that the predictor keeps (off)",
        ),
        (
            "-t --threads",
            "threads",
            "LIST",
            "thread counts, all, or auto: the fastest of a few counts and CPU sets (the device's)",
        ),
        ("-p --prompt", "prompt", "LIST", "prompt lengths, a case each (512, without -n and -pg)"),
        (
            "-n --gen",
            "gen",
            "LIST",
            "numbers of generated tokens, a case each (128, without -p and -pg)",
        ),
        ("-pg --prompt-gen", "prompt_gen", "P,N", "prompt and generation in one case; more with ';'"),
        ("-d --depth", "depth", "LIST", "tokens in the KV cache before anything is timed (0)"),
        ("-r --replicates", "replicates", "N", "processes per case"),
        ("--filter", "filter", "GLOB", "only cases whose label fits, such as '*/sparse+lmhead/t4/*'"),
    ),
    "how it is computed": (
        ("--seed", "seed", "N", "seed of the token stream and of the order (0)"),
        ("--isa", "isa", "NAME", "force an instruction set; `stbench devices` lists a device's (auto)"),
        ("--n-ctx", "n_ctx", "N", "KV cache capacity in tokens (4096, or more for longer workloads)"),
        ("--kv-type", "kv_type", "TYPE", "f16 or f32 (f16)"),
        ("-b --batch", "n_batch", "N", "most tokens evaluated together in prefill (64)"),
        ("--load", "load", "MODE", "repack, mmap or read (auto: repack if memory allows)"),
        (
            "--warmup",
            "warmup",
            "N",
            "untimed tokens of prompt, and as many decoded, before what is timed (4)",
        ),
        (
            "--lm-head-threshold",
            "lm_head_threshold",
            "X",
            "predictor score above which a row is computed (0)",
        ),
        (
            "--requantise-down",
            "requantise_down",
            "",
            "turn standard-layout down matrices neuron-major at load (lossy)",
        ),
    ),
    "memory limit, cache and routing": (
        (
            "--memory-limit",
            "memory_limit",
            "LIST",
            "memory that a run may take, enforced where the device can: 1GiB,8GiB,none (none); for every "
            "engine",
        ),
        (
            "--cache",
            "cache",
            "LIST",
            "keep experts, or layers, on storage and so much of them in memory: 256MiB, 25%% of all, auto "
            "(the largest that fits the limit), none (none)",
        ),
        ("--policy", "policy", "LIST", "which of a cache's units make room: lru, lfu, reuse (auto)"),
        ("--io", "io", "LIST", "how a cache reads: pread or io_uring (auto)"),
        ("--io-direct", "io_direct", "on|off", "past the page cache (auto: where the file system can)"),
        ("--prefetch", "prefetch", "LIST", "what is read early: exact, next-layer, next-2 or next-4 (auto)"),
        (
            "--start",
            "start",
            "LIST",
            "how a cache begins: cold, or warm: filled by untimed tokens until it is full (cold)",
        ),
        (
            "--replay-routing",
            "replay_routing",
            "FILE",
            "experts of a recorded trace in place of the router's choice (docs/routing.md)",
        ),
        (
            "--record-routing",
            "record_routing",
            "",
            "keep which experts each run chose, in routing/ beside the records",
        ),
    ),
    "order, disturbance and when to stop": (
        (
            "--one-model-at-a-time",
            "one_model_at_a_time",
            "",
            "all runs of a model's file together; files and bundles that the sweep makes are deleted after "
            "them",
        ),
        ("--max-time", "max_time", "TIME", "start no job after this long: 90s, 15m, 2h (no limit)"),
        ("--max-failures", "max_failures", "N", "stop after this many failed jobs (no limit)"),
        (
            "--max-reruns",
            "max_reruns",
            "N",
            "repeat at most so many disturbed runs of a device (half of its jobs, each once)",
        ),
        ("--bracket-ms", "bracket_ms", "N", "bandwidth probe before and after each run, ms; 0: none (200)"),
        ("--sample-hz", "sample_hz", "X", "looks at clocks, heat and memory per s of a run; 0: none (1)"),
    ),
}
# What they take. Lists add up where an option is repeated; these are none. Without a metavar: a switch.
_SINGLE = frozenset(("preset", "isa", "kv_type", "load", "io_direct", "replay_routing", "max_time"))
_NUMBERS = {"N": int, "X": float}

RESULTS = Path("results")


def add_options(parser: argparse.ArgumentParser, *, file: bool = True, replicates: str = "") -> None:
    """Adds the axes and where things are; without ``file`` the axes come from options alone. ``replicates``
    says how many the command takes without that option."""
    if file:
        parser.add_argument("sweep_file", nargs="?", type=Path, metavar="SWEEP.yaml", help="axes from a file")
    else:
        parser.set_defaults(sweep_file=None)
    add_devices(parser)
    parser.add_argument(
        "--device", action="append", metavar="GLOB", help="only these of its enabled devices (all)"
    )
    parser.add_argument("--campaign", metavar="NAME", help="directory under --results (date and preset)")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help=f"where campaigns lie ({RESULTS})"
    )
    add_library(parser)
    lists = "LIST is a comma list, longer by repeating the option; numbers also as 1-8+1 or 1-8*2"
    for i, (heading, rows) in enumerate(_AXES.items()):
        group = parser.add_argument_group(heading, None if i else lists)
        for flags, key, metavar, text in rows:
            default = f" ({replicates})" if key == "replicates" and replicates else ""
            group.add_argument(
                *flags.split(), dest=f"axis_{key}", help=text + default, **_taking(key, metavar)
            )


def _taking(key: str, metavar: str) -> dict[str, Any]:
    if not metavar:
        return {"action": "store_const", "const": True}
    if kind := _NUMBERS.get(metavar):
        return {"type": kind, "metavar": metavar}
    if key in _SINGLE:
        return {"metavar": metavar}
    return {"action": AddUp, "metavar": metavar, "separator": ";" if key == "prompt_gen" else ","}


def typed_axes(args: argparse.Namespace) -> dict[str, Any]:
    """The axes that were given on the command line."""
    prefix = "axis_"
    return {
        key.removeprefix(prefix): value
        for key, value in vars(args).items()
        if key.startswith(prefix) and value is not None
    }


def sweep_of(args: argparse.Namespace) -> Sweep:
    """The sweep of options and file. Raises :class:`stbench.errors.SweepError`."""
    from stbench.sweeps.sweep import load_sweep

    return load_sweep(typed_axes(args), args.sweep_file)


def devices_of(args: argparse.Namespace) -> list[Device]:
    """The enabled devices that ``--device`` selects. Raises :class:`InventoryError`, :class:`UsageError`."""
    from stbench.devices.inventory import load_inventory

    inventory = load_inventory(args.devices)
    devices = inventory.enabled()
    if not devices:
        raise InventoryError(
            [f"{args.devices}: no device is enabled"], hint="set enabled: true for one of them"
        )
    if args.device:
        devices = [d for d in devices if any(fnmatch.fnmatchcase(d.name, glob) for glob in args.device)]
        if not devices:
            names = ", ".join(d.name for d in inventory.enabled())
            off = [
                d.name
                for d in inventory.devices
                if not d.enabled and any(fnmatch.fnmatchcase(d.name, glob) for glob in args.device)
            ]
            raise UsageError(
                f"--device {' '.join(args.device)}: no enabled device fits; enabled: {names}",
                hint=f"set enabled: true for {', '.join(off)} in {args.devices}"
                if off
                else "stbench devices add [user@]host writes a board's entry",
            )
    return devices


def campaign_of(args: argparse.Namespace, kind: str) -> str:
    """``--campaign``, which must be a name; without it a new one of today and ``kind``."""
    from stbench.records.store import validate_campaign_name

    return validate_campaign_name(args.campaign) if args.campaign else new_campaign_name(kind, args.results)


def new_campaign_name(preset: str, results: Path) -> str:
    """``2026-01-31-quick``, with a number when that is taken."""
    base = f"{datetime.date.today().isoformat()}-{preset or 'sweep'}"
    names = [base, *(f"{base}-{i}" for i in range(2, 1000))]
    for name in names:
        if not (results / name).exists():
            return name
    raise StoreError(f"{results}: too many campaigns called {base}", hint="give this one a --campaign NAME")


@dataclass(frozen=True)
class Ready:
    """Connected devices and the plan for them. ``unreachable``: those left out, and why."""

    plan: Plan
    devices: list[Prepared]
    unreachable: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def planned(
    args: argparse.Namespace,
    sweep: Sweep,
    campaign: str,
    on_bytes: Callable[[str, int, int], None],
    *,
    lease: bool,
    note: Callable[[str], None] | None = None,
    wait_s: float = 0.0,
) -> Iterator[Ready]:
    """Connects, deploys, asks for facts and plans; devices stay connected inside the block. ``lease``: takes
    them for this process, as everything that measures must. With ``note``, which is told, devices that cannot
    be reached are left out as long as there are others. ``wait_s``: how long jobs wait for a busy board."""
    from stbench.builds.build import find_library
    from stbench.builds.programs import check_engines
    from stbench.campaigns.agentclient import needs_library
    from stbench.campaigns.traces import trace_of
    from stbench.sweeps.plan import build_plan
    from stbench.sweeps.prepare import label_names, prepared

    devices = devices_of(args)
    check_engines(sweep.engines, devices)
    names, sweep = label_names(sweep)
    trace = trace_of(Path(sweep.replay_routing).expanduser()) if sweep.replay_routing else None
    needed = args.library is not None or any(needs_library(engine) for engine in sweep.engines)
    library = find_library(args.library) if needed else None
    unreachable: dict[str, str] = {}

    def leave_out(device: str, error: StbenchError) -> None:
        unreachable[device] = str(error)
        if note is not None:
            why = str(error).removeprefix(f"{device}: ")
            note(f"{device}: left out: {why}" + (f" (try: {error.hint})" if error.hint else ""))

    with prepared(
        devices,
        names,
        library,
        on_bytes,
        engines=sweep.engines,
        lease=lease,
        on_unreachable=leave_out if note is not None and len(devices) > 1 else None,
        wait_s=wait_s,
        caches=any(sweep.cache),
        trace=trace,
    ) as ready:
        yield Ready(build_plan(sweep, [device.target for device in ready], campaign), ready, unreachable)
