"""What has to be known of a device before anything is deployed there: its Python, its kind, what lies there.

One command of its own Python answers it. That Python decides which library it can load: a 64-bit kernel may
run a 32-bit system, and a phone may run glibc beside its own C library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stbench.errors import AgentError, LinkLost
from stbench.yamlfile import printable

if TYPE_CHECKING:
    from stbench.connectors.base import Connector

OLDEST_PYTHON = (3, 8)
TIMEOUT_S = 60.0

# Runs under any Python, so that an old one can be told from none.
_SCRIPT = r"""
import sys, os, struct, json, hashlib
libc = ""
try:
    libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
except (ValueError, OSError, AttributeError):
    pass
if not libc:
    if hasattr(sys, "getandroidapilevel") or "ANDROID_ROOT" in os.environ:
        libc = "bionic"
    elif any(name.startswith("ld-musl-") for name in os.listdir("/lib")):
        libc = "musl"
files = {}
folder = os.path.join(os.path.expanduser(sys.argv[1]), "deployed")
for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
    path = os.path.join(folder, name)
    if name.startswith(("agent-", "libsbr-")) and name.endswith((".pyz", ".so")) and os.path.isfile(path):
        with open(path, "rb") as file:
            files[name] = hashlib.sha256(file.read(64 << 20)).hexdigest()
print(json.dumps({"python": list(sys.version_info[:3]), "machine": os.uname()[4], "libc": libc,
                  "bits": 8 * struct.calcsize("P"), "home": os.path.expanduser("~"), "files": files}))
"""


@dataclass(frozen=True)
class Board:
    """``machine`` as uname -m says it, ``libc`` "glibc 2.36", "musl", "bionic" or "". ``files``: digests of
    what was deployed there before, by name."""

    python: str
    machine: str
    libc: str
    home: str
    files: Mapping[str, str] = field(default_factory=dict)

    def path(self, written: str) -> str:
        """A path as devices.yaml has it: ``~/`` is the home directory there."""
        return f"{self.home.rstrip('/')}/{written[2:]}" if written.startswith("~/") else written


def agent_argv(connector: Connector, agent: str, *arguments: str) -> list[str]:
    """The command line that runs a deployed agent. Neither PYTHON* variables nor the working directory (-I)
    nor site-packages (-S) take part: an stbench installed there in editable mode would be run in place of
    the deployed one."""
    return [connector.python, "-I", "-S", agent, *arguments]


def ask(connector: Connector, name: str) -> Board:
    """Asks a connected device that messages call ``name``. Raises :class:`AgentError`,
    :class:`LinkLost`."""
    argv = [connector.python, "-I", "-c", _SCRIPT, connector.work_dir]
    running = connector.start(argv, b"", TIMEOUT_S)
    lines = list(running.lines())
    ending = running.ending()
    said = [printable(line)[-300:] for line in ending.stderr.splitlines() if line.strip()]
    python = f"{connector.python} there"
    if ending.lost:
        raise LinkLost(f"{name}: the link was lost before {python} answered", hint="try again")
    if ending.timed_out:
        raise AgentError(f"{name}: {python} did not answer within {TIMEOUT_S:g} s")
    if ending.code in (126, 127):
        raise AgentError(
            f"{name}: there is no {connector.python} there" + (f" ({said[-1]})" if said else ""),
            hint=_INSTALL,
        )
    if ending.code != 0 or not lines:
        raise AgentError(f"{name}: {python} failed" + (f": {said[-1]}" if said else ""), hint=_INSTALL)
    return _board(name, python, lines[-1])


_INSTALL = (
    "a device needs Python 3.8 or newer and nothing else: `apt install python3`, `apk add python3`, or "
    "`pkg install python` (Termux); or name one in devices.yaml (python: /path/to/python3)"
)


def _board(name: str, python: str, line: str) -> Board:
    try:
        data: dict[str, Any] = json.loads(line)
        version = tuple(int(part) for part in data["python"])
        machine, libc, home = (str(data[key]) for key in ("machine", "libc", "home"))
        files = {str(key): str(value) for key, value in data["files"].items()}
        bits = int(data["bits"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise AgentError(
            f"{name}: {python} answered what cannot be understood: {printable(line)[:200]}",
            hint="something there prints at every start; without a terminal it has to be silent",
        ) from None
    shown = ".".join(map(str, version))
    if version < OLDEST_PYTHON:
        raise AgentError(f"{name}: {python} is Python {shown}, which is too old", hint=_INSTALL)
    if bits != 64:
        raise AgentError(
            f"{name}: {python} is a {bits}-bit program on {printable(machine)}; the runtime is 64-bit only",
            hint="install a 64-bit system there, or name a 64-bit Python in devices.yaml (python: ...)",
        )
    if not re.fullmatch(r"[a-z0-9_]{2,20}", machine) or not home.startswith("/"):
        raise AgentError(
            f"{name}: {python} reports a machine {printable(machine)!r}, home {printable(home)!r}"
        )
    return Board(shown, machine, libc if re.fullmatch(r"[a-z]+( \d+(\.\d+)+)?", libc) else "", home, files)
