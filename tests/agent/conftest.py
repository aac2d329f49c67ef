"""The agent as it is used: a process with JSON on stdin; and tiny models to measure."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from stbench.agent import wire
from stbench.agent.sbr import Library, load, synth_write
from stbench.agent.wire import JobSpec, ModelRef, RunRecord, Settings, Workload
from tests.shapes import SMALLTHINKER

ROOT = Path(__file__).resolve().parents[2]
TREES = Path(__file__).parent / "trees"

TINY = dataclasses.replace(
    SMALLTHINKER,
    name="tiny",
    n_layer=3,
    n_vocab=512,
    seed=7,
    zero_share=[900, 700, 620],
    lm_head_keep=250,
)

# Agents of the running test: none outlives it, however it ends.
STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def end_agents() -> Iterator[None]:
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()


def python38() -> str | None:
    """Some Python 3.8: on PATH or under pyenv."""
    if found := shutil.which("python3.8"):
        done = subprocess.run([found, "-c", ""], capture_output=True, check=False)
        if done.returncode == 0:
            return found
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for path in sorted(root.glob("versions/3.8.*/bin/python")):
        return str(path)
    return None


def start_agent(
    *arguments: str, python: Sequence[str] = (sys.executable, "-I"), program: str | None = None
) -> subprocess.Popen[str]:
    """An agent process. ``program`` is a zipapp; without one the checkout's package runs."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from stbench.agent.__main__ import main; "
    command = [*python, program] if program else [*python, "-c", code + "sys.exit(main())"]
    process = subprocess.Popen(
        [*command, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    STARTED.append(process)
    return process


def run_agent(*arguments: str, stdin: str = "", **how: Any) -> subprocess.CompletedProcess[str]:
    """Runs an agent to its end."""
    process = start_agent(*arguments, **how)
    try:
        out, err = process.communicate(stdin, timeout=120)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def fake_job(options: str = "", **changes: Any) -> JobSpec:
    """A job for the fake engine; ``options`` as in fake.py, ``changes`` are fields of JobSpec."""
    values: dict[str, Any] = {
        "id": "id-1",
        "label": "local:fake/dense/t1/pp8+tg20",
        "campaign": "c",
        "device": "local",
        "case": "fake/dense/t1/pp8+tg20",
        "replicate": 0,
        "engine": "fake",
        "library": "",
        "model": ModelRef(f"fake:{options}", ""),
        "workload": Workload(n_prompt=8, n_gen=20),
        "settings": Settings(threads=1, n_ctx=256),
        "timeout_s": 60.0,
    }
    return JobSpec(**{**values, **changes})


def run_job(job: JobSpec, *arguments: str, **how: Any) -> RunRecord:
    """The record of a job; fails unless it is the only line and the exit code is 0."""
    done = run_agent("run", *arguments, stdin=wire.dumps(job) + "\n", **how)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return wire.loads(RunRecord, done.stdout)


@pytest.fixture(scope="session")
def library(library_path: Path) -> Library:
    """The runtime, loaded."""
    return load(str(library_path))


@pytest.fixture(scope="session")
def tiny_model(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic SmallThinker file."""
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    synth_write(library, wire.to_json(TINY), str(path))
    return path


@pytest.fixture
def sbr_job(library_path: Path, tiny_model: Path) -> Callable[..., JobSpec]:
    """Makes jobs for the native engine on the tiny model; arguments are settings."""

    def make(workload: Workload | None = None, **settings: Any) -> JobSpec:
        return fake_job(
            engine="sbr",
            library=str(library_path),
            model=ModelRef("tiny", str(tiny_model), synthetic=TINY),
            workload=workload or Workload(n_prompt=8, n_gen=20),
            settings=Settings(**{"threads": 1, "n_ctx": 256, **settings}),
        )

    return make
