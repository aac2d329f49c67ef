"""Boards to test with, and a controller's home that trusts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stbench.devices.inventory import Device
from tests.boards.sshd import Board, make_key


@dataclass(frozen=True)
class Controller:
    """The home of whoever runs stbench: a key without passphrase, an empty ``~/.ssh/config``, pinned keys."""

    home: Path
    key: Path
    public_key: str
    known_hosts: Path

    def trust(self, board: Board) -> None:
        """Pins a board's present host key, as ``stbench devices trust`` does."""
        with self.known_hosts.open("a") as file:
            file.write(board.known_hosts_line())


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Controller:
    """HOME, XDG_CONFIG_HOME and XDG_CACHE_HOME below the test's directory; no agent."""
    home = tmp_path / "controller"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    key = home / ".ssh" / "id_ed25519"
    public = make_key(key)
    os.chmod(key.parent, 0o700)
    known_hosts = home / ".config" / "stbench" / "known_hosts"
    known_hosts.parent.mkdir(parents=True)
    return Controller(home, key, public, known_hosts)


def device_of(board: Board, **keys: Any) -> Device:
    """A board as devices.yaml would settle it; ``keys`` are fields of Device and win."""
    found: dict[str, Any] = {"host": board.host, "port": board.port, "user": board.user}
    found.update(work_dir=str(board.work_dir), key=str(board.key or ""))
    return Device(board.name, connector="ssh", **{**found, **keys})


class Boards:
    """Makes boards: ``boards("rpi5")``, ``boards("far", cable=True)``; see :class:`Board`."""

    def __init__(self, directory: Path, controller: Controller) -> None:
        self._directory = directory
        self._controller = controller
        self.made: list[Board] = []

    def __call__(
        self,
        name: str = "board",
        *,
        trust: bool = True,
        cable: bool = False,
        path: str = "",
        config: str = "",
        public_keys: tuple[str, ...] | None = None,
    ) -> Board:
        """A board that lets the controller's key in and whose host key is pinned, unless told otherwise.
        ``path``: the PATH of its commands; ``config``: first lines of its sshd_config."""
        keys = (self._controller.public_key,) if public_keys is None else public_keys
        board = Board(self._directory / name, name, keys, cable=cable, path=path, config=config)
        board.key = self._controller.key
        self.made.append(board)
        if trust:
            self._controller.trust(board)
        return board


@pytest.fixture
def boards(tmp_path: Path, controller: Controller) -> Iterator[Boards]:
    """A maker of boards, which are gone after the test."""
    maker = Boards(tmp_path / "boards", controller)
    yield maker
    for board in maker.made:
        board.close()


@pytest.fixture
def board(boards: Boards) -> Board:
    """One board on loopback."""
    return boards()
