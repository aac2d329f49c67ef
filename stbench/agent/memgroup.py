"""Memory control groups, version 2 and 1: one is made for a job, holds it, is read, and goes with it.

A group is called ``stbench-BOOT-NAMESPACE-PID-START`` after the process that owns it. One whose owner is dead
was left by a kill -9: the next job ends what still runs in it and removes it.
"""

import contextlib
import os
import signal
import time
from typing import Dict, List, NamedTuple, Optional

from .memhold import Hold, Parts, Refused, no_swap, why, write
from .tree import Tree

PREFIX = "stbench-"
V2, V1 = "cgroup-v2", "cgroup-v1"

# A group is busy until the kernel has buried its last process.
_REMOVE_S = 10.0
_MAX_NAMES = 100
_PF_EXITING = 0x4


class Hierarchy(NamedTuple):
    """A mounted hierarchy that has the memory controller. ``mount`` is a folder of the tree, ``own`` our
    group's path below it, and ``prefix`` what /proc/PID/cgroup puts before such a path."""

    version: str
    mount: str
    prefix: str
    own: str

    def folder(self, path: str) -> str:
        """Where a group's files are."""
        return self.mount + path

    def around(self, path: str) -> List[str]:
        """A group and those that it lies in, from the outermost on."""
        parts = [part for part in path.split("/") if part]
        return ["".join("/" + part for part in parts[:depth]) for depth in range(len(parts) + 1)]


def hierarchy(tree: Tree, version: str) -> Hierarchy:
    """The mounted hierarchy of this version. Raises Refused."""
    for line in (tree.text("proc/self/mountinfo") or "").splitlines():
        before, mark, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if not mark or len(left) < 6 or len(right) < 3:
            continue
        is_v1 = right[0] == "cgroup" and "memory" in right[2].split(",")
        if (right[0] == "cgroup2" and version == V2) or (is_v1 and version == V1):
            mount = left[4].replace("\\040", " ").strip("/")
            root = left[3].rstrip("/")
            return _checked(tree, Hierarchy(version, mount, root, _own(tree, version, root)))
    raise Refused("no %s hierarchy is mounted" % version)


def _own(tree: Tree, version: str, root: str) -> str:
    path = path_of(tree, version, "self")
    if path is None or ".." in path.split("/") or not (path + "/").startswith(root + "/"):
        raise Refused("our own group lies outside of what is mounted of %s" % version)
    return path[len(root) :].rstrip("/")


def _checked(tree: Tree, found: Hierarchy) -> Hierarchy:
    if found.version == V2:
        controllers = tree.text(found.mount + "/cgroup.controllers")
        if "memory" not in (controllers or "").split():
            raise Refused("the memory controller is not in /%s/cgroup.controllers" % found.mount)
    return found


def path_of(tree: Tree, version: str, pid: str) -> Optional[str]:
    """A process's group, as /proc/PID/cgroup names it."""
    for line in (tree.text("proc/%s/cgroup" % pid) or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        is_it = controllers == "" if version == V2 else "memory" in controllers.split(",")
        if is_it and path.startswith("/"):
            return path
    return None


class Group(Hold):
    """A group of one job. Made by :func:`make`."""

    def __init__(self, tree: Tree, where: Hierarchy, path: str, limit_bytes: int) -> None:
        self.method = where.version
        self.group = where.prefix + path
        page = os.sysconf("SC_PAGE_SIZE")
        self.least, self.most = limit_bytes // page * page, limit_bytes
        self._tree, self._where, self._path = tree, where, path
        self._folder = where.folder(path)

    # ---- making it ---------------------------------------------------------------------------------------

    def set(self, limit_bytes: int) -> None:
        """Sets the limit, with no swap beside it. Raises OSError and Refused."""
        tree, folder = self._tree, self._folder
        if self.method == V2:
            with contextlib.suppress(FileNotFoundError):
                write(tree, folder + "/memory.swap.max", "0")
            write(tree, folder + "/memory.max", str(limit_bytes))
        else:
            with contextlib.suppress(OSError):
                write(tree, folder + "/memory.swappiness", "0")
            write(tree, folder + "/memory.limit_in_bytes", str(limit_bytes))
            # Memory and swap together; only where swap is accounted for.
            with contextlib.suppress(FileNotFoundError):
                write(tree, folder + "/memory.memsw.limit_in_bytes", str(limit_bytes))
        found = self.limit()
        if found is None or not self.least <= found <= self.most:
            told = "it is limited to %s bytes around it" % found if found else "it reads back no limit"
            raise Refused("/%s was given %d bytes, and %s" % (folder, limit_bytes, told))

    def admit(self, pid: int) -> None:
        """See :class:`.memhold.Hold`."""
        write(self._tree, self._folder + "/cgroup.procs", str(pid))

    # ---- reading it --------------------------------------------------------------------------------------

    def holds(self, pid: int) -> Optional[bool]:
        """See :class:`.memhold.Hold`."""
        path = path_of(self._tree, self.method, str(pid))
        if path is None or (path + "/").startswith(self.group + "/"):
            return None if path is None else True
        # Of a process that ends, version 1 names the root.
        fields = _stat_fields(self._tree, pid)
        return None if not fields or int(fields[6]) & _PF_EXITING else False

    def limit(self) -> Optional[int]:
        """See :class:`.memhold.Hold`."""
        name = "memory.max" if self.method == V2 else "memory.limit_in_bytes"
        if self._tree.text("%s/%s" % (self._folder, name)) is None:
            return None
        return limit_around(self._tree, self._where, self._path)

    def peak(self) -> Optional[int]:
        """See :class:`.memhold.Hold`."""
        return self._number("memory.peak" if self.method == V2 else "memory.max_usage_in_bytes")

    def usage(self) -> Optional[int]:
        """See :class:`.memhold.Hold`."""
        return self._number("memory.current" if self.method == V2 else "memory.usage_in_bytes")

    def parts(self) -> Optional[Parts]:
        """See :class:`.memhold.Hold`."""
        names = (
            ("anon", "file", "shmem") if self.method == V2 else ("total_rss", "total_cache", "total_shmem")
        )
        stat = self._stat()
        anon, file, shmem = (stat.get(name) for name in names)
        if anon is None or file is None:
            return None
        return Parts(anon + (shmem or 0), file - (shmem or 0))

    def refaults(self) -> Optional[int]:
        """See :class:`.memhold.Hold`."""
        stat, before = self._stat(), "" if self.method == V2 else "total_"
        # Without "_file" before Linux 5.9, when only file pages were counted.
        return stat.get(before + "workingset_refault_file", stat.get(before + "workingset_refault"))

    def oom_kills(self) -> Optional[int]:
        """See :class:`.memhold.Hold`."""
        name = "memory.events" if self.method == V2 else "memory.oom_control"
        text = self._tree.fields("%s/%s" % (self._folder, name), " ").get("oom_kill", "")
        return int(text) if text.isdigit() else None

    def swap_off(self) -> Optional[bool]:
        """See :class:`.memhold.Hold`. Version 1 never swaps for a group's limit when its swappiness is 0."""
        if self.method == V2:
            held = self._number("memory.swap.max") == 0
        else:
            both = self._number("memory.memsw.limit_in_bytes")
            held = (both is not None and both <= self.most) or self._number("memory.swappiness") == 0
        return held or no_swap(self._tree)

    def charges_file_pages(self) -> bool:
        """See :class:`.memhold.Hold`."""
        return True

    def _number(self, name: str) -> Optional[int]:
        return self._tree.number("%s/%s" % (self._folder, name))

    def _stat(self) -> Dict[str, int]:
        fields = self._tree.fields(self._folder + "/memory.stat", " ")
        return {name: int(text) for name, text in fields.items() if text.isdigit()}

    # ---- ending it ---------------------------------------------------------------------------------------

    def remove(self) -> None:
        """Ends what runs in it and removes it; what cannot be removed now, the next job will."""
        _remove(self._tree, self._folder)


def limit_around(tree: Tree, where: Hierarchy, path: str) -> Optional[int]:
    """The lowest limit of a group and of those that it lies in; None: there is none."""
    name = "memory.max" if where.version == V2 else "memory.limit_in_bytes"
    found = [tree.number("%s/%s" % (where.folder(one), name)) for one in where.around(path)]
    # Version 1 says "no limit" with a number near 2^63.
    return min((limit for limit in found if limit is not None and limit < 1 << 62), default=None)


def _remove(tree: Tree, folder: str) -> bool:
    end = time.monotonic() + _REMOVE_S
    while True:
        for word in (tree.text(folder + "/cgroup.procs") or "").split():
            if word.isdigit() and int(word) not in (0, os.getpid()):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(int(word), signal.SIGKILL)
        try:
            os.rmdir(str(tree.root / folder))
            return True
        except FileNotFoundError:
            return True
        except OSError:
            if time.monotonic() > end:
                return False
        time.sleep(0.02)


# ---- making one ------------------------------------------------------------------------------------------


def make(tree: Tree, version: str, limit_bytes: int, own: bool = False) -> Group:
    """A new group with this limit, empty. ``own``: we are in a scope that was made for us, and may divide
    it. Raises Refused with every reason."""
    where = hierarchy(tree, version)
    reasons: List[str] = []
    for parent in _parents(where, own):
        _remove_stale(tree, where.folder(parent))
        try:
            return _make_in(tree, where, parent, limit_bytes, own and parent == where.own)
        except Refused as error:
            reasons.append(str(error))
        except OSError as error:
            reasons.append(why(error))
    raise Refused("; ".join(dict.fromkeys(reasons)))


def _parents(where: Hierarchy, own: bool) -> List[str]:
    """Where to try, best first. In version 1 our own group can be divided. In version 2 one that has
    processes cannot, unless it is the root or ``own``; the outermost that one may write to stays when a login
    ends."""
    if own or where.version == V1:
        return [where.own]
    around = where.around(where.own)
    return around[:-1] or around


def _make_in(tree: Tree, where: Hierarchy, parent: str, limit_bytes: int, divide: bool) -> Group:
    folder = where.folder(parent)
    outer = limit_around(tree, where, parent)
    page = os.sysconf("SC_PAGE_SIZE")
    if outer is not None and outer < limit_bytes // page * page:
        raise Refused("/%s is limited to %d bytes already" % (folder, outer))
    if where.version == V2:
        _enable(tree, folder, divide)
    # Moving a process takes the right to write to the procs of the group that both lie in.
    if not os.access(str(tree.root / folder / "cgroup.procs"), os.W_OK):
        raise Refused("/%s/cgroup.procs is not ours to write" % folder)
    path = _new_folder(tree, where, parent)
    group = Group(tree, where, path, limit_bytes)
    try:
        group.set(limit_bytes)
    except BaseException:
        group.remove()
        raise
    return group


def _enable(tree: Tree, folder: str, divide: bool) -> None:
    """The memory controller for the groups in ``folder``. Raises OSError and Refused."""
    if "memory" not in (tree.text(folder + "/cgroup.controllers") or "").split():
        raise Refused("the memory controller is not in /%s/cgroup.controllers" % folder)
    if "memory" in (tree.text(folder + "/cgroup.subtree_control") or "").split():
        return
    if divide:
        # A group with processes gives its controllers to nobody: we go into one of our own first.
        aside = folder + "/agent"
        with contextlib.suppress(FileExistsError):
            os.mkdir(str(tree.root / aside), 0o755)
        write(tree, aside + "/cgroup.procs", str(os.getpid()))
    write(tree, folder + "/cgroup.subtree_control", "+memory")


def _new_folder(tree: Tree, where: Hierarchy, parent: str) -> str:
    """A group that did not exist, so that no two jobs share one. Raises OSError."""
    for number in range(_MAX_NAMES):
        path = "%s/%s%s" % (parent, owner_name(tree), "-%d" % number if number else "")
        try:
            os.mkdir(str(tree.root / where.folder(path)), 0o755)
            return path
        except FileExistsError:
            continue
        except OSError as error:
            raise OSError(error.errno, error.strerror, "/" + where.folder(path)) from error
    raise Refused("/%s is full of our groups" % where.folder(parent))


# ---- whose it is -----------------------------------------------------------------------------------------


def owner_name(tree: Tree) -> str:
    """The name of this process's groups."""
    return "%s%s-%s-%d-%d" % (PREFIX, _boot(tree), _namespace(tree), os.getpid(), _start(tree, os.getpid()))


def _boot(tree: Tree) -> str:
    return (tree.text("proc/sys/kernel/random/boot_id") or "unknown").replace("-", "")[:8]


def _namespace(tree: Tree) -> str:
    """Process ids mean something in their own namespace only."""
    try:
        return "".join(c for c in os.readlink(str(tree.root / "proc/self/ns/pid")) if c.isdigit()) or "0"
    except OSError:
        return "0"


def _start(tree: Tree, pid: int) -> int:
    """Clock ticks since boot; -1 when there is no such process."""
    fields = _stat_fields(tree, pid)
    return int(fields[19]) if fields and fields[0] not in "ZX" else -1


def _stat_fields(tree: Tree, pid: int) -> List[str]:
    """/proc/PID/stat from the state on; [] when there is no such process."""
    fields = (tree.text("proc/%d/stat" % pid) or "").rpartition(")")[2].split()
    return fields if len(fields) > 19 else []


def _is_stale(tree: Tree, name: str) -> bool:
    parts = name[len(PREFIX) :].split("-")
    if not name.startswith(PREFIX) or len(parts) < 4 or not (parts[2].isdigit() and parts[3].isdigit()):
        return False
    if parts[0] != _boot(tree):
        return True
    return parts[1] == _namespace(tree) and _start(tree, int(parts[2])) != int(parts[3])


def _remove_stale(tree: Tree, folder: str) -> None:
    """Groups whose owner was killed. Those that are not ours to remove stay."""
    for name in tree.names(folder):
        if _is_stale(tree, name) and os.access(str(tree.root / folder), os.W_OK):
            _remove(tree, folder + "/" + name)
