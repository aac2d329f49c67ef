"""The program's manners: help, versions, exit codes, and no traceback for what a user can cause."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import stbench
from stbench import cli, errors
from tests.host.conftest import ROOT, Sandbox


def raising(error: BaseException) -> object:
    def run(_args: object) -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            errors.UsageError("a wrong thing", hint="the right thing"),
            2,
            "stbench: a wrong thing\ntry: the right thing\n",
        ),
        (errors.CellsFailed("two cells failed"), 3, "stbench: two cells failed\n"),
        (errors.BusyError("in use"), 4, "stbench: in use\n"),
        (errors.Inconclusive("who knows"), 5, "stbench: who knows\n"),
        (KeyboardInterrupt(), 130, "stbench: interrupted\n"),
        (
            PermissionError(13, "Permission denied", "/some/file"),
            2,
            "stbench: /some/file: Permission denied\n",
        ),
        (
            ModuleNotFoundError("No module named 'tokenizers'", name="tokenizers"),
            2,
            "stbench: stbench models needs the Python package 'tokenizers', which is not installed\n"
            "try: pip install 'stbench[generate]'\n",
        ),
    ],
)
def test_failures_are_sentences(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    module = importlib.import_module("stbench.commands.models")
    monkeypatch.setattr(module, "run", raising(error))
    assert sandbox.run("models") == (code, "", said)


def test_a_defect_keeps_its_traceback_and_is_no_regression(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("stbench.commands.models")
    monkeypatch.setattr(module, "run", raising(ZeroDivisionError("oops")))
    code, _, err = sandbox.run("models")
    assert code == 70
    assert "ZeroDivisionError: oops" in err
    assert "defect of stbench" in err


def test_a_missing_package_of_our_own_is_a_defect(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("stbench.commands.models")
    monkeypatch.setattr(module, "run", raising(ModuleNotFoundError("No module named 'x'", name="x")))
    assert sandbox.run("models")[0] == 70


def test_version(sandbox: Sandbox) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert sandbox.capsys.readouterr().out == f"stbench {stbench.__version__}\n"


def test_help_imports_no_command() -> None:
    """`--help` must not pay for pandas or fail for want of an extra."""
    code = (
        "import sys\nfrom stbench import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'pandas', 'pydantic', 'matplotlib', 'yaml', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in cli.COMMANDS:
        assert name in done.stdout


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "example" in text
    assert f"stbench {name}" in text.split("example")[1]
    assert "--json" in text


def test_every_module_is_listed() -> None:
    modules = {path.stem for path in (ROOT / "stbench" / "commands").glob("*.py") if path.stem[0] != "_"}
    assert modules == {name.replace("-", "_") for name in cli.COMMANDS}


def test_a_reader_that_leaves_is_no_error() -> None:
    done = subprocess.run(
        [
            "bash",
            "-c",
            f"set -o pipefail; {sys.executable} -m stbench.cli models --json | head -c 1 > /dev/null",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode in (0, cli.EXIT_BROKEN_PIPE)


def test_wrong_usage_is_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["models", "--no-such-option"])
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_cache_dir_ignores_a_relative_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from stbench.paths import cache_dir

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == tmp_path / ".cache" / "stbench"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert cache_dir() == tmp_path / "elsewhere" / "stbench"
    assert cache_dir().is_dir()
