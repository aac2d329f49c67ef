"""Jobs with a memory limit: how the tests of :mod:`stbench.agent.memlimit` run them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from stbench.agent import pagecache, wire
from stbench.agent.wire import JobSpec, LimitProof, ModelRef, RunRecord, Settings
from tests.agent.conftest import ROOT, fake_job, start_agent
from tests.conftest import require

MIB = 1 << 20
LIMIT = 96 * MIB
WEIGHTS = 24 * MIB

READ_ALL = "data = open(job.model.path, 'rb').read()\n"
EAT = "import os\nkept = []\nfor _ in range({mib}): kept.append(os.urandom(1 << 20))\n"


def make_weights(folder: Path) -> Path:
    """A file that stands for a model's, on a disk."""
    path = folder / "weights"
    path.write_bytes(os.urandom(MIB) * (WEIGHTS // MIB))
    pagecache.Weights([str(path)]).drop()
    require(not (pagecache.cached_bytes(str(path)) or 0) > MIB, f"{folder} lies in memory")
    return path


def limited(weights: Path, options: str = "", limit: int = LIMIT, **changes: Any) -> JobSpec:
    """A job for the fake engine that asks for a limit."""
    settings = Settings(threads=1, n_ctx=256, memory_limit_bytes=limit)
    return fake_job(**{"model": ModelRef(f"fake:{options}", str(weights)), "settings": settings, **changes})


def worked(job: JobSpec, work: str, before: str = "") -> RunRecord:
    """The record of ``work``, lines of a function of ``job`` and ``report``, in place of measuring;
    ``before`` runs in the process that supervises it."""
    body = "\n".join("    " + line for line in work.strip().splitlines())
    code = f"""
import mmap, os, subprocess, sys, time
sys.path.insert(0, {str(ROOT)!r})
from stbench.agent import memgroup, memlimit, supervise, wire
{before}
def work(job, report):
{body}
print(wire.dumps(supervise.run_job(wire.loads(wire.JobSpec, sys.stdin.readline()), work)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=wire.dumps(job) + "\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return wire.loads(RunRecord, done.stdout)


def proof_of(record: RunRecord) -> LimitProof:
    assert record.limit is not None
    return record.limit


def hanging(job: JobSpec) -> subprocess.Popen[str]:
    """An agent whose measuring process hangs under its limit."""
    process = start_agent("run")
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(wire.dumps(job) + "\n")
    process.stdin.flush()
    assert process.stderr.readline() == "hanging as asked\n"
    return process


def wait_for_end(*pids: int) -> None:
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end, "still there"
        time.sleep(0.02)
