"""Slow tests in processes beside the session: what is reported, in which order, and what is left of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Each test writes its name and process; `slow` ones wait until the session's own test has run.
TESTS = """
import os, pytest, time

def note(name):
    with open("order", "a") as file:
        file.write(f"{name} {os.getpid()} {os.nice(0)}\\n")

def wait_for(name):
    deadline = time.monotonic() + 200
    while name not in open("order").read():
        assert time.monotonic() < deadline
        time.sleep(0.02)

@pytest.mark.beside("first", seconds=9)
def test_long():
    note("long")
    wait_for("own")
    wait_for("wrong-1")

@pytest.mark.beside("second", seconds=5)
@pytest.mark.parametrize("n", [1, 2])
def test_wrong(n):
    note(f"wrong-{n}")
    wait_for("long")
    print("said before it failed")
    assert n == 1, "two is wrong"

def test_own():
    note("own")
    wait_for("long")
    wait_for("wrong-1")

@pytest.mark.quiet
def test_quiet():
    note("quiet")
"""

WAITS = "def wait_for(name):\n"


def started(folder: Path, source: str, *options: str) -> subprocess.Popen[str]:
    """A pytest session of its own on these tests."""
    (folder / "test_it.py").write_text(source)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
    environment = {key: value for key, value in os.environ.items() if key != "STBENCH_LEASE"}
    environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # half of their time is others' plugins
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "tests.beside", "-v", *options],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(folder: Path, source: str, *options: str) -> tuple[int, str]:
    """Its exit code and output."""
    process = started(folder, source, *options)
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def order(folder: Path) -> dict[str, tuple[int, int]]:
    """Name -> process and niceness, in the order in which they ran."""
    lines = [line.split() for line in (folder / "order").read_text().splitlines()]
    return {name: (int(pid), int(nice)) for name, pid, nice in lines}


def wait_for_file(path: Path) -> str:
    deadline = time.monotonic() + 200
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline, f"no {path.name}"
        time.sleep(0.02)
    return path.read_text()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_for_end(pids: list[int]) -> None:
    deadline = time.monotonic() + 200
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, "processes are left"
        time.sleep(0.05)


def test_results_and_order(tmp_path: Path) -> None:
    """Both kinds at once (each waits for the other), the quiet one before; a failure is told in full."""
    code, said = run(tmp_path, TESTS, "--beside", "2")
    assert code == 1, said
    assert re.search(r"1 failed, 4 passed", said)
    assert "test_it.py::test_wrong[2] FAILED" in said
    assert "AssertionError: two is wrong" in said
    assert "said before it failed" in said
    found = order(tmp_path)
    assert next(iter(found)) == "quiet"
    assert found["quiet"][0] == found["own"][0]
    assert len({found["own"][0], found["long"][0], found["wrong-1"][0]}) == 3
    assert found["wrong-1"] == found["wrong-2"], "a group stays together"
    assert found["own"][1] < found["long"][1]
    assert not list(tmp_path.glob("stbench-beside-*"))


def test_none_beside_is_the_same_in_one_process(tmp_path: Path) -> None:
    alone = TESTS.replace(WAITS, WAITS + "    return\n")
    code, said = run(tmp_path, alone, "--beside", "0")
    assert (code, "1 failed, 4 passed" in said) == (1, True), said
    found = order(tmp_path)
    assert list(found) == ["quiet", "own", "wrong-1", "wrong-2", "long"]
    assert len(set(found.values())) == 1


@pytest.mark.parametrize("options", [["--collect-only"], ["-k", "own or quiet"], ["-k", "long"]])
def test_nothing_is_started_for_what_does_not_run(tmp_path: Path, options: list[str]) -> None:
    """A helper would be another process that imports the file."""
    source = "open('imports', 'a').write('x')\n" + TESTS.replace(WAITS, WAITS + "    return\n")
    code, said = run(tmp_path, source, *options)
    assert code == 0, said
    assert (tmp_path / "imports").read_text() == "x"


def test_nothing_is_started_when_collection_fails(tmp_path: Path) -> None:
    (tmp_path / "test_broken.py").write_text("import nothing_of_that_name\n")
    source = "open('imports', 'a').write('x')\n" + TESTS
    code, said = run(tmp_path, source)
    assert code == 2, said
    assert (tmp_path / "imports").read_text() == "x"
    assert not (tmp_path / "order").exists()


CRASH = """
import os, pytest, time

@pytest.mark.beside("group", seconds=9)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_beside(n):
    if n == 2:
        print("last words", flush=True)
        os.write(2, b"at the end\\n")
        os._exit(7)

def test_own():
    deadline = time.monotonic() + 200
    while not any("0.claim" in files for _, _, files in os.walk(os.environ["TMPDIR"])):
        assert time.monotonic() < deadline
        time.sleep(0.02)
"""


def test_a_process_that_dies_fails_its_test_and_no_other(tmp_path: Path) -> None:
    code, said = run(tmp_path, CRASH, "--beside", "1")
    assert code == 1, said
    assert re.search(r"1 failed, 3 passed", said), said
    assert "test_it.py::test_beside[2] FAILED" in said
    assert "ended with code 7" in said


ENDED = """
    def states():
        for path in pathlib.Path("/proc/self/task").glob("*/children"):
            for pid in path.read_text().split():
                yield pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    import pathlib
    while set(states()) != {"Z"}:
        time.sleep(0.02)
"""


def test_a_process_that_cannot_start_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    """It imports a file that is there for the session only; the session's own test waits for its end."""
    source = "import os\nassert not os.environ.get('STBENCH_LEASE')\n" + TESTS.replace(
        WAITS, WAITS + "    return\n"
    )
    code, said = run(tmp_path, source.replace('    note("own")', ENDED), "--beside", "1")
    assert code == 1, said
    assert "1 failed, 4 passed" in said
    assert "process 0 beside the tests ended early (exit code 2)" in said
    assert "assert not os.environ" in said


LASTING = """
import os, pathlib, pytest, subprocess, time

@pytest.fixture
def board():
    yield
    pathlib.Path("taken-down").touch()

@pytest.mark.beside("group")
def test_beside(board):
    child = subprocess.Popen(["sh", "-c", "trap '' INT TERM; sleep 100 & wait"])
    pathlib.Path("pids").write_text(f"{os.getpid()} {child.pid}\\n")
    child.wait()

def test_own():
    time.sleep(100)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_ended_session_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    """However it ends; fixtures are taken down as after Ctrl-C, and what ignores that is killed."""
    process = started(tmp_path, LASTING, "--beside", "1")
    try:
        pids = [int(pid) for pid in wait_for_file(tmp_path / "pids").split()]
        assert all(map(alive, pids))
        process.send_signal(number)
        process.communicate(timeout=300)
        wait_for_end(pids)
    finally:
        process.kill()
    assert (tmp_path / "taken-down").exists()
    assert not list(tmp_path.glob("stbench-beside-*"))


def test_max_fail_ends_the_processes(tmp_path: Path) -> None:
    source = LASTING.replace("time.sleep(100)", "time.sleep(1); assert False")
    code, said = run(tmp_path, source, "--beside", "1", "-x")
    assert code == 1, said
    if (tmp_path / "pids").exists():
        wait_for_end([int(pid) for pid in (tmp_path / "pids").read_text().split()])
