"""Puts the agent and the native library on a device, under names that carry their content's hash."""

from __future__ import annotations

import contextlib
import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import stbench
from stbench.agent import wire
from stbench.agent.housekeeping import CleanRequest, CleanResult
from stbench.builds.build import Library
from stbench.campaigns.traces import FOLDER
from stbench.connectors.base import Connector
from stbench.devices.board import Board, agent_argv, ask
from stbench.errors import AgentError, BusyError
from stbench.yamlfile import printable

CLEAN_TIMEOUT_S = 300.0

# A zip entry needs a time; a fixed one makes equal content equal bytes.
_TIME = (2020, 1, 1, 0, 0, 0)
_MAIN = b"import sys\n\nfrom stbench.agent.__main__ import main\n\nsys.exit(main())\n"


@dataclass(frozen=True)
class Deployment:
    """Paths on the device; ``library`` is "" when there is none. ``board``: what was asked before."""

    agent: str
    agent_sha256: str
    library: str
    library_sha256: str
    board: Board | None = field(default=None, compare=False)


def agent_archive() -> bytes:
    """The agent as a zip file that ``python FILE`` runs; the same bytes for the same sources."""
    root = Path(stbench.__file__).parent
    files = {"stbench/__init__.py": (root / "__init__.py").read_bytes(), "__main__.py": _MAIN}
    for path in (root / "agent").rglob("*.py"):
        files[f"stbench/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, _TIME), files[name], zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def deploy(connector: Connector, library: Library | None, board: Board | None = None) -> Deployment:
    """Writes what is not there yet, or is there with other bytes than its name promises: a board's flash and
    a full disk both leave such files. ``board``: the answer of this connection's
    :func:`stbench.devices.board.ask`, asked here where it is missing.

    Raises :class:`stbench.errors.AgentError`, :class:`stbench.errors.NoSpace`, DeviceError."""
    board = board or ask(connector, "the device")
    agent = agent_archive()
    agent_sha256 = hashlib.sha256(agent).hexdigest()
    agent_path, library_path = deployed_path(connector, agent_name(agent_sha256)), ""
    if board.files.get(agent_name(agent_sha256)) != agent_sha256:
        connector.write(agent_path, agent)
    if library is not None:
        name = library_name(library.sha256)
        library_path = deployed_path(connector, name)
        if board.files.get(name) != library.sha256:
            # One that is there with other bytes would count as an upload to go on with.
            connector.remove(library_path)
            connector.put(library.path, library_path, library.sha256, lambda done, total: None)
    return Deployment(agent_path, agent_sha256, library_path, library.sha256 if library else "", board)


def agent_name(sha256: str) -> str:
    """What an agent is called on a device."""
    return f"agent-{sha256[:16]}.pyz"


def library_name(sha256: str) -> str:
    """What a library is called on a device."""
    return f"libsbr-{sha256[:16]}.so"


def deployed_path(connector: Connector, name: str) -> str:
    """Where a file of ours lies on a device."""
    return f"{connector.work_dir}/deployed/{name}"


def spool_dir(connector: Connector) -> str:
    """Where detached jobs and their records lie on a device."""
    return f"{connector.work_dir}/spool"


def clean(
    name: str,
    connector: Connector,
    deployment: Deployment,
    *,
    models: bool,
    dry_run: bool,
    model_paths: Sequence[str] = (),
) -> CleanResult:
    """Removes what earlier versions left on a connected device, and with ``models`` its models directory's
    files; what this version uses stays, and so do bundles of models at ``model_paths``. Raises
    :class:`BusyError` while a job runs there, :class:`AgentError`."""
    keep = [PurePosixPath(path).name for path in (deployment.agent, deployment.library) if path]
    request = CleanRequest(
        connector.work_dir,
        connector.models_dir,
        keep,
        spool_dir(connector) if connector.remote else "",
        models,
        dry_run,
        list(model_paths),
        f"{connector.work_dir}/{FOLDER}",
    )
    argv = agent_argv(connector, deployment.agent, "clean")
    running = connector.start(argv, wire.dumps(request).encode() + b"\n", CLEAN_TIMEOUT_S)
    result: CleanResult | None = None
    for line in running.lines():
        with contextlib.suppress(wire.WireError):
            result = wire.loads(CleanResult, line)
    ending = running.ending()
    if result is None:
        said = [printable(line)[-300:] for line in ending.stderr.splitlines() if line.strip()]
        raise AgentError(f"{name}: cleaning ended without an answer: {said[-1] if said else 'silently'}")
    if result.busy:
        raise BusyError(f"{name}: {printable(result.busy)}", hint="clean it when that has ended")
    return result
