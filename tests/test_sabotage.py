"""Breaks the runtime's source on purpose and watches the harness notice.

Each sabotage is a text substitution in a copy of runtime/, so production code carries no hooks for it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workshop import ROOT, Edit, Workshop, edited, find_tool, working_tree

pytestmark = [pytest.mark.slow, pytest.mark.beside("workshop", seconds=80)]


# In the loops that all vector kernels share, so it hits whichever instruction set "auto" means here; the
# scalar kernels, which references come from, stay right.
FLIPPED_SIGN = Edit(
    name="a flipped sign in RoPE",
    file="src/kernels/float_kernels.h",
    old="store16(x + i + half, fma16(b, c, mul16(a, s)));",
    new="store16(x + i + half, fma16(b, c, sub16(splat16(-0.0f), mul16(a, s))));",
)

SKIPPED_NEURON = Edit(
    name="one active neuron skipped",
    file="src/model/sparse_ffn.cpp",
    old="segment_.row_begin / 32] = static_cast<uint32_t>(active);",
    new="segment_.row_begin / 32] = static_cast<uint32_t>(active - (active > 0));",
)


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
        *("-pg", "8,16", "-r", "1", "--max-reruns", "0", "--campaign", "sabotage"),
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
    broken = edited(working_tree(), FLIPPED_SIGN)
    with Workshop().building(broken, ["sbr", "test_kernels"]) as build:
        assert "test_kernels" in native_failures(build, "kernels")
        code, records, printed = sweep_tiny(build / "libsbr.so", tmp_path)
    assert code == 3
    assert {record["status"] for record in records} == {"wrong-output"}
    assert "wrong output" in printed


def test_one_skipped_active_neuron() -> None:
    broken = edited(working_tree(), SKIPPED_NEURON)
    with Workshop().building(broken, ["test_forward"]) as build:
        assert any("forward" in name for name in native_failures(build, "forward"))
