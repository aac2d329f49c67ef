"""Breaks the runtime's source on purpose and watches the harness notice.

Each sabotage is a text substitution in a copy of runtime/, so production code carries no hooks for it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.test_native import find_tool, run

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Sabotage:
    """Replaces ``old`` (which must occur exactly once) by ``new`` in ``file``."""

    name: str
    file: str
    old: str
    new: str


# In the loops that all vector kernels share, so it hits whichever instruction set "auto" means here; the
# scalar kernels, which references come from, stay right.
FLIPPED_SIGN = Sabotage(
    name="a flipped sign in RoPE",
    file="src/kernels/float_kernels.h",
    old="store16(x + i + half, fma16(b, c, mul16(a, s)));",
    new="store16(x + i + half, fma16(b, c, sub16(splat16(-0.0f), mul16(a, s))));",
)

SKIPPED_NEURON = Sabotage(
    name="one active neuron skipped",
    file="src/model/sparse_ffn.cpp",
    old="segment_.row_begin / 32] = static_cast<uint32_t>(active);",
    new="segment_.row_begin / 32] = static_cast<uint32_t>(active - (active > 0));",
)


def build_sabotaged(sabotage: Sabotage, folder: Path) -> Path:
    """The build directory of a runtime with the sabotage applied."""
    source = folder / "runtime"
    shutil.copytree(ROOT / "runtime", source)
    shutil.copy(ROOT / "pyproject.toml", folder / "pyproject.toml")
    target = source / sabotage.file
    text = target.read_text()
    assert text.count(sabotage.old) == 1, (
        f"{sabotage.file} no longer has the line that {sabotage.name} breaks"
    )
    target.write_text(text.replace(sabotage.old, sabotage.new))
    build = folder / "build"
    cmake = find_tool("cmake", "pip install cmake")
    find_tool("ninja", "pip install ninja")
    run(cmake, "-S", str(source), "-B", str(build), "-GNinja", "-DSBR_BUILD_TESTS=ON", cwd=folder)
    run(cmake, "--build", str(build), cwd=folder)
    return build


def native_failures(build: Path, pattern: str) -> list[str]:
    """Names of the native tests that fail."""
    ctest = find_tool("ctest", "pip install cmake")
    subprocess.run([ctest, "--test-dir", str(build), "-R", pattern], capture_output=True, check=False)
    log = build / "Testing" / "Temporary" / "LastTestsFailed.log"
    return [line.split(":", 1)[1] for line in log.read_text().splitlines()] if log.exists() else []


def sweep_tiny(library: Path | None, folder: Path) -> tuple[int, list[dict[str, object]], str]:
    """Exit code, records and output of a small sweep with that library (None: the installed one)."""
    command = [
        *(sys.executable, "-m", "stbench.cli", "sweep", "--devices", str(ROOT / "devices.yaml")),
        *("--models", "tiny-smallthinker", "--sparse-ffn", "on,off", "--sparse-lm-head", "off"),
        *("-pg", "8,16", "-r", "1", "--campaign", "sabotage"),
        *("--results", str(folder / "results"), "--reports", str(folder / "reports")),
    ]
    if library is not None:
        command += ["--library", str(library)]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = (folder / "results" / "sabotage" / "records.jsonl").read_text().splitlines()
    return done.returncode, [json.loads(line) for line in lines], done.stdout


def test_a_sound_library_passes(tmp_path: Path, library_path: Path) -> None:
    code, records, _ = sweep_tiny(library_path, tmp_path)
    assert code == 0
    assert {record["status"] for record in records} == {"ok"}


def test_a_flipped_sign_in_one_kernel(tmp_path: Path) -> None:
    build = build_sabotaged(FLIPPED_SIGN, tmp_path)
    assert "test_kernels" in native_failures(build, "kernels")
    code, records, printed = sweep_tiny(build / "libsbr.so", tmp_path)
    assert code == 3
    assert {record["status"] for record in records} == {"wrong-output"}
    assert "wrong output" in printed


def test_one_skipped_active_neuron(tmp_path: Path) -> None:
    build = build_sabotaged(SKIPPED_NEURON, tmp_path)
    assert any("forward" in name for name in native_failures(build, "forward"))
