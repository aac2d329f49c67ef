"""A captured tree that changes with time, as its file HEATING says."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from stbench.agent.tree import Tree
from tests.agent.conftest import TREES


class Board:
    """A copy of the tree in ``folder``, whose clock stands still until :meth:`sleep`; ``at_s`` is where in
    the story it starts. Load is from 10 to 80 s, the hottest moment about 50 s, cool again at 230 s."""

    def __init__(self, folder: Path, at_s: float = 0.0, name: str = "heating-rk3588") -> None:
        self.root = Path(shutil.copytree(TREES / name, folder / name))
        self.tree = Tree(self.root)
        lines = (self.root / "HEATING").read_text().splitlines()
        header, *rows = [line.split() for line in lines if not line.startswith("#")]
        self._paths = header[1:]
        self._rows = [(float(row[0]), row[1:]) for row in rows]
        self.now = at_s
        self._shown: set[tuple[str, str]] = set()
        self._show()

    def _show(self) -> None:
        values = [values for at_s, values in self._rows if at_s <= self.now][-1]
        changed = set(zip(self._paths, values, strict=True)) - self._shown
        for path, value in changed:
            self.write(path, value)
        self._shown = set(zip(self._paths, values, strict=True))

    def clock(self) -> float:
        """Seconds since the story's beginning."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Time passes and the files change."""
        self.now += seconds
        self._show()

    def write(self, path: str, text: str) -> None:
        """Changes one file, until the story does."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        # Whole, for whoever reads it meanwhile; beside the tree, which nobody lists.
        new = self.root.with_suffix(".new")
        new.write_text(text + "\n")
        os.replace(new, self.root / path)
