"""``stbench devices list``: what is in devices.yaml, and what those devices report about themselves."""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stbench import errors
from stbench.commands import Subparsers, add_command, add_devices, add_library
from stbench.console import print_json, stdout_console

if TYPE_CHECKING:
    from stbench.agent.wire import DeviceFacts
    from stbench.builds.build import Library
    from stbench.devices.inventory import Device

EXAMPLE = """
stbench devices
stbench devices list --devices lab.yaml --json
"""

# Devices asked at the same time: each needs a thread and a connection.
PARALLEL = 16


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench devices list``."""
    help = "list devices and what they report about themselves (the default)"
    add_options(add_command(subparsers, "list", run, help=help, example=EXAMPLE))


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the list, which ``stbench devices`` alone has, too."""
    add_devices(parser)
    add_library(parser)
    parser.add_argument("--no-probe", action="store_true", help="only what the file says")


def run(args: argparse.Namespace) -> int:
    """Lists all devices; probes the enabled ones. Exit code 4 when one of them does not answer."""
    from stbench.devices.inventory import load_inventory

    inventory = load_inventory(args.devices)
    asked = [] if args.no_probe else inventory.enabled()
    library = _library(args.library) if asked else None
    answers: dict[str, DeviceFacts | str] = {}
    with ThreadPoolExecutor(PARALLEL) as pool:
        futures = {device.name: pool.submit(_answer, device, library) for device in asked}
        answers = {name: future.result() for name, future in futures.items()}
    found = [
        {
            "device": device,
            "facts": None if isinstance(answer := answers.get(device.name), str) else answer,
            "problem": answer if isinstance(answer, str) else "",
        }
        for device in inventory.devices
    ]
    if args.json:
        print_json([_as_json(entry) for entry in found])
    else:
        _print(found)
    unreachable = [name for name, answer in answers.items() if isinstance(answer, str)]
    if unreachable:
        raise errors.DeviceError(
            f"no answer from: {', '.join(unreachable)}", hint=f"stbench devices doctor {unreachable[0]}"
        )
    return errors.EXIT_OK


def _library(explicit: Path | None) -> Library | None:
    """Without a runtime everything but the instruction sets is still known."""
    from stbench.builds.build import find_library

    if explicit is not None:
        return find_library(explicit)
    try:
        return find_library()
    except errors.BuildError:
        return None


def _answer(device: Device, library: Library | None) -> DeviceFacts | str:
    """Facts, or why there are none."""
    from stbench.builds.build import library_for
    from stbench.campaigns.agentclient import Agent
    from stbench.campaigns.deploy import deploy
    from stbench.connectors import connector_for
    from stbench.devices import board

    try:
        connector = connector_for(device)
        try:
            # No lease: asking changes nothing and may happen beside a sweep.
            connector.connect(lease=False)
            found = board.ask(connector, device.name)
            if connector.remote:
                try:
                    library = library_for(found.machine, library, libc=found.libc, device=device.name)
                except errors.BuildError:
                    library = None
            return Agent(device.name, connector, deploy(connector, library, found)).facts()
        finally:
            connector.close()
    except (errors.DeviceError, errors.NoSpace) as error:
        return str(error)


def _as_json(entry: dict[str, Any]) -> dict[str, Any]:
    from dataclasses import asdict

    from stbench.agent.wire import to_json

    facts = to_json(entry["facts"]) if entry["facts"] is not None else None
    return {**asdict(entry["device"]), "facts": facts, "problem": entry["problem"]}


def _print(found: list[dict[str, Any]]) -> None:
    console = stdout_console()
    for entry in found:
        device: Device = entry["device"]
        threads = "all" if device.threads is None else ",".join(map(_thread_word, device.threads))
        state = "enabled" if device.enabled else "disabled"
        console.print(f"{device.name}: {state}, {_where(device)}, threads {threads}", markup=False)
        lines = _fact_lines(entry["facts"]) if entry["facts"] is not None else []
        for key, text in [*lines, *([("problem", entry["problem"])] if entry["problem"] else [])]:
            console.print(f"  {key:<13}{text}", markup=False, soft_wrap=True)


def _where(device: Device) -> str:
    if device.connector == "local":
        return device.connector
    where = f"{device.host}:{device.port}" if device.host else f"Host {device.ssh_config} of ~/.ssh/config"
    return f"{device.connector} {where}"


def _thread_word(threads: int) -> str:
    from stbench.sweeps.axes import AUTO_THREADS

    return "auto" if threads == AUTO_THREADS else str(threads)


def _fact_lines(facts: DeviceFacts) -> list[tuple[str, str]]:
    clusters = "; ".join(
        f"{len(c.cpus)} x {c.model}"
        + (f" at {c.max_khz / 1e6:.2f} GHz" if c.max_khz else "")
        + (f", {c.governor}" if c.governor else "")
        for c in facts.clusters
    )
    gib = 1 << 30
    storage = facts.storage or "unknown"
    if facts.storage_free_bytes is not None:
        storage += f", {facts.storage_free_bytes / 1e9:.0f} GB free"
    lines = [
        ("board", facts.board or ""),
        ("cpu", f"{facts.cpu_model}, {facts.n_cpus} CPUs, {facts.machine}"),
        ("clusters", clusters),
        ("isa", ", ".join(facts.isas) or "unknown: the runtime is not installed"),
        ("memory", f"{facts.memory_bytes / gib:.1f} GiB, {facts.memory_available_bytes / gib:.1f} available"),
        ("swap", f"{facts.swap_bytes / gib:.1f} GiB" if facts.swap_bytes else "none"),
        ("page", f"{facts.page_bytes // 1024} KiB"),
        ("storage", storage),
        ("system", f"{facts.os}, {facts.kernel}, Python {facts.python}"),
        ("virtual", facts.virtualisation or ""),
        ("fingerprint", facts.fingerprint),
        *[("note", note) for note in facts.notes],
    ]
    return [(key, text) for key, text in lines if text]
