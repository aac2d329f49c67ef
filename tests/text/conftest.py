"""Tiny synthetic files and the command line in this process, for the tests of the text commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from stbench import native
from stbench.agent import sbr
from stbench.models import catalogue

MakeModel = Callable[[str], Path]


@pytest.fixture(scope="session")
def library(library_path: Path) -> sbr.Library:
    return native.open_library(library_path)


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory, library: sbr.Library) -> MakeModel:
    """The file of a name of the catalogue, written once."""
    folder = tmp_path_factory.mktemp("models")

    def make(name: str) -> Path:
        path = folder / f"{name.replace(':', '-')}.gguf"
        if not path.exists():
            sbr.synth_write(library, dataclasses.asdict(catalogue.lookup(name).spec), str(path))
        return path

    return make
