"""The runtime compiled on a board over SSH, as on a phone, and fetched back."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import pytest

from stbench.agent import lease
from stbench.builds import boardbuild
from stbench.builds.build import library_for
from stbench.builds.runtime_sources import Sources, sources_at
from stbench.errors import BuildError, BusyError
from tests.boards.conftest import Boards, boards, controller
from tests.boards.sshd import Board
from tests.host.conftest import Sandbox
from tests.host.test_deploy import over_ssh, with_own_lease
from tests.test_native import find_tool

__all__ = ["boards", "controller"]


@pytest.fixture
def small(tmp_path: Path) -> Sources:
    folder = tmp_path / "small"
    (folder / "include").mkdir(parents=True)
    (folder / "src").mkdir()
    (folder / "src" / "one.cpp").write_text('extern "C" int sbr_one() { return 1; }\n')
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(small LANGUAGES CXX)\n"
        "add_library(sbr SHARED src/one.cpp)\n"
    )
    return sources_at(folder)


def silent(_done: int, _total: int, _what: str) -> None:
    """No progress is shown."""


@pytest.fixture
def board_with_tools(boards: Boards, tmp_path: Path) -> Board:
    find_tool("c++", "apt install g++")
    find_tool("cmake", "pip install cmake")
    return with_own_lease(boards, tmp_path)


def test_a_board_compiles_for_itself(
    board_with_tools: Board, small: Sources, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = board_with_tools
    (sandbox.directory / "devices.yaml").write_text(f"devices:\n{made.device_yaml('rpi5')}")
    monkeypatch.setattr(boardbuild, "find_sources", lambda: small)
    code, out, err = sandbox.run("build", "--on", "rpi5")
    assert code == 0, err
    assert "compiling on rpi5" in err
    assert "note: only rpi5 uses it" in err
    path = Path(out.strip())
    library = library_for(platform.machine(), None, libc="glibc 2.99", device="rpi5", sources=small.digest)
    assert library.path == path
    assert path.read_bytes() == (made.work_dir / "build" / "build" / "libsbr.so").read_bytes()
    assert library.needs is not None
    assert library.needs.machine == platform.machine()
    assert library.needs.stripped


def test_what_a_compiler_there_says(board_with_tools: Board, small: Sources) -> None:
    (small.directory / "src" / "one.cpp").write_text("int x = missing;\n")
    with pytest.raises(BuildError, match="rpi5: compiling failed") as caught:
        boardbuild.build_on(over_ssh(board_with_tools), silent, sources=sources_at(small.directory))
    assert "missing" in str(caught.value)
    # A file that is gone here is gone there, too, and the rest compiles.
    (small.directory / "src" / "one.cpp").write_text('extern "C" int sbr_one() { return 1; }\n')
    (small.directory / "src" / "stray.cpp").write_text("")
    boardbuild.build_on(over_ssh(board_with_tools), silent, sources=sources_at(small.directory))
    (small.directory / "src" / "stray.cpp").unlink()
    boardbuild.build_on(over_ssh(board_with_tools), silent, sources=sources_at(small.directory))
    names = {path.name for path in (board_with_tools.work_dir / "build" / "source" / "src").iterdir()}
    assert names == {"one.cpp"}


def test_a_board_without_a_compiler_says_what_to_install(
    boards: Boards, small: Sources, tmp_path: Path
) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in ("python3", "sh", "mkdir", "rm", "sleep", "setsid"):
        (bare / name).symlink_to(os.path.realpath(str(shutil.which(name))))
    made = boards(path=str(bare))
    with pytest.raises(BuildError, match=r"it needs c\+\+ or clang\+\+ or g\+\+, cmake") as caught:
        boardbuild.build_on(over_ssh(made), silent, sources=small)
    assert "pkg install clang cmake ninja" in caught.value.hint


def test_nothing_is_compiled_beside_a_measurement(
    board_with_tools: Board, small: Sources, tmp_path: Path
) -> None:
    descriptor = lease.try_take(str(tmp_path / "lease"))
    assert descriptor is not None
    try:
        with pytest.raises(BusyError, match="rpi5: in use by"):
            boardbuild.build_on(over_ssh(board_with_tools), silent, sources=small)
    finally:
        os.close(descriptor)
    assert not (board_with_tools.work_dir / "build" / "build").exists()
