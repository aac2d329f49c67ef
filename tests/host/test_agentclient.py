"""An agent that lies, babbles, dies or hangs: one record comes back, and it is this job's."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from stbench.agent import wire
from stbench.agent.wire import RunRecord, SynthSpec
from stbench.campaigns import agentclient, remote_run
from stbench.campaigns.agentclient import Agent, JobInterrupted
from stbench.campaigns.deploy import Deployment
from stbench.campaigns.stopping import Stop
from stbench.connectors.local import LocalConnector
from stbench.devices.inventory import Device
from stbench.errors import AgentError, LinkLost, ModelError, NoSpace
from stbench.models.catalogue import lookup
from tests.host.cuttable import CutConnector
from tests.host.test_models import JOB

GOOD = RunRecord(
    id=JOB.id,
    label=JOB.label,
    campaign=JOB.campaign,
    device=JOB.device,
    case=JOB.case,
    replicate=0,
    engine=JOB.engine,
    status="ok",
    detail="",
    started_at="2026-01-01T00:00:00Z",
    wall_s=1.0,
    model=JOB.model,
    workload=JOB.workload,
    settings=JOB.settings,
)


def agent(tmp_path: Path, body: str) -> Agent:
    """An agent whose program is ``body``."""
    script = tmp_path / "agent.py"
    script.write_text("import json, os, sys, time\n" + body)
    connector = LocalConnector(Device("d", work_dir=str(tmp_path / "work")))
    return Agent("d", connector, Deployment(str(script), "", "", ""))


def printing(*lines: str) -> str:
    return "".join(f"print({line!r}, flush=True)\n" for line in lines)


@pytest.mark.parametrize(
    "wrong",
    [
        replace(GOOD, id="other"),
        replace(GOOD, device="other"),
        replace(GOOD, label="other:m/lmhead/t2/tg4"),
        replace(GOOD, status="splendid"),
    ],
)
def test_a_record_that_is_not_this_job_s_is_not_taken(tmp_path: Path, wrong: RunRecord) -> None:
    record = agent(tmp_path, printing(wire.dumps(wrong))).run(JOB)
    assert (record.id, record.device, record.label, record.status) == (JOB.id, "d", JOB.label, "failed")
    assert "ended with exit code 0 without a record" in record.detail


def test_noise_around_the_record_is_ignored(tmp_path: Path) -> None:
    lines = ("", "\x1b[2J", "{}", "[" * 5000, '{"id": 1}', wire.dumps(GOOD), "goodbye", "\ufffd")
    assert agent(tmp_path, printing(*lines)).run(JOB) == GOOD


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ("os.kill(os.getpid(), 11)", "crashed", "the agent was ended by SIGSEGV without a record"),
        ("sys.exit('\\x1b[31mno room')", "failed", "ended with exit code 1 without a record: ?[31mno room"),
        ("time.sleep(60)", "timeout", "no record after 0.5 s"),
    ],
)
def test_a_death_has_a_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, status: str, detail: str
) -> None:
    job = JOB
    if status == "timeout":
        # Not where starting Python must come first.
        monkeypatch.setattr(agentclient, "GRACE_S", 0.5)
        job = replace(JOB, timeout_s=0.5)
    record = agent(tmp_path, body).run(job)
    assert record.status == status
    assert detail in record.detail
    assert (record.id, record.model, record.settings) == (JOB.id, JOB.model, JOB.settings)


@pytest.mark.parametrize("deaf", [False, True])
def test_stopped_from_another_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaf: bool) -> None:
    """A worker thread never sees Ctrl-C itself; and a process may not care for SIGTERM."""
    monkeypatch.setattr(remote_run, "CANCEL_S", 0.5)
    body = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if deaf else ""
    stop, begun = Stop(), tmp_path / "begun"

    def ask() -> None:
        while not begun.exists():
            time.sleep(0.01)
        stop.ask()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    with pytest.raises(JobInterrupted) as caught:
        agent(tmp_path, body + f"open({str(begun)!r}, 'w').close()\ntime.sleep(400)").run(JOB, stop=stop)
    assert (caught.value.record.status, caught.value.record.wall_s < 300) == ("cancelled", True)


def test_a_lost_link_in_a_request_is_no_fault_of_the_agent(tmp_path: Path) -> None:
    connector = CutConnector(tmp_path)
    script = tmp_path / "agent.py"
    script.write_text(f"import time\nopen({str(tmp_path / 'begun')!r}, 'w').close()\ntime.sleep(400)")

    def cut() -> None:
        while not (connector.started and (tmp_path / "begun").exists()):
            time.sleep(0.01)
        connector.cut()

    thread = threading.Thread(target=cut, daemon=True)
    thread.start()
    with pytest.raises(LinkLost, match="the link broke during a request"):
        Agent("d", connector, Deployment(str(script), "", "", "")).facts()
    connector.started[-1].process.kill()


def test_facts_that_do_not_come_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="d: the agent ended with exit code 0") as caught:
        agent(tmp_path, printing("{}")).facts()
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("file", "kind", "said"),
    [
        (
            wire.ModelFile("failed", "/m", "No space left on device"),
            NoSpace,
            "d: /m: No space left on device",
        ),
        (wire.ModelFile("cancelled", "/m"), ModelError, "d: /m: cancelled"),
    ],
)
def test_a_model_that_is_not_made(
    tmp_path: Path, file: wire.ModelFile, kind: type[Exception], said: str
) -> None:
    spec: SynthSpec = lookup("tiny-llama").spec
    seen: list[tuple[str, int, int]] = []
    body = printing(wire.dumps(wire.Progress("write", 1, 2)), wire.dumps(file)) + "sys.exit(1)"
    with pytest.raises(kind, match=said):
        agent(tmp_path, body).make("/m", spec, lambda *progress: seen.append(progress))
    assert seen == [("write", 1, 2)]
