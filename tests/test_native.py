"""The runtime's own tests (runtime/tests, ctest), built and run for each way of building it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import require
from tests.workshop import SEARCH_PATH, Workshop, find_tool, run, working_tree

RUNTIME = Path(__file__).resolve().parents[1] / "runtime"


def build(preset: str, folder: Path, targets: list[str]) -> None:
    """Configures and builds a preset in ``folder``; a second call compiles only what changed."""
    cmake = find_tool("cmake", "pip install cmake")
    find_tool("ninja", "pip install ninja")
    if "CXX" not in os.environ:
        find_tool("c++", "apt install g++")
    run(cmake, "--preset", preset, "-B", str(folder), cwd=RUNTIME)
    command = [cmake, "--build", str(folder), "--parallel", str(os.cpu_count() or 1), "--target", *targets]
    run(*command, cwd=RUNTIME)


def sanitizer_links(name: str, folder: Path) -> bool:
    """Whether a program can be linked with this sanitizer here (its runtime is a package of its own)."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "empty.cpp"
    source.write_text("int main() { return 0; }\n")
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, f"-fsanitize={name}", str(source), "-o", str(folder / "empty")]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def all_pass(folder: Path, tests: str) -> None:
    """Runs the native tests whose names match."""
    ctest = find_tool("ctest", "pip install cmake")
    options = ["--output-on-failure", "--parallel", str(os.cpu_count() or 1), "-R", tests]
    output = run(ctest, "--test-dir", str(folder), *options, cwd=RUNTIME)
    assert "100% tests passed" in output
    assert "No tests were found" not in output


# The thread sanitizer costs tenfold, and only the tests with several threads concern it.
THREADED = [
    "test_thread_pool",
    "test_session",
    "test_cache",
    "test_cache_failures",
    "test_reader",
    "test_stream",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "sanitizer", "targets"),
    [
        pytest.param("asan-ubsan", "address,undefined", ["all"], marks=pytest.mark.beside(seconds=240)),
        pytest.param("tsan", "thread", THREADED, marks=pytest.mark.beside(seconds=90)),
    ],
)
def test_ctest(preset: str, sanitizer: str, targets: list[str], request: pytest.FixtureRequest) -> None:
    folder = Path(request.config.cache.mkdir(f"native-{preset}"))  # type: ignore[union-attr]
    linked = sanitizer_links(sanitizer, folder / "probe")
    require(linked, f"cannot link with -fsanitize={sanitizer}: apt install libasan8 libubsan1 libtsan2")
    build(preset, folder, targets)
    all_pass(folder, "." if targets == ["all"] else f"^({'|'.join(targets)})$")


@pytest.mark.slow
@pytest.mark.beside("workshop", seconds=80)
def test_ctest_of_the_release_build() -> None:
    with Workshop().building(working_tree(), ["all"]) as folder:
        all_pass(folder, ".")


@pytest.mark.parametrize("named", [None, "x86_64-linux-gnu-g++"])
def test_missing_compiler_is_explained(tmp_path: Path, named: str | None) -> None:
    """Without a C++ compiler the build says what to install, before CMake's own errors, whatever CXX says."""
    cmake = find_tool("cmake", "pip install cmake")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("ninja", "make"):
        if path := shutil.which(name, path=SEARCH_PATH):
            (tools / name).symlink_to(path)
    environment = {key: value for key, value in os.environ.items() if key not in ("CXX", "CC")}
    environment["PATH"] = str(tools)
    if named is not None:
        environment["CXX"] = named
    done = subprocess.run(
        [cmake, "-S", str(RUNTIME), "-B", str(tmp_path / "build")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    message = " ".join(done.stderr.split())
    assert "No C++ compiler on PATH" in message
    assert "apt install g++" in message


def test_library_exports_only_its_interface(library_path: Path) -> None:
    """Nothing but sbr_*: neither C++ symbols nor the standard library linked into it."""
    nm = find_tool("nm", "apt install binutils")
    listed = run(nm, "-D", "--defined-only", str(library_path), cwd=RUNTIME).splitlines()
    names = {line.split()[-1] for line in listed}
    assert names
    assert {name for name in names if not name.startswith("sbr_")} == set()
