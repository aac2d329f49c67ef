"""Where this machine keeps what can be made again: models, references, builds, the local work directory."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/stbench`` or ``~/.cache/stbench``, created when missing.

    A relative ``XDG_CACHE_HOME`` is ignored, as its specification asks.
    """
    root = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(root) if os.path.isabs(root) else Path.home() / ".cache"
    path = base / "stbench"
    path.mkdir(parents=True, exist_ok=True)
    return path
