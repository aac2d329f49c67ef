"""Memory that is locked but for the limit: some 64 MiB, so that the rest of this machine does not mind."""

from __future__ import annotations

from pathlib import Path

import pytest

from stbench.agent import memlimit
from stbench.agent.memhold import Refused
from stbench.agent.tree import Tree
from tests.agent.limited import (
    EAT,
    MIB,
    READ_ALL,
    hanging,
    limited,
    make_weights,
    proof_of,
    wait_for_end,
    worked,
)
from tests.conftest import require

# What others take and give back meanwhile would count.
pytestmark = pytest.mark.quiet


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return make_weights(tmp_path)


def available() -> int:
    size = Tree().kibibytes(Tree().fields("proc/meminfo"), "MemAvailable")
    require(size, "the kernel does not say how much memory is available")
    assert size is not None
    return size


def test_locked_ballast_leaves_the_limit(weights: Path) -> None:
    """Some 64 MiB are locked, so that the rest of this machine does not mind."""
    limit = available() - 64 * MIB
    try:
        memlimit.WAYS["ballast"](Tree(), limit).remove()
    except Refused as error:
        require(False, f"no memory may be locked here: {error}")
    job = limited(weights, limit=limit, limit_method="ballast")
    record = worked(job, "report.phase('decode')\n" + EAT.format(mib=16) + "report.phase('results')")
    proof = proof_of(record)
    assert (proof.method, proof.verdict) == ("ballast", "held"), proof.detail
    assert 0.9 * limit <= (proof.limit_bytes or 0) <= limit
    assert (proof.anon_bytes or 0) >= 16 * MIB
    assert proof.swap_off


def test_ballast_that_was_killed_held_nothing(weights: Path) -> None:
    limit = available() - 64 * MIB
    killer = (
        "def work_pid(self):\n"
        "    os.kill(self._pid, 9)\n"
        "    os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)\n"
        "from stbench.agent.ballast import Ballast\n"
        "Ballast.admit = lambda self, pid: work_pid(self)\n"
    )
    record = worked(limited(weights, limit=limit, limit_method="ballast"), READ_ALL, before=killer)
    proof = proof_of(record)
    require(proof.method == "ballast", f"no memory may be locked here: {proof.detail}")
    assert proof.verdict == "exceeded"
    assert "held the other memory ended" in proof.detail


def test_ballast_goes_with_a_killed_agent(weights: Path) -> None:
    process = hanging(limited(weights, "hang", limit=available() - 64 * MIB, limit_method="ballast"))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    require(len(children) == 2, "no memory may be locked here")
    process.kill()
    wait_for_end(*map(int, children))


def test_memory_that_may_not_be_locked(weights: Path) -> None:
    """As an ordinary user has it: eight megabytes of locked memory at most."""
    limit = available() - 64 * MIB
    unable = (
        "from stbench.agent import ballast\n"
        "def lock(tree, libc, limit):\n"
        "    raise OSError(12, 'mlock of 64 MiB: Cannot allocate memory')\n"
        "ballast._lock_down_to = lock\n"
    )
    record = worked(limited(weights, limit=limit, limit_method="ballast"), READ_ALL, before=unable)
    assert proof_of(record).verdict == "not-enforced"
    assert "could not be locked" in proof_of(record).detail
