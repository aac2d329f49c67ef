"""Reading /proc and /sys, live or captured: every file is optional, and what was refused is remembered."""

import os
from pathlib import Path
from typing import Dict, List, Optional

# More than any kernel is built for; a longer list is not one of CPUs.
_MAX_CPUS = 1 << 16

__all__ = ["Tree", "cpu_list", "processes"]


class Tree:
    """Files below ``root``. ``denied`` collects paths that exist but may not be read."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = Path(root)
        self.denied: List[str] = []

    @property
    def live(self) -> bool:
        """True for this machine, False for a captured tree."""
        return self.root == Path("/")

    def raw(self, path: str) -> bytes:
        """A file's bytes, at most 1 MiB. Raises OSError."""
        with open(str(self.root / path), "rb") as file:
            return file.read(1 << 20)

    def listing(self, path: str) -> List[str]:
        """A directory's entries. Raises OSError."""
        return os.listdir(str(self.root / path))

    def names(self, path: str) -> List[str]:
        """A directory's entries, sorted; [] when it is absent or denied."""
        try:
            return sorted(self.listing(path))
        except PermissionError:
            self._deny(path)
        except OSError:
            pass
        return []

    def text(self, path: str) -> Optional[str]:
        """A file's text without the line end; None when it is absent or denied."""
        try:
            return self.raw(path).decode("utf-8", "replace").rstrip("\n\0")
        except PermissionError:
            self._deny(path)
        except OSError:
            # Sensors answer EIO, ENODEV or EAGAIN while their device sleeps: the same as absent.
            pass
        return None

    def number(self, path: str, base: int = 10) -> Optional[int]:
        """A file's content as an integer; None when it is absent, denied or something else."""
        text = self.text(path)
        try:
            return int(text, base) if text is not None else None
        except ValueError:
            return None

    def fields(self, path: str, separator: str = ":") -> Dict[str, str]:
        """``key: value`` lines; the first value of a key counts."""
        found: Dict[str, str] = {}
        for line in (self.text(path) or "").splitlines():
            key, mark, value = line.partition(separator)
            if mark:
                found.setdefault(key.strip(), value.strip())
        return found

    def kibibytes(self, fields: Dict[str, str], key: str) -> Optional[int]:
        """``MemTotal: 123 kB`` as bytes."""
        words = fields.get(key, "").split()
        return int(words[0]) * 1024 if words and words[0].isdigit() else None

    def _deny(self, path: str) -> None:
        if path not in self.denied:
            self.denied.append(path)


def cpu_list(text: str) -> List[int]:
    """``0-3,6`` as [0, 1, 2, 3, 6]; [] when it is nothing of the kind."""
    cpus: List[int] = []
    try:
        for part in text.strip().split(","):
            first, dash, last = part.partition("-")
            begin, end = int(first), int(last if dash else first) + 1
            if end > _MAX_CPUS:
                return []
            cpus.extend(range(begin, end))
    except ValueError:
        return []
    return cpus


def processes(tree: Tree, pid: int) -> List[int]:
    """A process and what it started, as far as the kernel lists children (CONFIG_PROC_CHILDREN)."""
    found, unseen = [], [pid]
    while unseen:
        pid = unseen.pop()
        found.append(pid)
        for thread in tree.names("proc/%d/task" % pid):
            text = tree.text("proc/%d/task/%s/children" % (pid, thread)) or ""
            unseen += [int(child) for child in text.split()]
    return found
