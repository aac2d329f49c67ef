"""A board with another CPU and kernel than this machine's, from its cross-built library to its column."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from stbench.agent.wire import RunRecord
from tests.boards.conftest import Controller
from tests.boards.emulated import EmulatedBoard
from tests.boards.fleet import Desk, aarch64_library, booted, entry_of
from tests.boards.image_files import BUSYBOX, SYSTEMD

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TINY = ["--models", "tiny-smallthinker", "-pg", "4,4", "-r", "1", "--max-reruns", "0"]


@pytest.fixture(scope="module")
def builds(request: pytest.FixtureRequest) -> Path:
    return aarch64_library(request)


@pytest.fixture(scope="module")
def cortex_a76(request: pytest.FixtureRequest) -> Iterator[EmulatedBoard]:
    with booted(request, BUSYBOX, "cortex-a76") as board:
        yield board


@pytest.fixture
def desk(tmp_path: Path, controller: Controller, builds: Path) -> Desk:
    """A user who has built the library and trusts nobody yet."""
    shutil.copytree(builds, tmp_path / "cache", dirs_exist_ok=True)
    return Desk(tmp_path / "desk")


def trust(controller: Controller, board: EmulatedBoard) -> None:
    with controller.known_hosts.open("a") as file:
        file.write(board.known_host + "\n")


# Jobs that were started and have no record yet.
RUNNING = "for f in ~/.cache/stbench/spool/*.started; do [ -e ${f%started}record ] || echo $f; done"


def only(records: list[RunRecord]) -> RunRecord:
    (record,) = records
    return record


def test_a_new_board_is_trusted_and_gets_its_column(
    desk: Desk, controller: Controller, cortex_a76: EmulatedBoard
) -> None:
    desk.devices({"emulated": entry_of(cortex_a76)})
    refused = desk.run("sweep", *TINY, "--campaign", "c")
    assert refused.code == 4
    assert "stbench devices trust emulated" in refused.err

    trust(controller, cortex_a76)
    done = desk.run("sweep", *TINY, "--campaign", "c")
    assert done.code == 0, done.err
    assert "emulated" in done.out
    assert "Cortex-A76" in done.out
    record = only(desk.records())
    assert record.status == "ok"
    facts, effective, check = record.facts, record.effective, record.check
    assert facts is not None
    assert effective is not None
    assert check is not None
    assert (facts.hostname, facts.machine, facts.cpu_model) == ("emulated", "aarch64", "Cortex-A76")
    assert "asimddp" in facts.features
    assert facts.isas == ["scalar", "neon", "neon-dotprod"]
    assert effective.isa == "neon-dotprod"
    # The reference was computed on the board by another instruction set.
    assert check.verdict == "ok"
    assert 0.9e9 < facts.memory_bytes < 1.1e9
    assert facts.boot_id == cortex_a76.ssh("cat /proc/sys/kernel/random/boot_id").strip()


def test_a_small_old_board_refuses_what_its_cpu_lacks(
    request: pytest.FixtureRequest, desk: Desk, controller: Controller
) -> None:
    """As a Raspberry Pi 4 boots: no dotprod, and its firmware turns the memory controller off."""
    with booted(request, BUSYBOX, "cortex-a72", "mem=512M", "cgroup_disable=memory") as board:
        desk.devices({"emulated": entry_of(board)})
        trust(controller, board)
        done = desk.run("sweep", *TINY, "--isa", "neon-dotprod", "--campaign", "c")
        assert "memory" not in board.ssh("cat /sys/fs/cgroup/cgroup.controllers").split()
    assert done.code == 3, done.err
    record = only(desk.records())
    assert record.status == "unsupported"
    assert "neon-dotprod" in record.detail
    assert record.facts is not None
    assert record.facts.cpu_model == "Cortex-A72"
    assert record.facts.isas == ["scalar", "neon"]
    assert record.facts.memory_bytes < 512 << 20


def test_a_new_board_uses_what_its_cpu_has(
    request: pytest.FixtureRequest, desk: Desk, controller: Controller
) -> None:
    with booted(request, BUSYBOX, "max") as board:
        desk.devices({"emulated": entry_of(board)})
        trust(controller, board)
        done = desk.run("sweep", *TINY, "--campaign", "c")
    assert done.code == 0, done.err
    record = only(desk.records())
    assert record.status == "ok"
    assert record.effective is not None
    assert record.effective.isa == "neon-i8mm"
    assert record.check is not None
    assert record.check.verdict == "ok"


def test_a_power_cut_in_the_middle_loses_one_run(
    desk: Desk, controller: Controller, cortex_a76: EmulatedBoard
) -> None:
    """Another boot, another boot id: the job that ran is started again, the others are not."""
    desk.devices({"emulated": entry_of(cortex_a76, timeouts={"silence": 20, "reconnect": 180})})
    trust(controller, cortex_a76)
    sweep = ["--models", "fake:sleep=4", "--engines", "fake", "-n", "4", "-r", "3", "--campaign", "c"]
    with desk.started("sweep", *sweep) as process:
        desk.wait_for_records("emulated", 1, process)
        cortex_a76.power_cycle()
        done = desk.ended(process)
    assert done.code == 0, done.err
    records = desk.records()
    assert [record.status for record in records] == ["ok"] * 3
    assert len({record.id for record in records}) == 3


def test_a_job_survives_the_logout_under_systemd(
    request: pytest.FixtureRequest, desk: Desk, controller: Controller
) -> None:
    """logind ends the session with the link; what is detached goes on, and its record is fetched later."""
    with booted(request, SYSTEMD, "cortex-a76") as board:
        said = board.ssh("systemd-run --user --scope -q -p MemoryMax=64M sh -c 'cat /proc/self/cgroup'")
        assert said.strip().endswith(".scope")
        desk.devices({"emulated": entry_of(board)})
        trust(controller, board)
        sweep = ["--models", "fake:sleep=4", "--engines", "fake", "-n", "4", "-r", "2", "--campaign", "c"]
        with desk.started("sweep", *sweep) as process:
            desk.wait_for_records("emulated", 1, process)
            board.ssh(wait_for(RUNNING), 120)
            process.kill()
            process.wait()
        board.ssh(wait_for("ls ~/.cache/stbench/spool/*.record"), 120)
        done = desk.run("sweep", "--resume", "--campaign", "c")
    assert done.code == 0, done.err
    assert [record.status for record in desk.records()] == ["ok", "ok"]


def wait_for(command: str) -> str:
    """A shell's loop until a command prints something, a minute long."""
    return f"n=0; until ({command}) | grep -q [.]; do n=$((n+1)); [ $n -lt 300 ] || exit 1; sleep 0.2; done"
