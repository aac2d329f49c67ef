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

from stbench.commands import AddUp
from stbench.errors import InventoryError, StbenchError, StoreError, UsageError

if TYPE_CHECKING:
    from stbench.devices.inventory import Device
    from stbench.sweeps.plan import Plan
    from stbench.sweeps.prepare import Prepared
    from stbench.sweeps.sweep import Sweep

# Options whose values go to stbench.sweeps.sweep as they were typed. Lists add up, but those of _SINGLE are
# none.
_SINGLE = frozenset(("preset", "isa", "kv_type", "load", "io_direct", "replay_routing", "max_time"))
_AXES = (
    (
        "--preset",
        "preset",
        "NAME",
        "published-4b, published-21b, limited-4b, limited-4b-small-context, limited-21b, "
        "cache-sizes-4b, versus-llama-cpp, or quick (without models)",
    ),
    ("--models", "models", "LIST", "names of the catalogue or paths of GGUF files"),
    ("--engines", "engines", "LIST", "sbr, llama-bench, or a program of devices.yaml (sbr)"),
    (
        "--sparse-ffn",
        "sparse_ffn",
        "on,off",
        "skip neurons whose ReLU output is zero; auto: where that is faster",
    ),
    ("--sparse-lm-head", "sparse_lm_head", "on,off", "compute only the output rows that the predictor keeps"),
    (
        "-t --threads",
        "threads",
        "LIST",
        "thread counts, all, or auto: the fastest of a few counts and CPU sets (default: the device's)",
    ),
    ("-p --prompt", "prompt", "LIST", "prompt lengths, a case each"),
    ("-n --gen", "gen", "LIST", "numbers of generated tokens, a case each"),
    ("-pg --prompt-gen", "prompt_gen", "P,N", "prompt and generation in one case; more with ';'"),
    ("-d --depth", "depth", "LIST", "tokens in the KV cache before anything is timed"),
    ("--isa", "isa", "NAME", "force an instruction set (auto)"),
    ("--kv-type", "kv_type", "TYPE", "f16 or f32"),
    ("--load", "load", "MODE", "repack, mmap or read (auto: repack if memory allows)"),
    (
        "--memory-limit",
        "memory_limit",
        "LIST",
        "memory that a run may take, enforced where the device can: 1GiB,8GiB,none (none); for every engine",
    ),
    (
        "--cache",
        "cache",
        "LIST",
        "keep experts, or layers, on storage and so much of them in memory: 256MiB, 25%% of all, auto (the "
        "largest that fits the limit), none (none)",
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
    ("--filter", "filter", "GLOB", "only cases whose label fits, such as '*/sparse+lmhead/t4/*'"),
    ("--max-time", "max_time", "TIME", "start no job after this long (90s, 15m, 2h)"),
)
_NUMBERS = (
    ("-r --replicates", "replicates", int, "processes per case"),
    ("--seed", "seed", int, "seed of the token stream and of the order (0)"),
    ("--n-ctx", "n_ctx", int, "KV cache capacity in tokens"),
    ("-b --batch", "n_batch", int, "most tokens evaluated together in prefill"),
    ("--warmup", "warmup", int, "untimed tokens of prompt, and as many decoded, before what is timed (4)"),
    ("--lm-head-threshold", "lm_head_threshold", float, "predictor score above which a row is computed (0)"),
    ("--max-failures", "max_failures", int, "stop after this many failed jobs"),
    (
        "--max-reruns",
        "max_reruns",
        int,
        "repeat at most so many disturbed runs of a device (half of its jobs, each once)",
    ),
    ("--bracket-ms", "bracket_ms", int, "bandwidth probe before and after each run, ms; 0: none (200)"),
    ("--sample-hz", "sample_hz", float, "looks at clocks, heat and memory per s of a run; 0: none (1)"),
)

DEVICES = Path("devices.yaml")
RESULTS = Path("results")


def add_options(parser: argparse.ArgumentParser, *, file: bool = True) -> None:
    """Adds the axes and where things are; without ``file`` the axes come from options alone."""
    if file:
        parser.add_argument("sweep_file", nargs="?", type=Path, metavar="SWEEP.yaml", help="axes from a file")
    else:
        parser.set_defaults(sweep_file=None)
    parser.add_argument("--devices", type=Path, default=DEVICES, metavar="FILE", help="(devices.yaml)")
    parser.add_argument("--device", action="append", metavar="GLOB", help="only these of its enabled devices")
    parser.add_argument(
        "--campaign", metavar="NAME", help="directory under results/ (default: date and preset)"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="where campaigns lie (results)"
    )
    parser.add_argument(
        "--library", type=Path, metavar="PATH", help="a libsbr.so other than the installed one"
    )
    axes = parser.add_argument_group(
        "axes",
        "comma lists, which add up where an option is repeated; numbers also as first-last+step or "
        "first-last*mult",
    )
    for flags, key, metavar, text in _AXES:
        how: dict[str, Any] = {} if key in _SINGLE else {"action": AddUp}
        if key == "prompt_gen":
            how["separator"] = ";"
        axes.add_argument(*flags.split(), dest=f"axis_{key}", metavar=metavar, help=text, **how)
    for flags, key, kind, text in _NUMBERS:
        axes.add_argument(*flags.split(), dest=f"axis_{key}", type=kind, metavar="N", help=text)
    axes.add_argument(
        "--requantise-down",
        dest="axis_requantise_down",
        action="store_const",
        const=True,
        help="turn standard-layout down matrices neuron-major at load (lossy)",
    )
    axes.add_argument(
        "--record-routing",
        dest="axis_record_routing",
        action="store_const",
        const=True,
        help="keep which experts each run chose, in routing/ beside the records",
    )
    axes.add_argument(
        "--one-model-at-a-time",
        dest="axis_one_model_at_a_time",
        action="store_const",
        const=True,
        help="all runs of a model's file together; files and bundles that the sweep makes are deleted after "
        "them",
    )


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
