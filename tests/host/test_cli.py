"""The program's manners: help, versions, exit codes, and no traceback for what a user can cause."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import stbench
from stbench import cli, errors
from stbench.commands import COMMANDS
from stbench.commands._building import reported
from stbench.sweeps.presets import PRESETS
from stbench.sweeps.sweep import Preset
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
    for name in COMMANDS:
        assert name in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
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
    assert modules == {name.replace("-", "_") for name in COMMANDS}


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


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("swep", 'stbench: unknown command "swep"; did you mean sweep?\ntry: stbench --help\n'),
        ("xyzzy", 'stbench: unknown command "xyzzy"\ntry: stbench --help\n'),
        (
            "devices docter",
            'stbench devices: unknown command "docter"; did you mean doctor?\ntry: stbench devices --help\n',
        ),
        (
            "sweep --theads 2",
            "stbench sweep: unknown option --theads; did you mean --threads?\ntry: stbench sweep --help\n",
        ),
        (
            "devices doctor --bundel=x.zip",
            "stbench devices doctor: unknown option --bundel; did you mean --bundle?\n"
            "try: stbench devices doctor --help\n",
        ),
        (
            "models --no-such-option",
            "stbench models: unknown option --no-such-option\ntry: stbench models --help\n",
        ),
        (
            "inspect a.gguf b.gguf",
            'stbench inspect: "b.gguf" is one argument too many\ntry: stbench inspect --help\n',
        ),
        (
            "peer rebuild",
            'stbench peer: action: expected build, path or info, got "rebuild"\ntry: stbench peer --help\n',
        ),
        (
            "sweep -r many",
            'stbench sweep: -r/--replicates: expected a whole number, got "many"\n'
            "try: stbench sweep --help\n",
        ),
        (
            "roofline --seconds long",
            'stbench roofline: --seconds: expected a number, got "long"\ntry: stbench roofline --help\n',
        ),
        (
            "sweep --wait nan",
            'stbench sweep: --wait: expected seconds, 0 to 86400, got "nan"\ntry: stbench sweep --help\n',
        ),
        ("sweep --preset", "stbench sweep: --preset: expected one argument\ntry: stbench sweep --help\n"),
        (
            "quality",
            "stbench quality: the following arguments are required: -m/--model\n"
            "try: stbench quality --help\n",
        ),
    ],
)
def test_wrong_usage_is_a_sentence_and_the_next_step(
    typed: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(typed.split())
    captured = capsys.readouterr()
    assert (stop.value.code, captured.out, captured.err) == (2, "", said)


def test_an_option_before_the_command(sandbox: Sandbox) -> None:
    said = "stbench: --device stands before the command, and options stand behind it\ntry: stbench --help\n"
    assert sandbox.run("--device", "local", "sweep") == (2, "", said)


def test_without_a_command_it_says_which_there_are(sandbox: Sandbox) -> None:
    code, out, err = sandbox.run()
    assert (code, out) == (2, "")
    for name, line in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line)}$", err, re.MULTILINE)
    for exit_code, meaning in errors.EXIT_CODES.items():
        assert re.search(rf"^  {exit_code} +{re.escape(meaning)}$", err, re.MULTILINE)


def test_every_exit_code_has_a_meaning() -> None:
    codes = {
        value for name, value in vars(errors).items() if name.startswith("EXIT_") and name != "EXIT_CODES"
    }
    assert codes == set(errors.EXIT_CODES)


def test_help_of_a_command_begins_as_the_overview_says(capsys: pytest.CaptureFixture[str]) -> None:
    """One first line of usage, however many options there are, and every option explained."""
    for name, line in COMMANDS.items():
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        text = capsys.readouterr().out
        usage, description = text.split("\n\n")[:2]
        assert usage.startswith(f"usage: stbench {name} [options]")
        assert "\n" not in usage
        assert description == line[0].upper() + line[1:] + "."


def test_sweep_help_names_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["sweep", "--help"])
    text = re.sub(r"-\s+", "-", capsys.readouterr().out)
    assert not [preset for preset in PRESETS if preset not in text]
    assert set(typing.get_args(Preset)) == set(PRESETS)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("published-4b", "--preset published-4b"),
        ("smallthinker-4b", "--models smallthinker-4b"),
        ("GiB", "a size is one word, such as 1GiB"),
        ("missing.yaml", "the path of a sweep's YAML file; or --preset NAME, or --models LIST"),
    ],
)
def test_a_sweep_file_that_is_none(sandbox: Sandbox, word: str, hint: str) -> None:
    said = f"stbench: {word}: No such file or directory\ntry: {hint}\n"
    assert sandbox.run("plan", word) == (2, "", said)


@pytest.mark.parametrize(
    "typed", ["devices doctor lokal", "devices trust lokal", "devices clean lokal", "build --on lokal"]
)
def test_an_unknown_device_is_said_alike_everywhere(sandbox: Sandbox, typed: str) -> None:
    said = (
        'stbench: devices.yaml: unknown device "lokal"; did you mean local?\n'
        "try: stbench devices add [user@]host writes a new one's entry\n"
    )
    assert sandbox.run(*typed.split()) == (2, "", said)


@pytest.mark.parametrize("command", ["sweep", "plan", "noise", "find-limit"])
def test_a_campaign_is_no_path(sandbox: Sandbox, command: str) -> None:
    code, out, err = sandbox.run(command, "--models", "tiny-qwen3", "--campaign", "../up")
    assert (code, out) == (2, "")
    assert "'../up'" in err
    assert "\ntry: --campaign 2026-01-31-quick\n" in err
    assert [path.name for path in sandbox.directory.iterdir()] == ["devices.yaml"]


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("devices trust local", "stbench devices doctor local"),
        ("models list tiny-qwen3", "stbench models make NAME"),
        ("models make tiny-qwen3 --verify", "stbench models bundle NAME --verify"),
        ("models bundle tiny-qwen3 --verify", "stbench models bundle tiny-qwen3"),
        (
            "inspect none.gguf",
            "the path of a GGUF file; `stbench models make NAME` writes a synthetic one",
        ),
        (
            "devices doctor --tree none.zip",
            "--tree takes what `stbench devices doctor --bundle FILE.zip` wrote, packed or unpacked",
        ),
        ("sweep --retry-failed", "stbench sweep --resume --retry-failed"),
        ("build -D A=B", "--toolchain FILE -D KEY=VALUE"),
        (
            "routing make --model tiny-qwen3 -o a.routing",
            "--model smallthinker-4b; `stbench models` lists more",
        ),
    ],
)
def test_the_next_step_is_said(sandbox: Sandbox, typed: str, hint: str) -> None:
    code, out, err = sandbox.run(*typed.split())
    assert (code, out) == (2, "")
    assert err.endswith(f"\ntry: {hint}\n")


def test_a_build_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with reported(quiet=False) as report:
        report(0, 0, "looking")
        for done in range(41):
            report(done, 40, "compiling")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == ["looking", "compiling (0 of 40)", "compiling (4 of 40)"]
    assert len(lines) == 12
    with reported(quiet=True) as report:
        report(1, 2, "compiling")
    assert capsys.readouterr().err == ""


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stbench", "--version"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"stbench {stbench.__version__}\n")


def test_cache_dir_ignores_a_relative_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from stbench.paths import cache_dir

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == tmp_path / ".cache" / "stbench"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert cache_dir() == tmp_path / "elsewhere" / "stbench"
    assert cache_dir().is_dir()


def test_a_path_that_leads_nowhere_names_what_is_near(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "results" / "desk-quick").mkdir(parents=True)
    (tmp_path / "notes.md").write_text("x")
    said = {
        ("grid", f"{tmp_path}/results/desk-quik"): f"did you mean {tmp_path}/results/desk-quick?",
        ("grid", f"{tmp_path}/resluts/desk-quick"): f"did you mean {tmp_path}/results?",
        ("grid", f"{tmp_path}/elsewhere/records.jsonl"): f"there is no elsewhere in {tmp_path}",
        ("grid", f"{tmp_path}/q"): "name a campaign's directory (results/...) or its records.jsonl",
        ("grid", "--check", f"{tmp_path}/note.md"): f"did you mean {tmp_path}/notes.md?",
    }
    for words, hint in said.items():
        code, out, err = sandbox.run(*words)
        assert (code, out, err.splitlines()[1:]) == (2, "", [f"try: {hint}"]), words
