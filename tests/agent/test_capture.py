"""A capture has what the probe, the sensors and the doctor read; it is bounded and changes nothing."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from stbench.agent import capture, monitor, probe, wire
from stbench.agent.wirecapture import Capture
from stbench.doctor.captures import CapturedTree
from tests.agent import test_probe
from tests.agent.conftest import TREES, python38, run_agent
from tests.conftest import NO_PYTHON_38, require


def captured(root: Path) -> Capture:
    found = capture.capture(test_probe.CapturedTree(root))
    assert wire.loads(Capture, wire.dumps(found)) == found
    return found


@pytest.mark.parametrize("name", ["pi5", "rk3588", "android", "x86-vm", "heating-rk3588"])
def test_a_capture_answers_as_its_machine_does(name: str) -> None:
    found = captured(TREES / name)
    tree = CapturedTree(found.files, found.denied)
    live = test_probe.CapturedTree(TREES / name)
    assert probe.probe(tree) == probe.probe(live)
    same = {"time_s": 0.0, "own_cpu_s": 0.0}
    assert monitor.snapshot(tree)._replace(**same) == monitor.snapshot(live)._replace(**same)


def test_what_is_denied_is_said() -> None:
    denied = captured(TREES / "android").denied
    assert {"sys/class/thermal", "proc/loadavg", "proc/swaps", "system/build.prop"} <= set(denied)


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(shutil.copytree(TREES / "rk3588", tmp_path / "rk"))
    (root / "proc/loadavg").write_bytes(b"x" * (capture.FILE_BYTES + 1))
    found = captured(root)
    assert len(found.files["proc/loadavg"]) == capture.FILE_BYTES
    assert "proc/loadavg" in found.cut
    monkeypatch.setattr(capture, "MAX_FILES", 10)
    found = captured(root)
    assert len(found.files) == 10
    assert len(found.cut) > 0
    monkeypatch.setattr(capture, "MAX_FILES", 6000)
    monkeypatch.setattr(capture, "TOTAL_BYTES", 1000)
    assert sum(map(len, captured(root).files.values())) <= 1000


def test_a_pipe_in_the_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    os.mkfifo(tmp_path / "proc/loadavg")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 1 kB\n")
    (tmp_path / "proc/swaps").mkdir()
    assert captured(tmp_path).files == {"proc/meminfo": "MemTotal: 1 kB\n"}


def test_this_machine(tmp_path: Path) -> None:
    found = capture.capture(work_dir=str(tmp_path / "not" / "yet"))
    assert found.problem == ""
    assert found.free_bytes is not None
    assert 0 < found.free_bytes <= (found.total_bytes or 0)
    assert found.busy_cpus is not None
    assert os.uname().nodename in found.private
    assert list(tmp_path.iterdir()) == [], "looking leaves nothing behind"
    tree = CapturedTree(found.files, found.denied)
    live, again = probe.probe(), probe.probe(tree)
    assert [dataclasses.replace(c, max_khz=None) for c in live.clusters] == [
        dataclasses.replace(c, max_khz=None) for c in again.clusters
    ]
    assert (live.memory_bytes, live.features) == (again.memory_bytes, again.features)


def test_a_work_dir_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file: Not a directory" in capture.capture(work_dir=str(tmp_path / "file" / "x")).problem
    assert "/proc: " in capture.capture(work_dir="/proc/x").problem


def test_who_is_busy_is_seen(tmp_path: Path) -> None:
    import subprocess
    import sys

    spinner = subprocess.Popen(
        [sys.executable, "-c", "print(1, flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    )
    try:
        assert spinner.stdout is not None
        spinner.stdout.readline()
        busy, busiest = capture._others()
    finally:
        spinner.kill()
        spinner.communicate()
    assert busy is not None
    assert busy > 0.05
    assert any(name.startswith("python") for name in busiest)


@pytest.mark.parametrize("python", ["this", "3.8"])
def test_the_command(python: str, tmp_path: Path) -> None:
    how = {}
    if python == "3.8":
        found = python38()
        require(found is not None, f"{NO_PYTHON_38} on PATH or under pyenv")
        how = {"python": (str(found), "-S", "-I")}
    done = run_agent("capture", "--path", str(tmp_path), **how)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    answer = wire.loads(Capture, done.stdout)
    assert "proc/cpuinfo" in answer.files
    assert answer.python.startswith("3.")
    done = run_agent("capture", "--root", str(TREES / "pi5"), **how)
    assert wire.loads(Capture, done.stdout).files["proc/swaps"].startswith("Filename")
