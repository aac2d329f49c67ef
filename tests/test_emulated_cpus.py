"""The aarch64 build, cross-compiled once with zig, under emulated CPUs old and new."""

from __future__ import annotations

import json
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import require
from tests.test_native import RUNTIME, find_tool, run

# What each emulated CPU can run of the instruction sets that the library holds.
CPUS = {
    "cortex-a53": ["scalar", "neon"],
    "cortex-a76": ["scalar", "neon", "neon-dotprod"],
    "max": ["scalar", "neon", "neon-dotprod", "neon-i8mm"],
}
# Where everything runs.
OLDEST = "cortex-a53"
AARCH64_LIBC = Path("/usr/aarch64-linux-gnu")

pytestmark = [pytest.mark.slow, pytest.mark.beside("emulated CPUs", seconds=500)]


def configure(arch: str, folder: Path) -> str:
    """Configures a cross build for ``arch`` in ``folder``; returns the path of cmake."""
    cmake = find_tool("cmake", "pip install cmake")
    find_tool("ninja", "pip install ninja")
    zig = subprocess.run([sys.executable, "-m", "ziglang", "version"], capture_output=True, check=False)
    require(zig.returncode == 0, "no ziglang: pip install ziglang")
    options = [f"-DCMAKE_TOOLCHAIN_FILE=cmake/{arch}-zig.cmake", f"-DSBR_ZIG_PYTHON={sys.executable}"]
    run(cmake, "-S", ".", "-B", str(folder), "-GNinja", "-DCMAKE_BUILD_TYPE=Release", *options, cwd=RUNTIME)
    return cmake


@pytest.fixture(scope="session")
def aarch64_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library and its native tests for aarch64."""
    folder = tmp_path_factory.mktemp("aarch64")
    cmake = configure("aarch64", folder)
    run(cmake, "--build", str(folder), "--parallel", "2", cwd=RUNTIME)
    return folder


@pytest.fixture(scope="session")
def x86_64_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configured only."""
    folder = tmp_path_factory.mktemp("x86_64")
    configure("x86_64", folder)
    return folder


def emulate(cpu: str, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    qemu = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    require(qemu is not None, "no qemu-aarch64: apt install qemu-user-static")
    require(AARCH64_LIBC.is_dir(), "no aarch64 glibc: apt install libc6-arm64-cross")
    emulator = [str(qemu), "-L", str(AARCH64_LIBC), "-cpu", cpu]
    return subprocess.run([*emulator, *command], cwd=cwd, capture_output=True, text=True, check=False)


def chooses_kernels(name: str) -> bool:
    """Whether a native test, or a header of its own that it includes, names instruction sets or leaves them
    to the CPU. All else is the same code on every CPU."""
    folder, seen = RUNTIME / "tests", set[str]()
    left = [path.name for path in folder.glob(f"{name}.c*")]
    assert left, name
    while left:
        file = left.pop()
        seen.add(file)
        text = (folder / file).read_text()
        if re.search(r"ISA_AUTO|kernels/|sbr_isa_", text):
            return True
        included = re.findall(r'^#include "([^"/]+)"', text, re.MULTILINE)
        left += [one for one in included if one not in seen and (folder / one).exists()]
    return False


@pytest.mark.parametrize("cpu", CPUS)
def test_native_tests_pass(aarch64_build: Path, cpu: str) -> None:
    listing = run("ctest", "--test-dir", str(aarch64_build), "--show-only=json-v1", cwd=aarch64_build)
    listed = [test for test in json.loads(listing)["tests"] if test.get("command")]
    # Tests of the host's own tools (a script, a compiler) have no business on a board.
    tests = [test for test in listed if test["command"][0].startswith(str(aarch64_build))]
    assert len(tests) >= 5
    if cpu != OLDEST:
        tests = [test for test in tests if chooses_kernels(test["name"])]
        assert {"test_kernels", "test_forward", "test_stream", "test_cached_experts"} <= {
            test["name"] for test in tests
        }
    for test in tests:
        done = emulate(cpu, *test["command"], cwd=aarch64_build / "tests")
        assert done.returncode == 0, f"{test['name']} on {cpu}:\n{(done.stdout + done.stderr)[-4000:]}"


@pytest.mark.parametrize("cpu", CPUS)
def test_dispatch_chooses_what_the_cpu_has(aarch64_build: Path, cpu: str) -> None:
    done = emulate(cpu, str(aarch64_build / "tests" / "test_kernels"), cwd=aarch64_build)
    ran = [line for line in done.stdout.splitlines() if ":" not in line]
    assert ran == CPUS[cpu]


@pytest.mark.parametrize(
    ("isa", "without", "with_it"),
    [("neon-dotprod", "cortex-a53", "cortex-a76"), ("neon-i8mm", "cortex-a76", "max")],
)
def test_undispatched_kernels_are_noticed(aarch64_build: Path, isa: str, without: str, with_it: str) -> None:
    """The sabotage: kernels of an instruction set that the CPU lacks, called all the same."""
    program = str(aarch64_build / "tests" / "test_kernels")
    forced = emulate(without, program, isa, cwd=aarch64_build)
    assert forced.returncode in (-signal.SIGILL, 128 + signal.SIGILL)
    assert emulate(with_it, program, isa, cwd=aarch64_build).returncode == 0


def shared_symbols(object_file: Path) -> list[str]:
    """Names of the symbols that an ELF64 object file defines for other files (global, weak or unique)."""
    data = object_file.read_bytes()
    assert data[:5] == b"\x7fELF\x02"
    (table,) = struct.unpack_from("<Q", data, 0x28)
    entry_size, count = struct.unpack_from("<HH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * entry_size) for i in range(count)]
    names = []
    for _, kind, _, _, offset, size, link, _, _, _ in sections:
        if kind != 2:  # the symbol table
            continue
        strings = sections[link][4]
        for at in range(offset, offset + size, 24):
            name, info, _, section = struct.unpack_from("<IBBH", data, at)
            if section != 0 and info >> 4 != 0:
                end = data.index(b"\0", strings + name)
                names.append(data[strings + name : end].decode())
    return names


@pytest.mark.parametrize(
    ("arch", "file", "table"),
    [
        ("aarch64", "neon", "_ZN3sbr12kNeonKernelsE"),
        ("aarch64", "neon_dotprod", "_ZN3sbr19kNeonDotprodKernelsE"),
        ("aarch64", "neon_i8mm", "_ZN3sbr16kNeonI8mmKernelsE"),
        ("x86_64", "avx2", "_ZN3sbr12kAvx2KernelsE"),
        ("x86_64", "avxvnni", "_ZN3sbr15kAvxVnniKernelsE"),
        ("x86_64", "avx512vnni", "_ZN3sbr18kAvx512VnniKernelsE"),
        ("x86_64", "amx", "_ZN3sbr11kAmxKernelsE"),
    ],
)
def test_kernel_files_share_nothing_but_their_table(
    request: pytest.FixtureRequest, arch: str, file: str, table: str
) -> None:
    """An inline function compiled for a newer CPU must not become the linker's choice for everyone."""
    source = f"CMakeFiles/sbr_objects.dir/src/kernels/{file}.cpp.o"
    folder = request.getfixturevalue(f"{arch}_build")
    run(find_tool("cmake", "pip install cmake"), "--build", str(folder), "--target", source, cwd=RUNTIME)
    assert shared_symbols(folder / source) == [table]
