"""Which host key belongs to which board: OpenSSH's known_hosts files, and one of our own beside them.

Nothing is ever accepted unseen. ``stbench devices trust`` adds to our own file and to no other.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import paramiko
from paramiko.hostkeys import HostKeyEntry

from stbench.errors import HostKeyRefused
from stbench.yamlfile import printable


@dataclass(frozen=True)
class KnownKey:
    """A key that some file has for a host; ``revoked`` ones must never be met again."""

    key: paramiko.PKey
    file: Path
    line: int
    revoked: bool = False


def pinned_file() -> Path:
    """``$XDG_CONFIG_HOME/stbench/known_hosts``; a relative ``XDG_CONFIG_HOME`` is ignored, as its
    specification asks."""
    root = os.environ.get("XDG_CONFIG_HOME", "")
    base = Path(root) if os.path.isabs(root) else Path.home() / ".config"
    return base / "stbench" / "known_hosts"


def known_name(host: str, port: int, alias: str = "") -> str:
    """What known_hosts files call a host."""
    if alias:
        return alias
    return host.lower() if port == 22 else f"[{host.lower()}]:{port}"


def fingerprint(key: paramiko.PKey) -> str:
    """As ``ssh-keygen -l`` shows it: ``SHA256:...``."""
    digest = hashlib.sha256(key.asbytes()).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def known_keys(name: str, files: Sequence[Path]) -> list[KnownKey]:
    """Every key that ``files`` have for a name, in their order. What cannot be read or understood is passed
    over: it can only make a host unknown, never known."""
    found = []
    for file in files:
        try:
            lines = file.read_text("utf-8", "replace").splitlines()
        except OSError:
            continue
        for number, line in enumerate(lines, 1):
            marker, _, rest = line.strip().partition(" ") if line.startswith("@") else ("", "", line.strip())
            if not rest or rest.startswith("#") or marker not in ("", "@revoked"):
                continue
            try:
                entry = HostKeyEntry.from_line(rest, number)
            except paramiko.SSHException:
                continue
            if entry is not None and entry.key is not None and _matches(name, entry.hostnames or []):
                found.append(KnownKey(entry.key, file, number, marker == "@revoked"))
    return found


def key_types(known: Sequence[KnownKey], offered: Sequence[str]) -> list[str]:
    """``offered`` algorithms with those first whose keys are known: a board with several keys then shows one
    that can be compared."""
    names = {entry.key.get_name() for entry in known if not entry.revoked}
    if "ssh-rsa" in names:
        names |= {"rsa-sha2-512", "rsa-sha2-256"}
    return sorted(offered, key=lambda algorithm: algorithm not in names)


def check(device: str, name: str, key: paramiko.PKey, known: Sequence[KnownKey]) -> None:
    """Raises :class:`HostKeyRefused` unless ``key`` is one of ``known`` and not revoked."""
    shown = f"{key.get_name()} {fingerprint(key)}"
    if any(entry.revoked and entry.key == key for entry in known):
        raise HostKeyRefused(
            f"{device}: the host key of {name}, {shown}, was revoked",
            hint="the board needs a new host key: this one is in other hands",
        )
    trusted = [entry for entry in known if not entry.revoked]
    if not trusted:
        raise HostKeyRefused(
            f"{device}: the host key of {name} is unknown: {shown}",
            hint=f"compare it with the board's (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then: "
            f"stbench devices trust {device}",
        )
    if not any(entry.key == key for entry in trusted):
        first = trusted[0]
        raise HostKeyRefused(
            f"{device}: the host key of {name} has changed: now {shown}, known is {first.key.get_name()} "
            f"{fingerprint(first.key)} ({first.file}:{first.line}). "
            "It is another board, or somebody in between",
            hint=f"if the board was set up anew: ssh-keygen -f {first.file} -R '{name}', then: "
            f"stbench devices trust {device}",
        )


def pin(name: str, key: paramiko.PKey) -> Path:
    """Adds a key to our own file, readable for its owner only, and returns that file."""
    path = pinned_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    line = f"{printable(name)} {key.get_name()} {key.get_base64()}\n".encode()
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # A file edited by hand may lack its last newline.
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            line = b"\n" + line
        os.write(file, line)
        os.fsync(file)
    finally:
        os.close(file)
    return path


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """By OpenSSH's rules: hashed names, wildcards, and ``!`` for exceptions."""
    found = False
    for pattern in patterns:
        if pattern.startswith("|1|"):
            try:
                found = found or paramiko.HostKeys.hash_host(name, pattern) == pattern
            except (ValueError, AssertionError, IndexError):
                continue
        elif fnmatch.fnmatchcase(name, _literal(pattern.removeprefix("!").lower())) or (
            pattern.removeprefix("!") == name
        ):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def _literal(pattern: str) -> str:
    """Brackets are part of ``[host]:port`` and no character class."""
    return pattern.replace("[", "[[]")
