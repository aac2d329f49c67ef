"""What a process left in its pipes is read, however late whoever watches it comes to that."""

from __future__ import annotations

import os

import pytest

from stbench.agent import childloop, process, supervise
from stbench.agent.sampler import Sampler
from tests.agent.conftest import fake_job


def until_dead(pid: int) -> None:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_a_record_that_is_read_after_the_child_s_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(childloop, "_DRAIN_S", -1.0)
    monkeypatch.setattr(Sampler, "look", lambda self: until_dead(self._pid))
    record = supervise.run_job(fake_job())
    assert (record.status, record.detail) == ("ok", "")


def test_output_that_is_read_after_the_program_s_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_DRAIN_S", -1.0)
    monkeypatch.setattr(process._Watch, "look", lambda self: until_dead(self._pid))
    found = process.run(["sh", "-c", "sleep 0.1; echo out; echo err >&2"], {})
    assert (found.stdout, found.stderr) == ("out\n", "err\n")
