"""One build directory for every state of the runtime's source that tests compile.

The tree, a previous commit and sabotaged copies differ in a file or two. They are laid over each other in one
source directory, where only what differs is written, so that ninja compiles only that.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import require

ROOT = Path(__file__).resolve().parents[1]

# Kept between runs: the next one compiles what has changed since.
FOLDER = ROOT / "build" / "workshop"

Files = Mapping[str, bytes]

# The environment's own tools first: `pip install -e .[test]` brings cmake and ninja.
SEARCH_PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def find_tool(name: str, install: str) -> str:
    path = shutil.which(name, path=SEARCH_PATH)
    require(path is not None, f"no {name} on PATH: {install}")
    assert path is not None
    return path


def run(*command: str, cwd: Path) -> str:
    environment = {**os.environ, "PATH": SEARCH_PATH}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{' '.join(command)}:\n{output[-8000:]}"
    return output


@dataclass(frozen=True)
class Edit:
    """Replaces ``old`` (which must occur exactly once) by ``new`` in ``file`` of runtime/."""

    name: str
    file: str
    old: str
    new: str


def working_tree() -> dict[str, bytes]:
    """The runtime's source as it is now: path below the repository -> content."""
    paths = [ROOT / "pyproject.toml", *(ROOT / "runtime").rglob("*")]
    source = [path for path in paths if path.is_file() and path.parent.name != "__pycache__"]
    return {str(path.relative_to(ROOT)): path.read_bytes() for path in source}


def edited(files: Files, edit: Edit) -> dict[str, bytes]:
    """The files with one edit applied."""
    path = f"runtime/{edit.file}"
    text = files[path].decode()
    assert text.count(edit.old) == 1, f"{edit.file} no longer has the line that {edit.name} replaces"
    return {**files, path: text.replace(edit.old, edit.new).encode()}


class Workshop:
    """Builds states of the source, one at a time."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def building(self, files: Files, targets: Sequence[str] = ("sbr",)) -> Iterator[Path]:
        """The build directory of these files, until the block is left. Others wait."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            source, build = self.folder / "source", self.folder / "build"
            _lay_out(files, source)
            cmake = find_tool("cmake", "pip install cmake")
            find_tool("ninja", "pip install ninja")
            if "CXX" not in os.environ:
                find_tool("c++", "apt install g++")
            options = ("-GNinja", "-DCMAKE_BUILD_TYPE=Release", "-DSBR_BUILD_TESTS=ON")
            run(cmake, "-S", str(source / "runtime"), "-B", str(build), *options, cwd=self.folder)
            jobs = str(os.cpu_count() or 1)
            run(cmake, "--build", str(build), "--parallel", jobs, "--target", *targets, cwd=self.folder)
            yield build

    def library(self, files: Files, to: Path) -> Path:
        """Builds these files and copies their libsbr.so to ``to``."""
        to.parent.mkdir(parents=True, exist_ok=True)
        with self.building(files) as build:
            shutil.copy(build / "libsbr.so", to)
        return to


def _lay_out(files: Files, folder: Path) -> None:
    """Makes ``folder`` hold exactly these files; those that are right already keep their time stamps."""
    for path in [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []:
        if str(path.relative_to(folder)) not in files:
            path.unlink()
    for name, content in files.items():
        path = folder / name
        if path.is_file() and path.read_bytes() == content:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
