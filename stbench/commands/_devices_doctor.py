"""``stbench devices doctor``: what would make numbers wrong or runs fail, and the line that mends it."""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from stbench import errors
from stbench.commands import Subparsers, add_command, add_devices
from stbench.console import print_json, stderr_console, stdout_console

if TYPE_CHECKING:
    from stbench.devices.inventory import Device
    from stbench.doctor.examination import Examined

EXAMPLE = """
stbench devices doctor
stbench devices doctor raspberry-pi-5 --bundle pi.zip
stbench devices doctor --tree pi.zip
"""

# Devices asked at the same time: each is a thread that mostly waits.
PARALLEL = 16


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench devices doctor``."""
    parser = add_command(
        subparsers,
        "doctor",
        run,
        help="say what would make numbers wrong or runs fail on each device, and the line that mends it",
        example=EXAMPLE,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which devices (the enabled ones)")
    add_devices(parser)
    parser.add_argument(
        "--bundle", type=Path, metavar="FILE.zip", help="also write what was seen, anonymised, to mail it"
    )
    parser.add_argument(
        "--tree", type=Path, metavar="DIR", help="examine a captured tree or a bundle instead of devices"
    )


def run(args: argparse.Namespace) -> int:
    """Exit code 0: examined, and no run would fail; 3: some would; 4: a device was not reached."""
    from stbench.doctor import examination
    from stbench.doctor.findings import FAILS

    if args.tree is not None and (args.names or args.bundle is not None):
        raise errors.UsageError("--tree examines what was captured: it takes no NAME and makes no --bundle")
    problems: dict[str, errors.DeviceError] = {}
    if args.tree is not None:
        examined = examination.of_captures(args.tree)
    else:
        examined = _examine_all(_chosen(args), problems)
    if args.json:
        found = [{"device": one.label, "problem": "", **_findings(one)} for one in examined]
        found += [{"device": name, "problem": str(error), "findings": []} for name, error in problems.items()]
        print_json(found)
    else:
        console = stdout_console()
        for one in examined:
            text = examination.as_text(one.label, one.findings)
            console.print(text, markup=False, soft_wrap=True, end="")
    for name, error in problems.items():
        why = str(error).removeprefix(f"{name}: ") + (f" (try: {error.hint})" if error.hint else "")
        stderr_console().print(f"{name}: not examined: {why}", markup=False, soft_wrap=True)
    if args.bundle is not None and any(one.meta is not None for one in examined):
        from stbench.atomic import write_atomically

        write_atomically(args.bundle, examination.bundle(examined))
        stderr_console(quiet=args.quiet).print(
            f"{args.bundle}: written; look into it before you mail it", markup=False, soft_wrap=True
        )
    if problems:
        raise errors.DeviceError(f"not examined: {', '.join(problems)}")
    if any(finding.severity == FAILS for one in examined for finding in one.findings):
        return errors.EXIT_CELLS_FAILED
    return errors.EXIT_OK


def _chosen(args: argparse.Namespace) -> list[Device]:
    """Devices by name, enabled or not; without names the enabled ones."""
    from stbench.devices.inventory import load_inventory

    inventory = load_inventory(args.devices)
    return [inventory.device(name) for name in dict.fromkeys(args.names)] or inventory.enabled()


def _examine_all(devices: list[Device], problems: dict[str, errors.DeviceError]) -> list[Examined]:
    """Boards at the same time; local devices one after the other at the end: they would be one another's
    load."""
    boards = [device for device in devices if device.connector != "local"]
    found: dict[str, Examined | errors.DeviceError] = {}
    with ThreadPoolExecutor(PARALLEL) as pool:
        for device, outcome in zip(boards, pool.map(_examine, boards), strict=True):
            found[device.name] = outcome
    for device in devices:
        if device.connector == "local":
            found[device.name] = _examine(device)
    examined = []
    for device in devices:
        outcome = found[device.name]
        if isinstance(outcome, errors.DeviceError):
            problems[device.name] = outcome
        else:
            examined.append(outcome)
    return examined


def _examine(device: Device) -> Examined | errors.DeviceError:
    from stbench.connectors import connector_for
    from stbench.doctor.examination import examine

    try:
        connector = connector_for(device)
        try:
            return examine(device, connector)
        finally:
            connector.close()
    except errors.DeviceError as error:
        return error


def _findings(one: Examined) -> dict[str, object]:
    from dataclasses import asdict

    return {"findings": [asdict(finding) for finding in one.findings]}
