"""A board with another CPU and kernel than this machine's, from its cross-built library to its column."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stbench.agent.wire import LimitProof, RunRecord
from tests.boards.conftest import Controller
from tests.boards.emulated import EmulatedBoard
from tests.boards.fleet import Desk, aarch64_library, booted, entry_of
from tests.boards.image_files import BUSYBOX, SYSTEMD
from tests.boards.page import SETTING_UP, commands, settle_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.beside("emulated", seconds=900, nice=0)]

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


# Of docs/boards.md, what needs more disk than an emulated board has.
TOO_LARGE = re.compile(r"stbench (plan|sweep) (--preset limited-4b .*|--device raspberry-pi-5)")

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


def test_the_page_on_boards_can_be_followed_word_by_word(
    desk: Desk, controller: Controller, cortex_a76: EmulatedBoard
) -> None:
    """docs/boards.md from its first step to its last: each command as it stands there, a ``yes`` where a host
    key is asked for, the board's user put in. Only the 4B table and its limited rows do not fit on this
    board's disk, so that there is no second campaign to show."""
    environment = {**os.environ, **settle_in(desk.directory, controller.home, cortex_a76)}
    said: dict[str, str] = {}
    for command in commands():
        if command.line.startswith(SETTING_UP) or "results/pi-limited" in command.line:
            continue
        line = command.line.replace("pi@", f"{cortex_a76.user}@")
        if "results/NAME" in line:
            (campaign,) = (desk.directory / "results").iterdir()
            line = line.replace("results/NAME", f"results/{campaign.name}")
        if line.startswith(("stbench devices trust", "stbench devices add")):
            line = f"script -qec '{line}' /dev/null"
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=desk.directory,
            env=environment,
            input="yes\n",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )
        said[command.line] = done.stdout
        if TOO_LARGE.fullmatch(command.line):
            assert (done.returncode, "GB are free" in done.stdout) == (2, True), f"{line}:\n{done.stdout}"
        else:
            assert done.returncode == 0, f"{line}:\n{done.stdout}"

    def of(start: str) -> str:
        (text,) = (text for line, text in said.items() if line.startswith(start))
        return text

    assert of("ssh ").startswith("Python 3.")
    assert cortex_a76.fingerprint in of("stbench devices trust")
    assert "pinned in" in of("stbench devices trust")
    # The page's other way, to the same board under another name: its key is known by now.
    assert "has raspberry-pi-4 now" in of("stbench devices add")
    assert "raspberry-pi-5: " in of("stbench devices doctor")
    first = next(text for line, text in said.items() if "tiny-smallthinker" in line)
    for text in (first, of("stbench grid")):
        assert "Cases outside the published tables" in text
        assert "raspberry-pi-5:tiny-smallthinker/dense/t2/pp4+tg4" in text
    assert "results in results/" in first
    assert "is of --device raspberry-pi-5" in of("stbench sweep --resume")


def test_a_small_old_board_refuses_what_its_cpu_lacks(
    request: pytest.FixtureRequest, desk: Desk, controller: Controller
) -> None:
    """As a Raspberry Pi 4 boots: no dotprod, and its firmware turns the memory controller off."""
    with booted(request, BUSYBOX, "cortex-a72", "mem=512M", "cgroup_disable=memory") as board:
        desk.devices({"emulated": entry_of(board)})
        trust(controller, board)
        done = desk.run("sweep", *TINY, "--isa", "neon-dotprod", "--campaign", "c")
        assert "memory" not in board.ssh("cat /sys/fs/cgroup/cgroup.controllers").split()
        limited = desk.run("sweep", *LIMITED, "--campaign", "small")
        whole = desk.run(
            "sweep", *TINY, "--engines", "sbr", "--memory-limit", "512MiB", "--campaign", "whole"
        )
    assert limited.code == whole.code == 0, limited.err + whole.err
    unheld = proof_of(only(desk.records("small")))
    assert (unheld.method, unheld.verdict, unheld.limit_bytes) == ("none", "not-enforced", None)
    assert "cgroup_enable=memory" in unheld.detail
    # All of its memory is a limit, too.
    held = proof_of(only(desk.records("whole")))
    assert (held.method, held.verdict) == ("boot", "held")
    assert 400 << 20 < (held.limit_bytes or 0) < 512 << 20
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


LIMITED = [*TINY, "--engines", "sbr", "--memory-limit", "64MiB"]


def proof_of(record: RunRecord) -> LimitProof:
    assert record.status == "ok", record.detail
    assert record.limit is not None
    return record.limit


@pytest.mark.parametrize(("user", "parent"), [("board", "/board/"), ("root", "/")])
def test_a_memory_limit_holds_for_a_user_and_for_root(
    desk: Desk, controller: Controller, cortex_a76: EmulatedBoard, user: str, parent: str
) -> None:
    """In control groups of version 2: the user's lies in the part of the hierarchy that is delegated to him
    and that his login is in, as there is no systemd; root's lies beside it."""
    work_dir = f"/home/board/limited-{user}"
    desk.devices({"emulated": entry_of(cortex_a76, user=user, work_dir=work_dir)})
    trust(controller, cortex_a76)
    done = desk.run("sweep", *LIMITED, "--campaign", "c")
    assert done.code == 0, done.err
    proof = proof_of(only(desk.records()))
    assert (proof.method, proof.verdict, proof.detail) == ("cgroup-v2", "held", "")
    assert proof.limit_bytes == 64 << 20
    assert proof.group.startswith(parent + "stbench-")
    assert 0 < (proof.peak_bytes or 0) <= 64 << 20
    assert (proof.start, proof.swap_off, proof.oom_kills) == ("cold", True, 0)
    assert cortex_a76.ssh("ls /sys/fs/cgroup /sys/fs/cgroup/board").count("stbench-") == 0


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
        limited = desk.run("sweep", *LIMITED, "--campaign", "limited")
    assert done.code == 0, done.err
    assert [record.status for record in desk.records()] == ["ok", "ok"]
    # The agent was started anew in a scope of the user's manager, which is the user's to divide.
    assert limited.code == 0, limited.err
    proof = proof_of(only(desk.records("limited")))
    assert (proof.method, proof.verdict, proof.detail) == ("cgroup-v2", "held", "")
    assert "/user@1000.service/" in proof.group
    assert ".scope/stbench-" in proof.group


def wait_for(command: str) -> str:
    """A shell's loop until a command prints something, a minute long."""
    return f"n=0; until ({command}) | grep -q [.]; do n=$((n+1)); [ $n -lt 300 ] || exit 1; sleep 0.2; done"
