"""A memory limit for real: control groups of this machine, page cache, locked memory, the kernel's killer."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stbench.agent import memgroup, wire
from stbench.agent.memhold import Refused
from stbench.agent.tree import Tree
from stbench.agent.wire import JobSpec, Program, RunRecord, Workload
from tests.agent.conftest import STARTED, run_job, start_agent
from tests.agent.limited import (
    EAT,
    LIMIT,
    MIB,
    READ_ALL,
    WEIGHTS,
    hanging,
    limited,
    make_weights,
    proof_of,
    wait_for_end,
    worked,
)
from tests.conftest import require


def groups_here() -> str:
    """The version of control groups that this process may make with a limit; skips without."""
    reasons = []
    for version in (memgroup.V2, memgroup.V1):
        try:
            memgroup.make(Tree(), version, LIMIT).remove()
        except (Refused, OSError) as error:
            reasons.append(str(error))
        else:
            return version
    require(False, f"no memory control group can be made here: {reasons}")
    raise AssertionError


def own_groups() -> set[str]:
    """Folders of groups that are called like ours."""
    found = set()
    for version in (memgroup.V2, memgroup.V1):
        try:
            where = memgroup.hierarchy(Tree(), version)
        except Refused:
            continue
        for path in where.around(where.own):
            folder = Path("/") / where.folder(path)
            found |= {str(one) for one in folder.glob(memgroup.PREFIX + "*")}
    return found


@pytest.fixture
def version() -> Iterator[str]:
    """Nothing of ours is left behind."""
    found, before = groups_here(), own_groups()
    yield found
    assert own_groups() <= before


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return make_weights(tmp_path)


# ---- held ------------------------------------------------------------------------------------------


def test_a_limited_run_is_proved(version: str, weights: Path) -> None:
    """Cold, with all of the weights read by the run itself and charged to its group."""
    weights.read_bytes()
    work = "report.phase('decode')\n" + READ_ALL + "report.phase('results')\n"
    record = worked(limited(weights), work)
    assert record.status == "ok", record.detail
    proof = proof_of(record)
    assert (proof.method, proof.verdict, proof.detail) == (version, "held", "")
    assert proof.limit_bytes == proof.requested_bytes == LIMIT
    assert proof.group.rpartition("/")[2].startswith(memgroup.PREFIX)
    assert proof.start == "cold"
    assert (proof.cached_before_bytes or 0) <= MIB
    assert (proof.cached_after_bytes or 0) >= WEIGHTS - MIB
    # Both the data and the page cache that it came through.
    assert 2 * WEIGHTS - MIB <= (proof.peak_bytes or 0) <= LIMIT
    assert (proof.anon_bytes or 0) >= WEIGHTS - MIB
    assert (proof.file_bytes or 0) >= WEIGHTS - MIB
    assert (proof.read_bytes or 0) >= WEIGHTS - MIB
    assert (proof.oom_kills, proof.swap_off, proof.peak_sampled) == (0, True, False)


def test_the_runtime_runs_under_a_limit(version: str, sbr_job: Callable[..., JobSpec]) -> None:
    """Its logits are those of the unlimited run, and "auto" sees the limit from inside."""
    free = run_job(sbr_job())
    record = run_job(sbr_job(memory_limit_bytes=64 * MIB))
    assert record.status == "ok", record.detail
    assert proof_of(record).verdict == "held"
    assert free.limit is None
    assert free.check is not None
    assert record.check is not None
    assert record.check.output_hash == free.check.output_hash
    assert free.effective is not None
    assert record.effective is not None
    # With half a GiB of reserve nothing is repacked in 64 MiB.
    assert (free.effective.load, record.effective.load) == ("repack", "mmap")


def test_a_program_and_all_that_it_starts_are_limited(version: str, weights: Path, tmp_path: Path) -> None:
    script = tmp_path / "engine"
    script.write_text(
        f"#!{sys.executable}\n"
        "import os, subprocess, sys\n"
        "kept = os.urandom(8 << 20)\n"
        "subprocess.run(['cat', sys.argv[1]], stdout=subprocess.DEVNULL)\n"
        "subprocess.run(['grep', ':memory:\\\\|0::', '/proc/self/cgroup'], stdout=2)\n"
        "import time; time.sleep(1.2)\n"
        "print('speed 10 tokens/s')\n"
    )
    script.chmod(0o755)
    reading = wire.Reading(regex="speed ([0-9.]+)")
    program = Program("external", [str(script), "{model}"], decode=reading)
    job = limited(weights, engine="mine", program=program, workload=Workload(0, 8))
    process = start_agent("run")
    out, err = process.communicate(wire.dumps(job) + "\n", timeout=60)
    record = wire.loads(RunRecord, out)
    assert record.status == "ok", record.detail
    proof = proof_of(record)
    assert proof.verdict == "held", proof.detail
    assert proof.group in err, "the program's child said where it ran"
    assert (proof.read_bytes or 0) >= WEIGHTS - MIB, "its child read the weights"
    assert (proof.cached_after_bytes or 0) >= WEIGHTS - MIB
    assert (proof.anon_bytes or 0) >= 8 * MIB, "looked at while it ran"


def test_a_peak_is_sampled_where_the_kernel_keeps_none(version: str, weights: Path, tmp_path: Path) -> None:
    seen = str(tmp_path / "seen")
    before = (
        "memgroup.Group.peak = lambda self: None\n"
        "usage = memgroup.Group.usage\n"
        "def seen(self):\n"
        "    found = usage(self)\n"
        f"    if found >= {32 * MIB}: open({seen!r}, 'w').close()\n"
        "    return found\n"
        "memgroup.Group.usage = seen\n"
    )
    work = "report.phase('decode')\n" + EAT.format(mib=32)
    work += f"while not os.path.exists({seen!r}): time.sleep(0.01)\nreport.phase('results')"
    proof = proof_of(worked(limited(weights), work, before=before))
    assert proof.peak_sampled
    assert 32 * MIB <= (proof.peak_bytes or 0) <= LIMIT


# ---- not held --------------------------------------------------------------------------------------


def holding(weights: Path, seconds: float = 60.0) -> subprocess.Popen[str]:
    """A process outside of any limit of ours that maps the file and keeps it in memory."""
    code = (
        "import mmap, sys, time\n"
        "file = open(sys.argv[1], 'rb')\n"
        "held = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\n"
        "sum(held[i] for i in range(0, len(held), 4096))\n"
        "print('held', flush=True)\n"
        f"time.sleep({seconds})\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(weights)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    STARTED.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_weights_in_another_groups_page_cache_make_it_void(version: str, weights: Path) -> None:
    """The sabotage: the run reads 24 MiB of weights and pays for none of them."""
    process = holding(weights)
    proof = proof_of(worked(limited(weights), READ_ALL))
    assert proof.verdict == "void"
    assert "24.0 MiB of the weights stayed in page cache" in proof.detail
    assert f"held by process {process.pid} (python" in proof.detail
    assert proof.start == "warm"


def test_weights_that_somebody_else_reads_meanwhile_make_it_void(version: str, weights: Path) -> None:
    """They are in nobody's memory before the run, and afterwards in a stranger's."""
    outsider = (
        "real = memlimit.Limit.admit\n"
        "def admit(self, pid):\n"
        f"    open({str(weights)!r}, 'rb').read()\n"
        "    real(self, pid)\n"
        "memlimit.Limit.admit = admit\n"
    )
    record = worked(limited(weights), READ_ALL, before=outsider)
    proof = proof_of(record)
    assert proof.start == "cold"
    assert proof.verdict == "void"
    assert "after the run 24.0 MiB of the weights lay in page cache" in proof.detail
    assert "somebody else reads them, too" in proof.detail


def test_void_where_the_kernel_does_not_tell(version: str, weights: Path) -> None:
    unknown = "from stbench.agent import pagecache\npagecache.cached_bytes = lambda path: None"
    proof = proof_of(worked(limited(weights), READ_ALL, before=unknown))
    assert (proof.verdict, proof.start, proof.cached_before_bytes) == ("void", "", None)
    assert "chown" in proof.detail


def test_void_where_memory_may_be_swapped(version: str, weights: Path) -> None:
    swapping = "memgroup.Group.swap_off = lambda self: False"
    proof = proof_of(worked(limited(weights), READ_ALL, before=swapping))
    assert (proof.verdict, proof.swap_off) == ("void", False)
    assert "swapoff" in proof.detail


def test_a_process_that_leaves_its_group_exceeds_the_limit(version: str, weights: Path) -> None:
    where = memgroup.hierarchy(Tree(), version)
    outside = "/" + where.folder(where.own) + "/cgroup.procs"
    work = f"open({outside!r}, 'w').write('0')\nreport.phase('decode')\nreport.phase('results')"
    proof = proof_of(worked(limited(weights), work))
    assert proof.verdict == "exceeded"
    assert "not in its group" in proof.detail


def test_a_limit_that_is_raised_meanwhile_is_exceeded(version: str, weights: Path) -> None:
    v1 = ["memory.memsw.limit_in_bytes", "memory.limit_in_bytes"]
    work = f"""
from stbench.agent.tree import Tree
where = memgroup.hierarchy(Tree(), {version!r})
for name in {["memory.max"] if version == memgroup.V2 else v1}:
    path = "/" + where.folder(where.own) + "/" + name
    if os.path.exists(path):
        open(path, "w").write("{2 * LIMIT}")
"""
    proof = proof_of(worked(limited(weights), work))
    assert proof.verdict == "exceeded"
    assert str(2 * LIMIT) in proof.detail


def test_nothing_is_read_before_the_process_is_in_its_group(version: str, weights: Path) -> None:
    slow = (
        "real = memlimit.Limit.admit\n"
        "def admit(self, pid):\n"
        "    time.sleep(0.5)\n"
        "    real(self, pid)\n"
        "memlimit.Limit.admit = admit\n"
    )
    assert proof_of(worked(limited(weights), READ_ALL, before=slow)).verdict == "held"


def test_a_reference_runs_without(version: str, weights: Path) -> None:
    assert run_job(limited(weights, purpose="reference")).limit is None


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("none", "memory_limit: none"),
        ("boot", "above the limit"),
        ("swap", "no way to hold a limit"),
    ],
)
def test_not_enforced_says_why(weights: Path, method: str, words: str) -> None:
    record = run_job(limited(weights, limit_method=method))
    assert record.status == "ok"
    proof = proof_of(record)
    assert (proof.method, proof.verdict) == ("none", "not-enforced")
    assert words in proof.detail


# ---- too small -------------------------------------------------------------------------------------


def test_a_limit_below_what_the_interpreter_needs(version: str, weights: Path) -> None:
    record = run_job(limited(weights, limit=256 << 10))
    assert record.status == "out-of-memory"
    assert "a limit of 0.2 MiB" in record.detail
    assert "less than the interpreter and the library need" in record.detail
    assert proof_of(record).verdict == "held"
    assert (proof_of(record).oom_kills or 0) >= 1


def test_killed_for_want_of_memory_while_decoding(version: str, weights: Path) -> None:
    record = worked(limited(weights), "report.phase('decode')\n" + EAT.format(mib=200))
    assert record.status == "out-of-memory"
    assert "out-of-memory killer during decode" in record.detail
    assert f"a limit of 96.0 MiB ({version})" in record.detail
    proof = proof_of(record)
    assert (proof.verdict, proof.oom_kills) == ("held", 1)


def test_a_sigkill_from_elsewhere_is_no_out_of_memory(version: str, weights: Path) -> None:
    """The group counts its own kills; those of other groups on this machine do not matter."""
    elsewhere = "counts = iter(range(9))\nsupervise._oom_kills = lambda tree=None: next(counts)"
    record = worked(limited(weights), f"os.kill(os.getpid(), {int(signal.SIGKILL)})", before=elsewhere)
    assert record.status == "crashed"
    assert "killed by SIGKILL" in record.detail
    assert proof_of(record).oom_kills == 0


# ---- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("os.mkdir = refuse(errno.EROFS)", "Read-only file system"),
        ("os.mkdir = refuse(errno.ENOSPC)", "No space left on device"),
        ("memgroup.write = refuse(errno.EBUSY)", "Device or resource busy"),
        ("memgroup.write = refuse(errno.EINVAL)", "Invalid argument"),
        ("memgroup.Group.admit = refuse(errno.EBUSY)", "could not enter: Device or resource busy"),
        ("memgroup.Group.limit = lambda self: None", "it reads back no limit"),
    ],
)
def test_a_group_that_cannot_be_had_is_not_enforced(
    version: str, weights: Path, broken: str, words: str
) -> None:
    """The run goes on, marked, and nothing is left (see the fixture)."""
    before = (
        "import errno\n"
        "def refuse(number):\n"
        "    def refused(*_args, **_options):\n"
        "        raise OSError(number, os.strerror(number))\n"
        "    return refused\n"
    )
    record = worked(limited(weights, limit_method=version), READ_ALL, before=before + broken)
    assert record.status == "ok", record.detail
    proof = proof_of(record)
    assert (proof.method, proof.verdict) == ("none", "not-enforced")
    assert words in proof.detail
    assert proof.detail.startswith(version)


def test_a_group_of_a_killed_agent_is_removed_by_the_next(version: str, weights: Path) -> None:
    before = own_groups()
    process = hanging(limited(weights, "hang"))
    (left,) = own_groups() - before
    process.kill()
    process.communicate()
    assert left in own_groups(), "nobody was there to remove it"
    assert proof_of(run_job(limited(weights))).verdict == "held"
    assert left not in own_groups()


def test_a_group_of_a_living_agent_stays_and_is_not_shared(
    version: str, weights: Path, tmp_path: Path
) -> None:
    before = own_groups()
    process = hanging(limited(weights, "hang"))
    (other,) = own_groups() - before
    own = tmp_path / "other weights"
    own.write_bytes(bytes(MIB))
    proof = proof_of(run_job(limited(own)))
    assert proof.verdict == "held"
    assert not other.endswith(proof.group)
    assert other in own_groups()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    record = wire.loads(RunRecord, out)
    assert record.status == "cancelled"
    assert proof_of(record).verdict == "held"


def test_what_a_killed_run_left_in_its_group_ends(version: str, weights: Path) -> None:
    """A process that left the session, and that nothing but the group still holds."""
    work = "print(subprocess.Popen(['sleep', '1000'], start_new_session=True).pid, file=sys.stderr)\n"
    record = worked(limited(weights), work + f"os.kill(os.getpid(), {int(signal.SIGKILL)})")
    wait_for_end(int(record.detail.rpartition("last lines: ")[2].split()[0]))
