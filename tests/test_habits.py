"""The habits that keep the tree readable, held by tools: lint, types, format, static analysis."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import clang_tidy
from tests.conftest import require
from tests.test_native import find_tool, run

ROOT = Path(__file__).resolve().parents[1]
NATIVE_SUFFIXES = {".c", ".cpp", ".h"}


def run_tool(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command[:4])}:\n{done.stdout[-6000:]}{done.stderr[-3000:]}"


def newest(tool: str) -> str | None:
    """The newest LLVM tool of that name: Debian suffixes them, PyPI does not."""
    for name in [*(f"{tool}-{version}" for version in range(25, 13, -1)), tool]:
        if path := shutil.which(name):
            return path
    return None


def native_sources() -> list[str]:
    return sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "runtime").rglob("*")
        if path.suffix in NATIVE_SUFFIXES and path.is_file()
    )


def test_ruff_check() -> None:
    run_tool(sys.executable, "-m", "ruff", "check", ".")


def test_ruff_format() -> None:
    run_tool(sys.executable, "-m", "ruff", "format", "--check", ".")


def test_mypy_strict() -> None:
    run_tool(sys.executable, "-m", "mypy")


def test_clang_format() -> None:
    """With the version that the test extra pins: others format differently."""
    tool = Path(sys.executable).with_name("clang-format")
    require(tool.exists(), "no clang-format in this environment: pip install -e '.[test]'")
    run_tool(str(tool), "--dry-run", "-Werror", *native_sources())


@pytest.mark.slow
@pytest.mark.beside(seconds=130)
def test_clang_tidy(tmp_path: Path) -> None:
    tool, compiler = newest("clang-tidy"), newest("clang++")
    require(tool is not None and compiler is not None, "no clang-tidy: apt install clang-19 clang-tidy-19")
    assert tool is not None
    assert compiler is not None
    cmake = find_tool("cmake", "pip install cmake")
    compilers = [f"-DCMAKE_CXX_COMPILER={compiler}", f"-DCMAKE_C_COMPILER={compiler.replace('++', '')}"]
    run(cmake, "-S", "runtime", "-B", str(tmp_path), "-GNinja", *compilers, cwd=ROOT)
    units = clang_tidy.units_of(tmp_path, lambda file: "/runtime/src/" in file)
    assert units, "no library source in compile_commands.json"
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    failed = clang_tidy.check(tool, ROOT, tmp_path, units, caches / "stbench-tests" / "clang-tidy")
    assert not failed, failed[-8000:]


TIDY_CMAKE = """\
cmake_minimum_required(VERSION 3.22)
project(small LANGUAGES CXX)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
add_library(small OBJECT one.cpp)
"""


def test_clang_tidy_remembers_what_passed_and_nothing_else(tmp_path: Path) -> None:
    """Until a header, or the configuration, is another one."""
    tool, compiler = newest("clang-tidy"), newest("clang++")
    require(tool is not None and compiler is not None, "no clang-tidy: apt install clang-19 clang-tidy-19")
    assert tool is not None
    source, passed = tmp_path / "source", tmp_path / "passed"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(TIDY_CMAKE)
    strict = "Checks: '-*,modernize-use-nullptr'\nWarningsAsErrors: '*'\n"
    (source / ".clang-tidy").write_text(strict)
    (source / "one.cpp").write_text('#include "one.h"\nint* two() { return one(); }\n')
    (source / "one.h").write_text("inline int* one() { return nullptr; }\n")
    cmake = find_tool("cmake", "pip install cmake")

    def checked() -> tuple[bool, int]:
        clang_tidy._content.cache_clear()
        build = source / "build"
        options = ("-GNinja", f"-DCMAKE_CXX_COMPILER={compiler}")
        run(cmake, "-S", str(source), "-B", str(build), *options, cwd=ROOT)
        units = clang_tidy.units_of(build, lambda file: True)
        said = clang_tidy.check(tool, source, build, units, passed)
        return "modernize-use-nullptr" in said, len(list(passed.iterdir()))

    assert checked() == (False, 1)
    shutil.copytree(source, tmp_path / "another", ignore=shutil.ignore_patterns("build"))
    source = tmp_path / "another"
    assert checked() == (False, 1), "another directory is no other content"
    (source / "one.cpp").write_text('#include "one.h"\nint* two() { return 0; }\n')
    assert checked() == (True, 1)
    assert checked() == (True, 1), "a failure is told each time"
    (source / ".clang-tidy").write_text("Checks: '-*,bugprone-branch-clone'\n")
    assert checked() == (False, 2)
    (source / ".clang-tidy").write_text(strict)
    assert checked() == (True, 2), "another configuration passed it"
    (source / "one.cpp").write_text('#include "one.h"\nint* two() { return one(); }\n')
    assert checked() == (False, 2), "passed before"
    (source / "one.h").write_text("// Another line.\ninline int* one() { return nullptr; }\n")
    assert checked() == (False, 3)


def test_files_tell_one_story() -> None:
    """A file that outgrows 450 lines has usually started a second story."""
    suffixes = {".py", ".cpp", ".h"}
    long = {
        str(path.relative_to(ROOT)): count
        for folder in ("stbench", "runtime", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes and (count := len(path.read_text().splitlines())) > 450
    }
    assert not long, long
