"""``stbench devices add pi@board``: from a board on the network to its entry in devices.yaml."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from stbench import errors
from stbench.commands import Subparsers, add_command, add_devices
from stbench.console import print_json, stderr_console, stdout_console

if TYPE_CHECKING:
    from stbench.agent.wire import DeviceFacts
    from stbench.devices.inventory import Device

EXAMPLE = """
stbench devices add pi@raspberry-pi-4.local
stbench devices add 192.168.1.40:8022 --name phone --key ~/.ssh/boards
"""

_TARGET = re.compile(
    r"(?:(?P<user>[^@\s]+)@)?(?:\[(?P<six>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^:@\s]+))(?::(?P<port>\d{1,5}))?"
)


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench devices add``."""
    parser = add_command(
        subparsers,
        "add",
        run,
        help="log in to a board, pin its host key and write its entry into devices.yaml",
        example=EXAMPLE,
    )
    parser.add_argument("target", metavar="[USER@]HOST[:PORT]", help="as for ssh; ~/.ssh/config applies")
    parser.add_argument("--name", help="what to call it (the host's name up to the first dot)")
    parser.add_argument("--key", type=Path, metavar="FILE", help="a private key (those that ssh would try)")
    parser.add_argument(
        "--fingerprint",
        "--yes-this-fingerprint",
        metavar="SHA256:...",
        help="its host key's, instead of the question whether it is right",
    )
    add_devices(parser)


def run(args: argparse.Namespace) -> int:
    """Asks about the host key when nobody pinned it, logs in, reads the facts and appends the entry."""
    from stbench.connectors import connector_for
    from stbench.devices import devices_file
    from stbench.sweeps.prepare import connected

    device = _device(args)
    _refuse_known(args.devices, device)
    _trust(device, args)
    connector = connector_for(device)
    try:
        facts = connected(device, connector, None, lease=False).facts()
    finally:
        connector.close()
    added = devices_file.append(args.devices, device.name, _described(facts), _keys(device, facts))
    if args.json:
        from dataclasses import asdict

        from stbench.agent.wire import to_json

        print_json({**asdict(added), "facts": to_json(facts)})
    else:
        stdout_console().print(f"{added.name}: {_described(facts)}", markup=False, soft_wrap=True)
    stderr_console(quiet=args.quiet).print(
        f"{args.devices}: has {added.name} now; next: stbench devices doctor {added.name}",
        markup=False,
        soft_wrap=True,
    )
    return errors.EXIT_OK


def _device(args: argparse.Namespace) -> Device:
    """The device that the arguments describe. Raises :class:`stbench.errors.UsageError`."""
    from stbench.devices.device_entry import NAME, USER
    from stbench.devices.inventory import Device

    if re.match(r"[^@]*:[^@]*@", args.target):
        raise errors.UsageError(
            "a password is asked for when it is needed; others can see what is on a command line",
            hint="stbench devices add user@host:port",
        )
    found = _TARGET.fullmatch(args.target)
    port = int(found["port"] or 22) if found else 0
    if found is None or not 1 <= port <= 65535 or (found["user"] and not re.fullmatch(USER, found["user"])):
        raise errors.UsageError(
            f"{args.target!r} is no board's address", hint="[user@]host[:port], such as pi@rpi5:22"
        )
    host = found["six"] or found["host"]
    # An address is a name as a whole: its first number says nothing.
    is_address = found["six"] or re.fullmatch(r"[0-9.]+", host)
    name = args.name or (
        re.sub(r"[^A-Za-z0-9]+", "-", host).strip("-") if is_address else host.partition(".")[0]
    )
    if not NAME.fullmatch(name):
        raise errors.UsageError(
            f"{name!r} cannot be a device's name",
            hint="--name NAME: letters, digits, dots, dashes and underscores",
        )
    key = ""
    if args.key is not None:
        path = args.key.expanduser().absolute()
        if not path.is_file():
            raise errors.UsageError(
                f"--key {args.key}: no such file",
                hint="a private key; without --key those that ssh would try",
            )
        home = Path.home()
        key = f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
    return Device(name, connector="ssh", host=host, port=port, user=found["user"] or "", key=key)


def _refuse_known(path: Path, device: Device) -> None:
    """Before anybody is asked anything: what is in the file already is not added."""
    from stbench.devices.inventory import load_inventory

    if not path.exists():
        return
    for other in load_inventory(path).devices:
        if other.name == device.name:
            raise errors.UsageError(
                f"{path}: has a device {device.name} already",
                hint=f"if it is this one, set its enabled: true, host and user there, then "
                f"stbench devices trust {other.name}; for another board: --name another",
            )
        if (other.host, other.port, other.user) == (device.host, device.port, device.user):
            raise errors.UsageError(
                f"{path}: {other.name} is this board already",
                hint=f"stbench devices trust {other.name} pins its key; a second entry for it can be written "
                f"by hand (extends: {other.name})",
            )


def _trust(device: Device, args: argparse.Namespace) -> None:
    """Pins the board's host key, unless one is known: after a yes, or where it has the fingerprint given."""
    from stbench.commands._devices_trust import settle

    try:
        _, file = settle(device, args.fingerprint)
    except errors.HostKeyRefused as error:
        # The device is in no file yet, so that this command is the one to repeat.
        error.hint = error.hint.replace(
            f"stbench devices trust {device.name}", f"stbench devices add {args.target}"
        )
        raise
    if file is not None:
        stderr_console(quiet=args.quiet).print(f"host key pinned in {file}", markup=False, soft_wrap=True)


def _described(facts: DeviceFacts) -> str:
    """One line for people, above the entry."""
    clusters = " + ".join(
        f"{len(cluster.cpus)} x {cluster.model}"
        + (f" at {cluster.max_khz / 1e6:.2f} GHz" if cluster.max_khz else "")
        for cluster in facts.clusters
    )
    parts = [
        facts.board or "",
        clusters or facts.cpu_model,
        f"{facts.memory_bytes / (1 << 30):.1f} GiB",
        f"pages of {facts.page_bytes // 1024} KiB" if facts.page_bytes > 4096 else "",
        facts.os,
    ]
    return ", ".join(part for part in parts if part)


def _keys(device: Device, facts: DeviceFacts) -> dict[str, str | int]:
    keys: dict[str, str | int] = {"connector": "ssh", "host": device.host}
    if device.port != 22:
        keys["port"] = device.port
    if device.user:
        keys["user"] = device.user
    if device.key:
        keys["key"] = device.key
    # Which of several kinds of cores is fastest is a question for -t auto; equal ones are all used.
    keys["threads"] = "auto" if len(facts.clusters) > 1 else "all"
    if facts.os.startswith("Android"):
        keys["memory_limit"] = "none"
    return keys
