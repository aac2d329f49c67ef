"""``stbench devices trust``: look at a board's host key, compare it, pin it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stbench import errors
from stbench.commands import Subparsers, add_command, add_devices
from stbench.console import print_json, stderr_console, stdout_console

if TYPE_CHECKING:
    from stbench.devices.inventory import Device

EXAMPLE = """
stbench devices trust rpi5
stbench devices trust rpi5 --yes-this-fingerprint SHA256:0QvCyd5XjSlpcJtnm5VEAGcwKpyIaZIFGVbYJd7pLSc
"""


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench devices trust``."""
    help = "show a board's host key and pin it when it is the right one; logs in nowhere"
    parser = add_command(subparsers, "trust", run, help=help, example=EXAMPLE)
    parser.add_argument("name", metavar="NAME", help="which device")
    parser.add_argument(
        "--yes-this-fingerprint",
        dest="fingerprint",
        metavar="SHA256:...",
        help="pin without a question, if the board's key has this fingerprint",
    )
    add_devices(parser)


def run(args: argparse.Namespace) -> int:
    """Pins one device's key. Exit code 4 when it is not reached, not confirmed, or not the one known."""
    from stbench.connectors.hostkeys import fingerprint

    device = _device(args.devices, args.name)
    key, file = settle(device, args.fingerprint)
    found: dict[str, Any] = {
        "device": device.name,
        "type": key.get_name(),
        "fingerprint": fingerprint(key),
        "file": str(file) if file is not None else None,
    }
    if args.json:
        print_json(found)
    else:
        told = f"pinned in {file}" if file is not None else "known already"
        line = f"{device.name}: {found['type']} {found['fingerprint']}, {told}"
        stdout_console().print(line, markup=False, soft_wrap=True)
        next_step = f"next: stbench devices doctor {device.name}, which logs in"
        stderr_console(quiet=args.quiet).print(next_step, markup=False, soft_wrap=True)
    return errors.EXIT_OK


def settle(device: Device, given: str | None) -> tuple[Any, Path | None]:
    """The host key that a board shows, after it was found among the known ones, equals the fingerprint
    ``given``, or was confirmed on the terminal; and the file that it was pinned in, None when it was known.

    Raises :class:`stbench.errors.HostKeyRefused`, and what reaching the board raises."""
    from stbench.connectors import hostkeys
    from stbench.connectors.ssh_link import host_key
    from stbench.yamlfile import printable

    hop, key = host_key(device)
    shown = hostkeys.fingerprint(key)
    if given is not None and given.removeprefix("SHA256:").rstrip("=") != shown.removeprefix("SHA256:"):
        raise errors.HostKeyRefused(
            f"{device.name}: {hop} shows the host key {shown}, not {printable(given)}",
            hint="it is another board, or somebody in between; the board's own answer: "
            "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
        )
    known = hostkeys.known_keys(hop.known_name, hop.known_hosts)
    if known:
        # One that changed or was revoked is refused whatever was given: somebody has to look.
        hostkeys.check(device.name, hop.known_name, key, known)
        return key, None
    if given is None:
        _confirm(device, f"{hop} shows the host key {key.get_name()} {shown}", shown)
    return key, hostkeys.pin(hop.known_name, key)


def _confirm(device: Device, sentence: str, shown: str) -> None:
    console = stderr_console()
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise errors.HostKeyRefused(
            f"{device.name}: {sentence}, and without a terminal nobody can confirm it",
            hint="when ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub says the same on the board: "
            f"stbench devices trust {device.name} --yes-this-fingerprint {shown}",
        )
    compare = "The board's own answer: ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub"
    console.print(f"{sentence}\n{compare}\nAre they the same? (yes/no) ", markup=False, end="")
    if input().strip().lower() != "yes":
        raise errors.HostKeyRefused(f"{device.name}: the host key was not confirmed; nothing was pinned")


def _device(file: Path, name: str) -> Device:
    from stbench.devices.inventory import load_inventory

    device = load_inventory(file).device(name)
    if device.connector != "ssh":
        raise errors.UsageError(
            f"{name} is {device.connector}: there is no host key to trust",
            hint=f"stbench devices doctor {name}",
        )
    return device
