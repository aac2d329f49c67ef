"""clang-tidy, once per content: what passed is remembered by all that it depends on, as ccache does objects.

The analysis of one file takes seconds, the list of what it includes a fraction of one. Only passes are kept,
as empty files in the user's cache, named by a digest of clang-tidy's version, its configuration, the file's
options and every file that it includes, system headers too; one that nobody asked for in 60 days goes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

KEPT_S = 60 * 86400.0


@dataclass(frozen=True)
class Unit:
    """A file and how it is compiled: the command's words, in a directory."""

    file: str
    directory: str
    words: tuple[str, ...]


def units_of(build: Path, wanted: Callable[[str], bool]) -> list[Unit]:
    """What compile_commands.json of a build directory says about the files that are wanted, once each."""
    entries = json.loads((build / "compile_commands.json").read_text())
    found = {e["file"]: Unit(e["file"], e["directory"], tuple(e["command"].split())) for e in entries}
    return [found[file] for file in sorted(found) if wanted(file)]


def check(tool: str, tree: Path, build: Path, units: list[Unit], passed: Path) -> str:
    """Analyses what is not known to pass. Returns clang-tidy's words about the files that fail, "" when none
    does. ``passed``: the directory of what is remembered, wherever the source ``tree`` and its ``build`` lie.
    """
    passed.mkdir(parents=True, exist_ok=True)
    _forget_old(passed)
    version = subprocess.run([tool, "--version"], capture_output=True, check=True).stdout

    def one(unit: Unit) -> str:
        mark = passed / _digest(tool, version, {"BUILD": build, "TREE": tree}, unit)
        if mark.exists():
            os.utime(mark)
            return ""
        done = subprocess.run(
            [tool, "-quiet", "-p", str(build), unit.file], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            mark.touch()
            return ""
        return f"{unit.file}:\n{done.stdout[-6000:] or done.stderr[-3000:]}"

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return "\n".join(filter(None, pool.map(one, units)))


def _digest(tool: str, version: bytes, places: Mapping[str, Path], unit: Unit) -> str:
    """Of all that the verdict on a file depends on; ``places`` count by their names."""

    def placed(text: str) -> bytes:
        for name, place in places.items():
            text = text.replace(str(place), name)
        return text.encode()

    config = [tool, "-p", str(places["BUILD"]), "--dump-config", unit.file]
    state = hashlib.sha256(version)
    state.update(subprocess.run(config, capture_output=True, check=True).stdout)
    state.update(placed("\0".join(unit.words)))
    for path in _included(unit):
        state.update(placed(f"\0{path}\0{_content(path)}"))
    return state.hexdigest()


def _included(unit: Unit) -> list[str]:
    """The file and what it includes, from the compiler."""
    words = list(unit.words)
    if "-o" in words:
        del words[words.index("-o") : words.index("-o") + 2]
    command = [word for word in words if word != "-c"] + ["-M", "-MT", "x"]
    done = subprocess.run(command, cwd=unit.directory, capture_output=True, text=True, check=True)
    names = re.split(r"(?<!\\)\s+", done.stdout.replace("\\\n", " ").partition(":")[2].strip())
    return sorted({os.path.normpath(Path(unit.directory, name.replace("\\ ", " "))) for name in names})


@cache
def _content(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _forget_old(passed: Path) -> None:
    oldest = time.time() - KEPT_S
    for mark in passed.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another run's
            if mark.stat().st_mtime < oldest:
                mark.unlink()
