"""Puts the agent and the native library on a device, under names that carry their content's hash."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import stbench
from stbench.build import Library
from stbench.connectors.base import Connector

# A zip entry needs a time; a fixed one makes equal content equal bytes.
_TIME = (2020, 1, 1, 0, 0, 0)
_MAIN = b"import sys\n\nfrom stbench.agent.__main__ import main\n\nsys.exit(main())\n"


@dataclass(frozen=True)
class Deployment:
    """Paths on the device; ``library`` is "" when there is none."""

    agent: str
    agent_sha256: str
    library: str
    library_sha256: str


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


def deploy(connector: Connector, library: Library | None) -> Deployment:
    """Writes what is not there yet. The name is the hash, so what has the right name and size is right: files
    appear under it only when they are complete."""
    agent = agent_archive()
    agent_sha256 = hashlib.sha256(agent).hexdigest()
    agent_path = _put(connector, f"agent-{agent_sha256[:16]}.pyz", agent)
    library_path = ""
    if library is not None:
        library_path = _put(connector, f"libsbr-{library.sha256[:16]}.so", library.path.read_bytes())
    return Deployment(agent_path, agent_sha256, library_path, library.sha256 if library else "")


def _put(connector: Connector, name: str, data: bytes) -> str:
    path = f"{connector.work_dir}/deployed/{name}"
    found = connector.stat(path)
    if found is None or found.bytes != len(data):
        connector.write(path, data)
    return path
