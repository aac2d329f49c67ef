"""Many pretended boards under one sandbox: started, told what to do, and what they and the store then say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stbench.agent.wire import RunRecord
from stbench.records.store import read_records
from stbench.sweeps import prepare
from tests.host.conftest import ROOT, Sandbox
from tests.host.pretend import connectors

MODELS = ("fake", "fake:noise")


class Fleet:
    """Boards ``b1``, ``b2``, ... and, where asked for, this machine."""

    def __init__(self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sandbox, self._monkeypatch = sandbox, monkeypatch
        self.log = sandbox.directory / "log"
        self.names: list[str] = []

    def boards(self, count: int, *, local: bool = False) -> None:
        self.names = [f"b{number}" for number in range(1, count + 1)]
        lines = ["  local: {threads: 2, timeout: 60}"] * local
        lines += [f"  {n}: {{connector: ssh, host: {n}.lan, threads: 2, timeout: 60}}" for n in self.names]
        self.sandbox.write("devices.yaml", "devices:\n" + "\n".join(lines) + "\n")

    def told(self, **boards: dict[str, object]) -> dict[str, dict[str, object]]:
        common = {"log": str(self.log), **boards.pop("all", {})}
        return {"*": common, **boards}

    def run(self, *argv: str, **boards: dict[str, object]) -> tuple[int, str, str]:
        """In this process; ``all`` tells every board."""
        self._monkeypatch.setattr(prepare, "connector_for", connectors(self.told(**boards)))
        return self.sandbox.run(*argv)

    def start(self, *argv: str, **boards: dict[str, object]) -> subprocess.Popen[str]:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PRETEND": json.dumps(self.told(**boards))}
        return subprocess.Popen(
            [sys.executable, "-m", "tests.host.pretend", *argv],
            cwd=self.sandbox.directory,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def path(self) -> Path:
        return self.sandbox.directory / "results" / "c" / "records.jsonl"

    def records(self) -> list[RunRecord]:
        reading = read_records(self.path)
        assert reading.problems == []
        return reading.records

    def planned(self) -> dict[str, list[str]]:
        """Device -> the ids of its jobs in the order of the stored plan."""
        described = json.loads(self.path.with_name("campaign.json").read_text())["plan"]
        device = {
            job: label.split(":")[0] for label, case in described["cases"].items() for job in case["jobs"]
        }
        order: dict[str, list[str]] = {}
        for job in described["order"]:
            order.setdefault(device[job], []).append(job)
        return order

    def ran(self) -> dict[str, list[str]]:
        """Device -> the ids of its records that count, in the order of the file."""
        found: dict[str, list[str]] = {}
        for record in self.records():
            if record.status == "ok":
                found.setdefault(record.device, []).append(record.id)
        return found

    def heard(self, purpose: str) -> list[str]:
        """The boards that were asked for such a job, in order."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.split()[0] for line in lines if line.split()[1] == purpose]


def sweep(fleet: Fleet, replicates: int = 3, extra: str = "bracket_ms: 0\n") -> str:
    """A sweep file of two cases."""
    return fleet.sandbox.fake_sweep(*MODELS, replicates=replicates, extra=extra)
