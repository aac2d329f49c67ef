"""The list of faults still fits the program: each handling is where it says, and its test exists."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.boards.faults import FAULTS
from tests.boards.sabotages import DOCUMENT, ROOT, document, sabotaged


def test_every_handling_is_still_there_once() -> None:
    for fault in FAULTS:
        text = sabotaged((ROOT / fault.file).read_text(), fault)
        ast.parse(text)
        name = fault.function.rpartition(".")[2]
        assert name in text, f"{fault.name}: no {fault.function} in {fault.file}"


def test_every_test_exists() -> None:
    names: dict[str, set[str]] = {}
    for fault in FAULTS:
        file, _, test = fault.test.partition("::")
        if file not in names:
            tree = ast.parse((ROOT / file).read_text())
            names[file] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert test in names[file], f"{fault.name}: no {test} in {file}"


def test_names_are_names_of_one() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_the_document_is_the_list() -> None:
    assert Path(DOCUMENT).read_text() == document(), "python -m tests.boards.sabotages --document"
