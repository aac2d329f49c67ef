"""The program that keeps CPUs from sleeping: what it prints, and that it ends by itself."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.benchmarks import hold_places
from tests.conftest import require


@pytest.mark.parametrize("near_ns", ["0", "1000000000"], ids=["stays", "is-placed-anew"])
def test_it_tells_the_round_trip_and_ends(tmp_path: Path, near_ns: str) -> None:
    cpus = [str(cpu) for cpu in sorted(os.sched_getaffinity(0))[:2]]
    require(len(cpus) == 2, "a machine with two CPUs")
    program = hold_places.build(tmp_path)
    done = subprocess.run([program, "0.3", *cpus, near_ns], stdout=-1, text=True, timeout=60, check=True)
    (told,) = done.stdout.splitlines()
    _, trip, anew = map(int, told.split())
    assert trip > 5
    assert anew == 0


def test_a_cpu_that_is_not_there_is_said(tmp_path: Path) -> None:
    done = subprocess.run(
        [hold_places.build(tmp_path), "1", "0", "1023", "0"], stderr=-1, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (2, "hold_places: CPU 1023 cannot be had\n")
