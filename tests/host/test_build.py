"""Libraries for other machines: compiled here, checked, kept, found again, and the one that a board gets."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stbench.builds import build, crossbuild, elf, runtime_sources
from stbench.builds.build import BuildInfo, Builds, Library, library_for
from stbench.builds.runtime_sources import Sources, sources_at
from stbench.errors import BuildError, MissingExtra
from tests.boards.fleet import ZIG_CACHE, aarch64_library
from tests.conftest import require
from tests.host.conftest import Sandbox
from tests.test_emulated_cpus import emulate
from tests.test_native import RUNTIME, find_tool

ARM = "aarch64-linux-gnu"


def silent(_done: int, _total: int, _what: str) -> None:
    """No progress is shown."""


@pytest.fixture
def zig(monkeypatch: pytest.MonkeyPatch) -> None:
    """zig, with what it compiled of its own kept between runs, for all cross builds of the tests."""
    require(importlib.util.find_spec("ziglang") is not None, "no ziglang: pip install ziglang")
    find_tool("ninja", "pip install ninja")
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", ZIG_CACHE)


@pytest.fixture
def small(tmp_path: Path) -> Sources:
    """A project of one C file with the runtime's toolchain files."""
    folder = tmp_path / "small"
    shutil.copytree(RUNTIME / "cmake", folder / "cmake")
    (folder / "include").mkdir()
    (folder / "src").mkdir()
    (folder / "src" / "one.c").write_text("#include <math.h>\ndouble sbr_one(double x) { return exp(x); }\n")
    (folder / "sbr.map").write_text("{ global: sbr_*; local: *; };\n")
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(small LANGUAGES C)\n"
        "add_library(sbr SHARED src/one.c)\ntarget_link_libraries(sbr PRIVATE m)\n"
    )
    return sources_at(folder)


# ---- compiling --------------------------------------------------------------------------------------------


def test_a_library_for_arm_is_built_once(
    zig: None, small: Sources, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crossbuild, "find_sources", lambda: small)
    code, out, err = sandbox.run("build", "--target", ARM)
    assert code == 0, err
    path = Path(out.strip())
    needs = elf.needs(path.read_bytes())
    assert (needs.machine, needs.libc, needs.stripped) == ("aarch64", "glibc", True)
    assert needs.glibc is not None
    assert needs.glibc <= (2, 28)
    assert f"{ARM}: built, " in err
    assert "compiling for" in err
    monkeypatch.setattr(crossbuild, "_logged", lambda *_: pytest.fail("compiled again"))
    code, out, err = sandbox.run("build", "--json", "-o", "here.so")
    assert code == 0, err
    found = json.loads(out)
    assert (found["path"], found["already_there"], found["target"]) == ("here.so", True, ARM)
    assert Path("here.so").read_bytes() == path.read_bytes()
    assert "was built before" in err


def test_two_builds_of_a_library_are_equal(zig: None, small: Sources, tmp_path: Path) -> None:
    """From another directory, into another cache."""
    first = crossbuild.build(ARM, silent, sources=small, cache=tmp_path / "a")
    elsewhere = tmp_path / "some" / "where" / "else"
    shutil.copytree(small.directory, elsewhere)
    second = crossbuild.build(ARM, silent, sources=sources_at(elsewhere), cache=tmp_path / "b")
    assert not second.already
    assert second.library.path.read_bytes() == first.library.path.read_bytes()
    assert second.library.path.parent.name == first.library.path.parent.name


def test_other_sources_and_options_are_other_builds(zig: None, small: Sources, tmp_path: Path) -> None:
    first = crossbuild.build(ARM, silent, sources=small, cache=tmp_path)
    (small.directory / "src" / "one.c").write_text("int sbr_two(void) { return 2; }\n")
    changed = sources_at(small.directory)
    assert changed.digest != small.digest
    second = crossbuild.build(ARM, silent, sources=changed, cache=tmp_path)
    assert second.library.sha256 != first.library.sha256
    found = library_for("aarch64", None, tmp_path, sources=small.digest)
    assert found.sha256 == first.library.sha256


def test_a_damaged_build_is_built_again(zig: None, small: Sources, tmp_path: Path) -> None:
    first = crossbuild.build(ARM, silent, sources=small, cache=tmp_path)
    whole = first.library.path.read_bytes()
    first.library.path.write_bytes(whole[:-1] + b"x")
    with pytest.raises(BuildError, match="needs the runtime for"):
        library_for("aarch64", None, tmp_path, sources=small.digest)
    again = crossbuild.build(ARM, silent, sources=small, cache=tmp_path)
    assert not again.already
    assert again.library.path.read_bytes() == whole


def test_sources_that_change_meanwhile_are_no_build(
    zig: None, small: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(_command: Sequence[str], what: str, report: crossbuild.Report) -> None:
        logged(_command, what, report)
        (small.directory / "src" / "one.c").write_text("int sbr_two(void) { return 2; }\n")

    logged = crossbuild._logged
    monkeypatch.setattr(crossbuild, "_logged", edit)
    with pytest.raises(BuildError, match="changed while it was compiled"):
        crossbuild.build(ARM, silent, sources=small, cache=tmp_path)
    assert not list((tmp_path / "libraries").glob("*/*/libsbr.so"))


def test_the_compiler_s_words_are_shown(zig: None, small: Sources, sandbox: Sandbox, tmp_path: Path) -> None:
    (small.directory / "src" / "one.c").write_text("int sbr_one(void) { return missing; }\n")
    with pytest.raises(BuildError) as caught:
        crossbuild.build(ARM, silent, sources=small, cache=tmp_path)
    assert f"compiling for {ARM} failed (exit code 1)" in str(caught.value)
    assert "use of undeclared identifier 'missing'" in str(caught.value)
    assert not list((tmp_path / "libraries").glob(".building-*"))


def test_a_library_that_old_boards_cannot_load_is_refused(
    zig: None, small: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = {ARM: replace(crossbuild.TARGETS[ARM], glibc=(2, 16))}
    monkeypatch.setattr(crossbuild, "TARGETS", older)
    with pytest.raises(BuildError, match=r"needs glibc 2\.\d+, boards may have 2\.16"):
        crossbuild.build(ARM, silent, sources=small, cache=tmp_path)


def test_a_toolchain_file_of_the_user_s(zig: None, small: Sources, tmp_path: Path) -> None:
    """Here zig's own, as if it were an NDK's; its result is held to the target that was named."""
    file = small.directory / "cmake" / "aarch64-zig.cmake"
    made = crossbuild.build("aarch64-linux-own", silent, toolchain=file, sources=small, cache=tmp_path)
    assert (made.info.toolchain, made.library.needs and made.library.needs.machine) == (file.name, "aarch64")
    with pytest.raises(BuildError, match="the library is for aarch64, not for x86_64"):
        crossbuild.build("x86_64-linux-own", silent, toolchain=file, sources=small, cache=tmp_path)


def test_what_cannot_be_built_is_said(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    for argv, said in (
        (["--target", "aarch64-linux-gun"], "did you mean aarch64-linux-gnu?"),
        (["--target", "riscv64-linux-gnu"], "--toolchain FILE"),
        (["--toolchain", "nothing.cmake"], "--toolchain nothing.cmake: no such file"),
        (["-D", "A=B"], "-D sets variables of a toolchain file"),
        (["--on", "locl"], "did you mean local?"),
        (["--on", "local", "--target", ARM], "--on compiles for the device itself"),
    ):
        code, _, err = sandbox.run("build", *argv)
        assert code == 2
        assert said in err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as caught:
        crossbuild.build(ARM, silent, sources=sources_at(RUNTIME))
    assert caught.value.hint.startswith("pip install 'stbench[cross]'")


def test_an_installation_without_sources_says_so(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_sources, "_candidates", list)
    code, _, err = sandbox.run("build")
    assert code == 2
    assert "came without the runtime's C++ sources" in err
    assert "--library PATH" in err


def test_an_installation_brings_the_sources(library_path: Path, tmp_path: Path) -> None:
    """What pip installs (the component "python") is all that a build needs."""
    cmake, built = find_tool("cmake", "pip install cmake"), tmp_path / "build"
    find_tool("c++", "apt install g++")
    run(cmake, "-S", str(RUNTIME), "-B", str(built), "-DSBR_BUILD_TESTS=OFF")
    shutil.copy(library_path, built / "libsbr.so")
    run(cmake, "--install", str(built), "--component", "python", "--prefix", str(tmp_path / "site"))
    installed = sources_at(tmp_path / "site" / "stbench" / "native" / "runtime")
    assert installed.digest == sources_at(RUNTIME).digest
    assert {
        "CMakeLists.txt",
        "sbr.map",
        "include/sbr/sbr.h",
        "include/sbr/tools.h",
        "cmake/zig.cmake",
    } <= set(installed.files())


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.beside(seconds=140)
def test_the_runtime_itself_for_every_aarch64_board(
    zig: None, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built twice from two directories, this checkout (the library that the emulated boards get) and a copy:
    the same bytes; small, stripped, for old systems, and it runs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(aarch64_library(request)))
    sources = runtime_sources.find_sources()
    first = Builds().newest(ARM, sources.digest)
    assert first is not None
    copy = tmp_path / "another" / "copy"
    for name, file in sources.files().items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(file.read_bytes())
    second = crossbuild.build(ARM, silent, sources=sources_at(copy), cache=tmp_path / "b")
    assert not second.already
    data = first.path.read_bytes()
    assert second.library.path.read_bytes() == data
    needs = elf.needs(data)
    assert needs.stripped
    assert needs.glibc is not None
    assert needs.glibc <= (2, 28)
    assert set(needs.libraries) <= {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2"}
    assert len(data) < 2 << 20
    assert str(tmp_path).encode() not in data
    assert str(sources.directory).encode() not in data
    probe = tmp_path / "probe.c"
    probe.write_text(PROBE)
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", f"{ARM}.2.28"]
    run(*zig, str(probe), "-o", str(tmp_path / "probe"))
    done = emulate("cortex-a53", str(tmp_path / "probe"), str(first.path), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["target"] == "Linux aarch64"


PROBE = r"""
#include <dlfcn.h>
#include <stdio.h>
int main(int n, char** v) {
  void* library = dlopen(v[n - 1], RTLD_NOW);
  if (!library) { puts(dlerror()); return 1; }
  const char* (*info)(void) = (const char* (*)(void))dlsym(library, "sbr_build_info");
  puts(info());
  return 0;
}
"""


# ---- the library of a board -------------------------------------------------------------------------------


def arm_library(version: bytes = b"") -> bytes:
    """Enough of an ELF file to be told apart."""
    header = bytearray(64)
    header[:6] = b"\x7fELF\x01\x01"
    header[18:20] = (183).to_bytes(2, "little")
    return bytes(header) + version


def keep(cache: Path, data: bytes, **info: Any) -> Library:
    sha256 = hashlib.sha256(data).hexdigest()
    entry = BuildInfo(info.pop("target", ARM), info.pop("sources", "s1"), sha256, "zig", **info)
    return Builds(cache).keep(data, entry, sha256[:8])


def test_a_board_gets_the_newest_build_of_these_sources(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=f"rpi5 needs the runtime for {ARM}: none was built") as caught:
        library_for("aarch64", None, tmp_path, device="rpi5", libc="glibc 2.36", sources="s1")
    assert caught.value.hint == f"stbench build --target {ARM}"
    old = keep(tmp_path, arm_library(b"old"), sources="s0")
    with pytest.raises(BuildError, match="the one that was built is of other sources"):
        library_for("aarch64", None, tmp_path, sources="s1")
    new = keep(tmp_path, arm_library(b"new"))
    assert library_for("aarch64", None, tmp_path, sources="s1") == new
    assert library_for("aarch64", None, tmp_path, sources="s0") == old
    own = keep(tmp_path, arm_library(b"own"), device="rpi5")
    assert library_for("aarch64", None, tmp_path, sources="s1") == new
    assert library_for("aarch64", None, tmp_path, sources="s1", device="rpi5") == own


def test_a_phone_gets_what_it_compiled(tmp_path: Path) -> None:
    keep(tmp_path, arm_library())
    with pytest.raises(BuildError, match="for aarch64-linux-android") as caught:
        library_for("aarch64", None, tmp_path, libc="bionic", device="phone", sources="s1")
    assert caught.value.hint.startswith("stbench build --on phone")
    own = keep(tmp_path, arm_library(b"own"), device="phone", target="aarch64-linux-android")
    assert library_for("aarch64", None, tmp_path, libc="bionic", device="phone", sources="s1") == own


def test_the_library_that_was_named_goes_to_its_machine_only(tmp_path: Path, library_path: Path) -> None:
    given = build.find_library(library_path)
    assert library_for(platform.machine(), given, tmp_path, libc="glibc 2.99", sources="s1") == given
    other = "aarch64" if platform.machine() == "x86_64" else "x86_64"
    with pytest.raises(BuildError, match="needs the runtime for"):
        library_for(other, given, tmp_path, sources="s1")


def test_a_library_for_a_newer_system_is_not_sent_to_an_old_one(tmp_path: Path, library_path: Path) -> None:
    """The installed one needs this machine's C library, which may be years younger than a board's."""
    installed = replace(build.describe(library_path), given=False)
    assert installed.needs is not None
    newer = replace(installed, needs=replace(installed.needs, glibc=(2, 38)))
    machine = platform.machine()
    assert library_for(machine, newer, tmp_path, libc="glibc 2.41", sources="s1") == newer
    with pytest.raises(BuildError) as caught:
        library_for(machine, newer, tmp_path, libc="glibc 2.31", device="old", sources="s1")
    assert caught.value.hint == f"stbench build --target {machine}-linux-gnu"
    with pytest.raises(BuildError, match=r"it needs glibc 2\.38, and there is 2\.31"):
        library_for(machine, replace(newer, given=True), tmp_path, libc="glibc 2.31", sources="s1")


def cuts(data: bytes) -> Sequence[int]:
    return [*range(64), *range(64, len(data), max(len(data) // 97, 1)), *range(len(data) - 64, len(data))]


def test_a_damaged_library_is_no_library(library_path: Path) -> None:
    data = library_path.read_bytes()
    for length in cuts(data):
        with pytest.raises(ValueError, match="shared library"):
            elf.needs(data[:length])
    for at in range(32, 64):
        # Wherever its tables are said to be then: an answer or that sentence.
        with contextlib.suppress(ValueError):
            elf.needs(data[:at] + b"\xff" + data[at + 1 :])


def test_the_needed_version_is_what_binutils_say(library_path: Path) -> None:
    path = find_tool("readelf", "apt install binutils")
    said = subprocess.run([path, "-V", str(library_path)], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"GLIBC_(\d+)\.(\d+)", said)
    assert elf.needs(library_path.read_bytes()).glibc == max((int(a), int(b)) for a, b in found)
