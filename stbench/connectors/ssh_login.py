"""Logging in: key files, the agent, and what only a person knows, asked for on a terminal, never stored."""

from __future__ import annotations

import getpass
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko

from stbench.connectors.ssh_route import Hop
from stbench.errors import LoginRefused
from stbench.yamlfile import printable

PROMPTS = 3
# MaxAuthTries of sshd.
MAX_TRIES = 6

_KEY_CLASSES: tuple[type[paramiko.PKey], ...] = (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey)


class Secrets:
    """What a person typed, for as long as this process lives: boards of one run share a key, and a link that
    is made again at night must not wait for somebody to type."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}

    def ask(self, what: str, works: Callable[[str], bool]) -> bool:
        """Tries what is known, then asks on the terminal, one question at a time; without one it is False."""
        with self._lock:
            if what in self._known and works(self._known[what]):
                return True
            if not (sys.stdin.isatty() and sys.stderr.isatty()):
                return False
            for _ in range(PROMPTS):
                answer = getpass.getpass(f"{what}: ")
                if answer and works(answer):
                    self._known[what] = answer
                    return True
        return False


SECRETS = Secrets()


def log_in(device: str, hop: Hop, transport: paramiko.Transport) -> None:
    """Authenticates at a machine whose host key was checked. Raises :class:`LoginRefused`, and what paramiko
    raises when the connection breaks."""
    tried: list[str] = []
    for label, key in _keys(hop, tried):
        try:
            left = transport.auth_publickey(hop.user, key)
        except paramiko.BadAuthenticationType:
            tried.append("it takes no keys")
            break
        except paramiko.AuthenticationException as error:
            tried.append(label)
            if transport.is_active() and "timeout" not in str(error).lower():
                continue
            # sshd hangs up after six keys. Any sooner it was the link, which may heal; a refusal does not.
            if len(tried) < MAX_TRIES:
                raise
            raise _refused(device, hop, [*tried, "too many for it: name one as key"]) from error
        if not left:
            return
        tried.append(f"{label} (accepted, but it also asks for {', '.join(left)})")
    if transport.is_active() and _with_password(hop, transport):
        return
    raise _refused(device, hop, tried)


def _refused(device: str, hop: Hop, tried: list[str]) -> LoginRefused:
    offered = ", ".join(tried) or "there is no key to offer"
    return LoginRefused(
        f"{device}: {hop} lets none of our keys in ({offered})",
        hint=f"ssh-copy-id -p {hop.port} {hop.user}@{hop.host}, or name another key or user in devices.yaml",
    )


def _keys(hop: Hop, tried: list[str]) -> Iterator[tuple[str, paramiko.PKey]]:
    """Keys without passphrase, then the agent's, then those whose passphrase must be typed. A server ends the
    conversation after six."""
    locked: list[Path] = []
    offered: set[bytes] = set()
    for path in (*hop.keys, *hop.default_keys):
        if not path.is_file():
            if path in hop.keys:
                tried.append(f"{path}: no such file")
            continue
        try:
            key = _load(path, None)
        except paramiko.PasswordRequiredException:
            locked.append(path)
            continue
        except (paramiko.SSHException, OSError, ValueError) as error:
            tried.append(f"{path}: {printable(str(error))}")
            continue
        if key.asbytes() not in offered:
            offered.add(key.asbytes())
            yield str(path), key
    if not (hop.only_named_keys and hop.keys):
        for agent_key in _agent_keys():
            if agent_key.asbytes() not in offered:
                offered.add(agent_key.asbytes())
                yield "a key of the agent", agent_key
    for path in locked:
        unlocked: list[paramiko.PKey] = []
        if SECRETS.ask(f"passphrase of {path}", lambda text, p=path, u=unlocked: _unlocks(p, text, u)):  # type: ignore[misc]
            if unlocked[0].asbytes() not in offered:
                yield str(path), unlocked[0]
        else:
            tried.append(f"{path} has a passphrase: ssh-add it, or run on a terminal")


def _agent_keys() -> tuple[paramiko.AgentKey, ...]:
    try:
        return paramiko.Agent().get_keys()
    except (paramiko.SSHException, OSError):
        return ()


def _load(path: Path, passphrase: str | None) -> paramiko.PKey:
    """A private key of any kind, with its certificate where one lies beside it."""
    why = paramiko.SSHException("not a private key")
    for kind in _KEY_CLASSES:
        try:
            key = kind.from_private_key_file(str(path), passphrase)
        except paramiko.PasswordRequiredException:
            raise
        except paramiko.SSHException as error:
            why = error
            continue
        certificate = path.with_name(f"{path.name}-cert.pub")
        if certificate.is_file():
            key.load_certificate(str(certificate))
        return key
    raise why


def _unlocks(path: Path, passphrase: str, found: list[paramiko.PKey]) -> bool:
    try:
        found.append(_load(path, passphrase))
    except (paramiko.SSHException, ValueError):
        return False
    return True


def _with_password(hop: Hop, transport: paramiko.Transport) -> bool:
    """Asks for a password where the server takes one; what it also asks for by keyboard is answered so."""
    try:
        transport.auth_none(hop.user)
        return True
    except paramiko.BadAuthenticationType as error:
        if not {"password", "keyboard-interactive"} & set(error.allowed_types):
            return False
    except paramiko.AuthenticationException:
        return False

    def works(password: str) -> bool:
        try:
            return transport.is_active() and not transport.auth_password(hop.user, password)
        except paramiko.AuthenticationException:
            return False

    return SECRETS.ask(f"password of {hop}", works)
