"""libFuzzer, with address and undefined-behaviour sanitizers: a minute on the GGUF parser, and some time on
headers of bundles."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import require
from tests.test_native import RUNTIME
from tests.workshop import find_tool, run

SECONDS = {"fuzz_gguf": 60, "fuzz_bundle": 15}


def fuzzing_compiler(folder: Path) -> str | None:
    """The newest clang++ that links a libFuzzer program (its runtime is a package of its own)."""
    source = folder / "probe.cpp"
    source.write_text(
        "#include <cstddef>\n#include <cstdint>\n"
        'extern "C" int LLVMFuzzerTestOneInput(const uint8_t*, size_t) { return 0; }\n'
    )
    for name in (*(f"clang++-{version}" for version in range(25, 13, -1)), "clang++"):
        if compiler := shutil.which(name):
            command = [
                compiler,
                "-fsanitize=fuzzer,address,undefined",
                str(source),
                "-o",
                str(folder / "probe"),
            ]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return compiler
    return None


@pytest.mark.slow
@pytest.mark.beside(seconds=150)
def test_a_minute_of_fuzzing_finds_nothing(tmp_path: Path) -> None:
    cmake = find_tool("cmake", "pip install cmake")
    compiler = fuzzing_compiler(tmp_path)
    require(compiler is not None, "no clang++ with libFuzzer: apt install clang-19 libclang-rt-19-dev")
    assert compiler is not None
    build = tmp_path / "build"
    compilers = [f"-DCMAKE_CXX_COMPILER={compiler}", f"-DCMAKE_C_COMPILER={compiler.replace('++', '')}"]
    run(cmake, "--preset", "fuzz", "-B", str(build), *compilers, cwd=RUNTIME)
    jobs = str(os.cpu_count() or 1)
    run(cmake, "--build", str(build), "--parallel", jobs, "--target", "fuzzers", cwd=RUNTIME)

    # A copy: the fuzzer adds what it finds to its corpus. Bundles need no seeds.
    shutil.copytree(RUNTIME / "tests" / "corpus", tmp_path / "fuzz_gguf")
    (tmp_path / "fuzz_bundle").mkdir()
    # Not -rss_limit_mb: libFuzzer reads the peak RSS, which a process inherits from the one that started it,
    # and pytest may have mapped a whole model before. A large allocation is what a hostile length causes.
    # The timeout is by the clock, of which a niced process on a busy machine gets a tenth.
    limits = ["-timeout=120", "-rss_limit_mb=0", "-malloc_limit_mb=256", "-print_final_stats=1"]
    limits.append(f"-artifact_prefix={tmp_path}/")
    for name, seconds in SECONDS.items():
        fuzzer = str(build / "tests" / name)
        output = run(fuzzer, f"-max_total_time={seconds}", *limits, str(tmp_path / name), cwd=tmp_path)
        runs = re.search(r"stat::number_of_executed_units:\s*(\d+)", output)
        assert runs is not None, output[-2000:]
        assert int(runs.group(1)) > 1000
