"""The runtime compiled on a board, with what is installed there, and fetched back: for phones (Termux), whose
C library no cross compiler of the package registry has."""

from __future__ import annotations

import contextlib
import hashlib

import stbench
from stbench.agent import wire
from stbench.agent.compiling import CompileRequest, CompileResult
from stbench.builds import elf
from stbench.builds.build import BuildInfo, Builds, target_of
from stbench.builds.crossbuild import Built, Report
from stbench.builds.runtime_sources import Sources, archive, find_sources
from stbench.campaigns.deploy import deploy, spool_dir
from stbench.connectors import connector_for
from stbench.connectors.base import Connector
from stbench.devices import board
from stbench.devices.inventory import Device
from stbench.errors import BuildError, BusyError, DeviceError, LinkLost
from stbench.yamlfile import printable

# A board of one slow core takes a quarter of an hour.
TIMEOUT_S = 7200.0


def build_on(device: Device, report: Report, *, sources: Sources | None = None) -> Built:
    """Sends the sources, compiles there, brings the library back. A second time compiles only what changed.

    Raises :class:`BuildError` with the end of the output there, :class:`BusyError` while something is
    measured there, :class:`DeviceError`."""
    sources = sources or find_sources()
    connector = connector_for(device)
    connector.connect()
    try:
        found = board.ask(connector, device.name)
        deployed = deploy(connector, None, found)
        data = archive(sources)
        folder = f"{connector.work_dir}/build"
        path = f"{folder}/sources.tar.gz"
        report(0, 0, f"sending {len(data) / 1e6:.1f} MB of sources to {device.name}")
        connector.write(path, data)
        sha256 = hashlib.sha256(data).hexdigest()
        spool = spool_dir(connector) if connector.remote else ""
        request = CompileRequest(path, sha256, folder, stbench.__version__, spool)
        result = _compile(device.name, connector, deployed.agent, request, report)
        target = target_of(found.machine, found.libc)
        library = _fetched(device.name, connector, result, found.machine)
        info = BuildInfo(
            target, sources.digest, result.sha256, printable(result.compiler)[:120], "", device.name
        )
        kept = Builds().keep(library, info, f"on-{device.name}-{sources.digest[:16]}")
        return Built(kept, info, False, f"only {device.name} uses it")
    finally:
        connector.close()


def _compile(
    name: str, connector: Connector, agent: str, request: CompileRequest, report: Report
) -> CompileResult:
    argv = board.agent_argv(connector, agent, "compile")
    running = connector.start(argv, wire.dumps(request).encode() + b"\n", TIMEOUT_S)
    result: CompileResult | None = None
    try:
        for line in running.lines():
            with contextlib.suppress(wire.WireError):
                progress = wire.loads(wire.Progress, line)
                what = printable(progress.stage)[:60]
                report(progress.done_bytes, progress.total_bytes, f"{what} on {name}")
                continue
            with contextlib.suppress(wire.WireError):
                result = wire.loads(CompileResult, line)
    except BaseException:
        running.cancel()
        raise
    ending = running.ending()
    if result is None and ending.lost:
        raise LinkLost(f"{name}: the link was lost while it compiled", hint="again: it goes on where it was")
    if result is None:
        said = [printable(line)[-200:] for line in ending.stderr.splitlines() if line.strip()]
        raise DeviceError(
            f"{name}: compiling there ended without an answer: {said[-1] if said else 'silently'}"
        )
    if result.busy:
        raise BusyError(
            f"{name}: {printable(result.busy)}", hint="compiling would disturb it; wait until it ends"
        )
    if result.missing:
        raise BuildError(
            f"{name}: to compile there, it needs {printable(result.missing)}",
            hint="Termux: `pkg install clang cmake ninja`; Debian: `apt install g++ cmake ninja-build`",
        )
    if result.problem:
        text = "\n".join(printable(line)[:300] for line in result.problem.splitlines()[-40:])
        raise BuildError(f"{name}: {text}")
    return result


def _fetched(name: str, connector: Connector, result: CompileResult, machine: str) -> bytes:
    data = connector.read(result.path)
    if data is None or hashlib.sha256(data).hexdigest() != result.sha256:
        raise DeviceError(f"{name}: the library did not arrive as it was compiled", hint="try again")
    try:
        needs = elf.needs(data)
    except ValueError as error:
        raise BuildError(f"{name}: what it compiled is {error}") from None
    if needs.machine != machine:
        raise BuildError(
            f"{name}: it compiled a library for {needs.machine or 'another machine'}, not {machine}"
        )
    return data
