"""What the documents say is so: links, commands, exit codes, and the rooms of the house."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from stbench import errors
from stbench.cli import build_parser
from stbench.commands import COMMANDS, Parser

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "runtime" / "README.md"])
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

_FENCE = re.compile(r"^```[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Of a paragraph of its own, as Markdown's other kind of code.
_INDENTED = re.compile(r"(?:\A|\n)\n((?: {4}[^\n]*\n)+)")


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def typed(text: str) -> Iterator[list[str]]:
    """The words of every `stbench ...` line, up to a pipe, a redirection or a remark."""
    whole = re.sub(r"\$\([^)\n]*\)", "FILE", re.sub(r"\\\n\s*", " ", text))
    for line in whole.splitlines():
        command = re.split(r" {3,}|\s\||\s>|\s&&|\s#", line.strip().removeprefix("$ "))[0]
        if command.startswith("stbench "):
            yield shlex.split(command)


def understood(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is wrong with a command line; "" for nothing."""
    try:
        build_parser(words[1]).parse_args(words[1:])
    except SystemExit as stop:
        return capsys.readouterr().err if stop.code else ""
    return ""


def test_wrong_command_lines_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    text = "stbench sweep --models a \\\n    --nonsense   a remark\n$ stbench grid a | head\nxstbench b\n"
    first, second = typed(text)
    assert "--nonsense" in understood(first, capsys)
    assert second == ["stbench", "grid", "a"]
    assert not understood(second, capsys)
    assert 'unknown command "proobe"' in understood(["stbench", "proobe"], capsys)


@pytest.mark.parametrize("name", names(DOCUMENTS))
def test_links_lead_somewhere(name: str) -> None:
    path = ROOT / name
    text = path.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", text))
    targets += re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file) if file else path
        assert found.exists(), f"{name}: {target}"
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found.read_text(encoding="utf-8")), f"{name}: {target}"


@pytest.mark.parametrize("name", [name for name in names(DOCUMENTS) if name != "CHANGELOG.md"])
def test_commands_of_documents_are_understood(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = _FENCE.findall(text) + _INDENTED.findall(_FENCE.sub("", text))
    wrong = [said for block in blocks for words in typed(block) if (said := understood(words, capsys))]
    # In running text commands are shortened; their names, and the options beside them, are not.
    for span in re.findall(r"`stbench ([a-z][^`]*)`", _FENCE.sub("", text)):
        command, *rest = span.replace("|", " ").split()
        if command == "sbr":  # docs/exchange.md: what a field of llama-bench holds, no command.
            continue
        if command not in COMMANDS:
            wrong.append(f"stbench {span}")
            continue
        known = options(command)
        wrong += [f"stbench {span}" for word in rest if word.startswith("--") and word not in known]
    assert not wrong


def options(command: str) -> set[str]:
    """All options of a command and of its sub-commands."""
    text, parsers = set(), [command_parser(command)]
    while parsers:
        for action in parsers.pop()._actions:
            text |= set(action.option_strings)
            if isinstance(action.choices, dict):
                parsers += action.choices.values()
    return text


@functools.cache
def command_parser(command: str) -> Parser:
    (choices,) = (a.choices for a in build_parser(command)._actions if isinstance(a.choices, dict))
    parser = choices[command]
    assert isinstance(parser, Parser)
    return parser


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_help_are_understood(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = command_parser(command)
    inner = [a.choices for a in parser._actions if isinstance(a.choices, dict)]
    for each in [parser, *(one for choices in inner for one in choices.values())]:
        lines = list(typed(each.epilog or ""))
        assert lines or command == "peer"
        assert not [said for words in lines if (said := understood(words, capsys))]


def test_readme_leads_everywhere() -> None:
    """To every page of docs/ and every command; and its exit codes are those of the program."""
    assert not [path.name for path in ROOT.glob("docs/*.md") if f"(docs/{path.name})" not in README]
    assert not [command for command in COMMANDS if f"`stbench {command}" not in README]
    flat = " ".join(README.split())
    for code, meaning in errors.EXIT_CODES.items():
        assert f"{code} {meaning}" in flat


def rooms() -> dict[str, str]:
    """Package -> what the architecture's tables say of its modules."""
    rows = re.findall(r"^\| (.*?) \| (.*) \|$", ARCHITECTURE, re.MULTILINE)
    found = {}
    for where, story in rows:
        for package in re.findall(r"`(\w+)/`", where):
            assert package not in found, f"{package} has two rows"
            found[package] = story
    agent = ARCHITECTURE.partition("## In the agent")[2].partition("\n## ")[0]
    return {**found, "agent": agent}


def modules(package: Path) -> set[str]:
    return {path.stem for path in package.glob("*.py")} - {"__init__"}


PACKAGES = sorted(path.parent.name for path in ROOT.glob("stbench/*/__init__.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_the_architecture_names_every_module_once_and_no_other(package: str) -> None:
    words = re.findall(r"`(\w+)`", rooms()[package])
    there = modules(ROOT / "stbench" / package)
    if package == "commands":  # One file per command: its names are those of the program.
        assert {name for name in there if name[0] != "_"} == {name.replace("-", "_") for name in COMMANDS}
        return
    assert sorted(words) == sorted(there)


def test_the_architecture_names_no_other_package() -> None:
    assert set(rooms()) - {"data"} == set(PACKAGES)
    top = {path.name for path in ROOT.glob("stbench/*.py")} - {"__init__.py"}
    assert top == set(re.findall(r"`(\w+\.py)`", ARCHITECTURE.partition("## In the agent")[0]))
