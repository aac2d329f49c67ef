"""What boards and their links do to commands: each fault is noticed, named, and leaves nothing running."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stbench.connectors import ssh_running
from stbench.connectors.ssh import SshConnector
from stbench.connectors.ssh_running import SshRunning
from stbench.errors import LinkLost, Unreachable
from tests.boards.conftest import Boards, device_of
from tests.boards.sshd import Board, _descendants, wait_until

ENDLESS = "import time\nwhile True: print('tick', flush=True); time.sleep(0.1)"
ROOT_OF_TESTS = Path(__file__).resolve().parents[2]


def connected(board: Board, **keys: object) -> SshConnector:
    connector = SshConnector(device_of(board, **{"silence_s": 2.0, "connect_s": 20.0, **keys}))
    connector.connect()
    return connector


@pytest.fixture
def cabled(boards: Boards) -> Board:
    return boards("far", cable=True)


def ticking(connector: SshConnector) -> tuple[SshRunning, Iterator[str]]:
    running = connector.start([connector.python, "-c", ENDLESS], b"", 300, keep_stdin=True)
    lines = running.lines()
    assert next(lines) == "tick"
    return running, lines


def lost(running: SshRunning, lines: Iterator[str], seconds: float = 40) -> None:
    """The command's lines end, before a silence of 60 s would tell, and it says why."""
    begin = time.monotonic()
    for _ in lines:
        assert time.monotonic() - begin < seconds, "the loss was not noticed"
    ending = running.ending()
    assert (ending.lost, ending.code, ending.timed_out) == (True, -1, False)
    assert time.monotonic() - begin < seconds


def comes_back(board: Board, connector: SshConnector) -> None:
    """Lost until connected again; then as before."""
    with pytest.raises(LinkLost, match=f"{board.name}: the link is lost"):
        connector.stat("/")
    connector.connect()
    assert connector.stat("/") is not None


def sessions(board: Board) -> list[int]:
    """The sshd processes that serve connections."""
    assert board._sshd is not None
    titles = {}
    for pid in _descendants({board._sshd.pid}):
        with contextlib.suppress(OSError):  # gone by now
            titles[pid] = Path(f"/proc/{pid}/cmdline").read_bytes()
    return [pid for pid, title in titles.items() if title.startswith(b"sshd: ") and b"listener" not in title]


def test_a_cable_is_cut_and_mended(cabled: Board) -> None:
    connector = connected(cabled)
    running, lines = ticking(connector)
    cabled.cut()
    lost(running, lines)
    with pytest.raises(LinkLost) as caught:
        connector.start(["true"], b"", 5)
    assert "--resume" in caught.value.hint
    with pytest.raises(Unreachable, match=r"far: root@[\d.]+ cannot be reached: no answer in time"):
        SshConnector(device_of(cabled, connect_s=1.0)).connect()
    assert cabled.processes(), "nobody told the board yet"
    cabled.mend()
    connector.connect()
    assert connector.stat("/") is not None
    connector.close()
    # What it had to say found nobody: sshd ends the session, and the command's own watch ends the command.
    wait_until(lambda: not cabled.processes(), "no process stays")


def test_reset_in_mid_command(cabled: Board) -> None:
    connector = connected(cabled, silence_s=60.0)
    running, lines = ticking(connector)
    cabled.reset()
    running.send(b"x")
    lost(running, lines)
    cabled.mend()
    comes_back(cabled, connector)
    connector.close()


def test_sshd_killed_in_mid_command(board: Board) -> None:
    connector = connected(board, silence_s=60.0)
    running, lines = ticking(connector)
    board.stop_sshd()
    lost(running, lines)
    with pytest.raises(LinkLost):
        connector.stat("/")
    with pytest.raises(
        Unreachable, match=r"^board: root@127.0.0.1:\d+ cannot be reached: Connection refused$"
    ):
        connector.connect()
    wait_until(lambda: not board.processes(), "no process stays")
    board.start_sshd()
    connector.connect()
    assert connector.stat("/") is not None
    connector.close()


def test_a_board_that_hangs_with_its_network_up(board: Board) -> None:
    """Its kernel acknowledges everything; only the sign of life does not come."""
    connector = connected(board)
    running = connector.start(["sleep", "300"], b"", 300)
    lines = running.lines()
    frozen = sessions(board)
    assert frozen
    for pid in frozen:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        lost(running, lines)
        with pytest.raises(LinkLost, match=r"no sign of life for \d+ s"):
            connector.stat("/")
    finally:
        for pid in frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not board.processes(), "no process stays")


def test_a_quiet_command_is_not_a_lost_link(board: Board) -> None:
    connector = connected(board, silence_s=3.0)
    running = connector.start(["sleep", "8"], b"", 60)
    assert list(running.lines()) == []
    assert running.ending().code == 0
    connector.close()


def test_a_promised_line_that_does_not_come(board: Board) -> None:
    connector = connected(board, silence_s=60.0)
    running = connector.start(["sleep", "300"], b"", 300, silence_s=1.0)
    lost(running, running.lines())
    with pytest.raises(LinkLost, match="nothing was heard for"):
        connector.stat("/")
    connector.connect()
    connector.close()
    wait_until(lambda: not board.processes(), "no process stays")


def test_a_cut_behind_a_jump_host(boards: Boards) -> None:
    """The way to the jump host stays up: only the sign of life tells."""
    gateway, far = boards("gateway"), boards("far", cable=True)
    connector = connected(far, proxy_jump=f"{gateway.user}@{gateway.host}:{gateway.port}")
    running, lines = ticking(connector)
    far.cut()
    lost(running, lines)
    far.mend()
    comes_back(far, connector)
    connector.close()
    far.stop_sshd()
    with pytest.raises(
        Unreachable, match=r"far: root@[\d.]+ cannot be reached from the jump host: Connect f"
    ):
        connector.connect()


def test_a_reboot(board: Board) -> None:
    connector = connected(board)
    running, lines = ticking(connector)
    before = connector.read("/proc/sys/kernel/random/boot_id")
    board.reboot()
    lost(running, lines)
    comes_back(board, connector)
    assert connector.read("/proc/sys/kernel/random/boot_id") != before
    connector.close()


def test_closing_ends_what_still_runs(board: Board) -> None:
    connector = connected(board)
    running, _ = ticking(connector)
    begin = time.monotonic()
    connector.close()
    wait_until(lambda: not board.processes(), "no process stays")
    assert running.over
    assert time.monotonic() - begin < 20


def test_commands_die_with_a_killed_controller(board: Board) -> None:
    code = f"""
import time
from stbench.connectors.ssh import SshConnector
from stbench.devices.inventory import Device
connector = SshConnector(Device(**{vars(device_of(board))!r}))
connector.connect()
running = connector.start(["sleep", "600"], b"", 600)
print("up", flush=True)
time.sleep(600)
"""
    controller = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT_OF_TESTS, stdout=subprocess.PIPE, text=True
    )
    assert controller.stdout is not None
    assert controller.stdout.readline() == "up\n"
    wait_until(lambda: "sleep 600" in board.processes().values(), "it runs")
    controller.kill()
    controller.wait()
    controller.stdout.close()
    wait_until(lambda: not board.processes(), "no process stays")


def test_a_controller_that_stood_still_has_lost_nothing(board: Board) -> None:
    """Stopped, or the machine asleep, for longer than a board may be silent."""
    code = f"""
import sys
from stbench.connectors.ssh import SshConnector
from stbench.devices.inventory import Device
connector = SshConnector(Device(**{vars(device_of(board, silence_s=2.0))!r}))
connector.connect()
print("up", flush=True)
sys.stdin.readline()
print(connector.stat("/") is not None, flush=True)
connector.close()
"""
    controller = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT_OF_TESTS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert controller.stdout is not None
    assert controller.stdout.readline() == "up\n"
    controller.send_signal(signal.SIGSTOP)
    time.sleep(5)
    controller.send_signal(signal.SIGCONT)
    time.sleep(0.5)
    assert controller.communicate("\n")[0] == "True\n"


def test_a_link_that_breaks_in_the_greeting_may_heal(board: Board, tmp_path: Path) -> None:
    """As that to a board that shuts down: it was asked for its Python, and said nothing of it."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nread a b c sshd rest < /proc/$PPID/stat\nkill -KILL $sshd\n")
    script.chmod(0o755)
    with pytest.raises(LinkLost, match="board: the link is lost: the connection broke"):
        SshConnector(device_of(board, python=str(script))).connect()


def test_loss_and_a_slow_link_are_no_faults(cabled: Board, tmp_path: Path) -> None:
    connector = connected(cabled, silence_s=3.0)
    cabled.lose(3)
    data = os.urandom(1 << 20)
    connector.write(f"{connector.work_dir}/lossy", data)
    assert connector.read(f"{connector.work_dir}/lossy") == data
    cabled.mend()
    cabled.slow(200_000)
    begin = time.monotonic()
    connector.write(f"{connector.work_dir}/slow", data)
    assert time.monotonic() - begin > 3, "the link was slow"
    assert connector.read(f"{connector.work_dir}/slow") == data
    connector.close()


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", os.urandom(4096) + b"\n"])
def test_what_listens_is_no_sshd(boards: Boards, says: bytes) -> None:
    board = boards()
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def answer() -> None:
            link, _ = server.accept()
            link.sendall(says)
            held.append(link)

        threading.Thread(target=answer, daemon=True).start()
        device = device_of(board, port=server.getsockname()[1], connect_s=1.0)
        begin = time.monotonic()
        with pytest.raises(Unreachable, match="cannot be reached: no SSH there") as caught:
            SshConnector(device).connect()
        assert "is it on, and sshd running" in caught.value.hint
        assert time.monotonic() - begin < 20
        for link in held:
            link.close()


def test_a_name_that_nobody_knows(board: Board) -> None:
    with pytest.raises(Unreachable, match=r"nowhere\.invalid.* cannot be reached: the name is unknown"):
        SshConnector(device_of(board, host="nowhere.invalid")).connect()


def test_cancelling_over_a_link_that_is_gone(cabled: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_running, "CANCEL_GRACE_S", 0.5)
    connector = connected(cabled)
    running, lines = ticking(connector)
    cabled.cut()
    begin = time.monotonic()
    running.cancel()
    for _ in lines:
        pass
    assert running.ending().lost or running.ending().timed_out
    assert time.monotonic() - begin < 30
    cabled.mend()
    connector.close()
    wait_until(lambda: not cabled.processes(), "no process stays")
