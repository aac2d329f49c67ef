"""Captures a device through its agent, for the doctor."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import stbench
from stbench.agent import wire
from stbench.agent.wirecapture import Capture
from stbench.campaigns.deploy import deploy
from stbench.connectors.base import Connector
from stbench.devices import board
from stbench.devices.inventory import Device
from stbench.doctor import captures
from stbench.doctor.anonymous import anonymous
from stbench.doctor.captures import Meta
from stbench.doctor.doctor import diagnose
from stbench.doctor.findings import FAILS, Finding, Patient
from stbench.errors import (
    AgentError,
    DeviceError,
    HostKeyRefused,
    LinkLost,
    LoginRefused,
    NoSpace,
    StbenchError,
    Unreachable,
)
from stbench.yamlfile import printable

TIMEOUT_S = 90.0


@dataclasses.dataclass(frozen=True)
class Examined:
    """``meta`` is None where nothing could be captured: the findings say why."""

    label: str
    findings: list[Finding]
    meta: Meta | None = None
    device: Device | None = None


def examine(device: Device, connector: Connector) -> Examined:
    """Connects to a device, captures it and says what is wrong with it. A board that was reached but cannot
    take our files or run the agent is examined, too: that is what is wrong. Asking takes no lease: it may
    happen beside a sweep, which is then its load.

    Raises :class:`stbench.errors.DeviceError` for one that was not reached."""
    try:
        connector.connect(lease=False)
        deployment = deploy(connector, None, board.ask(connector, device.name))
    except (Unreachable, HostKeyRefused, LoginRefused, LinkLost):
        raise
    except (DeviceError, NoSpace) as error:
        return Examined(device.name, [_refusal(error)], None, device)
    except OSError as error:
        # Of this machine: boards' are sentences already.
        text = f"{error.filename or device.work_dir}: {error.strerror or error}"
        finding = Finding("work-dir", FAILS, printable(text), "another work_dir in devices.yaml")
        return Examined(device.name, [finding], None, device)
    argv = board.agent_argv(connector, deployment.agent, "capture", "--path", connector.work_dir)
    begin_s = time.time()
    running = connector.start(argv, b"", TIMEOUT_S)
    capture: Capture | None = None
    end_s = begin_s
    for line in running.lines():
        capture, end_s = _capture(line) or capture, time.time()
    ending = running.ending()
    if ending.lost:
        raise LinkLost(f"{device.name}: the link was lost while it was examined")
    if capture is None:
        said = (
            printable(ending.stderr.strip().splitlines()[-1])[-300:] if ending.stderr.strip() else "no reason"
        )
        raise AgentError(f"{device.name}: the agent could not capture the machine: {said}")
    off = _clock_off(capture.time_s, begin_s, end_s)
    meta = Meta(capture, off, device.memory_limit, stbench.__version__)
    return Examined(device.name, diagnose_meta(device.name, meta), meta, device)


def of_captures(path: Path) -> list[Examined]:
    """The machines of a captured tree or of a bundle. Raises :class:`stbench.errors.InputError`."""
    return [Examined(label, diagnose_meta(label, meta), meta) for label, meta in captures.read(path).items()]


def bundle(examined: list[Examined]) -> bytes:
    """The zip file to mail, anonymised: machines are called board-1, board-2, ... in it."""
    machines = {}
    for number, one in enumerate((one for one in examined if one.meta is not None), 1):
        assert one.meta is not None
        capture, replacer = anonymous(one.meta.capture, _names(one))
        # Diagnosed again, so that the text quotes what is in the bundle and nothing else.
        meta = dataclasses.replace(one.meta, capture=capture)
        label = f"board-{number}"
        machines[label] = (meta, replacer.text(as_text(label, diagnose_meta(label, meta))))
    return captures.bundle(machines)


def as_text(label: str, findings: list[Finding]) -> str:
    """Findings for people, with the line that mends each."""
    lines = [f"{label}: {'nothing found' if not findings else _count(findings)}"]
    for finding in findings:
        lines += [f"  {finding.severity:<6} {finding.name}: {finding.text}", f"         {finding.mend}"]
    return "\n".join(lines) + "\n"


def _refusal(error: StbenchError) -> Finding:
    """Why nothing of ours runs there."""
    name = "disk-full" if isinstance(error, NoSpace) else "work-dir" if "work_dir" in error.hint else "python"
    return Finding(name, FAILS, printable(str(error)), printable(error.hint))


def _count(findings: list[Finding]) -> str:
    return f"{len(findings)} finding{'s' if len(findings) > 1 else ''}"


def diagnose_meta(label: str, meta: Meta) -> list[Finding]:
    """The findings of one captured machine."""
    return diagnose(Patient(meta.capture, meta.clock_off_s, meta.memory_limit, label))


def _capture(line: str) -> Capture | None:
    try:
        return wire.loads(Capture, line)
    except wire.WireError:
        return None


def _clock_off(time_s: float | None, begin_s: float, end_s: float) -> float | None:
    """How far a clock is ahead that read ``time_s`` between these moments; 0 where it may be right."""
    if time_s is None:
        return None
    return round(min(time_s - begin_s, 0.0) or max(time_s - end_s, 0.0), 3)


def _names(one: Examined) -> list[str]:
    """Names of devices.yaml that lead to somebody."""
    device = one.device
    if device is None:
        return []
    hops = [hop.rpartition("@") for hop in device.proxy_jump.split(",") if hop]
    names = [device.name, device.host, device.user, device.ssh_config, *device.tags]
    names += [part for user, _, host in hops for part in (user, host.partition(":")[0])]
    names += [part for part in device.host.split(".") if not part.isdigit() and part not in ("local", "lan")]
    return [name for name in names if len(name) > 1]
