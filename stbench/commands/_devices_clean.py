"""``stbench devices clean``: remove what earlier versions of stbench left on devices."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from stbench import errors
from stbench.commands import Subparsers, add_command, add_devices
from stbench.console import print_json, stderr_console, stdout_console

if TYPE_CHECKING:
    from stbench.agent.housekeeping import CleanResult
    from stbench.devices.inventory import Device

EXAMPLE = """
stbench devices clean rpi5
stbench devices clean --all --dry-run
stbench devices clean rpi5 --models        the models that stbench put there, too
"""


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench devices clean``."""
    parser = add_command(
        subparsers,
        "clean",
        run,
        help="remove old agents and libraries, broken uploads, bundles without a model and routing traces "
        "from devices; never records",
        example=EXAMPLE,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="which device")
    parser.add_argument("--all", action="store_true", help="all enabled devices")
    parser.add_argument("--models", action="store_true", help="every model in its models directory, too")
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    add_devices(parser)


def run(args: argparse.Namespace) -> int:
    """Cleans one device or all; exit code 4 when one of them could not be."""
    found: list[dict[str, Any]] = []
    failed: list[str] = []
    for device in _devices(args):
        try:
            result = _clean(device, models=args.models, dry_run=args.dry_run)
        except (errors.DeviceError, errors.BusyError) as error:
            why = str(error) + (f" (try: {error.hint})" if error.hint else "")
            stderr_console().print(why, markup=False, soft_wrap=True)
            failed.append(device.name)
            continue
        found.append({"device": device.name, "result": result})
    if args.json:
        print_json([_as_json(**entry) for entry in found])
    else:
        for entry in found:
            _print(**entry, dry_run=args.dry_run)
    if failed:
        raise errors.DeviceError(f"not cleaned: {', '.join(failed)}")
    return errors.EXIT_OK


def _devices(args: argparse.Namespace) -> list[Device]:
    from stbench.devices.inventory import load_inventory

    inventory = load_inventory(args.devices)
    if args.all == (args.name is not None):
        raise errors.UsageError(
            "which devices?", hint="a NAME of devices.yaml, or --all for the enabled ones"
        )
    return inventory.enabled() if args.all else [inventory.device(args.name)]


def _clean(device: Device, *, models: bool, dry_run: bool) -> CleanResult:
    from stbench.builds.build import find_library
    from stbench.campaigns.deploy import clean
    from stbench.connectors import connector_for
    from stbench.sweeps.prepare import connected

    try:
        library = find_library()
    except errors.BuildError:
        library = None
    connector = connector_for(device)
    try:
        agent = connected(device, connector, library, lease=True, library_needed=False)
        return clean(
            device.name,
            connector,
            agent.deployment,
            models=models,
            dry_run=dry_run,
            model_paths=list((device.models or {}).values()),
        )
    finally:
        connector.close()


def _as_json(device: str, result: CleanResult) -> dict[str, Any]:
    from stbench.agent.wire import to_json

    return {"device": device, "freed_bytes": sum(file.bytes for file in result.removed), **to_json(result)}


def _print(device: str, result: CleanResult, *, dry_run: bool) -> None:
    from stbench.yamlfile import printable

    console = stdout_console()
    for file in result.removed:
        text = f"still there: {file.problem}" if file.problem else f"{file.bytes} bytes"
        console.print(f"  {printable(file.path)}: {printable(text)}", markup=False, soft_wrap=True)
    freed = sum(file.bytes for file in result.removed)
    gone = [file for file in result.removed if not file.problem]
    verb = "would free" if dry_run else "freed"
    console.print(f"{device}: {verb} {freed / 1e6:.1f} MB in {len(gone)} files", markup=False)
