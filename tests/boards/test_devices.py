"""`stbench devices add`, `doctor` and the list, over real SSH servers."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stbench import cli
from stbench.connectors import hostkeys
from stbench.devices.inventory import load_inventory
from tests.boards.conftest import Boards, Controller
from tests.boards.sshd import Board

ROOT = Path(__file__).resolve().parents[2]

FILE = """\
# my boards
devices:
    local:   # this machine
        enabled: true

    # one day:
    # other: {connector: ssh, host: other}

engines:   # none yet
    llama-bench: {}
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    controller: Controller,
) -> Run:
    """The program, in a directory of its own."""
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")

    def call(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(argv)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def shown(board: Board) -> str:
    """The fingerprint as ssh-keygen says it."""
    path = board.directory / "host_key.pub"
    said = subprocess.run(["ssh-keygen", "-lf", str(path)], capture_output=True, text=True, check=True).stdout
    return said.split()[1]


def target(board: Board) -> str:
    return f"{board.user}@{board.host}:{board.port}"


def test_add_pins_and_appends_and_leaves_the_rest_alone(
    run: Run, boards: Boards, controller: Controller
) -> None:
    board = boards("rpi5", trust=False)
    Path("devices.yaml").write_text(FILE)
    os.chmod("devices.yaml", 0o640)
    argv = ("devices", "add", target(board), "--name", "rpi5", "--fingerprint", shown(board))
    code, out, err = run(*argv)
    assert (code, "rpi5: " in out) == (0, True), err
    text = Path("devices.yaml").read_text()
    before, after = FILE.split("\nengines:")
    added = text.removeprefix(before).removesuffix("\nengines:" + after)
    assert text.startswith(before)
    assert text.endswith("\nengines:" + after)
    blank, comment, *lines = added.splitlines()
    assert (blank, comment[:6]) == ("", "    # ")
    assert lines[:4] == [
        "    rpi5:",
        "        connector: ssh",
        f"        host: {board.host}",
        f"        port: {board.port}",
    ]
    assert os.stat("devices.yaml").st_mode & 0o777 == 0o640
    assert [device.name for device in load_inventory(Path("devices.yaml")).devices] == ["local", "rpi5"]
    assert board.public_host_key.split()[1] in hostkeys.pinned_file().read_text()
    code, _, err = run(*argv)
    assert code == 2
    assert "has a device rpi5 already" in err
    assert "stbench devices trust rpi5" in err
    code, _, err = run(*argv[:3], "--name", "again")
    assert (code, "rpi5 is this board already" in err) == (2, True)
    code, out, err = run("devices", "--json")
    facts = {entry["name"]: entry["facts"] for entry in json.loads(out)}
    assert facts["rpi5"]["machine"] == os.uname().machine, err


def test_add_to_a_directory_without_a_file(run: Run, boards: Boards) -> None:
    board = boards("rpi5")
    code, out, err = run("devices", "add", target(board), "--json")
    assert code == 0, err
    (device,) = load_inventory(Path("devices.yaml")).devices
    assert (device.name, device.host, device.port, device.user) == (
        "127-0-0-1",
        board.host,
        board.port,
        board.user,
    )
    assert json.loads(out)["facts"]["n_cpus"] >= 1


def test_a_wrong_fingerprint_or_nobody_to_ask_adds_nothing(run: Run, boards: Boards) -> None:
    board = boards("rpi5", trust=False)
    code, _, err = run("devices", "add", target(board), "--fingerprint", "SHA256:" + "A" * 43)
    assert code == 4
    assert f"shows the host key {shown(board)}, not SHA256:AAA" in err
    code, _, err = run("devices", "add", target(board))
    assert code == 4
    assert f"stbench devices add {target(board)} --yes-this-fingerprint {shown(board)}" in err
    assert not Path("devices.yaml").exists()
    assert not hostkeys.pinned_file().exists()


def test_a_changed_key_is_refused_even_with_its_fingerprint(run: Run, boards: Boards) -> None:
    board = boards("rpi5")
    board.new_host_key()
    code, _, err = run("devices", "add", target(board), "--fingerprint", shown(board))
    assert (code, "has changed" in err) == (4, True), err
    assert not Path("devices.yaml").exists()


def test_a_refused_login_adds_nothing(run: Run, boards: Boards) -> None:
    board = boards("rpi5", public_keys=())
    code, _, err = run("devices", "add", target(board))
    assert (code, "lets none of our keys in" in err) == (4, True), err
    assert not Path("devices.yaml").exists()


@pytest.mark.parametrize(("answer", "code"), [("yes", 0), ("no", 4)])
def test_the_question_at_a_terminal(run: Run, boards: Boards, answer: str, code: int) -> None:
    board = boards("rpi5", trust=False)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "stbench.cli", "devices", "add", target(board)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    try:
        os.close(theirs)
        said = b""
        while b"(yes/no)" not in said:
            said += os.read(ours, 4096)
        assert shown(board).encode() in said.replace(b"\r\n", b"")
        os.write(ours, f"{answer}\n".encode())
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
        os.close(ours)
    assert process.returncode == code
    assert Path("devices.yaml").exists() == (code == 0)


# ---- doctor ------------------------------------------------------------------------------------------


def test_the_doctor_over_ssh_and_its_bundle(run: Run, boards: Boards, controller: Controller) -> None:
    board = boards("wonderland")
    Path("devices.yaml").write_text("devices:\n" + board.device_yaml())
    code, out, err = run("devices", "doctor", "--json", "--bundle", "b.zip")
    assert code == 0, err
    (found,) = json.loads(out)
    assert (found["device"], found["problem"]) == ("wonderland", "")
    assert "clock" not in [finding["name"] for finding in found["findings"]], "one machine has one clock"
    code, out, _ = run("devices", "doctor", "--tree", "b.zip")
    assert out.startswith("board-1: ")
    assert b"wonderland" not in Path("b.zip").read_bytes()
    assert str(controller.home).encode() not in Path("b.zip").read_bytes()


def test_a_board_that_is_off_is_told_and_the_others_examined(run: Run, boards: Boards) -> None:
    on, off = boards("lit"), boards("dark")
    off.stop_sshd()
    Path("devices.yaml").write_text("devices:\n" + on.device_yaml() + off.device_yaml())
    code, out, err = run("devices", "doctor")
    assert (code, "lit: " in out) == (4, True)
    assert "dark: not examined: " in err
    assert "(try: is it on, and sshd running?" in err
    code, out, err = run("devices", "doctor", "lit", "--bundle", "b.zip")
    assert (code, Path("b.zip").exists()) == (0, True), err
    code, _, err = run("devices", "doctor", "lid")
    assert (code, "unknown device" in err) == (2, True)


def test_a_work_dir_and_a_python_that_will_not_do(run: Run, boards: Boards) -> None:
    board = boards("rpi5")
    old = next(iter(sorted(Path.home().parent.glob("*/.pyenv/versions/3.7.*/bin/python"))), None)
    entries = board.device_yaml("nowhere", work_dir="/proc/x") + board.device_yaml(
        "none", python="/no/python3"
    )
    if old is not None:
        entries += board.device_yaml("old", python=str(old))
    Path("devices.yaml").write_text("devices:\n" + entries)
    code, out, err = run("devices", "doctor", "--json")
    assert code == 3, err
    found = {entry["device"]: entry["findings"] for entry in json.loads(out)}
    assert [finding["name"] for finding in found["nowhere"]] == ["work-dir"]
    assert "/proc/x" in found["nowhere"][0]["text"]
    assert [finding["name"] for finding in found["none"]] == ["python"]
    if old is not None:
        assert [finding["name"] for finding in found["old"]] == ["python"]
        assert "3.7" in found["old"][0]["text"]


def test_a_clock_that_is_off(run: Run, boards: Boards, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    from stbench.doctor import examination

    board = boards("rpi5")
    Path("devices.yaml").write_text("devices:\n" + board.device_yaml())
    real = time.time
    monkeypatch.setattr(examination.time, "time", lambda: real() + 10800)
    _, out, _ = run("devices", "doctor", "--json")
    (found,) = json.loads(out)
    (clock,) = (finding for finding in found["findings"] if finding["name"] == "clock")
    assert "3 h behind" in clock["text"]


def test_an_answer_that_is_none(run: Run, boards: Boards, tmp_path: Path) -> None:
    """A board whose Python prints what it likes is a failure with a name, not a traceback."""
    board = boards("rpi5")
    liar = tmp_path / "python3"
    liar.write_text(
        f'#!/bin/sh\ncase "$*" in *capture*) printf \'{{"files": 3}}\\n\\033[2Jgarbage\\n\'; exit 0;; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    liar.chmod(0o755)
    Path("devices.yaml").write_text("devices:\n" + board.device_yaml(python=str(liar)))
    code, _, err = run("devices", "doctor")
    assert (code, "could not capture the machine" in err) == (4, True)
    assert "\x1b" not in err
