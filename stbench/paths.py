"""Where this machine keeps what can be made again - models, references, builds, the local work directory -
and what a path that leads nowhere may have meant."""

from __future__ import annotations

import os
from pathlib import Path

from stbench.wording import nearest


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/stbench`` or ``~/.cache/stbench``, created when missing.

    A relative ``XDG_CACHE_HOME`` is ignored, as its specification asks.
    """
    root = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(root) if os.path.isabs(root) else Path.home() / ".cache"
    path = base / "stbench"
    path.mkdir(parents=True, exist_ok=True)
    return path


def instead_of(path: Path) -> str:
    """Where ``path`` stops existing and what lies there under a similar name, as a hint; "" where neither can
    be told."""
    here = path
    while not here.parent.exists():
        here = here.parent
    try:
        near = nearest(here.name, os.listdir(here.parent))
    except OSError:
        return ""
    if near:
        return f"did you mean {here.parent / near}?"
    return f"there is no {here.name} in {here.parent.resolve()}" if here != path else ""
