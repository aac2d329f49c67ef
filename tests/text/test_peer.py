"""What `stbench peer build` does before, after and instead of compiling; the build itself serves the truth
tests.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from stbench import cli
from stbench.builds import peer, toolchain
from stbench.errors import BuildError, NoSpace, StbenchError

PREFIX = f"llama_cpp_python-{peer.VERSION}/vendor/llama.cpp"


def quiet(done: int, total: int, what: str) -> None:
    pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "stbench" / "peer"


def archive(path: Path, members: dict[str, bytes], extra: list[tarfile.TarInfo] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o4777
            tar.addfile(info, io.BytesIO(data))
        for info in extra or []:
            tar.addfile(info)
    return path


def fake_compiler(folder: Path, name: str, *, works: bool, macros: str = "") -> None:
    """A script that answers -dM with ``macros`` and links anything, or nothing."""
    folder.mkdir(exist_ok=True)
    script = folder / name
    script.write_text(
        f"#!/bin/sh\ncase \"$*\" in *-dM*) printf '{macros}';; *) exit {0 if works else 1};; esac\n"
    )
    script.chmod(0o755)


CLANG = "#define __clang_major__ 19\\n#define __clang_minor__ 1\\n#define __clang_patchlevel__ 7\\n"
GCC = (
    "#define __GNUC__ {}\\n#define __GNUC_MINOR__ 2\\n#define __GNUC_PATCHLEVEL__ 0\\n#define __x86_64__ 1\\n"
)


def test_clang_is_preferred_and_the_newest_that_links(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    for suffix, works in (("-21", False), ("-19", True), ("-15", True)):
        for name in ("clang", "clang++"):
            fake_compiler(tools, name + suffix, works=works, macros=CLANG)
    for name in ("gcc", "g++"):
        fake_compiler(tools, name, works=True, macros=GCC.format(14))
    found = toolchain.find_compiler({"PATH": f"{tools}:/bin"})
    assert (found.name, found.cc, found.flags) == ("clang-19.1.7", str(tools / "clang-19"), ())


@pytest.mark.parametrize(("major", "without_amx"), [(12, True), (14, False)])
def test_gcc_12_leaves_amx_out(major: int, without_amx: bool, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    for name in ("gcc", "g++"):
        fake_compiler(tools, name, works=True, macros=GCC.format(major))
    found = toolchain.find_compiler({"PATH": str(tools)})
    assert found.name == f"gcc-{major}.2.0"
    assert ("-mno-amx-tile" in found.flags) == without_amx


def test_missing_compiler_is_said(tmp_path: Path) -> None:
    fake_compiler(tmp_path / "bin", "clang++", works=False)
    with pytest.raises(BuildError, match="C and C\\+\\+ compiler") as caught:
        toolchain.find_compiler({"PATH": str(tmp_path / "bin")})
    assert "apt install" in caught.value.hint


def test_missing_tool_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="needs no-such-ninja") as caught:
        toolchain.find_tool("no-such-ninja", "ninja-build")
    assert "ninja-build" in caught.value.hint


def test_only_needed_regular_files_are_unpacked(tmp_path: Path) -> None:
    link = tarfile.TarInfo(f"{PREFIX}/src/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device = tarfile.TarInfo(f"{PREFIX}/src/device")
    device.type = tarfile.CHRTYPE
    members = {
        f"{PREFIX}/include/llama.h": b"header",
        f"{PREFIX}/src/a.cpp": b"code",
        f"{PREFIX}/models/vocabulary.gguf": b"not needed",
        f"llama_cpp_python-{peer.VERSION}/setup.py": b"not llama.cpp",
        "somewhere/else": b"not ours",
    }
    path = archive(tmp_path / "sdist.tar.gz", members, [link, device])
    root = peer.unpack_llama_cpp(path, tmp_path / "out", quiet)
    found = sorted(str(p.relative_to(root)) for p in root.rglob("*") if not p.is_dir())
    assert found == ["include/llama.h", "src/a.cpp"]
    assert stat.S_IMODE((root / "src/a.cpp").stat().st_mode) == 0o755


def test_members_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    members = {f"{PREFIX}/include/llama.h": b"", f"{PREFIX}/src/../../../../escaped": b"!"}
    path = archive(tmp_path / "sdist.tar.gz", members)
    with pytest.raises(BuildError, match="points outside"):
        peer.unpack_llama_cpp(path, tmp_path / "a" / "b" / "out", quiet)
    assert not list(tmp_path.rglob("escaped"))


def test_archive_without_llama_cpp_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "sdist.tar.gz", {f"{PREFIX}/README.md": b""})
    with pytest.raises(BuildError, match=r"llama.cpp is not in it"):
        peer.unpack_llama_cpp(path, tmp_path / "out", quiet)


@pytest.mark.parametrize(
    ("stderr", "kind", "said"),
    [
        (
            "ERROR: Could not find a version that satisfies the requirement",
            peer.RegistryError,
            "could not be downloaded",
        ),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", peer.RegistryError, "DO NOT MATCH"),
        ("python: No module named pip", BuildError, "has no pip"),
        (f"ERROR: {os.strerror(errno.ENOSPC)}", NoSpace, "the disk filled up"),
        ("", peer.RegistryError, "gave no reason"),
    ],
)
def test_download_failures_are_told_apart(
    stderr: str, kind: type[StbenchError], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", stderr)

    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(kind, match=said):
        peer.fetch_sdist(tmp_path, quiet)


def test_other_bytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def delivers(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        (tmp_path / "llama.tar.gz").write_bytes(b"something else")
        return subprocess.CompletedProcess([], 0, "", "")

    monkeypatch.setattr(subprocess, "run", delivers)
    with pytest.raises(peer.RegistryError, match="not the pinned one"):
        peer.fetch_sdist(tmp_path, quiet)


def test_full_disk_is_said_before_anything_is_fetched(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(NoSpace, match=r"needs 1\.5 GB to build, 0\.0 GB are free"):
        peer.build_peer()
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_failed_build_leaves_nothing_and_shows_the_log(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive is replaced by one that CMake cannot configure; all else is as it is."""
    members = {
        f"{PREFIX}/include/llama.h": b"",
        f"{PREFIX}/CMakeLists.txt": b'message(FATAL_ERROR "no such luck")',
    }

    def fetch(folder: Path, report: peer.Progress) -> Path:
        return archive(folder / "sdist.tar.gz", members)

    monkeypatch.setattr(peer, "fetch_sdist", fetch)
    with pytest.raises(BuildError, match="no such luck"):
        peer.build_peer()
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_build_of_another_cpu_is_not_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = cache / f"{peer.VERSION}-clang-19.1.7-{toolchain.cpu_digest()}"
    (directory / "bin").mkdir(parents=True)
    for name in ("libllama.so", "llama-bench"):
        (directory / "bin" / name).touch()
    info = {
        "version": peer.VERSION,
        "commit": "",
        "sha256": "",
        "compiler": "clang-19.1.7",
        "flags": [],
        "cpu": "",
    }
    (directory / "info.json").write_text(json.dumps(info))
    found = peer.built_peer()
    assert found is not None
    assert found.directory == str(directory)
    other = toolchain.cpu_digest("flags : fpu sse2\n")
    monkeypatch.setattr(peer, "cpu_digest", lambda: other)
    assert peer.built_peer() is None


def test_half_a_build_is_not_used(cache: Path) -> None:
    directory = cache / f"{peer.VERSION}-clang-19.1.7-{toolchain.cpu_digest()}"
    directory.mkdir(parents=True)
    (directory / "info.json").write_text("{")
    assert peer.built_peer() is None


def test_path_without_a_build_says_how_to_make_one(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["peer", "path"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "stbench peer build" in captured.err
