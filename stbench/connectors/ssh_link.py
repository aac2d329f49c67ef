"""One SSH connection to a board, through others where needed: checked, logged in, and watched.

A peer that is gone is noticed in two ways. The kernel gives up a TCP connection whose data is not
acknowledged (TCP_USER_TIMEOUT) or whose probes are not answered; and when nothing at all was heard for a
while the board is asked for a sign of life, which also covers jump hosts and boards that hang with their
network up.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from typing import Any, cast

import paramiko

from stbench.connectors import hostkeys
from stbench.connectors.ssh_login import log_in
from stbench.connectors.ssh_route import Hop, route
from stbench.devices.inventory import Device
from stbench.errors import DeviceError, LinkLost, Unreachable
from stbench.yamlfile import printable

# 2.3 times the rate of the first that paramiko would propose, aes128-ctr with a separate MAC.
FAST_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
CALL_TIMEOUT_S = 60.0
# Between the end of a broken connection's channels and its own.
BREAKING_S = 1.0

# Without a handler paramiko's threads would print tracebacks of broken links on stderr.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


class _Heard:
    """A socket that knows when it last brought something."""

    def __init__(self, sock: socket.socket | paramiko.Channel) -> None:
        self._sock = sock
        self.at = time.monotonic()

    def recv(self, n: int) -> bytes:
        data = self._sock.recv(n)
        if data:
            self.at = time.monotonic()
        return data

    def send(self, data: bytes) -> int:
        return self._sock.send(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class Link:
    """An open connection. Make one with :func:`open_link`; once lost it stays lost."""

    def __init__(self, device: Device, transports: list[paramiko.Transport], heard: _Heard) -> None:
        self._device = device
        self._transports = transports
        self._heard = heard
        self._closed = threading.Event()
        self._why = ""
        threading.Thread(target=self._watch, daemon=True, name=f"{device.name}: link").start()

    @property
    def alive(self) -> bool:
        """Whether anything can still be asked of it."""
        return not self._closed.is_set() and self._transports[-1].is_active()

    def broke(self) -> bool:
        """Whether it is lost, to whoever lost a channel: that goes a moment before the connection is known to
        have broken."""
        until = time.monotonic() + BREAKING_S
        while self.alive and time.monotonic() < until:
            time.sleep(0.01)
        return not self.alive

    def lost(self) -> LinkLost:
        """The error that says so."""
        why = self._why or "the connection broke"
        return LinkLost(
            f"{self._device.name}: the link is lost: {why}",
            hint="look at the board's power and network; stbench sweep --resume goes on where this ended",
        )

    def channel(self) -> paramiko.Channel:
        """A new session. Raises :class:`LinkLost`, and :class:`DeviceError` where the board refuses."""
        if not self.alive:
            raise self.lost()
        try:
            return self._transports[-1].open_session(timeout=max(self._device.connect_s, 5.0))
        except paramiko.ChannelException as error:
            raise DeviceError(
                f"{self._device.name}: the board refuses another session: {error}",
                hint="look at MaxSessions in its sshd_config",
            ) from error
        except (paramiko.SSHException, OSError, EOFError) as error:
            self.lose(printable(str(error)) or "no answer")
            raise self.lost() from error

    def call(self, command: str, timeout_s: float = CALL_TIMEOUT_S) -> tuple[int, str, str]:
        """Runs a short command line: its exit status, and at most 64 KiB of each output. Raises
        :class:`LinkLost`."""
        channel = self.channel()
        out = {False: b"", True: b""}
        try:
            channel.settimeout(timeout_s)
            channel.exec_command(command)
            channel.shutdown_write()
            for error_stream in (False, True):
                receive = channel.recv_stderr if error_stream else channel.recv
                while len(out[error_stream]) < 1 << 16 and (chunk := receive(1 << 16)):
                    out[error_stream] += chunk
            status = channel.recv_exit_status() if channel.status_event.wait(timeout_s) else -1
        except (paramiko.SSHException, OSError, EOFError) as error:
            if self.broke():
                raise self.lost() from error
            raise DeviceError(
                f"{self._device.name}: no answer from the board: {printable(str(error))}"
            ) from error
        finally:
            channel.close()
        # To a reader a lost link is the end of the output, and no error.
        if status < 0 and self.broke():
            raise self.lost()
        return status, out[False].decode("utf-8", "replace"), out[True].decode("utf-8", "replace")

    def lose(self, why: str) -> None:
        """Gives the link up: whatever waits for it is told."""
        self._why = self._why or why
        self.close()

    def close(self) -> None:
        """Ends the connection; commands that it started are ended on the board."""
        self._closed.set()
        for transport in reversed(self._transports):
            transport.close()

    def _watch(self) -> None:
        patience = self._device.silence_s
        asking: threading.Thread | None = None
        looked = time.monotonic()
        while not self._closed.wait(patience / 4) and self._transports[-1].is_active():
            now = time.monotonic()
            # It was we who stood still: what came meanwhile is yet to be read, and nobody asked for more.
            if now - looked > patience / 2:
                self._heard.at = now
            looked = now
            quiet = now - self._heard.at
            if quiet > patience:
                self.lose(f"no sign of life for {quiet:.0f} s")
            elif quiet > patience / 5 and (asking is None or not asking.is_alive()):
                asking = threading.Thread(target=self._ask, daemon=True)
                asking.start()

    def _ask(self) -> None:
        with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
            self._transports[-1].global_request("keepalive@openssh.com", wait=True)


def open_link(device: Device) -> Link:
    """Connects and logs in. Raises :class:`Unreachable`, :class:`HostKeyRefused`, :class:`LoginRefused`, and
    :class:`InputError` for a bad ~/.ssh/config."""
    transports: list[paramiko.Transport] = []
    try:
        heard = _through(device, route(device), transports)
        return Link(device, transports, heard)
    except BaseException:
        for transport in reversed(transports):
            transport.close()
        raise


def host_key(device: Device) -> tuple[Hop, paramiko.PKey]:
    """The key that the board shows, without logging in there; jump hosts are logged in to. Raises as
    :func:`open_link`."""
    transports: list[paramiko.Transport] = []
    try:
        *jumps, board = route(device)
        if jumps:
            _through(device, jumps, transports)
        transport, _ = _transport(device, board, transports[-1] if transports else None)
        transports.append(transport)
        return board, transport.get_remote_server_key()
    finally:
        for transport in reversed(transports):
            transport.close()


def _through(device: Device, hops: list[Hop], transports: list[paramiko.Transport]) -> _Heard:
    """Logs in to one machine after the other; ``transports`` gets them as they come up."""
    for hop in hops:
        transport, heard = _transport(device, hop, transports[-1] if transports else None)
        transports.append(transport)
        known = hostkeys.known_keys(hop.known_name, hop.known_hosts)
        hostkeys.check(device.name, hop.known_name, transport.get_remote_server_key(), known)
        try:
            log_in(device.name, hop, transport)
        except DeviceError:
            raise
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise _unreachable(device, hop, f"the login broke off: {_why(error)}") from error
    return heard


def _transport(
    device: Device, hop: Hop, through: paramiko.Transport | None
) -> tuple[paramiko.Transport, _Heard]:
    """An encrypted connection to a machine that has not yet proved who it is."""
    heard = _Heard(_socket(device, hop, through))
    transport: paramiko.Transport | None = None
    try:
        transport = paramiko.Transport(cast(Any, heard))
        transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = device.connect_s
        options = transport.get_security_options()
        fast = [cipher for cipher in FAST_CIPHERS if cipher in options.ciphers]
        options.ciphers = (*fast, *(cipher for cipher in options.ciphers if cipher not in fast))
        known = hostkeys.known_keys(hop.known_name, hop.known_hosts)
        options.key_types = hostkeys.key_types(known, options.key_types)
        transport.start_client(timeout=device.connect_s)
        transport.get_remote_server_key()
        return transport, heard
    except (paramiko.SSHException, OSError, EOFError) as error:
        (transport or heard).close()
        why = f"no SSH there: {_why(error)}"
        raise _unreachable(device, hop, why) from error


def _socket(device: Device, hop: Hop, through: paramiko.Transport | None) -> socket.socket | paramiko.Channel:
    try:
        if through is not None:
            target = (hop.host, hop.port)
            return through.open_channel("direct-tcpip", target, ("127.0.0.1", 0), timeout=device.connect_s)
        link = socket.create_connection((hop.host, hop.port), timeout=device.connect_s)
    except socket.gaierror as error:
        raise Unreachable(
            f"{device.name}: {hop} cannot be reached: the name is unknown: {error.strerror}",
            hint="its address in place of the name (host: in devices.yaml); on the board: hostname -I",
        ) from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise _unreachable(device, hop, _why(error), through) from error
    patience = max(int(device.silence_s), 4)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option, value in (
        ("TCP_KEEPIDLE", patience // 4),
        ("TCP_KEEPINTVL", patience // 4),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 1000 * patience),
    ):
        # macOS names some of them differently; the sign of life is asked for anyway.
        if hasattr(socket, option):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return link


def _unreachable(
    device: Device, hop: Hop, why: str, through: paramiko.Transport | None = None
) -> Unreachable:
    way = " from the jump host" if through is not None else ""
    return Unreachable(
        f"{device.name}: {hop} cannot be reached{way}: {why}",
        hint=f"is it on, and sshd running? Try: ssh -p {hop.port} {hop.user}@{hop.host}",
    )


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, paramiko.ChannelException):
        return printable(error.text)
    return printable(getattr(error, "strerror", None) or str(error) or type(error).__name__)
