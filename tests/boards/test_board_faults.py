"""What boards suffer in the middle of a campaign: real sweeps over real sshds, killed, rebooted, unplugged,
and with clocks that are years off. Nothing is lost, doubled or left running."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
from pathlib import Path

import pytest

from tests.boards.conftest import Boards, Controller
from tests.boards.fleet import Desk
from tests.boards.skewed import SkewedClock
from tests.boards.sshd import ROOT, Board, wait_until
from tests.conftest import require

pytestmark = pytest.mark.timeout(600)

YEAR_S = 365 * 86400


@pytest.fixture
def desk(tmp_path: Path, controller: Controller) -> Desk:
    return Desk(tmp_path / "desk")


def fake(seconds: float, replicates: int) -> list[str]:
    axes = ["--models", f"fake:sleep={seconds:g}", "--engines", "fake", "-n", "4", "-r", str(replicates)]
    return ["sweep", *axes, "--bracket-ms", "0", "--max-reruns", "0", "--campaign", "c"]


RESUME = ("sweep", "--resume", "--campaign", "c")


def statuses(desk: Desk) -> list[str]:
    return [record.status for record in desk.records()]


# ---- processes of one job --------------------------------------------------------------------------------


def started(board: Board) -> dict[str, int]:
    """Jobs that were started and have no record yet, with their keepers as the board numbers them."""
    found = {}
    for path in (board.work_dir / "spool").glob("*.started"):
        with contextlib.suppress(OSError, ValueError):
            pid = json.loads(path.read_text())["pid"]
            if pid and not path.with_suffix(".record").exists():
                found[path.stem] = pid
    return found


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def processes_of(board: Board) -> dict[str, list[int]]:
    """The processes of the job that runs, as this machine numbers them, by what they are for: ``keeper``,
    ``worker``: what measures, ``follower``: what is attached to the link."""
    keepers = set(started(board).values())
    found: dict[str, list[int]] = {"keeper": [], "worker": [], "follower": []}
    agents = {}
    for pid, line in board.processes().items():
        with contextlib.suppress(OSError):
            if ".pyz run --spool" in line and not line.startswith("sh -c"):
                agents[pid] = status_of(pid)
    for pid, status in agents.items():
        if int(status["NSpid"].split()[-1]) in keepers:
            found["keeper"].append(pid)
    for pid, status in agents.items():
        if pid not in found["keeper"]:
            found["worker" if int(status["PPid"]) in found["keeper"] else "follower"].append(pid)
    return found


def running_job(board: Board, seen: set[str]) -> tuple[str, dict[str, list[int]]]:
    """The next job once it measures, and its processes."""
    ready: dict[str, list[int]] = {}

    def measures() -> bool:
        ready.clear()
        if set(started(board)) - seen:
            ready.update(processes_of(board))
        return all(ready.get(kind) for kind in ("keeper", "worker", "follower"))

    wait_until(measures, "a job runs", 60)
    (key,) = set(started(board)) - seen
    seen.add(key)
    return key, ready


def test_agents_killed_over_a_link(desk: Desk, boards: Boards) -> None:
    """kill -9 to each process that a job has on its board: the follower is only the link's end, the others
    are the job."""
    require(ROOT, "processes of a board are told by its namespaces, which need root")
    board = boards("pi")
    desk.devices({board.name: board.device_keys()})
    seen: set[str] = set()
    with desk.started(*fake(3, 3)) as process:
        # The reference, and the first run.
        for _ in range(2):
            first, found = running_job(board, seen)
            for pid in found["follower"]:
                os.kill(pid, signal.SIGKILL)
        desk.wait_for_records("pi", 1, process)
        assert json.loads((board.work_dir / "spool" / f"{first}.started").read_text())["starts"] == 1
        for kind in ("keeper", "worker"):
            _, found = running_job(board, seen)
            for pid in found[kind]:
                os.kill(pid, signal.SIGKILL)
        done = desk.ended(process)
    assert done.code == 3, done.err
    assert statuses(desk) == ["ok", "crashed", "crashed"]
    attached, by_keeper, by_worker = desk.records()
    assert attached.check is not None
    assert attached.check.verdict == "ok", "its reference was computed"
    assert "was killed, with all below it" in by_keeper.detail
    assert "SIGKILL" in by_worker.detail
    wait_until(lambda: not board.processes(), "no process stays")
    again = desk.run(*RESUME, "--retry-failed")
    assert again.code == 0, again.err
    latest = {record.id: record.status for record in desk.records()}
    assert list(latest.values()) == ["ok"] * 3
    assert list((board.work_dir / "spool").glob("*")) == []


# ---- power and cables ------------------------------------------------------------------------------------


def test_a_power_cut_repeats_the_job_that_ran_and_no_other(desk: Desk, boards: Boards) -> None:
    require(ROOT, "rebooting a board needs namespaces, which need root")
    board = boards("pi")
    desk.devices({board.name: board.device_keys(timeouts={"silence": 5, "reconnect": 60})})
    with desk.started(*fake(2, 3)) as process:
        desk.wait_for_records("pi", 1, process)
        wait_until(lambda: started(board), "the second job runs")
        board.reboot()
        done = desk.ended(process)
    assert done.code == 0, done.err
    assert statuses(desk) == ["ok"] * 3
    assert len({record.id for record in desk.records()}) == 3
    assert "left out" not in done.err
    wait_until(lambda: not board.processes(), "no process stays")


def test_an_unplugged_board_ends_alone_and_is_resumed(desk: Desk, boards: Boards) -> None:
    require(ROOT, "cables need network namespaces, which need root")
    fleet = [boards("near", cable=True), boards("far", cable=True)]
    quick = {"silence": 3, "reconnect": 2}
    desk.devices({"near": fleet[0].device_keys(), "far": fleet[1].device_keys(timeouts=quick)})
    with desk.started(*fake(2, 3)) as process:
        desk.wait_for_records("far", 1, process)
        fleet[1].cut()
        done = desk.ended(process)
    assert done.code == 3, done.err
    assert "far has jobs left: far: no link within 2 s" in done.err
    assert sum(record.device == "near" for record in desk.records()) == 3
    assert 0 < sum(record.device == "far" for record in desk.records()) < 3
    fleet[1].mend()
    resumed = desk.run(*RESUME)
    assert resumed.code == 0, resumed.err
    assert len({record.id for record in desk.records()}) == len(desk.records()) == 6
    wait_until(lambda: not any(board.processes() for board in fleet), "no process stays")


# ---- clocks ----------------------------------------------------------------------------------------------


@pytest.fixture
def clock(tmp_path: Path) -> SkewedClock:
    return SkewedClock(tmp_path / "clock")


def year_of(record_started_at: str) -> int:
    return datetime.datetime.fromisoformat(record_started_at.replace("Z", "+00:00")).year


def test_a_clock_that_jumps_years_both_ways(desk: Desk, boards: Boards, clock: SkewedClock) -> None:
    """Leases, limits, order, resume and timing go by the clock that runs since boot. The board starts in the
    past, as one without a battery does, is set right while a job runs, and runs away after that."""
    board = boards("pi")
    entry = board.device_keys(python=str(clock.python), timeout=60)
    desk.devices({board.name: entry})
    clock.set(-30 * YEAR_S)
    with desk.started(*fake(3, 4)) as process:
        desk.wait_for_records("pi", 1, process)
        wait_until(lambda: started(board), "the second job runs")
        clock.set(10 * YEAR_S)
        since, left = spans(told_to_the_next(board, clock))
        assert 0 <= since < 60, "by the clock that was set it would be 40 years"
        assert 0 < left < 300
        # Killed with a job that began in another year than it will end in.
        wait_until(lambda: len(desk.records()) >= 2 and started(board), "the third job runs")
        process.kill()
        process.wait()
    clock.set(-5 * YEAR_S)
    done = desk.run(*RESUME)
    assert done.code == 0, done.err
    records = desk.records()
    assert [record.status for record in records] == ["ok"] * 4
    assert [record.replicate for record in records] == [0, 1, 2, 3], "in the order in which they ran"
    assert len({record.id for record in records}) == 4
    years = [year_of(record.started_at) - datetime.date.today().year for record in records]
    assert years[0] <= -29, "the board did live in another year"
    assert years[2] >= 9
    for record in records:
        assert 3 <= record.wall_s < 60, "a jump is no time that passed"
        assert record.samples is not None
        assert all(0 <= ns < 60e9 for ns in record.samples.decode_ns)
    wait_until(lambda: not board.processes(), "no process stays")
    assert list((board.work_dir / "spool").glob("*")) == []


def told_to_the_next(board: Board, clock: SkewedClock) -> str:
    """What whoever finds the board busy is told, by its clock."""
    (agent,) = (board.work_dir / "deployed").glob("agent-*.pyz")
    path = str(board.directory / "stbench.lease")
    code = (
        f"import sys; sys.path.insert(0, {str(agent)!r}); from stbench.agent import lease; "
        f"print(lease.sentence(lease.read_holder({path!r}), lease.boot_id()))"
    )
    return board.run([clock.python, "-I", "-S", "-c", code])


def spans(text: str) -> tuple[float, float]:
    """For how long a board is in use, and for how long at most it will be, seconds."""
    words = text.split()
    since = words[words.index("since") + 1]
    return float(since), float(words[words.index("most") + 1])
