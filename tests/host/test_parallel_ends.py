"""However a sweep of many boards ends, Ctrl-C or kill -9: nothing lost or doubled. And two hundred."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stbench.campaigns import campaign
from stbench.campaigns.stopping import Stop
from tests.host.fleet import Fleet, sweep

Eventually = Callable[[Callable[[], bool]], None]


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_ctrl_c_cancels_on_every_board_and_resume_completes(fleet: Fleet, eventually: Eventually) -> None:
    fleet.boards(4)
    told: dict[str, object] = {"latency": 0.2}
    assert fleet.run("sweep", sweep(fleet), "--references-only")[0] == 0
    running = fleet.start("sweep", sweep(fleet, 20), "--campaign", "c", all=told, b4={"latency": 300})
    eventually(lambda: lines(fleet.path) >= 6 and "b4" in fleet.heard("measure"))
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=120)
    assert running.returncode == 130, err
    assert "Traceback" not in err
    assert "stopping: running jobs are being cancelled" in err
    assert "stbench: interrupted; " in err
    cancelled = [record.device for record in fleet.records() if record.status == "cancelled"]
    assert "b4" in cancelled
    assert max(Counter(cancelled).values()) == 1
    assert fleet.run("sweep", "--campaign", "c", "--resume")[0] == 0
    assert fleet.ran() == fleet.planned()


def test_ctrl_c_while_others_wait_for_a_reference(fleet: Fleet, eventually: Eventually) -> None:
    fleet.boards(4)
    path = fleet.sandbox.fake_sweep("fake", replicates=1, extra="bracket_ms: 0\n")
    running = fleet.start("sweep", path, "--campaign", "c", all={"latency": 300})
    eventually(lambda: len(fleet.heard("reference")) == 1)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=120)
    assert running.returncode == 130, err
    assert fleet.records() == []


def test_a_second_ctrl_c_gives_up_waiting(fleet: Fleet, eventually: Eventually) -> None:
    fleet.boards(3)
    deaf: dict[str, object] = {"latency": 600, "stubborn": True}
    assert fleet.run("sweep", sweep(fleet), "--references-only")[0] == 0
    running = fleet.start("sweep", sweep(fleet), "--campaign", "c", all={"latency": 0.05}, b2=deaf)
    eventually(lambda: lines(fleet.path) >= 12 and "b2" in fleet.heard("measure"))
    running.send_signal(signal.SIGINT)
    assert running.stderr is not None
    heard = ""
    while "stopping: " not in heard:  # two signals at once may arrive as one
        heard = running.stderr.readline()
        assert heard, "it ended"
    time.sleep(1.0)
    assert running.poll() is None, "it waits for b2"
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=120)
    assert running.returncode == 130, err
    assert "may still run, up to its time limit, on b2" in err
    assert "something may still run on b2" in err


def test_ctrl_c_before_a_worker_has_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it, and it never begins."""
    ran: list[str] = []
    stop, started = Stop(), threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if thread.name == "b2":
            raise KeyboardInterrupt
        started(thread)

    def worker(name: str) -> Any:
        return SimpleNamespace(names=[name], run=lambda: (stop.wait(60), ran.append(name)))

    ledger: Any = SimpleNamespace(interrupted=lambda: ran.append("interrupted"))
    observer: Any = SimpleNamespace(note=lambda text: None)
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    campaign._side_by_side([worker("b1"), worker("b2"), worker("b3")], stop, ledger, observer)
    assert (ran, stop.asked) == (["interrupted", "b1"], True)
    late = campaign._Attended(worker("b4"))
    late.keep_from_beginning()
    late._run()
    assert ran == ["interrupted", "b1"]


def killed_at_random(fleet: Fleet, path: str, kills: int, longest: float, told: dict[str, object]) -> int:
    """Kills the controller so often; returns in how many of these runs records were added."""
    chance = random.Random(kills)
    grew = stored = 0
    for _ in range(kills):
        begun = fleet.path.with_name("campaign.json").exists()
        running = fleet.start("sweep", path, "--campaign", "c", *["--resume"] * begun, all=told)
        # From when it is up: starting takes seconds on a busy machine, and nothing happens then.
        deadline = time.monotonic() + 60
        while lines(fleet.path) == stored and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, longest))
        running.kill()
        running.communicate()
        assert lines(fleet.path) >= stored, "a record was lost"
        grew += lines(fleet.path) > stored
        stored = lines(fleet.path)
    return grew


def test_killed_at_random_moments_nothing_is_lost_or_doubled(fleet: Fleet) -> None:
    fleet.boards(5)
    path = sweep(fleet, 40)
    assert killed_at_random(fleet, path, 5, 0.4, {"latency": 0.02}) >= 3
    code, _, err = fleet.run("sweep", path, "--campaign", "c", "--resume")
    assert code == 0, err
    found = fleet.records()
    assert Counter(record.id for record in found).most_common(1)[0][1] == 1, "a job was stored twice"
    assert len(found) == 5 * 80
    assert fleet.ran() == fleet.planned()


def test_detached_jobs_survive_the_controller_and_run_once(fleet: Fleet) -> None:
    """The real agent, which goes on when the controller is killed: resuming takes its record."""
    fleet.boards(2)
    told: dict[str, object] = {"kind": "spool"}
    path = fleet.sandbox.fake_sweep("fake:sleep=0.3", replicates=4, extra="bracket_ms: 0\n")
    assert killed_at_random(fleet, path, 2, 0.8, told) >= 1
    code, _, err = fleet.run("sweep", path, "--campaign", "c", "--resume", all=told)
    assert code == 0, err
    found = fleet.records()
    assert Counter(record.id for record in found).most_common(1)[0][1] == 1
    assert fleet.ran() == fleet.planned()
    assert len({record.started_at for record in found}) == len(found) == 8


# ---- two hundred -------------------------------------------------------------------------------------


def test_two_hundred_boards(fleet: Fleet) -> None:
    fleet.boards(200)
    path = fleet.sandbox.fake_sweep("fake", replicates=5, extra="bracket_ms: 0\n")
    running = fleet.start("sweep", path, "--campaign", "c", all={"latency": 0.05})
    drained = threading.Thread(target=lambda: [None for _ in running.stderr or ()])
    drained.start()
    threads = peak_kib = ended = 0
    while not ended:  # by one thread: a poll() beside it could reap what wait4 is to account for
        text = Path(f"/proc/{running.pid}/status").read_text()
        told = {name: int(n) for name, n in re.findall(r"^(Threads|VmHWM):\s*(\d+)", text, re.MULTILINE)}
        threads = max(threads, told.get("Threads", 0))
        # Not ru_maxrss, which begins with the peak of whoever started the process: this one's may be above.
        peak_kib = max(peak_kib, told.get("VmHWM", 0))
        time.sleep(0.02)
        ended, status, used = os.wait4(running.pid, os.WNOHANG)
    running.returncode = os.waitstatus_to_exitcode(status)
    drained.join()
    cpu_s = used.ru_utime + used.ru_stime
    print(f"200 boards, 1000 jobs: {cpu_s:.1f} s of CPU time, {peak_kib >> 10} MiB, {threads} threads")
    assert running.returncode == 0
    assert fleet.ran() == fleet.planned()
    assert len(fleet.records()) == 1000
    assert len(fleet.heard("reference")) == 1
    assert threads <= 200 + 20
    assert 0 < peak_kib < 600 << 10
