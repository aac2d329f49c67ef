"""The habits that keep the tree readable, held by tools: lint, types, format, static analysis."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
def test_clang_tidy(tmp_path: Path) -> None:
    tool, compiler = newest("clang-tidy"), newest("clang++")
    require(tool is not None and compiler is not None, "no clang-tidy: apt install clang-19 clang-tidy-19")
    assert tool is not None
    assert compiler is not None
    cmake = find_tool("cmake", "pip install cmake")
    compilers = [f"-DCMAKE_CXX_COMPILER={compiler}", f"-DCMAKE_C_COMPILER={compiler.replace('++', '')}"]
    run(cmake, "-S", "runtime", "-B", str(tmp_path), "-GNinja", *compilers, cwd=ROOT)
    commands = json.loads((tmp_path / "compile_commands.json").read_text())
    library = sorted({entry["file"] for entry in commands if "/runtime/src/" in entry["file"]})
    assert library, "no library source in compile_commands.json"
    workers = [library[i :: os.cpu_count() or 1] for i in range(os.cpu_count() or 1)]
    running = [
        subprocess.Popen(
            [tool, "-quiet", "-p", str(tmp_path), *files],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for files in workers
        if files
    ]
    outputs = [process.communicate()[0] for process in running]
    assert all(process.returncode == 0 for process in running), "\n".join(outputs)[-8000:]


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
