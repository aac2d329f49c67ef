"""What is seen of the machine while a job runs, and what follows from it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stbench.agent import affinity, monitor, sampler, wire
from stbench.agent.sampler import MAX_POINTS, Sampler, place
from stbench.agent.tree import Tree
from stbench.agent.wire import (
    Effective,
    JobSpec,
    ModelRef,
    Program,
    Reading,
    RunRecord,
    Settings,
    Telemetry,
    Timeline,
    Workload,
)
from tests.agent.conftest import TREES, fake_job, run_job
from tests.agent.heating import Board
from tests.agent.test_probe import CapturedTree
from tests.conftest import require

UNKNOWN = Telemetry([], [], {}, {}, "unknown")
CPUFREQ = "sys/devices/system/cpu/cpu%d/cpufreq/%s"


def phase(name: str) -> bytes:
    return b'{"phase": "%s"}\n' % name.encode()


def watch(board: Board, seconds: int, settings: Settings | None = None) -> Sampler:
    """A sampler that has seen a job decode for so long."""
    job = fake_job(settings=settings or Settings(threads=2, cpus=[4, 6], n_ctx=256))
    seen = Sampler(job, board.tree, board.clock)
    seen.start(os.getpid())
    seen.told(phase("load") + phase("decode"))
    for _ in range(seconds):
        seen.look()
        board.sleep(1.0)
    seen.close()
    return seen


def timeline(seen: Sampler) -> Timeline:
    found = seen.timeline()
    assert wire.loads(Timeline, wire.dumps(found)) == found
    return found


# ---- the verdict -------------------------------------------------------------------------------------


def test_a_board_that_heats_up_is_seen_to_throttle(tmp_path: Path) -> None:
    seen = watch(Board(tmp_path), 80)
    verdict = seen.judged(UNKNOWN)
    assert verdict.throttled == "yes"
    assert (
        "thermal-cpufreq-1 (cooling_device1): state 1 42 s after the start (decode)" in verdict.throttled_by
    )
    assert "cpu6: limited from 2304 to 2016 MHz 42 s after the start (decode)" in verdict.throttled_by
    found = timeline(seen)
    assert min(khz for khz in found.cpu_khz["cpu4"] if khz) == 1416000
    assert max(t for t in found.temperature_mc["bigcore1-thermal"] if t) > 84000
    assert set(found.cpu_khz) == {"cpu4", "cpu6"}, "the other cores are not the job's"


def test_what_throttles_and_recovers_between_the_readings_at_both_ends_is_seen(tmp_path: Path) -> None:
    board = Board(tmp_path, 30)
    before = monitor.snapshot(board.tree)
    seen = watch(board, 200)
    after = monitor.snapshot(board.tree)
    assert monitor.throttled(before, after) == "no", "the ends alone show nothing"
    assert seen.judged(monitor.telemetry(before, after)).throttled == "yes"


def test_heat_while_loading_is_no_throttled_run(tmp_path: Path) -> None:
    board = Board(tmp_path, 50)
    seen = Sampler(fake_job(), board.tree, board.clock)
    seen.start(os.getpid())
    seen.told(phase("load"))
    seen.look()
    assert seen.judged(UNKNOWN).throttled == "unknown"


@pytest.mark.parametrize(
    ("governor", "driver", "verdict"),
    [
        ("performance", "cpufreq-dt", "yes"),
        ("ondemand", "cpufreq-dt", "unknown"),
        ("performance", "intel_pstate", "unknown"),
        ("performance", "amd-pstate-epp", "unknown"),
    ],
)
def test_a_clock_below_its_limit_says_something_only_where_it_is_bound_to_it(
    tmp_path: Path, governor: str, driver: str, verdict: str
) -> None:
    board = Board(tmp_path)
    shutil.rmtree(board.root / "sys/class/thermal")
    for cpu in range(8):
        board.write(CPUFREQ % (cpu, "scaling_governor"), governor)
        board.write(CPUFREQ % (cpu, "scaling_driver"), driver)
    seen = Sampler(fake_job(), Tree(board.root), board.clock)
    seen.start(os.getpid())
    seen.told(phase("decode"))
    board.write(CPUFREQ % (0, "scaling_cur_freq"), "1200000")
    seen.look()
    telemetry = seen.judged(UNKNOWN)
    assert telemetry.throttled == verdict
    if verdict == "yes":
        reason = "cpu0: 1200 of 1800 MHz under governor performance 0 s after the start (decode)"
        assert telemetry.throttled_by == [reason]


def test_clocks_that_held_their_maximum_were_not_throttled(tmp_path: Path) -> None:
    seen = watch(Board(tmp_path), 2)
    assert seen.judged(UNKNOWN).throttled == "unknown", "two looks are too few"
    assert watch(Board(tmp_path / "b"), 5).judged(UNKNOWN).throttled == "no"


def test_what_was_seen_before_stays(tmp_path: Path) -> None:
    by = dataclasses.replace(UNKNOWN, throttled="yes", throttled_by=["cpu0 core: throttled 3 times"])
    assert watch(Board(tmp_path), 5).judged(by) == by


def test_a_pi_is_looked_at_while_it_runs(tmp_path: Path) -> None:
    root = Path(shutil.copytree(TREES / "pi5", tmp_path / "pi"))
    flags = root / "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled"
    flags.write_text("e0000\n")
    seen = Sampler(fake_job(), Tree(root), lambda: 0.0)
    seen.start(os.getpid())
    seen.told(phase("decode"))
    flags.write_text("e0008\n")
    seen.look()
    (reason,) = seen.judged(UNKNOWN).throttled_by
    assert reason.startswith("firmware: soft temperature limit 0 s after the start")


@pytest.mark.parametrize(("name", "why"), [("x86-vm", "absent"), ("android", "denied")])
def test_no_sensors_are_unknown_and_said(name: str, why: str) -> None:
    seen = Sampler(fake_job(), CapturedTree(TREES / name))
    seen.start(os.getpid())
    seen.told(phase("decode"))
    seen.look()
    assert seen.judged(UNKNOWN) == UNKNOWN
    found = timeline(seen)
    assert (found.cpu_khz, found.temperature_mc, found.power_mw) == ({}, {}, [])
    assert f"temperatures: {why}" in found.absent
    assert f"CPU frequencies: {why}" in found.absent


# ---- the timeline ------------------------------------------------------------------------------------


def test_memory_is_bounded_however_long_a_job_runs(tmp_path: Path) -> None:
    board = Board(tmp_path)
    seen = watch(board, 1000)
    found = timeline(seen)
    assert found.looks == 1000
    assert MAX_POINTS / 2 <= len(found.at_ms) <= MAX_POINTS
    steps = {b - a for a, b in zip(found.at_ms, found.at_ms[1:], strict=False)}
    assert steps == {8000}, "every eighth look is kept, from the first to the last"
    assert found.at_ms[-1] > 990000
    assert all(len(column) == len(found.at_ms) for column in found.cpu_khz.values())
    assert len(wire.dumps(found)) < 20000


def test_phases_are_read_from_reports_however_they_are_cut() -> None:
    seen = Sampler(fake_job(), Tree(Path("/nonexistent")))
    seen.start(os.getpid())
    data = phase("load") + b'{"part": "reference", "value": "' + b"x" * 10**5 + b'"}\n' + phase("decode")
    for i in range(0, len(data), 777):
        seen.told(data[i : i + 777])
    assert list(seen.timeline().phase_ms) == ["load", "decode"]
    seen.told(b'{"phase": 7\n\xff\n' + phase("results"))
    assert list(seen.timeline().phase_ms) == ["load", "decode", "results"]


def test_the_largest_process_of_a_family_is_the_one_whose_memory_is_read() -> None:
    code = "import sys; x = b'1' * (64 << 20); print('up', flush=True); sys.stdin.read()"
    script = f'"{sys.executable}" -c "{code}"; true'
    family = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert family.stdout is not None
        assert family.stdout.readline() == b"up\n"
        seen = Sampler(fake_job())
        seen.start(family.pid)
        seen.told(phase("decode"))
        seen.look()
        found = seen.timeline()
    finally:
        family.communicate(timeout=60)
    assert len(found.rss_bytes) == len(found.pss_bytes) == 1
    assert found.rss_bytes[0] is not None
    assert found.pss_bytes[0] is not None
    assert found.rss_bytes[0] >= found.pss_bytes[0] > 64 << 20


def test_a_process_that_has_ended_has_no_memory() -> None:
    """A look may come between its end and its reaping, when /proc says 0 bytes of it."""
    with subprocess.Popen(["true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        seen = Sampler(fake_job())
        seen.start(ended.pid)
        seen.told(phase("decode"))
        seen.look()
    assert (seen.timeline().rss_bytes, seen.timeline().pss_bytes) == ([None], [])


def sampled(options: str = "sleep=2", **changes: Any) -> RunRecord:
    return run_job(fake_job(options, workload=Workload(0, 20), warmup_tokens=0, **changes))


def test_a_record_has_its_timeline() -> None:
    record = sampled(sample_hz=5.0)
    found = record.timeline
    assert found is not None
    assert found.every_s == 0.2
    assert 3 <= len(found.at_ms) == found.looks <= record.wall_s / found.every_s + 2
    assert list(found.phase_ms) == ["start", "load", "depth", "prefill", "decode", "results", "check"]
    # Of 2 s: on a busy machine the supervisor hears late that they begin.
    assert found.phase_ms["results"] - found.phase_ms["decode"] >= 1000
    # The last look may be at a process that has just ended.
    *looks, last = found.rss_bytes
    assert all(rss and rss > 1 << 20 for rss in looks)
    assert last is None or last > 1 << 20
    assert 0 < found.cost_s < record.wall_s


def test_sampling_can_be_switched_off() -> None:
    record = sampled("", sample_hz=0.0)
    assert (record.status, record.timeline, record.energy) == ("ok", None, None)
    assert record.telemetry is not None


def test_a_job_that_fails_keeps_its_timeline() -> None:
    record = sampled("sleep=1,crash", sample_hz=50.0)
    assert record.status == "crashed"
    assert record.timeline is not None
    assert record.timeline.looks >= 2


# ---- where it looks from -----------------------------------------------------------------------------


def test_it_looks_from_cpus_that_the_job_leaves_alone(tmp_path: Path) -> None:
    everything = set(range(8))
    tree = Tree(tmp_path)
    assert place(Settings(threads=2, cpus=[4, 5, 6, 7]), everything, tree) == ([0, 1, 2, 3, 6, 7], True)
    assert place(Settings(cpus=[4, 5]), everything, tree) == ([0, 1, 2, 3, 6, 7], True)
    assert place(Settings(threads=4), everything, tree) == (sorted(everything), False), "they may be anywhere"
    assert place(Settings(cpus=[0, 1]), {0, 1}, tree) == ([0, 1], False)


def test_it_keeps_off_the_other_half_of_a_core_where_it_can(tmp_path: Path) -> None:
    for cpu in range(4):
        base = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        base.mkdir(parents=True)
        (base / "thread_siblings_list").write_text(f"{cpu % 2},{cpu % 2 + 2}\n")
    tree = Tree(tmp_path)
    assert place(Settings(cpus=[0]), {0, 1, 2, 3}, tree) == ([1, 3], True)
    assert place(Settings(cpus=[0]), {0, 2}, tree) == ([2], True)


@pytest.fixture
def restored() -> Iterator[set[int]]:
    allowed = os.sched_getaffinity(0)
    yield allowed
    os.sched_setaffinity(0, allowed)


def test_a_record_says_where_it_looked_from(restored: set[int]) -> None:
    cpu = max(restored)
    pinned = sampled("", settings=Settings(threads=1, cpus=[cpu], n_ctx=256)).timeline
    assert pinned is not None
    assert pinned.apart == (len(restored) > 1)
    assert set(pinned.cpus) == (restored - {cpu} or restored)
    shared = sampled("").timeline
    assert shared is not None
    assert (set(shared.cpus), shared.apart) == (restored, False)


def test_the_supervisor_comes_back_to_its_cpus(restored: set[int]) -> None:
    seen = Sampler(fake_job(settings=Settings(threads=1, cpus=[max(restored)])))
    seen.start(os.getpid())
    assert (os.sched_getaffinity(0) != restored) == (len(restored) > 1)
    seen.close()
    assert os.sched_getaffinity(0) == restored


def test_a_pinning_of_the_sampler_that_is_not_kept_is_no_pinning(
    restored: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Android: no error, no effect."""
    monkeypatch.setattr(sampler.os, "sched_setaffinity", lambda _pid, _cpus: None)
    monkeypatch.setattr(sampler.os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3})
    seen = Sampler(fake_job(settings=Settings(threads=1, cpus=[3])))
    seen.start(os.getpid())
    assert (seen.timeline().cpus, seen.timeline().apart) == ([0, 1, 2, 3], False)


# ---- the threads of the job --------------------------------------------------------------------------


def effective(affinity_of: list[list[int]], last_cpus: list[int]) -> Effective:
    found = Effective(2, affinity_of, "", 256, 64, "f16", 0, 0, "off", False, "", "mmap")
    return dataclasses.replace(found, last_cpus=last_cpus)


def test_pinning_is_held_against_what_the_kernel_says() -> None:
    asked = Settings(threads=2, cpus=[4, 5])
    assert affinity.judged(asked, effective([[4], [5]], [4, 5])) == (True, [])
    assert affinity.judged(asked, effective([[4, 5], [4, 5]], [5, 4])) == (True, [])
    assert affinity.judged(Settings(), effective([[4], [5]], [4, 5])) == (None, [])
    assert affinity.judged(asked, effective([[], []], [])) == (None, []), "/proc is kept from us"
    kept, (said,) = affinity.judged(asked, effective([[4], [0, 1, 2, 3]], [4, 2]))
    assert not kept
    assert said == (
        "pinning to CPUs 4,5 was not kept: thread 1 may run on 0,1,2,3, thread 1 ran on CPU 2; "
        "the speed is that of other CPUs than asked for"
    )
    assert affinity.judged(asked, effective([[4], [5]], [4, 1]))[0] is False


def test_where_a_thread_was_is_read_behind_any_name() -> None:
    here = next(iter(os.sched_getaffinity(0)))
    os.sched_setaffinity(0, allowed := os.sched_getaffinity(0))
    try:
        os.sched_setaffinity(0, [here])
        time.sleep(0.01)
        assert affinity.last_cpu(os.getpid()) == here
        assert affinity.allowed_cpus(os.getpid()) == [here]
    finally:
        os.sched_setaffinity(0, allowed)
    stat = "7 (a) b 1 2) S " + " ".join(str(n) for n in range(4, 53))
    assert affinity.processor(stat) == 39
    assert affinity.processor("") is None


def test_threads_of_our_engine_are_where_they_were_asked_to_be(sbr_job: Callable[..., JobSpec]) -> None:
    cpu = max(os.sched_getaffinity(0))
    record = run_job(sbr_job(threads=1, cpus=[cpu]))
    assert record.effective is not None
    assert (record.effective.affinity, record.effective.last_cpus) == ([[cpu]], [cpu])
    assert record.effective.affinity_kept is True
    free = run_job(sbr_job(threads=2)).effective
    assert free is not None
    assert len(free.last_cpus) == 2
    assert free.affinity_kept is None


def test_a_program_that_leaves_its_cpus_is_told(restored: set[int]) -> None:
    require(len(restored) > 1, "one CPU is nowhere to go")
    asked, other = min(restored), max(restored)
    code = f"import os, time; os.sched_setaffinity(0, [{other}]); t = time.time() + 0.6\n"
    code += "while time.time() < t: pass\nprint('speed 4')"
    program = Program("external", [sys.executable, "-c", code], decode=Reading(regex=r"speed (\S+)"))
    settings = Settings(threads=1, cpus=[asked], n_ctx=256)
    job = fake_job(engine="mine", program=program, model=ModelRef("m", "/m"), settings=settings)
    record = run_job(dataclasses.replace(job, workload=Workload(0, 20)))
    assert record.status == "ok", record.detail
    assert record.effective is not None
    assert record.effective.affinity_kept is False
    (warning,) = record.warnings
    assert warning.startswith(f"pinning to CPUs {asked} was not kept: thread 0 may run on {other}")
