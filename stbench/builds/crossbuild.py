"""The runtime for another machine, compiled on this one: with zig from the package registry, which brings a
compiler and a C library for every target, or with a CMake toolchain file of the user's.

The same sources, compiler and options give the same bytes, whatever directory they lie in: nothing of the
place or the time gets into the library.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import stbench
from stbench.builds import elf
from stbench.builds.build import LIBRARY, BuildInfo, Builds, Library, describe
from stbench.builds.runtime_sources import Sources, find_sources, sources_at
from stbench.builds.toolchain import find_tool, run_build_step
from stbench.errors import BuildError, MissingExtra
from stbench.paths import cache_dir
from stbench.yamlfile import unknown_name

TARGET = re.compile(r"(x86_64|aarch64|riscv64|armv7l|i686)-linux-[a-z0-9_]{2,20}")

# Of the caller's environment, none of this is part of the build.
_NOT_OURS = {
    "CC",
    "CXX",
    "CFLAGS",
    "CXXFLAGS",
    "CPPFLAGS",
    "LDFLAGS",
    "CMAKE_TOOLCHAIN_FILE",
    "CMAKE_GENERATOR",
}

# done, total, what: total is 0 while it is unknown.
Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Target:
    """What zig builds for: ``toolchain`` in runtime/cmake; the library loads with ``glibc`` and later."""

    machine: str
    toolchain: str
    glibc: tuple[int, int]


TARGETS = {
    # Debian 10, Ubuntu 18.10, Raspberry Pi OS 10 and later: one library for every aarch64 board.
    "aarch64-linux-gnu": Target("aarch64", "aarch64-zig.cmake", (2, 28)),
    # CentOS 7 and later.
    "x86_64-linux-gnu": Target("x86_64", "x86_64-zig.cmake", (2, 17)),
}


@dataclass(frozen=True)
class Built:
    """A library and how it came to be; ``already``: it was there. ``note`` is for people, "" mostly."""

    library: Library
    info: BuildInfo
    already: bool
    note: str = ""


def build(
    target: str,
    report: Report,
    *,
    toolchain: Path | None = None,
    options: Mapping[str, str] | None = None,
    sources: Sources | None = None,
    cache: Path | None = None,
) -> Built:
    """The library for ``target``, compiled unless the cache has it. ``toolchain``: a CMake toolchain file
    instead of zig, ``options``: its cache variables (the NDK's: ANDROID_ABI). ``sources`` and ``cache``
    default to this installation's.

    Raises :class:`BuildError` with the end of the compiler's output, :class:`MissingExtra`."""
    ours = _check(target, toolchain)
    sources = sources or find_sources()
    compiler, file = _compiler(toolchain, ours, sources)
    chosen = dict(options or {})
    cmake = find_tool("cmake", "cmake", "build", "cross")
    ninja = find_tool("ninja", "ninja-build", "build", "cross")
    key = _key(sources, compiler, file, chosen)
    builds = Builds(cache)
    info_path = builds.path(target, key).with_name("info.json")
    with _alone(builds.root, report):
        if (found := _cached(builds, target, key, sources)) is not None:
            # The one that was asked for last is the one that boards get.
            os.utime(info_path)
            return found
        with tempfile.TemporaryDirectory(prefix=".building-", dir=builds.root) as work:
            variables = {
                "CMAKE_BUILD_TYPE": "Release",
                "CMAKE_MAKE_PROGRAM": ninja,
                "CMAKE_TOOLCHAIN_FILE": str(file),
                "CMAKE_SHARED_LINKER_FLAGS": "-s",
                "SBR_BUILD_TESTS": "OFF",
                "SBR_VERSION": stbench.__version__,
                **({"SBR_ZIG_PYTHON": sys.executable} if toolchain is None else {}),
                **chosen,
            }
            command = [cmake, "-S", str(sources.directory), "-B", work, "-G", "Ninja"]
            command += [f"-D{name}={value}" for name, value in variables.items()]
            _logged(command, f"configuring for {target}", report)
            # The first link for a target also compiles zig's C++ library: most of a minute, once.
            _logged([ninja, "-C", work, "sbr"], f"compiling for {target}", report)
            data = (Path(work) / LIBRARY).read_bytes()
        if sources_at(sources.directory).digest != sources.digest:
            raise BuildError(
                f"{sources.directory} changed while it was compiled",
                hint="again, when nobody edits it: a build is kept under the digest of its sources",
            )
        note = _verify(data, target, ours if toolchain is None else None)
        sha256 = hashlib.sha256(data).hexdigest()
        name = "" if toolchain is None else toolchain.name
        info = BuildInfo(target, sources.digest, sha256, compiler, name)
        return Built(builds.keep(data, info, key), info, False, note)


def _check(target: str, toolchain: Path | None) -> Target | None:
    ours = TARGETS.get(target)
    if TARGET.fullmatch(target) is None or (ours is None and toolchain is None):
        raise BuildError(
            f"--target: {unknown_name('target', target, TARGETS)}",
            hint="any other MACHINE-linux-LIBC needs --toolchain FILE; a phone compiles its own: --on DEVICE",
        )
    if toolchain is not None and not toolchain.is_file():
        raise BuildError(
            f"--toolchain {toolchain}: no such file",
            hint="the NDK's is build/cmake/android.toolchain.cmake below it",
        )
    return ours


def _compiler(toolchain: Path | None, ours: Target | None, sources: Sources) -> tuple[str, Path]:
    """What compiles, for the name of the build, and the toolchain file."""
    if toolchain is not None:
        return "", toolchain.resolve()
    assert ours is not None
    if importlib.util.find_spec("ziglang") is None:
        raise MissingExtra(
            "stbench build needs the Python package 'ziglang', which is not installed",
            hint="pip install 'stbench[cross]', or name a CMake toolchain file with --toolchain",
        )
    done = subprocess.run(
        [sys.executable, "-m", "ziglang", "version"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BuildError(
            f"zig does not run here: {done.stderr.strip()[-300:]}",
            hint="pip install --force-reinstall ziglang",
        )
    return f"zig {done.stdout.strip()}", sources.directory / "cmake" / ours.toolchain


def _key(sources: Sources, compiler: str, toolchain: Path, options: Mapping[str, str]) -> str:
    """Names a build by all that it is made from."""
    state = hashlib.sha256(sources.digest.encode())
    state.update(compiler.encode() + b"\0" + toolchain.read_bytes())
    state.update(repr(sorted(options.items())).encode())
    return state.hexdigest()[:16]


def _cached(builds: Builds, target: str, key: str, sources: Sources) -> Built | None:
    from stbench.builds.build import read_info

    path = builds.path(target, key)
    info = read_info(path.with_name("info.json"))
    if info is None or info.sources != sources.digest:
        return None
    with contextlib.suppress(BuildError):
        library = describe(path)
        if library.sha256 == info.sha256:
            return Built(library, info, True)
    return None


@contextlib.contextmanager
def _alone(root: Path, report: Report) -> Iterator[None]:
    """Two builds at once would do everything twice: the second one waits and finds the first one's work."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            report(0, 0, "waiting for another stbench build")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _verify(data: bytes, target: str, ours: Target | None) -> str:
    """Holds a library to what boards need of it. Raises :class:`BuildError`; returns a note for people."""
    try:
        needs = elf.needs(data)
    except ValueError as error:
        raise BuildError(f"the compiler made {LIBRARY}, but it is {error}") from None
    machine = target.partition("-")[0]
    if needs.machine != machine:
        raise BuildError(
            f"the library is for {needs.machine or 'an unknown machine'}, not for {machine}",
            hint="the toolchain file has to be of the target",
        )
    if not needs.stripped:
        raise BuildError("the library still has its symbols", hint="its linker has to accept -s")
    if needs.glibc is None:
        return ""
    version = f"{needs.glibc[0]}.{needs.glibc[1]}"
    if ours is not None and needs.glibc > ours.glibc:
        raise BuildError(
            f"the library needs glibc {version}, boards may have {ours.glibc[0]}.{ours.glibc[1]}: this is a "
            "defect of the build",
        )
    return "" if ours is not None else f"it needs glibc {version} or later on the board"


def zig_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """zig keeps what it compiled of its own in our cache, unless the user has a place for it."""
    found = {key: value for key, value in environ.items() if key not in _NOT_OURS}
    for key in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"):
        found.setdefault(key, found.get("ZIG_GLOBAL_CACHE_DIR", str(cache_dir() / "zig")))
    return found


def _logged(command: Sequence[str], what: str, report: Report) -> None:
    """Runs a step of a build. Raises :class:`BuildError` with the end of its output."""
    report(0, 0, what)
    code, log = run_build_step(
        command, zig_environment(os.environ), lambda done, total: report(done, total, what)
    )
    if code != 0:
        if "No space left on device" in log or "NoSpaceLeft" in log:
            where = shutil.disk_usage(cache_dir()).free / 1e6
            raise BuildError(
                f"the disk filled up while {what} ({where:.0f} MB are free)",
                hint="make room, or set XDG_CACHE_HOME to a larger disk; zig needs some 300 MB once",
            )
        raise BuildError(f"{what} failed (exit code {code}); the end of its output:\n{log}")
