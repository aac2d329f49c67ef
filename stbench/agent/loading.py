"""How weights reach memory when ``load`` is "auto": repacked, which is fastest, where the memory allows it;
mapped otherwise."""

import os
from typing import Optional, Tuple

from .tree import Tree

AUTO = "auto"
REPACK = "repack"
MMAP = "mmap"

# Left to the KV cache, activations, the interpreter and the rest of the machine, beside a tenth of the file.
SPARE_BYTES = 512 << 20

_GIB = float(1 << 30)


def choose_load(asked: str, path: str, tree: Optional[Tree] = None) -> Tuple[str, str]:
    """The mode of :class:`stbench.agent.sbr.Model` for the setting ``asked``, and a sentence when "auto" had
    to do without repacking (else ""). Raises OSError when the file cannot be found."""
    if asked != AUTO:
        return asked, ""
    tree = tree if tree is not None else Tree()
    size = os.stat(path).st_size
    room = _available_bytes(tree)
    need = size + size // 10 + SPARE_BYTES
    if room is None or need <= room:
        return REPACK, ""
    return MMAP, (
        "load auto: the weights are mapped, because repacking them (%.1f GiB with reserve) does not fit the "
        "%.1f GiB that are available; decode is slower by that" % (need / _GIB, room / _GIB)
    )


def _available_bytes(tree: Tree) -> Optional[int]:
    """Memory that this process could still take: the machine's, within the limits of its control groups."""
    known = [tree.kibibytes(tree.fields("proc/meminfo"), "MemAvailable"), _group_limit(tree)]
    return min((room for room in known if room is not None), default=None)


def _group_limit(tree: Tree) -> Optional[int]:
    """The lowest limit of the process's memory cgroup and the groups around it; None: no limit is known."""
    limits = []
    for line in (tree.text("proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            folder, name = "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            folder, name = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        for depth in range(len(parts) + 1):
            limit = tree.number("/".join([folder, *parts[:depth], name]))
            if limit is not None:
                limits.append(limit)
    return min(limits, default=None)
