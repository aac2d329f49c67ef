"""Where a group can be made, on machines as they are found: made trees of /proc and /sys."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from stbench.agent import memgroup, memlimit, memscope, wire
from stbench.agent.ballast import Boot
from stbench.agent.memgroup import V1, V2
from stbench.agent.memhold import Refused
from stbench.agent.tree import Tree
from stbench.agent.wire import ModelRef, RunRecord, Settings
from tests.agent.conftest import ROOT, fake_job

MIB = 1 << 20
LIMIT = 64 * MIB
V2_MOUNT = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
NO_LIMIT_V1 = "9223372036854771712\n"
# What a kernel puts into a new group.
NEW = {
    V2: {
        "memory.max": "max\n",
        "memory.swap.max": "max\n",
        "cgroup.procs": "",
        "cgroup.controllers": "memory\n",
    },
    V1: {"memory.limit_in_bytes": NO_LIMIT_V1, "memory.swappiness": "60\n", "cgroup.procs": ""},
}


MKDIR, RMDIR = os.mkdir, os.rmdir


class Kernel:
    """Makes and removes groups of a made tree as a kernel would; ``refuse`` maps a call to its error."""

    def __init__(self, root: Path, version: str) -> None:
        self.root, self.version = root, version
        self.refuse: dict[str, int] = {}

    def _refused(self, call: str, path: str) -> None:
        if call in self.refuse:
            raise OSError(self.refuse[call], os.strerror(self.refuse[call]), path)

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        if not str(path).startswith(str(self.root / "sys")) or Path(path).name not in self._groups():
            return MKDIR(path, mode)
        self._refused("mkdir", path)
        MKDIR(path, mode)
        for name, text in NEW[self.version].items():
            Path(path, name).write_text(text)
        return None

    def _groups(self) -> set[str]:
        name = memgroup.owner_name(Tree(self.root))
        return {name, name + "-1", "agent"}

    def rmdir(self, path: str) -> None:
        for file in Path(path).iterdir():
            file.unlink()
        RMDIR(path)

    def write(self, tree: Tree, path: str, text: str) -> None:
        self._refused(path.rpartition("/")[2], "/" + path)
        full = tree.root / path
        if not full.exists():
            raise OSError(errno.ENOENT, "No such file or directory", "/" + path)
        full.write_text(text.lstrip("+") + "\n")


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel(tmp_path, V2)
    monkeypatch.setattr(memgroup.os, "mkdir", made.mkdir)
    monkeypatch.setattr(memgroup.os, "rmdir", made.rmdir)
    monkeypatch.setattr(memgroup, "write", made.write)
    return made


def tree_of(root: Path, files: dict[str, str]) -> Tree:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Tree(root)


def v2_group(path: str, controllers: str = "cpu io memory pids", enabled: str = "memory") -> dict[str, str]:
    base = f"sys/fs/cgroup{path}/"
    return {
        base + "cgroup.controllers": controllers + "\n",
        base + "cgroup.subtree_control": enabled + "\n",
        base + "cgroup.procs": "",
    }


SYSTEMD = {
    "proc/self/mountinfo": V2_MOUNT,
    "proc/self/cgroup": "0::/user.slice/user-1000.slice/session-3.scope\n",
    **v2_group(""),
    **v2_group("/user.slice"),
    **v2_group("/user.slice/user-1000.slice"),
    **v2_group("/user.slice/user-1000.slice/session-3.scope", enabled=""),
    "proc/meminfo": "MemTotal: 8000000 kB\nSwapTotal: 100 kB\n",
}
ON_V1 = {
    "proc/self/mountinfo": "31 23 0:28 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n" + V1_MOUNT,
    "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/box/7\n0::/\n",
    "sys/fs/cgroup/memory/box/7/cgroup.procs": "",
    "sys/fs/cgroup/memory/box/cgroup.procs": "",
    "sys/fs/cgroup/memory/cgroup.procs": "",
    "sys/fs/cgroup/memory/box/memory.limit_in_bytes": NO_LIMIT_V1,
    "proc/meminfo": "MemTotal: 8000000 kB\nSwapTotal: 0 kB\n",
}


# ---- made ------------------------------------------------------------------------------------------


def test_root_under_systemd_gets_a_group_beside_the_slices(kernel: Kernel, tmp_path: Path) -> None:
    """One below the session's would go with the login."""
    group = memgroup.make(tree_of(tmp_path, SYSTEMD), V2, LIMIT + 5)
    assert group.group.count("/") == 1
    assert group.limit() == LIMIT + 5
    # The kernel rounds to pages.
    assert (group.least, group.most) == (LIMIT, LIMIT + 5)
    folder = tmp_path / ("sys/fs/cgroup" + group.group)
    assert (folder / "memory.swap.max").read_text() == "0\n"
    assert group.swap_off() is True
    group.admit(17)
    assert (folder / "cgroup.procs").read_text() == "17\n"
    (folder / "cgroup.procs").write_text("")
    group.remove()
    assert not folder.exists()


def test_a_group_of_version_1_lies_in_our_own(kernel: Kernel, tmp_path: Path) -> None:
    kernel.version = V1
    group = memgroup.make(tree_of(tmp_path, ON_V1), V1, LIMIT)
    assert group.group.startswith("/box/7/" + memgroup.PREFIX)
    assert group.limit() == LIMIT
    assert group.swap_off() is True
    assert (tmp_path / f"sys/fs/cgroup/memory{group.group}/memory.swappiness").read_text() == "0\n"


def test_a_user_uses_the_part_that_was_delegated(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root's groups refuse; the one around our own is ours."""
    own = {"proc/self/cgroup": "0::/board/login\n", **v2_group("/board"), **v2_group("/board/login")}
    tree = tree_of(tmp_path, {**SYSTEMD, **own})
    roots = str(tmp_path / "sys/fs/cgroup/cgroup.procs")
    access = os.access
    monkeypatch.setattr(memgroup.os, "access", lambda path, how: path != roots and access(path, how))
    group = memgroup.make(tree, V2, LIMIT)
    assert group.group.startswith("/board/" + memgroup.PREFIX)


def test_a_scope_is_divided(kernel: Kernel, tmp_path: Path) -> None:
    """Its processes go into a group of their own first: one that has any passes no controller on."""
    scope = "/user.slice/user-1000.slice/user@1000.service/app.slice/run-r1.scope"
    files = {**SYSTEMD, "proc/self/cgroup": f"0::{scope}\n", **v2_group(scope, enabled="")}
    group = memgroup.make(tree_of(tmp_path, files), V2, LIMIT, own=True)
    assert group.group.startswith(scope + "/" + memgroup.PREFIX)
    base = tmp_path / ("sys/fs/cgroup" + scope)
    assert (base / "agent/cgroup.procs").read_text() == f"{os.getpid()}\n"
    assert (base / "cgroup.subtree_control").read_text() == "memory\n"


def test_two_jobs_never_share_a_group(kernel: Kernel, tmp_path: Path) -> None:
    tree = tree_of(tmp_path, SYSTEMD)
    assert memgroup.make(tree, V2, LIMIT).group != memgroup.make(tree, V2, LIMIT).group


# ---- refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "version", "words"),
    [
        # Raspberry Pi OS: the firmware passes cgroup_disable=memory.
        ({**SYSTEMD, **v2_group("", "cpuset cpu io pids")}, V2, "not in /sys/fs/cgroup/cgroup.controllers"),
        # Android: groups for scheduling, none for memory.
        (
            {
                "proc/self/mountinfo": "40 1 0:30 / /dev/cpuset rw - cgroup none rw,cpuset\n",
                "proc/self/cgroup": "3:cpuset:/top-app\n",
            },
            V1,
            "no cgroup-v1 hierarchy is mounted",
        ),
        ({}, V2, "no cgroup-v2 hierarchy is mounted"),
        # A container with a namespace of its own that shows none of the groups above.
        (
            {**ON_V1, "proc/self/cgroup": "4:memory:/../../other\n"},
            V1,
            "our own group lies outside of what is mounted",
        ),
        (
            {**ON_V1, "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{LIMIT // 2}\n"},
            V1,
            f"is limited to {LIMIT // 2} bytes already",
        ),
    ],
)
def test_machines_without(tmp_path: Path, files: dict[str, str], version: str, words: str) -> None:
    with pytest.raises(Refused, match=words.replace(".", r"\.")):
        memgroup.make(tree_of(tmp_path, files), version, LIMIT)


@pytest.mark.parametrize(
    ("call", "number", "words"),
    [
        ("mkdir", errno.EROFS, "Read-only file system"),
        ("mkdir", errno.ENOSPC, "No space left on device"),
        ("memory.max", errno.EBUSY, "memory.max: Device or resource busy"),
        ("memory.max", errno.EINVAL, "memory.max: Invalid argument"),
    ],
)
def test_what_the_kernel_refuses_is_said_and_leaves_nothing(
    kernel: Kernel, tmp_path: Path, call: str, number: int, words: str
) -> None:
    kernel.refuse[call] = number
    with pytest.raises(Refused) as caught:
        memgroup.make(tree_of(tmp_path, SYSTEMD), V2, LIMIT)
    assert words in str(caught.value)
    assert not list((tmp_path / "sys/fs/cgroup").glob("**/" + memgroup.PREFIX + "*"))


def test_a_root_group_with_processes_cannot_be_divided(kernel: Kernel, tmp_path: Path) -> None:
    """A container: what looks like the root is a group with processes, and the kernel says so."""
    kernel.refuse["cgroup.subtree_control"] = errno.EBUSY
    files = {**SYSTEMD, "proc/self/cgroup": "0::/\n", **v2_group("", enabled="")}
    with pytest.raises(Refused, match="Device or resource busy"):
        memgroup.make(tree_of(tmp_path, files), V2, LIMIT)


def test_every_way_that_failed_is_named(tmp_path: Path) -> None:
    choice = memlimit.choose("auto", LIMIT, tree_of(tmp_path, {"proc/meminfo": "MemTotal: 8000000 kB\n"}))
    assert choice.hold is None
    assert [reason.split(":")[0] for reason in choice.reasons] == ["cgroup-v2", "cgroup-v1", "boot"]


def test_a_small_boot_is_a_limit(tmp_path: Path) -> None:
    tree = tree_of(
        tmp_path, {"proc/meminfo": "MemTotal: 470000 kB\nMemAvailable: 400000 kB\nSwapTotal: 0 kB\n"}
    )
    choice = memlimit.choose("auto", 512 * MIB, tree)
    assert isinstance(choice.hold, Boot)
    assert choice.hold.limit() == 470000 * 1024
    assert choice.hold.usage() == 70000 * 1024
    assert memlimit.choose("boot", 400 * MIB, tree).hold is None, "more than the limit"
    assert memlimit.choose("boot", 1024 * MIB, tree).hold is None, "far less: another limit's"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"}, "/boot/firmware/cmdline.txt"),
        ({"proc/cgroups": "#subsys_name\nmemory\t0\t70\t0\n"}, "cgroup_enable=memory"),
        ({"proc/cmdline": "console=ttyAMA0 cgroup_disable=memory\n"}, "cgroup_enable=memory"),
    ],
)
def test_what_would_mend_it_is_said(tmp_path: Path, files: dict[str, str], words: str) -> None:
    job = fake_job(settings=Settings(memory_limit_bytes=LIMIT))
    proof = memlimit.Limit(job, tree=tree_of(tmp_path, files)).proof()
    assert proof.verdict == "not-enforced"
    assert words in proof.detail


# ---- whose it is -----------------------------------------------------------------------------------


def test_only_groups_of_dead_owners_are_stale(tmp_path: Path) -> None:
    tree = Tree()
    mine = memgroup.owner_name(tree)
    prefix, boot, namespace, pid, start = mine.split("-")
    gone = subprocess.Popen(["true"])
    gone.wait()
    stale = {
        mine: False,
        mine + "-3": False,
        f"{prefix}-{boot}-{namespace}-{pid}-{int(start) + 1}": True,
        f"{prefix}-{boot}-{namespace}-{gone.pid}-{start}": True,
        f"{prefix}-00000000-{namespace}-{pid}-{start}": True,
        f"{prefix}-{boot}-1-{gone.pid}-{start}": False,
        "stbench-backups": False,
        "user.slice": False,
    }
    assert {name: memgroup._is_stale(tree, name) for name in stale} == stale


# ---- a scope of systemd's user manager ---------------------------------------------------------------


def in_scope(tmp_path: Path, script: str) -> tuple[RunRecord, str]:
    """The record of a job whose agent takes a scope for what helps, and what systemd-run was given."""
    folder, model, told = tmp_path / "bin", tmp_path / "model", tmp_path / "told"
    folder.mkdir()
    model.write_bytes(b"weights")
    program = folder / "systemd-run"
    program.write_text(f'#!/bin/sh\necho "$@" > {told}\n{script}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from stbench.agent import memlimit, supervise, wire
memlimit.scope_helps = lambda job: True
print(wire.dumps(supervise.run_job(wire.loads(wire.JobSpec, sys.stdin.readline()))))
"""
    settings = Settings(threads=1, n_ctx=256, memory_limit_bytes=LIMIT)
    job = fake_job(settings=settings, model=ModelRef("fake:", str(model)), limit_method=V2)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=wire.dumps(job) + "\n",
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return wire.loads(RunRecord, done.stdout), told.read_text()


def test_the_agent_is_started_anew_in_a_scope(tmp_path: Path) -> None:
    """With the record of the one in there; tests/boards has a real one."""
    record, told = in_scope(tmp_path, 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"')
    assert told.startswith("--user --scope ")
    assert "Delegate=yes" in told
    assert told.split()[-2:] == ["run", memscope.FLAG]
    assert record.status == "ok", record.detail
    assert record.samples is not None
    assert record.limit is not None
    assert record.limit.detail.startswith("cgroup-v2, in a scope: ") or record.limit.verdict == "held"


def test_a_scope_that_is_refused_is_a_reason(tmp_path: Path) -> None:
    record, _ = in_scope(tmp_path, "echo 'Failed to connect to bus: No medium found' >&2; exit 1")
    assert record.status == "ok", record.detail
    assert record.limit is not None
    assert record.limit.verdict == "not-enforced" or record.limit.method == V2
    if record.limit.verdict == "not-enforced":
        assert "systemd-run --user --scope: Failed to connect to bus" in record.limit.detail
