"""The pytest plugin in another project's suite: real pytest, real processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml

from tests.exchange.real import ROOT

SUITE = """
import pytest

OPTIONS = ["--engines", "fake", "--bracket-ms", "0", "--sample-hz", "0"]

@pytest.mark.benchmark(group="speed")
def test_decode(stbench):
    found = stbench.decode("fake:step=1000000", 16, rounds=2, options=OPTIONS)
    assert 900 < found.tokens_per_s < 1000
    assert len(found.records) == 2

def test_wrong(stbench):
    stbench("fake:wrong", n_gen=4, rounds=2, options=OPTIONS)

def test_no_model(stbench):
    stbench("nowhere.gguf", rounds=1)
"""


OTHER = """
import sys

def test_other():
    assert not {"stbench.pytest_plugin.gate", "stbench.agent", "pandas", "numpy"} & set(sys.modules)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Another project with a suite of its own."""
    (tmp_path / "test_speed.py").write_text(SUITE)
    (tmp_path / "test_other.py").write_text(OTHER)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def run(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    # Not installed anew since the entry point came: the plugin is named.
    plugin = [] if entry_points(group="pytest11", name="stbench") else ["-p", "stbench.pytest_plugin"]
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(project / "cache"),
    }
    command = [sys.executable, "-m", "pytest", *plugin, "-q", "-p", "no:cacheprovider", *words]
    return subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)


def test_a_projects_suite_gates_on_tokens_per_second(project: Path) -> None:
    words = (
        "test_speed.py",
        "-k",
        "decode or no_model",
        "--benchmark-save=base",
        "--benchmark-json=out.json",
    )
    done = run(project, *words)
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "nothing was measured (exit code 2)" in done.stdout
    assert "nowhere.gguf" in done.stdout
    (kept,) = json.loads((project / "out.json").read_text())["benchmarks"]
    assert (kept["group"], kept["name"], kept["stats"]["rounds"]) == ("speed", "test_decode", 2)
    info = kept["extra_info"]
    assert kept["stats"]["ops"] == pytest.approx(info["tokens_per_s"], rel=1e-6)
    assert info["check"] == "ok"
    assert len(info["fingerprint"]) == 16
    (base,) = project.glob(".benchmarks/*/0001_base.json")
    words = (
        "test_speed.py",
        "-k",
        "decode",
        "--benchmark-compare=0001",
        "--benchmark-compare-fail=median:5%",
    )
    assert run(project, *words).returncode == 0, "the same speed"
    data = json.loads(base.read_text())
    for name in ("min", "max", "mean", "median"):
        data["benchmarks"][0]["stats"][name] /= 1.2
    base.write_text(json.dumps(data))
    slower = run(project, *words)
    assert slower.returncode != 0
    assert "Performance has regressed" in slower.stdout + slower.stderr


def test_disabled_benchmarks_are_one_process_and_still_checked(project: Path) -> None:
    done = run(project, "-k", "wrong", "--benchmark-disable")
    assert "1 failed" in done.stdout, done.stdout
    assert "fake:wrong/dense/t2/tg4/fake: replicate 0: wrong-output: step 0" in done.stdout
    assert "replicate 1" not in done.stdout


def test_without_pytest_benchmark_the_test_says_what_is_missing(project: Path) -> None:
    done = run(project, "-p", "no:benchmark", "test_speed.py", "-k", "decode")
    assert "pip install pytest-benchmark" in done.stdout
    assert "1 error" in done.stdout


def test_a_suite_that_does_not_use_it_loads_nothing_of_it(project: Path) -> None:
    code = (
        "import sys, pytest; pytest.main(['-q', 'test_other.py']);"
        "print([name for name in sys.modules if name.startswith('stbench')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code.replace("'-q'", "'-q', '-p', 'stbench.pytest_plugin'", 1)]
        if not entry_points(group="pytest11", name="stbench")
        else [sys.executable, "-c", code],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    loaded = set(re.findall(r"'(stbench[\w.]*)'", done.stdout.splitlines()[-1]))
    assert "stbench.pytest_plugin" in loaded, done.stdout
    assert loaded <= {"stbench", "stbench.pytest_plugin", "stbench.pytest_plugin.with_benchmark"}


def test_the_workflow_examples_are_some() -> None:
    page = (ROOT / "docs" / "ci.md").read_text()
    whole, step = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    assert {"name", "jobs"} <= set(whole)
    assert whole[True], "triggers: YAML 1.1 reads the key `on` as true"
    for job in whole["jobs"].values():
        assert "self-hosted" in job["runs-on"]
        assert job["timeout-minutes"]
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])
        assert all(re.search(r"@v\d", step["uses"]) for step in job["steps"] if "uses" in step)
    (words,) = [line.split() for line in step[0]["run"].splitlines() if line.startswith("stbench ")]
    options = {word for word in words if word.startswith("--")}
    assert words[1] == "check"
    assert options == {"--baseline", "--github", "--summary", "--junit"}
