"""How weights reach memory when ``load`` is "auto": repacked, which is fastest, where the memory allows it;
mapped otherwise. Weights with a cache are always repacked: a bundle has no other layout."""

import os
from typing import Iterator, Optional, Tuple

from .tree import Tree

AUTO = "auto"
REPACK = "repack"
MMAP = "mmap"

# Left to the KV cache, activations, the interpreter and the rest of the machine, beside a tenth of the file.
SPARE_BYTES = 512 << 20

_GIB = float(1 << 30)
# What version 1 says of a group without a limit is close to 2^63.
_UNLIMITED = 1 << 60
_V2_LIMIT = "memory.max"


def choose_load(
    asked: str, path: str, tree: Optional[Tree] = None, limit_bytes: int = 0, cached: bool = False
) -> Tuple[str, str]:
    """The mode of :class:`stbench.agent.sbr.Model` for the setting ``asked``, and a sentence when "auto" had
    to do without repacking (else ""). ``limit_bytes``: a memory limit that was asked for (0: none);
    ``cached``: units of a bundle are cached. Raises OSError when the file cannot be found, ValueError for a
    cache beside a mode that has none."""
    if cached:
        if asked not in (AUTO, REPACK):
            raise ValueError("load %s goes without a cache: expected auto or repack" % asked)
        return REPACK, ""
    if asked != AUTO:
        return asked, ""
    lacking = lacking_for_a_copy(path, tree, limit_bytes)
    if not lacking:
        return REPACK, ""
    return MMAP, "load auto: the weights are mapped, because %s; decode is slower by that" % lacking


def lacking_for_a_copy(path: str, tree: Optional[Tree] = None, limit_bytes: int = 0) -> str:
    """Why the weights of the file at ``path`` cannot be repacked, which copies them into anonymous memory: as
    the rest of a sentence, "" when they can. Raises OSError when the file cannot be found."""
    size = os.stat(path).st_size
    room = _room(tree if tree is not None else Tree(), limit_bytes)
    need = size + size // 10 + SPARE_BYTES
    if room is None or need <= room:
        return ""
    return "repacking them (%.1f GiB with reserve) does not fit the %.1f GiB that are available" % (
        need / _GIB,
        room / _GIB,
    )


def _room(tree: Tree, limit_bytes: int) -> Optional[int]:
    """Memory that this process could still take: the machine's, within all limits."""
    known = [available_bytes(tree), group_limit(tree), limit_bytes or None]
    return min((room for room in known if room is not None), default=None)


def available_bytes(tree: Tree) -> Optional[int]:
    """Memory that the machine still has; None: it does not say."""
    return tree.kibibytes(tree.fields("proc/meminfo"), "MemAvailable")


def group_limit(tree: Tree) -> Optional[int]:
    """The lowest limit of the process's memory cgroup and the groups around it; None: no limit is known."""
    limits = [limit for _, _, limit in _groups(tree) if limit is not None]
    return min(limits, default=None)


def group_anonymous(tree: Tree) -> Optional[int]:
    """Anonymous memory that is charged to the process's own group, where that has a limit: less than the
    process has, which shares pages with the one that it was forked from. None: not known."""
    found = []
    # The last one of a hierarchy is the process's own.
    for name, (folder, limit) in {name: (folder, limit) for folder, name, limit in _groups(tree)}.items():
        charged = tree.fields(folder + "/memory.stat", " ").get("anon" if name == _V2_LIMIT else "rss", "")
        if limit is not None and charged.isdigit():
            found.append(int(charged))
    return max(found, default=None)


def _groups(tree: Tree) -> Iterator[Tuple[str, str, Optional[int]]]:
    """(folder, name of the file with the limit, limit) of the process's memory cgroup and those around it,
    the outermost first. Limit None: there is none."""
    for line in (tree.text("proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            folder, name = "sys/fs/cgroup", _V2_LIMIT
        elif "memory" in controllers.split(","):
            folder, name = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        for depth in range(len(parts) + 1):
            here = "/".join([folder, *parts[:depth]])
            limit = tree.number("%s/%s" % (here, name))
            yield here, name, limit if limit is not None and limit < _UNLIMITED else None
