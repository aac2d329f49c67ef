"""The controller killed again and again, and two of them at one board: real processes, real sshds."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.boards.conftest import Boards, Controller
from tests.boards.fleet import Desk, is_measuring
from tests.boards.sshd import wait_until

KILLS = 20
REPLICATES = 12


@pytest.fixture
def desk(tmp_path: Path, controller: Controller) -> Desk:
    return Desk(tmp_path / "desk")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_lose_and_double_nothing(desk: Desk, boards: Boards) -> None:
    """By turns up to a second after the first new record, however long that takes, and within two seconds."""
    chance = random.Random(3)
    fleet = [boards(f"board-{n}") for n in (1, 2, 3)]
    desk.devices({board.name: board.device_keys() for board in fleet})
    axes = ["--models", "fake:sleep=1", "--engines", "fake", "-n", "4", "-r", str(REPLICATES)]
    sweep, resume = ["sweep", *axes, "--campaign", "c"], ["sweep", "--resume", "--campaign", "c"]
    hit, growing = 0, set()
    for number in range(KILLS):
        begun = (desk.directory / "results" / "c" / "campaign.json").exists()
        stored = len(desk.records())
        with desk.started(*(resume if begun else sweep)) as process:
            deadline = time.monotonic() + 120 * (number % 2)
            while time.monotonic() < deadline and process.poll() is None and len(desk.records()) == stored:
                time.sleep(0.02)
            time.sleep(chance.uniform(0.0, 1.0 if number % 2 else 2.0))
            hit += process.poll() is None
        growing.add(len(desk.records()))
    assert hit >= KILLS // 2, "most sweeps ended before they were killed"
    assert len(growing) >= 5, "the kills came before anything was stored"
    done = desk.run(*(resume if hit else sweep))
    assert done.code == 0, done.err
    records = desk.records()
    assert {record.status for record in records if record.status != "cancelled"} == {"ok"}
    ids = [record.id for record in records if record.status == "ok"]
    assert len(ids) == len(set(ids)) == 3 * REPLICATES, "lost or doubled"
    wait_until(lambda: not any(board.processes() for board in fleet), "no process stays")
    for board in fleet:
        assert list((board.work_dir / "spool").glob("*")) == []


def test_two_controllers_at_one_board(tmp_path: Path, controller: Controller, boards: Boards) -> None:
    """The second is told who has the board and since when, and exits 4; with --wait it gets it afterwards."""
    board = boards("shared")
    first, second = Desk(tmp_path / "first"), Desk(tmp_path / "second")
    for desk in (first, second):
        desk.devices({board.name: board.device_keys()})
    long = ["--models", "fake:until=go", "--engines", "fake", "-n", "4", "-r", "1", "--campaign", "a"]
    short = ["--models", "fake:quick", "--engines", "fake", "-n", "4", "-r", "1"]
    go = board.work_dir / "go"
    go.parent.mkdir(parents=True)
    go.touch()
    assert first.run("sweep", *long, "--references-only").code == 0
    go.unlink()
    with first.started("sweep", *long) as process:
        wait_until(lambda: is_measuring(board), "the job runs", 120)
        refused = second.run("sweep", *short, "--campaign", "b")
        assert refused.code == 4, refused.err
        assert "shared: in use by" in refused.err
        assert "(campaign a" in refused.err
        assert "--wait" in refused.err
        with second.started("sweep", *short, "--campaign", "c", "--wait", "120") as waiting:
            wait_until(lambda: "shared: waiting: in use by" in second.read("err"), "it waits", 120)
            go.touch()
            waited = second.ended(waiting)
        assert waited.code == 0, waited.err
        assert first.ended(process).code == 0
    assert [record.status for record in second.records("c")] == ["ok"]
    assert [record.status for record in first.records("a")] == ["ok"]
