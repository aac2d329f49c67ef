"""``compile``: the runtime from its sources, with the board's own compiler and CMake (Termux; other systems
that no cross-built library fits)."""

import argparse
import contextlib
import fcntl
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from typing import Any, Callable, Iterator, List, Optional

from . import lease, wirejson
from .wiretools import Progress

# A translation unit of ours takes up to so much memory in clang; a board with 1 GB compiles one at a time.
_BYTES_PER_JOB = 600 << 20

_TOOLS = {"compiler": ("c++", "clang++", "g++"), "cmake": ("cmake",), "generator": ("ninja", "make", "gmake")}

Emit = Callable[[Any], None]


@dataclass(frozen=True)
class CompileRequest:
    """Stdin of ``compile``. ``archive``: a tar.gz of the sources with this digest; ``directory``: where to
    compile, kept for the next time; ``spool``: beside the lease, "" for none."""

    archive: str
    sha256: str
    directory: str
    version: str
    spool: str = ""


@dataclass(frozen=True)
class CompileResult:
    """The last line of ``compile``. ``problem``: why there is no library, with the end of the output;
    ``missing``: tools that have to be installed first."""

    path: str = ""
    sha256: str = ""
    bytes: int = 0
    compiler: str = ""
    problem: str = ""
    missing: str = ""
    busy: str = ""


def compile_library(request: CompileRequest, emit: Emit) -> CompileResult:
    """Unpacks, configures and compiles. Failures are results; raises OSError for a full disk and such."""
    found = {what: _first(names) for what, names in _TOOLS.items()}
    missing = [" or ".join(_TOOLS[what]) for what, path in found.items() if path is None]
    if missing:
        return CompileResult(missing=", ".join(missing))
    with open(request.archive, "rb") as file:
        data = file.read()
    if hashlib.sha256(data).hexdigest() != request.sha256:
        return CompileResult(problem="%s did not arrive as it was sent" % request.archive)
    source, build = (os.path.join(request.directory, name) for name in ("source", "build"))
    _unpack(data, source)
    generator = str(found["generator"])
    ninja = os.path.basename(generator) == "ninja"
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_CXX_COMPILER": found["compiler"],
        "CMAKE_MAKE_PROGRAM": generator,
        "CMAKE_SHARED_LINKER_FLAGS": "-s",
        "SBR_BUILD_TESTS": "OFF",
        "SBR_VERSION": request.version,
    }
    command = [str(found["cmake"]), "-S", source, "-B", build, "-G", "Ninja" if ninja else "Unix Makefiles"]
    command += ["-D%s=%s" % item for item in options.items()]
    for what, step in (
        ("configuring", command),
        ("compiling", [str(found["cmake"]), "--build", build, "--target", "sbr", "--parallel", str(_jobs())]),
    ):
        problem = _step(step, what, emit)
        if problem:
            return CompileResult(problem=problem)
    path = os.path.join(build, "libsbr.so")
    with open(path, "rb") as file:
        library = file.read()
    digest = hashlib.sha256(library).hexdigest()
    return CompileResult(path, digest, len(library), _version(str(found["compiler"])))


def _first(names: Any) -> Optional[str]:
    return next((path for path in map(shutil.which, names) if path), None)


def _unpack(data: bytes, folder: str) -> None:
    """Regular files only, only below ``folder``; what did not change keeps its time, so that a second build
    compiles only what did."""
    wanted = set()
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        for member in tar:
            parts = member.name.split("/")
            if not member.isfile() or ".." in parts or member.name.startswith("/"):
                raise OSError("the archive has a member %r" % member.name)
            content = tar.extractfile(member)
            assert content is not None
            path = os.path.join(folder, *parts)
            wanted.add(path)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            text = content.read()
            if not os.path.isfile(path) or _read(path) != text:
                with open(path, "wb") as file:
                    file.write(text)
    for directory, _, names in os.walk(folder):
        for name in names:
            if os.path.join(directory, name) not in wanted:
                os.unlink(os.path.join(directory, name))


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _jobs() -> int:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/meminfo") as file:
            available = next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
        count = min(count, max(available // _BYTES_PER_JOB, 1))
    return count


def _step(command: List[str], what: str, emit: Emit) -> str:
    """Runs a step with its progress; returns the end of its output when it fails."""
    emit(Progress(what, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("CXXFLAGS", "CFLAGS")}
    environment["NINJA_STATUS"] = "[%f/%t] "
    tail: List[str] = []
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        universal_newlines=True,
        errors="replace",
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            tail = [*tail[-29:], line.rstrip()[:300]]
            counted = re.match(r"\[(\d+)/(\d+)\] ", line)
            percent = re.match(r"\[ *(\d+)%\] ", line)
            if counted:
                emit(Progress(what, int(counted.group(1)), int(counted.group(2))))
            elif percent:
                emit(Progress(what, int(percent.group(1)), 100))
    except BaseException:
        process.kill()
        raise
    finally:
        code = process.wait()
    return "" if code == 0 else "%s failed (exit code %d):\n%s" % (what, code, "\n".join(tail))


def _version(compiler: str) -> str:
    done = subprocess.run(
        [compiler, "--version"], stdout=subprocess.PIPE, universal_newlines=True, check=False
    )
    lines = done.stdout.splitlines()
    return lines[0].strip()[:120] if lines else compiler


@contextlib.contextmanager
def leased(spool: str) -> Iterator[str]:
    """Holds the board's lease, so that nothing is measured meanwhile; gives "" or who has it. ``spool`` "":
    whoever asks holds it already."""
    if not spool:
        yield ""
        return
    path = lease.lease_path(spool)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    descriptor = lease.try_take(path)
    if descriptor is None:
        yield lease.sentence(lease.read_holder(path), lease.boot_id())
        return
    try:
        yield ""
    finally:
        os.close(descriptor)


def run(_args: Optional[argparse.Namespace] = None) -> int:
    """CompileRequest on stdin -> Progress lines, then one CompileResult line."""
    request = wirejson.loads(CompileRequest, sys.stdin.readline())

    def emit(message: Any) -> None:
        sys.stdout.write(wirejson.dumps(message) + "\n")
        sys.stdout.flush()

    os.makedirs(request.directory, exist_ok=True)
    with leased(request.spool) as busy, open(os.path.join(request.directory, ".lock"), "w") as lock:
        if busy:
            emit(CompileResult(busy=busy))
            return 0
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            result = compile_library(request, emit)
        except OSError as error:
            result = CompileResult(
                problem="%s: %s" % (error.filename or request.directory, error.strerror or error)
            )
    emit(result)
    return 0
