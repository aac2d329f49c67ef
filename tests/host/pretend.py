"""``python -m tests.host.pretend ARGS``: the program, with pretended boards behind ``connector: ssh``.

Only the edge is not real: the connector. ``hosted`` boards are directories of this machine, where the real
agent runs (``spool``: detached, as behind a link). ``canned`` ones answer in this process, so that hundreds
cost nothing but the controller's own work. What each does and suffers is in PRETEND, JSON by device name.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from stbench import errors
from stbench.agent import fake, verify, wire
from stbench.agent.wire import (
    Bandwidth,
    Bracket,
    Check,
    DeviceFacts,
    JobSpec,
    Reference,
    ReferencePosition,
    RunRecord,
    Samples,
    Telemetry,
)
from stbench.campaigns import deploy
from stbench.connectors import base
from stbench.connectors.base import Ending, FileFacts
from stbench.connectors.local import LocalConnector
from stbench.devices.inventory import Device
from tests.host.test_plan import FACTS


class Plan:
    """What one board does: ``kind``, ``latency`` seconds per job, ``dies_after`` so many jobs with
    ``dies_of`` (a name in stbench.errors), ``unreachable``, ``stubborn``: hears no wish to stop, ``meet``: a
    barrier that its first job waits at, ``references_meet``: one that those for references wait at,
    ``fails_references``, ``dies_of_references``."""

    def __init__(self, told: dict[str, object]) -> None:
        self.kind = str(told.get("kind", "canned"))
        self.latency = float(str(told.get("latency", 0.0)))
        self.dies_after = int(str(told.get("dies_after", -1)))
        self.dies_of = str(told.get("dies_of", "LinkLost"))
        self.unreachable = bool(told.get("unreachable", False))
        self.fails_references = bool(told.get("fails_references", False))
        self.stubborn = bool(told.get("stubborn", False))
        self.dies_of_references = bool(told.get("dies_of_references", False))
        self.meet = told.get("meet")
        self.references_meet = told.get("references_meet")
        self.log = str(told.get("log", ""))

    def heard(self, text: str) -> None:
        """A line in the common log, whole also when several processes write."""
        if self.log:
            with open(self.log, "a") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.write(text + "\n")


def command_of(argv: Sequence[str]) -> str:
    """What the deployed agent is asked for; "ask" where there is none yet."""
    agent = next((i for i, word in enumerate(argv) if word.endswith(".pyz")), None)
    return argv[agent + 1] if agent is not None else "ask"


class Mortal:
    """Counts jobs and dies when it was told to."""

    def __init__(self, device: Device, plan: Plan) -> None:
        self._name, self._plan, self._jobs = device.name, plan, 0

    def job(self, spec: JobSpec) -> None:
        self._plan.heard(f"{self._name} {spec.purpose} {spec.id}")
        self._jobs += spec.purpose == "measure"
        if self._jobs == 1 and isinstance(self._plan.meet, threading.Barrier):
            self._plan.meet.wait(60)
        if spec.purpose == "reference" and isinstance(self._plan.references_meet, threading.Barrier):
            self._plan.references_meet.wait(60)
        if spec.purpose == "reference" and self._plan.dies_of_references:
            time.sleep(self._plan.latency)
            raise errors.LinkLost(f"{self._name}: cut")
        if 0 <= self._plan.dies_after < self._jobs:
            raise getattr(errors, self._plan.dies_of)(f"{self._name}: pulled\x1b[31m out")


class HostedBoard(LocalConnector):
    """The real agent in a directory of this machine."""

    def __init__(self, device: Device, plan: Plan) -> None:
        super().__init__(replace(device, work_dir=f"{os.getcwd()}/boards/{device.name}"))
        self._plan, self._mortal = plan, Mortal(device, plan)

    @property
    def remote(self) -> bool:
        return self._plan.kind == "spool"

    def connect(self, *, lease: bool = True) -> None:
        if self._plan.unreachable:
            raise errors.Unreachable(f"{self.device.name}: no route")
        super().connect(lease=False)

    def start(self, argv: Sequence[str], stdin: bytes, timeout_s: float, **options: object) -> object:  # type: ignore[override]
        if command_of(argv) == "run":
            self._mortal.job(wire.loads(JobSpec, stdin.decode()))
            time.sleep(self._plan.latency)
        return super().start(argv, stdin, timeout_s, **options)  # type: ignore[arg-type]


class CannedBoard:
    """Answers without any process. Files: their sizes are kept, not their bytes."""

    remote = False
    python = "python3"
    work_dir = "/board"
    models_dir = "/board/models"

    def __init__(self, device: Device, plan: Plan) -> None:
        self._device, self._plan, self._mortal = device, plan, Mortal(device, plan)
        self._sizes: dict[str, int] = {}

    def connect(self, *, lease: bool = True) -> None:
        if self._plan.unreachable:
            raise errors.Unreachable(f"{self._device.name}: no route")

    def close(self) -> None:
        pass

    def start(self, argv: Sequence[str], stdin: bytes, timeout_s: float, **options: object) -> Canned:
        command = command_of(argv)
        if command == "ask":
            told = {"python": [3, 11, 0], "machine": "aarch64", "libc": "glibc 2.36", "bits": 64}
            return Canned([json.dumps({**told, "home": "/root", "files": _deployed()})], 0.0)
        if command == "probe":
            facts: DeviceFacts = replace(FACTS, hostname=self._device.name, fingerprint=self._device.name)
            return Canned([wire.dumps(facts)], 0.0)
        assert command == "run", command
        job = wire.loads(JobSpec, stdin.decode())
        self._mortal.job(job)
        canned = Canned([], self._plan.latency, lambda ended: wire.dumps(self._record(job, ended)))
        if self._plan.stubborn:
            canned.cancel = canned.kill  # type: ignore[method-assign]
        return canned

    def _record(self, job: JobSpec, status: str) -> RunRecord:
        key, digest = verify.reference_key(job), hashlib.sha256(job.id.encode()).digest()
        ns = [1_000_000 + digest[i] for i in range(job.workload.n_gen)]
        reference = None
        if "exit" in job.model.name and status == "ok":
            status = "failed"
        if job.purpose == "reference":
            if self._plan.fails_references:
                status = "failed"
            reference = Reference(key, job.model.digest, [ReferencePosition(0, 1.0, 0, 1.0, [0], [0.0], "h")])
        bracket = None
        if job.bracket_ms:
            before, after = (Bandwidth(int(1e9 * fake.gb_per_s(job, late)), 10**9) for late in (False, True))
            bracket = Bracket(job.settings.threads, 1 << 20, before, after)
        warm = Telemetry([], [], {}, {"cpu": 41_000 + 100 * digest[0]}, "no")
        return RunRecord(
            **{name: getattr(job, name) for name in ("id", "label", "campaign", "device", "case", "engine")},
            replicate=job.replicate,
            status=status,
            detail="" if status == "ok" else "as told",
            started_at="2026-01-31T00:00:00Z",
            wall_s=0.0,
            model=job.model,
            workload=job.workload,
            settings=job.settings,
            samples=Samples(0, [], [], ns),
            telemetry=warm,
            check=Check("ok" if job.reference else "unchecked", digest.hex()[:16], 1, reference=key),
            purpose=job.purpose,
            attempt=job.attempt,
            reference=reference,
            bracket=bracket,
        )

    def stat(self, path: str) -> FileFacts | None:
        return FileFacts(self._sizes[path], 1) if path in self._sizes else None

    def read(self, path: str) -> bytes | None:
        return None

    def write(self, path: str, data: bytes) -> None:
        self._sizes[path] = len(data)

    def put(self, source: Path, path: str, sha256: str, on_bytes: Callable[[int, int], None]) -> None:
        self._sizes[path] = source.stat().st_size

    def remove(self, path: str) -> None:
        self._sizes.pop(path, None)

    def free_bytes(self, path: str) -> int:
        return 1 << 40


class Canned:
    """A command that says its lines, or after a while what ``last`` makes of how it ended."""

    def __init__(self, lines: list[str], latency: float, last: Callable[[str], str] | None = None) -> None:
        self._lines, self._latency, self._last = lines, latency, last
        self._cancelled = threading.Event()

    def lines(self) -> Iterator[str]:
        yield from self._lines
        self._lines = []
        if self._last is not None:
            last, self._last = self._last, None
            yield last("cancelled" if self._cancelled.wait(self._latency) else "ok")

    def ending(self) -> Ending:
        return Ending(0, False, "")

    def send(self, data: bytes) -> None:
        pass

    def cancel(self) -> None:
        self._cancelled.set()

    def kill(self) -> None:
        pass


def _deployed() -> dict[str, str]:
    sha256 = hashlib.sha256(deploy.agent_archive()).hexdigest()
    return {deploy.agent_name(sha256): sha256}


def connectors(told: dict[str, dict[str, object]]) -> Callable[[Device], base.Connector]:
    """What stands in for :func:`stbench.connectors.connector_for`; "*" tells all boards."""

    def connector_for(device: Device) -> base.Connector:
        if device.connector == "local":
            return LocalConnector(device)
        plan = Plan({**told.get("*", {}), **told.get(device.name, {})})
        if plan.kind == "canned":
            return CannedBoard(device, plan)
        return HostedBoard(device, plan)  # type: ignore[return-value]

    return connector_for


def main() -> int:
    from stbench import cli
    from stbench.sweeps import prepare
    from stbench.tables import reporting

    reporting.write_reports = lambda records, directory: []
    prepare.connector_for = connectors(json.loads(os.environ["PRETEND"]))
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
