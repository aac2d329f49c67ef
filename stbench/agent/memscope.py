"""A part of the cgroup hierarchy from systemd's user manager, for who is not root.

A process outside of such a part cannot move itself into it, so the agent is started anew inside:
``systemd-run --user --scope`` with Delegate= gives a scope that the agent may divide, and is gone with its
last process.
"""

import os
import shutil
import sys
from typing import List, Optional

from .memgroup import V2, hierarchy
from .memhold import Refused
from .tree import Tree

# Says to the agent in the scope that it is there.
FLAG = "--in-scope"


def refusal(tree: Tree) -> str:
    """Why there can be no scope; "" when there may be one."""
    try:
        hierarchy(tree, V2)
    except Refused as error:
        return str(error)
    if shutil.which("systemd-run") is None:
        return "there is no systemd-run"
    if not os.path.exists(os.path.join(runtime_dir(), "systemd")):
        return "no systemd manager runs for this user (%s/systemd)" % runtime_dir()
    return ""


def runtime_dir() -> str:
    """Where the user's manager listens."""
    return os.environ.get("XDG_RUNTIME_DIR") or "/run/user/%d" % os.getuid()


def command(program: Optional[List[str]] = None) -> List[str]:
    """The command line that runs this agent's ``run`` in a new scope."""
    scope = ["systemd-run", "--user", "--scope", "--quiet", "--collect", "-p", "Delegate=yes", "--"]
    return [*scope, *(program if program is not None else _agent()), "run", FLAG]


def _agent() -> List[str]:
    """This agent again: the directory or the archive that holds its package."""
    root = os.path.abspath(__file__)
    for _ in range(3):
        root = os.path.dirname(root)
    code = "import sys; sys.path.insert(0, %r); from stbench.agent.__main__ import main; sys.exit(main())"
    return [sys.executable, "-I", "-c", code % root]
