"""README's first command, run as a newcomer would: a fresh copy, a fresh venv, the system's Python."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import require

ROOT = Path(__file__).resolve().parents[1]
SYSTEM_PYTHON = Path("/usr/bin/python3")


def fresh_copy(destination: Path) -> Path:
    """What a clone would hold, uncommitted changes included."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        source = ROOT / name
        if source.is_file() and not name.startswith(("results/", "reports/")):
            target = destination / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    return destination


def readme_command(name: str) -> str:
    module = runpy.run_path(str(ROOT / ".ci" / "readme_command.py"))
    command: str = module["command"](name)
    return command


def system_path() -> str:
    """The system's PATH without any virtual environment."""
    return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@pytest.mark.slow
@pytest.mark.beside(seconds=140)
@pytest.mark.timeout(1800)
def test_sweep_command_from_a_fresh_copy(tmp_path: Path) -> None:
    require(SYSTEM_PYTHON.exists(), "no /usr/bin/python3")
    checkout = fresh_copy(tmp_path / "stbench")
    env = {
        "PATH": system_path(),
        "HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "LANG": "C.UTF-8",
        "PIP_CACHE_DIR": os.environ.get("PIP_CACHE_DIR", str(Path.home() / ".cache" / "pip")),
    }
    (tmp_path / "home").mkdir()
    if config := os.environ.get("PIP_CONFIG_FILE"):
        env["PIP_CONFIG_FILE"] = config
    # What CI sets so that nothing is compiled or downloaded twice (.ci/run); ccache's files lie in its HOME.
    passed = ("PIP_", "CCACHE_", "CMAKE_C_COMPILER_LAUNCHER", "CMAKE_CXX_COMPILER_LAUNCHER", "STBENCH_LEASE")
    env |= {key: value for key, value in os.environ.items() if key.startswith(passed)}
    env.setdefault("CCACHE_DIR", str(Path.home() / ".cache" / "ccache"))
    done = subprocess.run(
        ["bash", "-c", readme_command("sweep")],
        cwd=checkout,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=1700,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "SmallThinker 4B+sparse ffn +sparse lm_head" in done.stdout
    (records_path,) = checkout.glob("results/*/records.jsonl")
    records = [json.loads(line) for line in records_path.read_text().splitlines()]
    assert {record["status"] for record in records} == {"ok"}
    assert {record["check"]["verdict"] for record in records} == {"ok"}
    (report,) = checkout.glob("reports/*/table.md")
    assert "synthetic" in report.read_text()
    assert list(checkout.glob("reports/*/*.png"))


@pytest.mark.slow
def test_install_without_a_compiler_says_what_is_missing(tmp_path: Path) -> None:
    """ninja and the compiler are off PATH: one sentence that names what to install."""
    require(SYSTEM_PYTHON.exists(), "no /usr/bin/python3")
    checkout = fresh_copy(tmp_path / "stbench")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "sh", "env", "uname", "rm", "mkdir", "cat", "ls", "git"):
        if found := shutil.which(name, path=system_path()):
            (tools / name).symlink_to(found)
    venv = tmp_path / "venv"
    subprocess.run([str(SYSTEM_PYTHON), "-m", "venv", str(venv)], check=True)
    env = {key: value for key, value in os.environ.items() if key.startswith(("PIP_", "XDG_", "HOME"))}
    env["PATH"] = f"{venv}/bin:{tools}"
    done = subprocess.run(
        [str(venv / "bin" / "pip"), "install", "-e", "."],
        cwd=checkout,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    assert "No C++ compiler on PATH" in said
    assert "apt install g++" in said
