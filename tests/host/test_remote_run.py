"""Jobs behind a link: cut, rebooted, refused, lied to, and killed at both ends. Only the link is fake."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stbench.agent import wire
from stbench.agent.wire import RunRecord
from stbench.campaigns import remote_run
from stbench.campaigns.agentclient import Agent, JobInterrupted
from stbench.campaigns.deploy import Deployment, deploy
from stbench.campaigns.remote_run import Patience
from stbench.campaigns.stopping import Stop
from stbench.errors import AgentError, BusyError, DeviceError, LinkLost, NoSpace
from stbench.records.store import Store, read_records
from tests.agent.conftest import fake_job
from tests.agent.detached import Board, eventually, writes_or_ends
from tests.host.cuttable import CutConnector
from tests.host.test_agentclient import GOOD, JOB, printing

ENDLESS = fake_job("hang", timeout_s=60.0)
KILLS = 20


class Far:
    """A board behind a link, and an agent that is deployed there."""

    def __init__(self, directory: Path, patience: Patience | None = None) -> None:
        self.connector = CutConnector(directory)
        self.board = Board(directory / "work")
        self.agent = Agent("d", self.connector, deploy(self.connector, None), patience)
        # A job that ends when the file is there.
        self.go = directory / "go"
        self.job = fake_job(f"until={self.go}")

    def submissions(self) -> int:
        return sum("run" in arguments for arguments in self.connector.arguments)


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Far]:
    """Nothing of it outlives the test."""
    far = Far(tmp_path)
    yield far
    far.board.kill_everything()


def lying(tmp_path: Path, body: str, patience: Patience | None = None) -> tuple[Agent, CutConnector]:
    """An agent whose program is ``body``."""
    script = tmp_path / "agent.py"
    script.write_text("import json, os, sys, time\n" + body)
    connector = CutConnector(tmp_path)
    return Agent("d", connector, Deployment(str(script), "", "", ""), patience), connector


def later(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


# ---- the link ----------------------------------------------------------------------------------------


def test_a_job_behind_a_link(far: Far) -> None:
    record = far.agent.run(fake_job())
    assert record.status == "ok"
    assert far.submissions() == 1


def test_a_cut_link_costs_nothing(far: Far) -> None:
    """Down for three attempts in the middle of the job, which ends meanwhile."""

    def cut() -> None:
        far.board.measuring()
        far.connector.cut(down_for=3)
        far.go.touch()

    thread = later(cut)
    record = far.agent.run(far.job)
    thread.join()
    assert record.status == "ok"
    assert (far.submissions(), far.connector.attempts) == (2, 4)
    assert len(list(far.board.spool.glob("*.record"))) == 1
    assert far.agent.run(far.job) == record


def test_a_link_that_breaks_all_the_time(far: Far) -> None:
    ended = threading.Event()

    def cut() -> None:
        chance = random.Random(3)
        while not ended.wait(chance.uniform(0.05, 0.4)):
            far.connector.cut()

    thread = later(cut)
    threading.Timer(3.0, ended.set).start()
    record = far.agent.run(fake_job("sleep=0.5"))
    ended.set()
    thread.join()
    assert record.status == "ok"
    assert far.submissions() > 1
    assert len(list(far.board.spool.glob("*.record"))) == 1


def test_a_link_that_stays_away(tmp_path: Path) -> None:
    """The job goes on, and the next campaign finds it."""
    far = Far(tmp_path, Patience(reconnect_s=0.5))

    def cut() -> None:
        far.board.measuring()
        far.connector.cut(down_for=10**12)

    thread = later(cut)
    with pytest.raises(LinkLost, match=r"^d: no link within 0.5 s \(d: no route to host\)$") as caught:
        far.agent.run(far.job)
    thread.join()
    assert "--resume" in caught.value.hint
    far.go.touch()
    assert Far(tmp_path).agent.run(far.job).status == "ok"
    assert len(list(far.board.spool.glob("*.record"))) == 1


def test_a_board_that_stays_away_is_power_cycled(tmp_path: Path) -> None:
    far = Far(tmp_path, Patience(reconnect_s=0.5, power=f"touch '{tmp_path}/power cycled'"))
    far.connector.up_with = tmp_path / "power cycled"

    def cut() -> None:
        far.board.measuring()
        far.connector.cut(down_for=10**12)
        far.go.touch()

    thread = later(cut)
    record = far.agent.run(far.job)
    thread.join()
    assert record.status == "ok"
    assert "was power-cycled" in record.warnings[-1]
    far.board.kill_everything()


@pytest.mark.parametrize(
    ("command", "kind", "said", "times"),
    [
        ("sh -c 'echo >> cycles'", LinkLost, "no link within 0.1 s, power-cycled 2 times", 2),
        ("sh -c 'echo >> cycles; echo no plug >&2; exit 3'", DeviceError, "exit code 3: no plug", 1),
        ("/no/such/plug", DeviceError, "cannot be run: No such file", 0),
        ("'", DeviceError, "cannot be run: No closing quotation", 0),
    ],
)
def test_power_cycling_has_an_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    kind: type[Exception],
    said: str,
    times: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    agent, connector = lying(tmp_path, "", Patience(reconnect_s=0.1, power=command))
    connector.cut(down_for=10**12)
    with pytest.raises(kind, match=said):
        agent.run(JOB)
    cycles = tmp_path / "cycles"
    assert (len(cycles.read_text().splitlines()) if cycles.exists() else 0) == times


def test_a_link_that_breaks_at_once_each_time(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_run, "MAX_LOSSES", 4)
    monkeypatch.setattr(far.connector, "connect", lambda: None)
    far.connector.cut()
    with pytest.raises(LinkLost, match=r"^d: the link broke 4 times during one job: d: the link is down$"):
        far.agent.run(fake_job())


def test_a_board_that_reboots(far: Far) -> None:
    def reboot() -> None:
        far.board.measuring()
        far.connector.boot_id = "second"
        far.connector.cut(down_for=10**12)
        far.board.kill_everything()
        far.go.touch()
        # Not before: what would be submitted meanwhile must not be killed, too.
        far.connector.stay_down_for(1)

    thread = later(reboot)
    record = far.agent.run(far.job)
    thread.join()
    assert record.status == "ok"


def test_a_killed_follower_is_not_the_job(far: Far) -> None:
    def kill() -> None:
        far.board.measuring()
        far.connector.started[-1].process.kill()
        far.go.touch()

    thread = later(kill)
    record = far.agent.run(far.job)
    thread.join()
    assert record.status == "ok"
    assert far.submissions() == 2


def test_a_killed_job_is_a_crash(far: Far) -> None:
    def kill() -> None:
        far.board.measuring()
        os.kill(far.board.keeper(), signal.SIGKILL)

    thread = later(kill)
    record = far.agent.run(ENDLESS)
    thread.join()
    assert record.status == "crashed"
    eventually(lambda: not far.board.processes())


# ---- who else wants the board ------------------------------------------------------------------------


def test_busy_is_told_with_who_and_since_when(far: Far) -> None:
    Board(far.connector.directory).submit(ENDLESS, "--boot-id", "boot", owner="you@there")
    Board(far.connector.directory).measuring()
    with pytest.raises(BusyError, match=r"^d: in use by you@there \(campaign c, .* since \d+ s") as caught:
        far.agent.run(fake_job())
    assert caught.value.exit_code == 4
    Board(far.connector.directory).kill_everything()
    assert far.agent.run(fake_job()).status == "ok"


def test_once_it_had_the_board_it_waits(tmp_path: Path) -> None:
    far, other = Far(tmp_path), Board(tmp_path)
    assert far.agent.run(fake_job()).status == "ok"
    other.submit(far.job, "--boot-id", "boot", owner="you@there")
    other.measuring()
    told: list[str] = []

    def tell(who: str) -> None:
        told.append(who)
        far.go.touch()

    assert far.agent.run(fake_job(id="next"), tell=tell).status == "ok"
    assert len(told) == 1
    assert told[0].startswith("in use by you@there (campaign c, ")


# ---- Ctrl-C ------------------------------------------------------------------------------------------


def test_stopped_from_another_thread(far: Far) -> None:
    stop = Stop()

    def ask() -> None:
        far.board.measuring()
        stop.ask()

    thread = later(ask)
    with pytest.raises(JobInterrupted) as caught:
        far.agent.run(ENDLESS, stop=stop)
    thread.join()
    assert caught.value.record.status == "cancelled"
    assert caught.value.record.started_at.endswith("Z"), "the device's own record"
    eventually(lambda: not far.board.processes())


def test_stopped_while_the_link_is_down(far: Far) -> None:
    stop = Stop()

    def ask() -> None:
        far.board.measuring()
        far.connector.cut(down_for=10**12)
        stop.ask()

    thread = later(ask)
    with pytest.raises(JobInterrupted) as caught:
        far.agent.run(ENDLESS, stop=stop)
    thread.join()
    record = caught.value.record
    assert (record.status, record.id) == ("cancelled", ENDLESS.id)
    assert "it may run on the device" in record.detail


def test_a_device_that_does_not_stop_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_run, "CANCEL_S", 0.3)
    agent, _ = lying(tmp_path, "while True:\n    print('{}', flush=True)\n    time.sleep(0.1)\n")
    stop = Stop()
    threading.Timer(0.3, stop.ask).start()
    with pytest.raises(JobInterrupted):
        agent.run(JOB, stop=stop)


# ---- lies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        replace(GOOD, id="other"),
        replace(GOOD, device="other"),
        replace(GOOD, label="other:m/lmhead/t2/tg4"),
        replace(GOOD, campaign="other"),
        replace(GOOD, attempt=1),
        replace(GOOD, status="splendid"),
    ],
)
def test_another_job_s_record_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: RunRecord
) -> None:
    monkeypatch.setattr(remote_run, "MAX_SILENT_ENDINGS", 1)
    agent, _ = lying(tmp_path, printing(wire.dumps(wrong)))
    with pytest.raises(AgentError, match="d: the agent ended with exit code 0 without a record"):
        agent.run(JOB)


def test_noise_around_the_record_is_ignored(tmp_path: Path) -> None:
    lines = ("", "\x1b[2J", "{}", "[" * 5000, '{"id": 1}', '{"alive": "x"}', wire.dumps(GOOD))
    assert lying(tmp_path, printing(*lines))[0].run(JOB) == GOOD


def test_endless_noise_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_run, "MAX_OUTPUT_CHARS", 1 << 20)
    monkeypatch.setattr(remote_run, "MAX_SILENT_ENDINGS", 2)
    agent, connector = lying(tmp_path, "while True:\n    print('noise' * 1000, flush=True)\n")
    with pytest.raises(AgentError, match="without a record"):
        agent.run(JOB)
    assert len(connector.started) == 2


def test_what_an_agent_says_is_harmless(tmp_path: Path) -> None:
    body = "sys.stderr.write('stbench.agent: in use by \\x1b[31mme\\n'); sys.exit(75)"
    with pytest.raises(BusyError) as caught:
        lying(tmp_path, body)[0].run(JOB)
    assert str(caught.value) == "d: in use by ?[31mme"


@pytest.mark.parametrize(
    ("said", "kind"), [("[Errno 28] No space left on device", NoSpace), ("Read-only file system", AgentError)]
)
def test_a_spool_that_cannot_be_used(tmp_path: Path, said: str, kind: type[Exception]) -> None:
    agent, connector = lying(
        tmp_path, f"sys.stderr.write('stbench.agent: the spool /s: {said}\\n'); sys.exit(74)"
    )
    with pytest.raises(kind, match=r"^d: the spool /s: "):
        agent.run(JOB)
    assert len(connector.started) == 1


def test_a_device_without_python_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_run, "MAX_SILENT_ENDINGS", 2)
    agent, _ = lying(tmp_path, "sys.stderr.write('sh: 1: python3: not found\\n'); sys.exit(127)")
    with pytest.raises(AgentError, match="exit code 127 without a record: sh: 1: python3: not found"):
        agent.run(JOB)


# ---- receipts ----------------------------------------------------------------------------------------


def test_a_record_goes_when_it_is_stored_here_and_not_before(far: Far) -> None:
    records = [far.agent.run(fake_job(id=f"j{i}")) for i in range(3)]
    far.agent.settle()
    assert len(list(far.board.spool.glob("*.record"))) == 3
    for record in records[:2]:
        far.agent.stored(record)
    far.agent.settle()
    (left,) = far.board.entries()
    assert left.state == "record"
    assert far.agent.run(fake_job(id="j2")) == records[2]


def test_receipts_that_did_not_arrive_are_sent_again(far: Far) -> None:
    record = far.agent.run(fake_job())
    far.agent.stored(record)
    far.connector.cut()
    far.agent.settle()
    assert len(far.board.entries()) == 1
    far.connector.connect()
    far.agent.settle()
    assert far.board.entries() == []


def test_receipts_go_in_batches(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_run, "RECEIPTS_AT_ONCE", 2)
    for i in range(2):
        far.agent.stored(far.agent.run(fake_job(id=f"j{i}")))
    assert far.board.entries() == []


# ---- kill -9 -----------------------------------------------------------------------------------------


def jobs() -> list[wire.JobSpec]:
    return [fake_job("sleep=0.05,vocab=64", id=f"job-{i:02}", label=f"local:fake/{i}") for i in range(30)]


def control(directory: Path) -> None:
    """A controller as campaigns are: what has no record is run, stored, acknowledged."""
    far = Far(directory)
    with Store.open(directory / "results") as store:
        for record in store.reading.records:
            far.agent.stored(record)
        done = {record.id for record in store.reading.records}
        for job in jobs():
            if job.id not in done:
                record = far.agent.run(job)
                store.append(record)
                far.agent.stored(record)
    far.agent.settle()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_both_ends_killed_twenty_times(tmp_path: Path) -> None:
    """Controllers and followers, at random moments: every job has one record, and nothing is left."""
    chance, board = random.Random(20), Board(tmp_path / "work")
    hit = 0
    for number in range(KILLS):
        controller = os.fork()
        if controller == 0:
            with contextlib.suppress(BaseException):
                control(tmp_path)
            os._exit(0)
        if number % 2:
            writes_or_ends(controller, tmp_path / "results" / "records.jsonl")
        time.sleep(chance.uniform(0.0, 0.4) if number % 2 else chance.uniform(0.1, 1.2))
        if chance.random() < 0.5:
            for pid in board.processes():
                with contextlib.suppress(ProcessLookupError):
                    # Not the job: that has a session of its own.
                    if os.getsid(pid) == os.getsid(0):
                        os.kill(pid, signal.SIGKILL)
        os.kill(controller, signal.SIGKILL)
        hit += os.waitpid(controller, 0)[1] == signal.SIGKILL
    stored = len(read_records(tmp_path / "results").records)
    assert hit >= KILLS // 2
    assert stored >= 3, "the kills came before anything ran"
    control(tmp_path)
    found = read_records(tmp_path / "results")
    assert found.problems == []
    assert sorted(record.id for record in found.records) == [job.id for job in jobs()], "lost or doubled"
    assert {record.status for record in found.records} == {"ok"}
    eventually(lambda: not board.processes())
    assert board.entries() == []
