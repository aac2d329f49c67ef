"""Whatever happens to the measuring process becomes one record with a typed status; all of it for real."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stbench.agent import __main__ as command_line
from stbench.agent import supervise, wire
from stbench.agent.sbr import NativeError, _abi
from stbench.agent.supervise import Outcome
from stbench.agent.tree import Tree
from stbench.agent.wire import RunRecord
from tests.agent.conftest import ROOT, fake_job, run_agent, run_job, start_agent


def wait_for(condition: object, seconds: float = 60.0) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def start_hanging(timeout_s: float = 60.0) -> tuple[subprocess.Popen[str], int]:
    """An agent whose child hangs in its engine, and the child."""
    process = start_agent("run")
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(wire.dumps(fake_job("hang", timeout_s=timeout_s)) + "\n")
    process.stdin.flush()
    assert process.stderr.readline() == "hanging as asked\n"
    (child,) = children(process.pid)
    return process, child


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# ---- statuses --------------------------------------------------------------------------------------


def test_ok() -> None:
    record = run_job(fake_job())
    assert (record.status, record.detail) == ("ok", "")
    assert record.wall_s > 0
    assert record.warnings == ["this is the fake engine: its numbers are made up"]


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGILL", "SIGBUS", "SIGABRT", "SIGFPE", "SIGTERM"])
def test_a_signal_is_a_crash_with_its_name(name: str) -> None:
    record = run_job(fake_job(f"crash={name}"))
    assert record.status == "crashed"
    assert record.detail.startswith(f"killed by {name} during warm-up; last lines: ")
    assert "crashing as asked" in record.detail
    assert record.shape is not None, "what was known before is kept"
    assert record.samples is None


def test_a_crash_of_native_code_says_where_python_was() -> None:
    record = run_job(fake_job("crash=SIGSEGV"))
    assert "Segmentation fault" in record.detail


def test_an_exit_without_a_result_is_a_crash() -> None:
    record = run_job(fake_job("exit=7"))
    assert record.status == "crashed"
    assert record.detail.startswith("exited with code 7 during warm-up, without a result")


def test_a_hang_is_a_timeout_and_leaves_no_process() -> None:
    process, child = start_hanging(timeout_s=5.0)
    out, _ = process.communicate(timeout=60)
    record = wire.loads(RunRecord, out)
    assert record.status == "timeout"
    assert record.detail.startswith("not done after 5 s, during warm-up; last lines: hanging as asked")
    assert not alive(child)


def test_children_of_the_child_die_too(tmp_path: Path) -> None:
    """Through the library call, with work that starts a process of its own which holds our pipes open."""
    pid_file = tmp_path / "pid"
    code = f"""
import subprocess, sys, time
sys.path.insert(0, {str(ROOT)!r})
from stbench.agent import supervise, wire

def work(job, report):
    child = subprocess.Popen(["sleep", "1000"])
    open({str(pid_file)!r}, "w").write(str(child.pid))
    time.sleep(1000)

job = wire.loads(wire.JobSpec, sys.stdin.readline())
print(supervise.run_job(job, work).status)
"""
    job = fake_job(timeout_s=5.0)
    done = subprocess.run(
        [sys.executable, "-c", code], input=wire.dumps(job) + "\n", capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "timeout\n", done.stderr
    wait_for(lambda: not alive(int(pid_file.read_text())))


def test_memory_error_is_out_of_memory() -> None:
    assert run_job(fake_job("oom")).status == "out-of-memory"


def test_a_failing_allocation_is_out_of_memory() -> None:
    """For real: the address space ends at 400 MB and the work asks for a gigabyte."""
    code = "\n".join(
        [
            "import sys, resource",
            f"sys.path.insert(0, {str(ROOT)!r})",
            "resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))",
            "from stbench.agent import supervise, wire",
            "work = lambda job, report: bytearray(1 << 30)",
            "print(supervise.run_job(wire.loads(wire.JobSpec, sys.stdin.readline()), work).status)",
        ]
    )
    line = wire.dumps(fake_job()) + "\n"
    done = subprocess.run(
        [sys.executable, "-c", code], input=line, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "out-of-memory\n", done.stderr


def test_unsupported_and_failed() -> None:
    assert run_job(fake_job("unsupported")).status == "unsupported"
    record = run_job(fake_job("fail"))
    assert (record.status, record.detail) == ("failed", "RuntimeError: the fake engine was asked to fail")


def test_wrong_output_and_its_reference() -> None:
    reference = run_job(fake_job("wrong", purpose="reference")).reference
    assert reference is not None
    record = run_job(fake_job("wrong", reference=reference))
    assert record.status == "wrong-output"
    assert "is off by" in record.detail
    right = run_job(fake_job(reference=run_job(fake_job(purpose="reference")).reference))
    assert right.check is not None
    assert (right.status, right.check.bit_equal) == ("ok", 16)
    noisy = fake_job("noise")
    close = run_job(dataclasses.replace(noisy, reference=run_job(fake_job(purpose="reference")).reference))
    assert close.check is not None
    assert (close.status, close.check.bit_equal) == ("ok", 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_agent_cancels(number: signal.Signals) -> None:
    process, child = start_hanging()
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    record = wire.loads(RunRecord, out)
    assert record.status == "cancelled"
    assert record.detail.startswith(f"{number.name} during")
    assert not alive(child)


def test_the_child_dies_with_a_killed_agent() -> None:
    process, child = start_hanging()
    process.kill()
    process.communicate()
    wait_for(lambda: not alive(child))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NativeError(_abi.ERR_UNSUPPORTED, "x"), "unsupported"),
        (NativeError(_abi.ERR_MEMORY, "x"), "out-of-memory"),
        (NativeError(_abi.ERR_CANCELLED, "x"), "cancelled"),
        (NativeError(_abi.ERR_INTERNAL, "x"), "failed"),
        (MemoryError(), "out-of-memory"),
        (KeyboardInterrupt(), "cancelled"),
        (OSError(28, "No space left on device"), "failed"),
        (ZeroDivisionError("x"), "failed"),
    ],
)
def test_statuses_of_exceptions(error: BaseException, status: str) -> None:
    found, detail = supervise.status_of(error)
    assert found == status
    assert found in wire.STATUSES
    assert detail


@pytest.mark.parametrize(
    ("kills", "status", "words"),
    [
        (1, "out-of-memory", "out-of-memory killer"),
        (0, "crashed", "killed by SIGKILL"),
        (None, "crashed", "perhaps"),
    ],
)
def test_sigkill_is_out_of_memory_when_the_kernel_counted_one(
    kills: int | None, status: str, words: str
) -> None:
    outcome = Outcome(-signal.SIGKILL, [{"phase": "load"}], [], False, 0, kills, 1.0)
    found, detail = supervise._verdict(outcome, 60.0)
    assert found == status
    assert words in detail
    assert "during load" in detail


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({}, None),
        ({"proc/vmstat": "pgfault 1\noom_kill 3\n"}, 3),
        (
            {
                "proc/self/cgroup": "0::/user/run\n",
                "sys/fs/cgroup/user/run/memory.events": "oom 1\noom_kill 2\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/a\n0::/\n",
                "sys/fs/cgroup/memory/a/memory.oom_control": "oom_kill 1\n",
            },
            1,
        ),
    ],
)
def test_evidence_of_the_out_of_memory_killer(
    tmp_path: Path, files: dict[str, str], count: int | None
) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert supervise._oom_kills(Tree(tmp_path)) == count


# ---- the command line ------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "hello\n", "{}\n", '{"id": 3}\n', "[" * 100000 + "\n"])
def test_an_unreadable_job_is_exit_code_2(text: str) -> None:
    done = run_agent("run", stdin=text)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("stbench.agent: JobSpec")
    assert "Traceback" not in done.stderr


def test_the_record_is_in_its_file_too_even_when_nobody_listens(tmp_path: Path) -> None:
    path = tmp_path / "new" / "records.jsonl"
    line = wire.dumps(run_job(fake_job(), "--record-file", str(path)))
    assert path.read_text() == line + "\n"
    process = start_agent("run", "--record-file", str(path))
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.close()
    process.stdin.write(wire.dumps(fake_job(id="id-2")) + "\n")
    process.stdin.close()
    assert process.wait(60) == 0
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    ids = [json.loads(one)["id"] for one in path.read_text().splitlines()]
    assert ids == ["id-1", "id-2"]


def test_a_torn_line_is_closed_first(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"id": "half')
    command_line.append_line(str(path), '{"id": "whole"}\n')
    command_line.append_line(str(path), '{"id": "next"}\n')
    assert path.read_text().splitlines() == ['{"id": "half', '{"id": "whole"}', '{"id": "next"}']


def test_probe_with_and_without_a_library(library_path: Path, tmp_path: Path) -> None:
    facts = wire.loads(wire.DeviceFacts, run_agent("probe").stdout)
    assert facts.isas == []
    done = run_agent("probe", "--library", str(library_path), "--path", str(tmp_path))
    with_library = wire.loads(wire.DeviceFacts, done.stdout)
    assert with_library.isas[0] == "scalar"
    assert with_library.fingerprint == facts.fingerprint
    broken = run_agent("probe", "--library", "/nonexistent.so")
    assert (broken.returncode, broken.stdout) == (2, "")
    assert "there is no library at /nonexistent.so" in broken.stderr


def test_rooflines(library_path: Path) -> None:
    probes = [
        wire.LimitProbe("read", 1, buffer_bytes=1 << 24, duration_s=0.02),
        wire.LimitProbe("gather", 1, row_bytes=864, buffer_bytes=1 << 24, duration_s=0.02),
        wire.LimitProbe("storage", 1, row_bytes=4096, duration_s=0.02, path="/nonexistent"),
        wire.LimitProbe("storage", 0, row_bytes=4096, duration_s=0.02, path=str(library_path)),
        wire.LimitProbe("warp", 1),
    ]
    done = run_agent("rooflines", stdin=wire.dumps(wire.LimitsRequest(str(library_path), probes)) + "\n")
    assert done.returncode == 0
    found = [wire.loads(wire.LimitResult, line) for line in done.stdout.splitlines()]
    assert [result.status for result in found] == ["ok", "ok", "failed", "ok", "failed"]
    assert [result.probe for result in found] == probes
    assert found[0].bytes > 0
    assert "/nonexistent" in found[2].detail
    assert found[3].threads > 1
    assert found[3].operations * 4096 == found[3].bytes
    assert "expected read, gather or storage" in found[4].detail


def test_records_of_every_status_can_be_read_back() -> None:
    for options in ("", "crash", "oom", "unsupported", "fail", "exit"):
        record = run_job(fake_job(options))
        assert record.status in wire.STATUSES
        assert wire.loads(RunRecord, wire.dumps(record)) == record
