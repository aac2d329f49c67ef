"""Where a board is and how to get there: devices.yaml first, then ~/.ssh/config, then the defaults of ssh."""

from __future__ import annotations

import getpass
import glob
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko

from stbench.connectors.hostkeys import known_name, pinned_file
from stbench.devices.inventory import Device
from stbench.errors import InputError

MAX_HOPS = 8
MAX_INCLUDES = 16
DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")

_JUMP = re.compile(
    r"(?:ssh://)?(?:(?P<user>[^@\s]+)@)?(?:\[(?P<six>[^]]+)\]|(?P<host>[^:@\s/]+))(?::(?P<port>\d{1,5}))?/?"
)


@dataclass(frozen=True)
class Hop:
    """One machine to log in to. ``known_name`` is what known_hosts files call it; ``keys`` are the files that
    were named for it, ``default_keys`` those that ssh would try, ``only_named_keys`` keeps to the former."""

    host: str
    port: int
    user: str
    known_name: str
    keys: tuple[Path, ...]
    default_keys: tuple[Path, ...]
    only_named_keys: bool
    known_hosts: tuple[Path, ...]

    def __str__(self) -> str:
        return f"{self.user}@{self.host}" + ("" if self.port == 22 else f":{self.port}")


@dataclass(frozen=True)
class _Said:
    """What was said outside of the configuration, and wins. Port 22 is not told apart from no port."""

    host: str = ""
    port: int = 22
    user: str = ""
    key: str = ""
    jumps: str = ""


def route(device: Device) -> list[Hop]:
    """The machines to go through, the board last. Raises :class:`InputError` for an ~/.ssh/config that cannot
    be followed."""
    config = _config(Path.home() / ".ssh" / "config")
    host = device.host if device.ssh_config else ""
    said = _Said(host, device.port, device.user, device.key, device.proxy_jump)
    return _route(config, device.name, device.ssh_config or device.host, said, 0)


def _route(config: paramiko.SSHConfig, name: str, alias: str, said: _Said, depth: int) -> list[Hop]:
    found = _lookup(config, name, alias)
    jumps = said.jumps or found.get("proxyjump", "none")
    if not said.jumps and jumps.lower() == "none" and found.get("proxycommand", "none").lower() != "none":
        raise InputError(
            f"{name}: ~/.ssh/config reaches {alias} through a ProxyCommand, which stbench cannot",
            hint="use ProxyJump there, or proxy_jump in devices.yaml",
        )
    hops: list[Hop] = []
    for position, text in enumerate([] if jumps.lower() == "none" else jumps.split(",")):
        match = _JUMP.fullmatch(text.strip())
        if match is None or not 1 <= int(match["port"] or 22) <= 65535:
            raise InputError(f"{name}: ProxyJump: {text!r} is not [user@]host[:port]")
        # As ssh does it: only the first of a list may itself lie behind others.
        before = _Said("", int(match["port"] or 22), match["user"] or "", "", "none" if position else "")
        if depth < MAX_HOPS:
            hops += _route(config, name, match["six"] or match["host"], before, depth + 1)
    hops.append(_hop(found, alias, said))
    if len(hops) > MAX_HOPS:
        raise InputError(
            f"{name}: ProxyJump goes in a circle, or through more than {MAX_HOPS} hosts",
            hint="look at ProxyJump in ~/.ssh/config and proxy_jump in devices.yaml",
        )
    return hops


def _hop(found: dict[str, Any], alias: str, said: _Said) -> Hop:
    host = (said.host or found.get("hostname", alias)).strip("[]")
    port = said.port if said.port != 22 else int(found.get("port", 22))
    named = [said.key] if said.key else []
    named += [path for path in found.get("identityfile", []) if path.lower() != "none"]
    keys = tuple(Path(path).expanduser() for path in named)
    files = found.get("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2").split()
    return Hop(
        host=host,
        port=port,
        user=said.user or found.get("user", "") or getpass.getuser(),
        known_name=known_name(host, port, found.get("hostkeyalias", "")),
        keys=keys,
        default_keys=() if keys else tuple(Path.home() / ".ssh" / key for key in DEFAULT_KEYS),
        only_named_keys=found.get("identitiesonly", "no").lower() == "yes",
        known_hosts=(
            pinned_file(),
            *(Path(file).expanduser() for file in files),
            Path("/etc/ssh/ssh_known_hosts"),
        ),
    )


def _lookup(config: paramiko.SSHConfig, name: str, alias: str) -> dict[str, Any]:
    try:
        return dict(config.lookup(alias))
    # Match exec needs a package that we do not ask for.
    except (paramiko.SSHException, ImportError) as error:
        raise InputError(f"{name}: ~/.ssh/config cannot be followed for {alias}: {error}") from error


def _config(path: Path) -> paramiko.SSHConfig:
    try:
        return paramiko.SSHConfig.from_text("\n".join(_lines(path, 0)))
    except paramiko.SSHException as error:
        raise InputError(f"{path}: {error}") from error


def _lines(path: Path, depth: int) -> list[str]:
    """The lines of a configuration with what it includes in their place: paramiko knows no Include. The block
    that an Include stands in goes on after it."""
    try:
        text = path.read_text("utf-8", "replace")
    except OSError:
        return []
    lines: list[str] = []
    block = ""
    for line in text.splitlines():
        word, _, rest = line.strip().replace("=", " ", 1).partition(" ")
        if word.lower() in ("host", "match"):
            block = line
        if word.lower() == "include" and depth < MAX_INCLUDES:
            for pattern in rest.split():
                pattern = str(Path.home() / ".ssh" / Path(pattern.strip('"')).expanduser())
                for included in sorted(glob.glob(pattern)):
                    lines += _lines(Path(included), depth + 1)
            if block:
                lines.append(block)
            continue
        lines.append(line)
    return lines
