"""This machine as a device: lines as they come, time limits, cancelling, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stbench.connectors import base, connector_for, local
from stbench.connectors.local import LocalConnector, LocalRunning
from stbench.devices.inventory import Device
from stbench.errors import BusyError, DeviceError
from tests.conftest import late
from tests.host.conftest import ROOT


@pytest.fixture
def connector(tmp_path: Path) -> LocalConnector:
    return LocalConnector(Device("local", work_dir=str(tmp_path / "work")))


def python(connector: LocalConnector, code: str, timeout_s: float = 30, stdin: bytes = b"") -> LocalRunning:
    return connector.start([sys.executable, "-c", code], stdin, timeout_s)


def alive(pid: int) -> bool:
    try:
        # A zombie still has its number.
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_stdin_lines_and_ending(connector: LocalConnector) -> None:
    running = python(
        connector,
        "import sys; print(sys.stdin.read()); print('no newline', end=''); sys.exit(3)",
        stdin=b"in\n",
    )
    assert list(running.lines()) == ["in", "", "no newline"]
    ending = running.ending()
    assert (ending.code, ending.timed_out, ending.stderr) == (3, False, "")


def test_a_signal_and_the_end_of_stderr(connector: LocalConnector) -> None:
    code = "import os\nos.write(2, b'x' * 100000 + b'last words')\nos.kill(os.getpid(), 11)"
    running = python(connector, code)
    assert list(running.lines()) == []
    ending = running.ending()
    assert ending.code == -signal.SIGSEGV
    assert ending.stderr.endswith("last words")
    assert len(ending.stderr) == local.STDERR_TAIL_BYTES


def test_a_large_input_that_nobody_reads(connector: LocalConnector) -> None:
    running = python(connector, "print('done')", stdin=b"x" * (4 << 20))
    assert list(running.lines()) == ["done"]
    assert running.ending().code == 0


def test_time_is_limited(connector: LocalConnector) -> None:
    # A shell is up at once; Python may take longer than that on a busy machine.
    running = connector.start(["sh", "-c", "echo a; exec sleep 60"], b"", 2.0)
    begin = time.monotonic()
    assert list(running.lines()) == ["a"]
    ending = running.ending()
    assert (ending.code, ending.timed_out) == (-signal.SIGKILL, True)
    assert time.monotonic() - begin < 30


def test_a_line_without_end_is_cut_off(connector: LocalConnector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MAX_LINE_BYTES", 1 << 20)
    running = python(connector, "while True: print('x' * 65536, end='', flush=True)")
    assert list(running.lines()) == []
    assert running.ending().code == -signal.SIGKILL
    assert base.MAX_LINE_BYTES > 1 << 20


def test_cancel_ends_the_children_too(
    connector: LocalConnector, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    code = "import subprocess, time\nprint(subprocess.Popen(['sleep', '60']).pid, flush=True)\ntime.sleep(60)"
    running = python(connector, code)
    lines = running.lines()
    child = int(next(lines))
    running.cancel()
    assert list(lines) == []
    assert running.ending().code == -signal.SIGTERM
    eventually(lambda: not alive(child))


def test_what_ignores_sigterm_is_killed(connector: LocalConnector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "CANCEL_GRACE_S", 0.2)
    code = (
        "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    running = python(connector, code)
    lines = running.lines()
    assert next(lines) == "ready"
    running.cancel()
    assert list(lines) == []
    assert running.ending().code == -signal.SIGKILL


def test_lines_after_an_interruption_lose_nothing(
    connector: LocalConnector, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    code = "print('ab', end='', flush=True)\ninput()\nprint('c\\nd')"
    running = connector.start([sys.executable, "-c", code], b"", 60, keep_stdin=True)

    def interrupt() -> None:
        eventually(lambda: running._unread == b"ab")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    found: list[str] = []
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        found += running.lines()
    running.send(b"\n")
    found += running.lines()
    assert found == ["abc", "d"]
    assert running.ending().code == 0


def test_more_stdin_comes_behind_the_first(
    connector: LocalConnector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalRunning, "_feed", late(LocalRunning._feed))
    code = "print(input(), input())"
    running = connector.start([sys.executable, "-c", code], b"first\n", 60, keep_stdin=True)
    running.send(b"second\n")
    assert list(running.lines()) == ["first second"]


def test_commands_die_with_a_killed_controller(
    tmp_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    code = f"""
import sys
from stbench.connectors.local import LocalConnector
from stbench.devices.inventory import Device
running = LocalConnector(Device("local", work_dir={str(tmp_path)!r})).start(
    [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"], b"", 600)
for line in running.lines():
    print(line, flush=True)
"""
    controller = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert controller.stdout is not None
    pid = int(controller.stdout.readline())
    assert alive(pid)
    controller.kill()
    controller.wait()
    controller.stdout.close()
    try:
        eventually(lambda: not alive(pid))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_the_machine_is_taken_once_whatever_its_devices_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code = """
import sys
from stbench.connectors.local import LocalConnector
from stbench.devices.inventory import Device
connectors = [LocalConnector(Device(name)) for name in ("a", "b")]
for connector in connectors:
    connector.connect()
connectors[0].close()
print("taken", flush=True)
sys.stdin.readline()
connectors[1].close()
print("given back", flush=True)
sys.stdin.readline()
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    other = LocalConnector(Device("c", work_dir=str(tmp_path / "elsewhere")))
    try:
        assert holder.stdout.readline() == "taken\n"
        since = r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
        with pytest.raises(
            BusyError,
            match=rf"^c: this machine is in use by another stbench \(process {holder.pid} {since}\)$",
        ):
            other.connect()
        other.connect(lease=False)
        other.close()
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "given back\n"
        other.connect()
        other.close()
    finally:
        holder.communicate("\n")
    assert holder.returncode == 0


def test_files(connector: LocalConnector) -> None:
    path = f"{connector.work_dir}/a/b"
    assert connector.stat(path) is None
    assert connector.read(path) is None
    assert connector.free_bytes(path) > 0
    connector.write(path, b"data")
    assert connector.read(path) == b"data"
    stat = connector.stat(path)
    assert stat is not None
    assert stat.bytes == 4
    assert [p.name for p in Path(path).parent.iterdir()] == ["b"], "no temporary file stays"


def test_what_cannot_start_says_so(connector: LocalConnector) -> None:
    with pytest.raises(DeviceError, match="local: cannot start /no/python: No such file"):
        connector.start(["/no/python"], b"", 1)


def test_an_unknown_way_to_a_device() -> None:
    with pytest.raises(DeviceError, match="b: there is no connector pigeon"):
        connector_for(Device("b", connector="pigeon"))
