"""The compilers and build tools of this machine, for what is built here.

Which pair is best, whether it works, and a digest of the CPU that native code is made for.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stbench.errors import BuildError


@dataclass(frozen=True)
class Compiler:
    """A C and C++ compiler pair. ``name`` is what the build is filed under: ``clang-19.1.7``."""

    name: str
    cc: str
    cxx: str
    flags: tuple[str, ...] = ()


def find_tool(name: str, package: str, command: str = "peer build", extra: str = "peer") -> str:
    """A build tool on PATH or among this Python's own scripts (a venv that is not activated).

    Raises :class:`BuildError` naming both ways to install it.
    """
    scripts = sysconfig.get_path("scripts")
    found = shutil.which(name) or shutil.which(name, path=scripts)
    if found is None:
        raise BuildError(
            f"stbench {command} needs {name}, which is not on PATH",
            hint=f"pip install 'stbench[{extra}]', or apt install {package}",
        )
    return found


def find_compiler(environ: Mapping[str, str] | None = None) -> Compiler:
    """The best compiler: clang before gcc, the newest first, and only one that really links a C++ program.

    Raises :class:`BuildError` when there is none.
    """
    path = (environ if environ is not None else os.environ).get("PATH", os.defpath)
    pairs = [(f"clang-{n}", f"clang++-{n}") for n in range(25, 13, -1)]
    pairs += [("clang", "clang++")]
    pairs += [(f"gcc-{n}", f"g++-{n}") for n in range(16, 10, -1)]
    pairs += [("gcc", "g++"), ("cc", "c++")]
    for cc_name, cxx_name in pairs:
        cc, cxx = shutil.which(cc_name, path=path), shutil.which(cxx_name, path=path)
        if cc and cxx and _links_cxx(cxx):
            return _describe(cc, cxx)
    raise BuildError(
        "stbench peer build needs a C and C++ compiler, and none was found that links a C++ program",
        hint="apt install clang, or apt install g++",
    )


def run_build_step(
    command: Sequence[str], environment: Mapping[str, str], on_step: Callable[[int, int], None]
) -> tuple[int, str]:
    """Runs a step of a build. ``on_step`` gets ninja's ``[12/46]``. Returns the exit code and the last 40
    lines of output."""
    tail: list[str] = []
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**environment, "NINJA_STATUS": "[%f/%t] "},
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                tail = [*tail[-39:], line.rstrip()]
                if step := re.match(r"\[(\d+)/(\d+)\] ", line):
                    on_step(int(step[1]), int(step[2]))
        except BaseException:
            process.terminate()
            raise
    return process.returncode, "\n".join(tail)


def _links_cxx(cxx: str) -> bool:
    source = "#include <thread>\n#include <vector>\nint main() { std::thread([] {}).join(); }\n"
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            [cxx, "-std=c++17", "-pthread", "-x", "c++", "-", "-o", str(Path(scratch) / "probe")],
            input=source,
            text=True,
            capture_output=True,
            check=False,
        )
    return done.returncode == 0


def _describe(cc: str, cxx: str) -> Compiler:
    macros = subprocess.run(
        [cc, "-dM", "-E", "-x", "c", os.devnull], text=True, capture_output=True, check=True
    ).stdout
    kind, keys = ("clang", ("__clang_major__", "__clang_minor__", "__clang_patchlevel__"))
    if "__clang_major__" not in macros:
        kind, keys = ("gcc", ("__GNUC__", "__GNUC_MINOR__", "__GNUC_PATCHLEVEL__"))
    values = dict(re.findall(r"^#define (\w+) (\d+)$", macros, re.MULTILINE))
    numbers = [values.get(key, "0") for key in keys]
    flags: tuple[str, ...] = ()
    if kind == "gcc" and int(numbers[0]) <= 12 and "__x86_64__" in macros:
        # gcc 12 miscompiles the AMX tile configuration: SIGILL at the first tilezero.
        flags = ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")
    return Compiler(f"{kind}-{'.'.join(numbers)}", cc, cxx, flags)


def cpu_digest(cpuinfo: str | None = None) -> str:
    """Eight hex digits over the machine type and the CPU's feature list."""
    if cpuinfo is None:
        try:
            cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            cpuinfo = ""
    lines = re.findall(r"^(?:flags|Features|CPU part)\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    features = sorted({word for line in lines for word in line.split()})
    return hashlib.sha256(" ".join([platform.machine(), *features]).encode()).hexdigest()[:8]
