"""Commands and files on a real sshd: what comes back, and that nothing stays behind."""

from __future__ import annotations

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

from stbench.connectors import base, connector_for, ssh_running
from stbench.connectors.ssh import SshConnector
from stbench.connectors.ssh_running import SshRunning, command_line
from stbench.errors import DeviceError
from tests.boards.conftest import Boards, device_of
from tests.boards.sshd import ROOT, Board, wait_until
from tests.conftest import late, require


@pytest.fixture
def connector(board: Board) -> Iterator[SshConnector]:
    made = connector_for(device_of(board))
    assert isinstance(made, SshConnector)
    made.connect()
    yield made
    made.close()


def python(connector: SshConnector, code: str, timeout_s: float = 30, stdin: bytes = b"") -> SshRunning:
    return connector.start([connector.python, "-c", code], stdin, timeout_s)


def test_stdin_lines_and_ending(connector: SshConnector) -> None:
    running = python(
        connector,
        "import os, sys; print(sys.stdin.read()); print(os.getcwd(), end=''); sys.exit(3)",
        stdin=b"in\n",
    )
    assert list(running.lines()) == ["in", "", connector.work_dir]
    ending = running.ending()
    assert (ending.code, ending.timed_out, ending.stderr, ending.lost) == (3, False, "", False)


def test_arguments_arrive_as_they_are(connector: SshConnector) -> None:
    odd = [
        "",
        " ",
        "a b",
        "'",
        '"',
        "$HOME",
        "`id`",
        "$(id)",
        "\\",
        "\\n",
        "!",
        "*",
        "~",
        "-x",
        "ä\n\té",
        ";&|",
    ]
    running = connector.start([connector.python, "-c", "import sys; print(sys.argv[1:])", *odd], b"", 30)
    assert list(running.lines()) == [repr(odd)]


def test_a_signal_and_the_end_of_stderr(connector: SshConnector) -> None:
    code = "import os\nos.write(2, b'x' * 100000 + b'last words')\nos.kill(os.getpid(), 9)"
    running = python(connector, code)
    assert list(running.lines()) == []
    ending = running.ending()
    assert ending.code == -signal.SIGKILL
    assert "last words" in ending.stderr[-100:]
    assert len(ending.stderr) <= ssh_running.STDERR_TAIL_BYTES


def test_what_is_not_there_says_so(connector: SshConnector) -> None:
    running = connector.start(["/no/python"], b"", 10)
    assert list(running.lines()) == []
    ending = running.ending()
    assert ending.code == 127
    assert ending.stderr.strip() == "sh: 1: /no/python: not found"


def test_a_large_input_that_nobody_reads(connector: SshConnector) -> None:
    running = python(connector, "print('done')", stdin=b"x" * (4 << 20))
    assert list(running.lines()) == ["done"]
    assert running.ending().code == 0


def test_stdin_that_is_kept_open(connector: SshConnector) -> None:
    code = "import sys\nfor line in sys.stdin: print(line.strip()[::-1], flush=True)\nprint('end')"
    running = connector.start([connector.python, "-c", code], b"abc\n", 30, keep_stdin=True)
    lines = running.lines()
    assert next(lines) == "cba"
    running.send(b"def\n")
    assert next(lines) == "fed"
    running.close_stdin()
    assert list(lines) == ["end"]
    assert running.ending().code == 0
    running.send(b"nobody is there\n")


def test_more_stdin_comes_behind_the_first(connector: SshConnector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SshRunning, "_feed", late(SshRunning._feed))
    running = connector.start(
        [connector.python, "-c", "print(input(), input())"], b"first\n", 60, keep_stdin=True
    )
    running.send(b"second\n")
    assert list(running.lines()) == ["first second"]


def test_time_is_limited(board: Board, connector: SshConnector) -> None:
    running = python(connector, "import time\nprint('a', flush=True)\ntime.sleep(60)", timeout_s=5.0)
    assert list(running.lines()) == ["a"]
    ending = running.ending()
    assert (ending.code, ending.timed_out, ending.lost) == (-signal.SIGKILL, True, False)
    wait_until(lambda: not board.processes(), "no process stays")


def test_a_line_without_end_is_cut_off(
    board: Board, connector: SshConnector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_running, "MAX_LINE_BYTES", 1 << 20)
    running = python(connector, "while True: print('x' * 65536, end='', flush=True)")
    assert list(running.lines()) == []
    ending = running.ending()
    assert (ending.code, ending.timed_out) == (-signal.SIGKILL, False), "not by its time limit"
    wait_until(lambda: not board.processes(), "no process stays")
    assert base.MAX_LINE_BYTES > 1 << 20


def test_cancel_ends_the_children_too(board: Board, connector: SshConnector) -> None:
    code = "import subprocess, time\nprint(subprocess.Popen(['sleep', '60']).pid, flush=True)\ntime.sleep(60)"
    running = python(connector, code)
    lines = running.lines()
    next(lines)
    running.cancel()
    assert list(lines) == []
    assert running.ending().code == -signal.SIGTERM
    wait_until(lambda: not board.processes(), "no process stays")


def test_what_ignores_sigterm_is_killed(
    board: Board, connector: SshConnector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_running, "CANCEL_GRACE_S", 0.2)
    code = (
        "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    running = python(connector, code)
    lines = running.lines()
    assert next(lines) == "ready"
    running.cancel()
    assert list(lines) == []
    assert running.ending().code == -signal.SIGKILL
    wait_until(lambda: not board.processes(), "no process stays")


def test_what_a_command_leaves_in_its_group_is_ended(board: Board, connector: SshConnector) -> None:
    running = connector.start(["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo started"], b"", 30)
    assert list(running.lines()) == ["started"]
    assert running.ending().code == 0
    wait_until(lambda: not board.processes(), "no process stays")


def test_what_detaches_itself_stays(board: Board, connector: SshConnector) -> None:
    # Popen comes back when the new session is there: what is still in the command's group ends with it.
    code = """
import subprocess
null = subprocess.DEVNULL
subprocess.Popen(["sleep", "60"], start_new_session=True, stdin=null, stdout=null, stderr=null)
print("started")
"""
    running = python(connector, code)
    assert list(running.lines()) == ["started"]
    assert running.ending().code == 0
    connector.close()
    time.sleep(0.5)
    wait_until(lambda: list(board.processes().values()) == ["sleep 60"], "it alone stays")


def test_lines_after_an_interruption_lose_nothing(connector: SshConnector) -> None:
    code = (
        "import time\nfor part in ('ab', 'c\\n', 'd\\n'):\n  print(part, end='', flush=True); time.sleep(0.5)"
    )
    running = python(connector, code)

    def interrupt() -> None:
        wait_until(lambda: running._unread, "half a line is read")
        signal.raise_signal(signal.SIGINT)

    found: list[str] = []
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        found += running.lines()
    found += running.lines()
    assert found == ["abc", "d"]
    assert running.ending().code == 0


def test_one_connection_with_aes_gcm_serves_all(board: Board, connector: SshConnector) -> None:
    threads = [threading.Thread(target=connector.stat, args=("/",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    connector.connect()
    assert connector.stat("/") is not None
    log = (board.directory / "sshd.log").read_text()
    assert log.count("Accepted publickey") == 1
    assert connector._link is not None
    transport = connector._link._transports[0]
    assert transport.remote_cipher == "aes128-gcm@openssh.com"
    # What is not acknowledged for that long is lost, whatever else asks for signs of life.
    patience = transport.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert patience == 1000 * connector.device.silence_s


def test_files(connector: SshConnector) -> None:
    path = f"{connector.work_dir}/a/b $(x) 'ä'"
    assert connector.stat(path) is None
    assert connector.read(path) is None
    connector.remove(path)
    assert connector.free_bytes(path) > 0
    for data in (b"", b"data\0\n", os.urandom(100_000)):
        connector.write(path, data)
        assert connector.read(path) == data
    found = connector.stat(path)
    assert found is not None
    assert (found.bytes, found.mtime_ns) == (100_000, os.stat(path).st_mtime_ns)
    assert [p.name for p in Path(path).parent.iterdir()] == [Path(path).name], "no temporary file stays"
    connector.remove(path)
    assert connector.stat(path) is None


def test_the_default_work_directory_is_below_the_home(board: Board) -> None:
    connector = SshConnector(device_of(board, work_dir=""))
    connector.connect(lease=False)
    assert connector.work_dir == f"{board.home}/.cache/stbench"
    assert connector.models_dir == f"{board.home}/.cache/stbench/models"
    assert connector.remote
    connector.close()


def test_a_talkative_shell_is_no_harm(board: Board) -> None:
    (board.home / ".bashrc").write_text("echo welcome; echo '::stbench {\"no\": '; echo to >&2\n")
    connector = SshConnector(device_of(board))
    connector.connect()
    connector.write(f"{connector.work_dir}/x", b"1")
    assert connector.read(f"{connector.work_dir}/x") == b"1"
    running = connector.start(["sh", "-c", "echo out; echo err >&2"], b"", 10)
    assert list(running.lines())[-1] == "out"
    assert running.ending().stderr.endswith("err\n")
    connector.close()


def test_a_board_without_python(boards: Boards, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "bash", "mkdir", "rm"):
        (tools / name).symlink_to(f"/bin/{name}")
    board = boards(path=str(tools))
    with pytest.raises(
        DeviceError, match=r"^board: no python3 on the board: .*python3: not found$"
    ) as caught:
        SshConnector(device_of(board)).connect()
    assert "sudo apt install python3" in caught.value.hint
    (tools / "python3").write_text("#!/bin/sh\necho '(3, 7)'\n")
    (tools / "python3").chmod(0o755)
    with pytest.raises(DeviceError, match=r"python3 on the board is Python 3\.7; 3\.8 or newer is needed"):
        SshConnector(device_of(board)).connect()
    good = SshConnector(device_of(board, python=sys.executable))
    good.connect()
    assert good.python == sys.executable
    good.close()


def test_a_work_directory_that_cannot_be_written(board: Board) -> None:
    board.home.joinpath("file").write_text("")
    with pytest.raises(
        DeviceError, match=r"^board: .*/file/x cannot be used on the board: mkdir: .*Not a dir"
    ):
        SshConnector(device_of(board, work_dir=f"{board.home}/file/x")).connect()
    require(ROOT, "mounting a read-only directory needs root")
    board.work_dir.mkdir()
    board.run(["mount", "--bind", board.work_dir, board.work_dir])
    board.run(["mount", "-o", "remount,bind,ro", board.work_dir])
    with pytest.raises(DeviceError, match=r"cannot be used on the board: .*Read-only file system") as caught:
        SshConnector(device_of(board)).connect()
    assert "name a work_dir in devices.yaml" in caught.value.hint
    other = SshConnector(device_of(board, work_dir=str(board.home)))
    other.connect()
    for call in (
        lambda: other.write(f"{board.work_dir}/x", b""),
        lambda: other.put(Path(__file__), f"{board.work_dir}/x", "0" * 64, lambda done, total: None),
    ):
        with pytest.raises(DeviceError, match=r"work/x.*: Read-only file system$"):
            call()
    other.close()


def test_a_server_without_process_groups() -> None:
    """As some small servers do it: the command gets a group of its own, and its end ends nobody else."""
    line = command_line(["sh", "-c", "echo out; exit 3"], "/", 10)
    # In a session of its own: what ends too much must not end the tests.
    around = subprocess.run(
        ["sh", "-c", f"({line}); echo went on"],
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
    )
    assert around.stdout == "out\nwent on\n"
    assert "::stbench exit 3\n" in around.stderr


def test_a_server_that_goes_before_the_command_begins(tmp_path: Path) -> None:
    """A new parent is no sshd: what begins only now has nobody to end it, and does not begin."""
    begun = tmp_path / "begun"
    line = command_line(["touch", str(begun)], "/", 10)
    reader, writer = os.pipe()
    server = subprocess.Popen(
        ["sh", "-c", 'sh -c "$1" & exit 0', "sh", f"echo $$; kill -STOP $$; {line}"],
        stdout=subprocess.PIPE,
        stderr=writer,
        text=True,
        start_new_session=True,
    )
    os.close(writer)
    assert server.stdout is not None
    pid = int(server.stdout.readline())
    assert server.wait() == 0
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().split()[2] == "T", "it has stopped")
    os.close(reader)
    os.kill(pid, signal.SIGCONT)
    # Whoever holds stdout is of the group: the end of the file is the end of all of it.
    assert server.stdout.read() == ""
    server.stdout.close()
    assert not begun.exists()


def test_a_board_ends_what_nobody_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the link goes silently sshd does not notice for hours; the command's own time is limited."""
    monkeypatch.setattr(ssh_running, "SPARE_ROUNDS", 1)
    line = command_line(["sleep", "600"], "/", 1.0)
    begin = time.monotonic()
    done = subprocess.run(
        ["sh", "-c", line], timeout=60, start_new_session=True, capture_output=True, check=False
    )
    assert b"::stbench exit 143" in done.stderr
    assert time.monotonic() - begin > 1.0
