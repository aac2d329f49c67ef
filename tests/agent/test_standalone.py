"""The agent needs a Python 3.8 and nothing else: no package, no site, no other part of stbench."""

from __future__ import annotations

import ast
import dataclasses
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from stbench.agent import wire
from stbench.agent.wire import JobSpec, RunRecord
from tests.agent.conftest import ROOT, fake_job, python38, run_agent, run_job
from tests.conftest import NO_PYTHON_38, require

AGENT = ROOT / "stbench" / "agent"
SOURCES = sorted(AGENT.rglob("*.py"))
# Sent to a board's Python as text, by itself.
BOARDSIDE = ROOT / "stbench" / "connectors" / "ssh_boardside.py"


def test_vermin_finds_nothing_newer_than_3_8() -> None:
    tool = shutil.which("vermin") or str(Path(sys.executable).with_name("vermin"))
    require(Path(tool).exists(), "vermin is not installed")
    done = subprocess.run(
        [tool, "-t=3.8-", "--no-tips", "--violations", str(AGENT), str(BOARDSIDE)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(AGENT)))
def test_imports_are_relative_or_of_the_standard_library(path: Path) -> None:
    depth = len(path.relative_to(AGENT).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level <= depth, f"line {node.lineno} leaves the agent"
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            assert node.module.split(".")[0] in sys.stdlib_module_names, f"line {node.lineno}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                assert alias.name.split(".")[0] in sys.stdlib_module_names, f"line {node.lineno}"


@pytest.fixture(scope="module")
def zipapp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent alone in a zip file, under another package's name."""
    path = tmp_path_factory.mktemp("zip") / "agent.pyz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__main__.py", "import sys\nfrom device.__main__ import main\nsys.exit(main())\n")
        for source in SOURCES:
            archive.write(source, Path("device") / source.relative_to(AGENT))
    return path


def pythons() -> list[object]:
    return [pytest.param(sys.executable, id="this"), pytest.param("3.8", id="3.8")]


@pytest.fixture(params=pythons())
def bare_python(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """An interpreter without site packages and environment."""
    found = request.param if request.param != "3.8" else python38()
    require(found is not None, f"{NO_PYTHON_38} on PATH or under pyenv")
    return (str(found), "-S", "-I")


def test_probe_from_a_zipapp(zipapp: Path, bare_python: tuple[str, ...]) -> None:
    done = run_agent("probe", python=bare_python, program=str(zipapp))
    assert done.returncode == 0, done.stderr
    assert wire.loads(wire.DeviceFacts, done.stdout).n_cpus >= 1


@pytest.mark.parametrize(
    ("options", "status"), [("", "ok"), ("crash", "crashed"), ("oom", "out-of-memory"), ("hang", "timeout")]
)
def test_statuses_from_a_zipapp(
    zipapp: Path, bare_python: tuple[str, ...], options: str, status: str
) -> None:
    job = fake_job(options, timeout_s=1.0 if options == "hang" else 60.0)
    assert run_job(job, python=bare_python, program=str(zipapp)).status == status


def test_a_directory_copy_runs(tmp_path: Path, bare_python: tuple[str, ...]) -> None:
    shutil.copytree(AGENT, tmp_path / "agent")
    done = subprocess.run(
        [bare_python[0], "-S", "-m", "agent", "run"],
        cwd=tmp_path,
        input=wire.dumps(fake_job()) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert wire.loads(RunRecord, done.stdout).status == "ok"


def test_the_native_engine_from_a_zipapp(
    zipapp: Path, bare_python: tuple[str, ...], sbr_job: Callable[..., JobSpec]
) -> None:
    """The reference made by this Python passes the check made by the other: digits are equal."""
    job = sbr_job(sparse_ffn=True, sparse_lm_head=True)
    reference = run_job(dataclasses.replace(job, purpose="reference")).reference
    other = run_job(
        dataclasses.replace(job, purpose="reference"), python=bare_python, program=str(zipapp)
    ).reference
    assert other == reference
    record = run_job(dataclasses.replace(job, reference=reference), python=bare_python, program=str(zipapp))
    assert record.status == "ok"
    assert record.check is not None
    assert record.check.bit_equal == 16
