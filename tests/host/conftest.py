"""A sandbox for the host's pipeline: its own cache and working directory, and the fake engine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stbench import cli

if TYPE_CHECKING:
    from tests.host.fleet import Fleet

ROOT = Path(__file__).resolve().parents[2]

DEVICES = """
devices:
  local: {enabled: true, connector: local, threads: 2, timeout: 60}
"""


@dataclass(frozen=True)
class Sandbox:
    """A directory to work in. ``run`` calls the program in this process, ``start`` in one of its own."""

    directory: Path
    capsys: pytest.CaptureFixture[str]

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text)
        return path

    def run(self, *argv: str) -> tuple[int, str, str]:
        """(exit code, stdout, stderr)."""
        self.capsys.readouterr()
        code = cli.main(argv)
        captured = self.capsys.readouterr()
        return code, captured.out, captured.err

    def start(self, *argv: str, **options: object) -> subprocess.Popen[str]:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [sys.executable, "-m", "stbench.cli", *argv],
            cwd=self.directory,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def fake_sweep(self, *models: str, gen: int = 4, replicates: int = 2, extra: str = "") -> str:
        """Writes a sweep file of the fake engine and returns its path."""
        listed = ", ".join(f'"{model}"' for model in models)
        text = f"models: [{listed}]\nengines: [fake]\ngen: {gen}\nreplicates: {replicates}\n{extra}"
        return str(self.write("sweep.yaml", text))


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sandbox:
    """An empty working directory with a devices.yaml, and an empty cache. Sweeps in this process write their
    tables and draw nothing: charts take two seconds, and other tests look at them."""
    from stbench.tables import reporting

    monkeypatch.setattr(reporting, "THEMES", ())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # What another test or another run of the tests left on a board of theirs keeps nobody waiting.
    monkeypatch.setenv("STBENCH_LEASE", str(tmp_path / "lease"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "devices.yaml").write_text(DEVICES)
    return Sandbox(work, capsys)


@pytest.fixture
def fleet(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """Pretended boards; reports are not written."""
    from stbench.tables import reporting
    from tests.host.fleet import Fleet

    monkeypatch.setattr(reporting, "write_reports", lambda records, directory: [])
    return Fleet(sandbox, monkeypatch)


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Waits until something holds; fails after three minutes."""
    import time

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 180
        while not condition():
            assert time.monotonic() < deadline, "did not happen within three minutes"
            time.sleep(0.01)

    return wait
