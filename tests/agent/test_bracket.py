"""The bandwidth beside a job: probed by children of their own, raw in the record, never a reason to fail."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stbench.agent import bracket, monitor, supervise, wire
from stbench.agent.sbr import Library
from stbench.agent.tree import Tree
from stbench.agent.wire import JobSpec, ModelRef, RunRecord
from tests.agent.conftest import TINY, fake_job, run_job, start_agent
from tests.agent.detached import eventually

MB = 1 << 20


def test_a_fake_job_has_a_made_up_bracket_only_when_asked() -> None:
    assert run_job(fake_job()).bracket is None
    calm = run_job(fake_job(bracket_ms=20)).bracket
    assert calm is not None
    assert calm.read_before == calm.read_after
    assert (calm.threads, calm.gather_before, calm.row_bytes) == (1, None, 0)


def test_the_fake_engine_is_disturbed_on_request_up_to_an_attempt() -> None:
    moved = []
    for attempt in range(3):
        record = run_job(fake_job("disturbed=2", bracket_ms=20, attempt=attempt))
        assert record.attempt == attempt
        assert record.bracket is not None
        moved.append(record.bracket.read_before != record.bracket.read_after)
    assert moved == [True, True, False]


def test_a_real_job_is_bracketed_with_its_threads_and_its_rows(sbr_job: Callable[..., JobSpec]) -> None:
    plain = run_job(sbr_job(threads=2))
    job = sbr_job(threads=2)
    record = run_job(JobSpec(**{**job.__dict__, "bracket_ms": 20}))
    found = record.bracket
    assert record.status == "ok"
    assert found is not None
    assert found.threads == 2
    assert found.buffer_bytes >= 16 * MB
    # One row of 64 weights in Q4_0.
    assert found.row_bytes == TINY.n_embd * 18 // 32
    for read in (found.read_before, found.read_after):
        assert read.bytes > 0
        assert 20e6 <= read.ns < 10e9
    for core in (found.core_before, found.core_after):
        assert core is not None
        assert core.bytes > 0
        assert core.ns >= 5e6
    for gather in (found.gather_before, found.gather_after):
        assert gather is not None
        assert gather.bytes > 0
        assert gather.bytes % found.row_bytes == 0
        assert gather.ns >= 10e6
    assert record.memory is not None
    assert plain.memory is not None
    grown = record.memory.peak_rss_bytes - plain.memory.peak_rss_bytes
    assert grown < 8 * MB, "the probe's buffer is in the job's memory"


def test_an_older_library_has_no_rate_of_the_cores(
    sbr_job: Callable[..., JobSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses so small a buffer; the rest of the bracket stands."""
    probe_read = bracket.sbr.probe_read

    def older(library: Any, threads: int, size: int, *rest: Any) -> Any:
        if size < 256 << 10:
            raise bracket.sbr.NativeError(1, "probe: buffer_bytes is too small")
        return probe_read(library, threads, size, *rest)

    monkeypatch.setattr(bracket.sbr, "probe_read", older)
    job = sbr_job(threads=1)
    found = bracket.measure(JobSpec(**{**job.__dict__, "bracket_ms": 20}), after=False)
    assert found.core is None
    assert found.read.bytes > 0


def test_a_probe_that_fails_leaves_the_job_alone_and_warns(sbr_job: Callable[..., JobSpec]) -> None:
    """An external program's job with a library that cannot be loaded; here the fake stands in for it."""
    record = run_job(fake_job("disturbed=x", bracket_ms=20))
    assert record.status == "ok"
    assert record.bracket is None
    (warning,) = [line for line in record.warnings if "bandwidth" in line]
    assert warning.startswith("no bandwidth was probed beside this run, which cannot be judged")
    assert "invalid literal" in warning
    pinned = sbr_job(threads=1)
    elsewhere = JobSpec(**{**pinned.__dict__, "bracket_ms": 20, "library": "/nonexistent.so"})
    assert "there is no library at /nonexistent.so" in run_job(elsewhere).detail


def test_no_process_for_a_probe_is_a_warning_too(monkeypatch: pytest.MonkeyPatch) -> None:
    run_child = supervise._run_child
    calls = []

    def forks_once(work: Callable[..., None], timeout_s: float, *watch: Any) -> supervise.Outcome:
        calls.append(timeout_s)
        if len(calls) == 3:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return run_child(work, timeout_s, *watch)

    monkeypatch.setattr(supervise, "_run_child", forks_once)
    record = supervise.run_job(fake_job(bracket_ms=20))
    assert (record.status, record.bracket, len(calls)) == ("ok", None, 3)
    assert "Resource temporarily unavailable" in record.warnings[-1]


def test_a_failed_run_needs_no_bracket() -> None:
    record = run_job(fake_job("fail", bracket_ms=20))
    assert (record.status, record.bracket) == ("failed", None)
    assert not [line for line in record.warnings if "bandwidth" in line]


def test_references_are_not_bracketed() -> None:
    record = run_job(fake_job(bracket_ms=20, purpose="reference"))
    assert (record.status, record.bracket) == ("ok", None)


def test_a_job_cancelled_while_memory_is_probed_says_so(
    sbr_job: Callable[..., JobSpec], library_path: Path
) -> None:
    job = JobSpec(**{**sbr_job().__dict__, "bracket_ms": 60000, "timeout_s": 300.0})
    process = start_agent("run")
    assert process.stdin is not None
    process.stdin.write(wire.dumps(job) + "\n")
    process.stdin.flush()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def probes() -> bool:
        """The probe's process, which says so first, has loaded the runtime."""
        maps = [Path(f"/proc/{pid}/maps") for pid in children.read_text().split()]
        with contextlib.suppress(OSError):
            return any(library_path.name in path.read_text() for path in maps)
        return False

    eventually(probes)
    assert library_path.name not in Path(f"/proc/{process.pid}/maps").read_text()
    os.kill(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    record = wire.loads(RunRecord, out)
    assert (record.status, record.detail) == ("cancelled", "SIGTERM during memory probe")


def test_the_row_comes_from_the_file(library: Library, tiny_model: Path, tmp_path: Path) -> None:
    assert bracket.row_bytes(library, str(tiny_model)) == 36
    nothing = tmp_path / "nothing.gguf"
    nothing.write_bytes(b"not a model")
    assert bracket.row_bytes(library, str(nothing)) == 0
    assert bracket.row_bytes(library, str(tmp_path / "absent")) == 0


@pytest.mark.parametrize(
    ("cache", "available", "size"),
    [
        (0, 8 << 30, 64 * MB),
        (2 * MB, 8 << 30, 64 * MB),
        (32 * MB, 8 << 30, 128 * MB),
        (96 * MB, 8 << 30, 256 * MB),
        (300 * MB, 64 << 30, 600 * MB),
        (1 * MB, 400 * MB, 50 * MB),
    ],
)
def test_the_buffer_exceeds_the_cache_and_leaves_memory_to_the_job(
    cache: int, available: int, size: int
) -> None:
    assert bracket.buffer_bytes({"L2": MB, "L3": cache}, available) == size


def test_too_little_memory_is_a_reason() -> None:
    with pytest.raises(ValueError, match="200 MiB of free memory are too few"):
        bracket.buffer_bytes({"L3": 32 * MB}, 200 * MB)


def test_a_model_of_another_kind_has_no_rows(library: Library, tmp_path: Path) -> None:
    job = fake_job(model=ModelRef("fake", ""), bracket_ms=20)
    assert bracket.measure(job, after=False).row_bytes == 0


# ---- whose CPU time it was ---------------------------------------------------------------------------


def snapshot(root: Path, stat: str, own_s: float, time_s: float, allowed: str = "0-1") -> monitor.Snapshot:
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/stat").write_text(stat)
    (root / "proc/self/status").write_text(f"Name:\tx\nCpus_allowed_list:\t{allowed}\n")
    found = monitor.snapshot(Tree(root))
    return found._replace(own_cpu_s=own_s, time_s=time_s)


# user nice system idle iowait irq softirq steal guest guest_nice, in ticks of 10 ms, of 4 CPUs.
BEFORE = """cpu  40000 400 4000 900000 500 40 400 80 0 0
cpu0 10000 100 1000 225000 125 10 100 20 0 0
cpu1 10000 100 1000 225000 125 10 100 20 0 0
cpu2 10000 100 1000 225000 125 10 100 20 0 0
cpu3 10000 100 1000 225000 125 10 100 20 0 0
intr 12345
ctxt 6789
"""
AFTER = """cpu  41000 420 4060 900100 500 40 410 100 0 0
cpu0 10200 110 1030 225000 125 10 105 30 0 0
cpu1 10150 110 1020 225050 125 10 105 25 0 0
cpu2 10400 100 1000 225025 125 10 100 20 0 0
cpu3 10250 100 1010 225025 125 10 100 25 0 0
intr 22345
"""


@pytest.mark.parametrize(
    ("allowed", "other_s", "steal_s"),
    # CPUs 0 and 1: busy 2.45 s and 1.85 s, of which 3 s are ours; CPUs 2 and 3: 4 s and 2.6 s more.
    [("0-1", 1.3, 0.15), ("0-3", 7.9, 0.2), ("0", 0.0, 0.1)],
)
def test_other_cpu_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str, other_s: float, steal_s: float
) -> None:
    monkeypatch.setattr(monitor.os, "sysconf", {"SC_CLK_TCK": 100}.__getitem__)
    before = snapshot(tmp_path, BEFORE, 10.0, 100.0, allowed)
    after = snapshot(tmp_path, AFTER, 13.0, 102.5, allowed)
    found = monitor.telemetry(before, after)
    assert found.other_cpu_s == pytest.approx(other_s)
    assert found.steal_s == pytest.approx(steal_s)
    assert found.window_s == 2.5


def test_a_kernel_that_does_not_say(tmp_path: Path) -> None:
    for text in ("", "cpu0 1 2\n", "cpu 1 2 3 4 5 6 7 8\n"):
        found = snapshot(tmp_path, text, 0.0, 1.0)
        telemetry = monitor.telemetry(found, found)
        assert (telemetry.other_cpu_s, telemetry.steal_s, telemetry.window_s) == (None, None, 0.0)


def test_threads_are_pinned_one_by_one(tmp_path: Path) -> None:
    """The main thread may have one CPU and a helper another: both are ours."""
    for thread, cpus in (("10", "0"), ("11", "2")):
        task = tmp_path / "proc/self/task" / thread
        task.mkdir(parents=True)
        (task / "status").write_text(f"Cpus_allowed_list:\t{cpus}\n")
    assert sorted(snapshot(tmp_path, BEFORE, 0.0, 0.0, "1").cpu_times) == [0, 2]


def test_our_own_time_is_not_others(tmp_path: Path) -> None:
    """A busy second of ours, children included, live: others took less than all of it."""
    before = monitor.snapshot()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    own = monitor.snapshot().own_cpu_s - before.own_cpu_s
    assert own >= 0.29
