"""The doctor's checks of memory and storage: swap, limits, the disk that models lie on."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

from stbench.doctor.findings import FAILS, NOTE, WRONG, Check, Finding, Patient
from stbench.yamlfile import printable

_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse.sshfs", "fuse.rclone", "virtiofs"}
_IN_MEMORY = {"tmpfs", "ramfs"}

# Kernels' own setting. Far above it, mapped models load faster than they would on most boards.
_READ_AHEAD_KB = 128
_READ_AHEAD_FLATTERS_KB = 2048

_FULL_BYTES = 64 << 20
_TIGHT_BYTES = 1 << 30


def _word(text: str) -> str:
    """Something that the device named, for a line that may be pasted into a shell."""
    return shlex.quote(printable(text))


# ---- swap ----------------------------------------------------------------------------------------------


def _swap(patient: Patient) -> Iterator[Finding]:
    tree = patient.tree
    used: dict[str, int] = {}
    for line in (tree.text("proc/swaps") or "").splitlines()[1:]:
        words = line.split()
        if len(words) >= 4 and words[3].isdigit() and int(words[3]):
            used[words[0]] = int(words[3]) * 1024
    if not used and tree.text("proc/swaps") is None:
        meminfo = tree.fields("proc/meminfo")
        total, free = tree.kibibytes(meminfo, "SwapTotal"), tree.kibibytes(meminfo, "SwapFree")
        if total and free is not None and free < total:
            used["swap"] = total - free
    for name, size in used.items():
        zram = "zram" in name
        what = f"compressed memory ({printable(name)})" if zram else printable(name)
        yield Finding(
            "zram" if zram else "swap",
            WRONG,
            f"{size / (1 << 20):.0f} MiB are swapped to {what}: fetching them back disturbs runs, and "
            "a memory limit can be evaded",
            f"sudo swapoff {_word(name)}"
            if name.startswith("/")
            else "close other apps, or: sudo swapoff -a",
        )


# ---- memory limits -------------------------------------------------------------------------------------


def _controller(patient: Patient) -> str:
    """Of the kernel's memory controller: "on", "off", "absent" (not built in) or "unknown"."""
    tree = patient.tree
    controllers = tree.text("sys/fs/cgroup/cgroup.controllers")
    limits_v1 = tree.text("sys/fs/cgroup/memory/memory.limit_in_bytes")
    if "memory" in (controllers or "").split() or limits_v1 is not None:
        return "on"
    rows = [line.split() for line in (tree.text("proc/cgroups") or "").splitlines()]
    row = next((row for row in rows if len(row) == 4 and row[0] == "memory"), None)
    if row is not None:
        return "on" if row[3] == "1" else "off"
    if "cgroup_disable=memory" in (tree.text("proc/cmdline") or ""):
        return "off"
    return "absent" if controllers is not None or rows else "unknown"


def _memory_controller(patient: Patient) -> Iterator[Finding]:
    state = _controller(patient)
    if patient.memory_limit not in ("auto", "cgroup-v1", "cgroup-v2") or state in ("on", "unknown"):
        return
    yield Finding(
        "memory-controller",
        WRONG,
        "the memory controller is "
        + ("switched off" if state == "off" else "not in its kernel")
        + ": rows with a memory limit are not held to it",
        _switch_on(patient)
        if state == "off"
        else "memory_limit: ballast   # in devices.yaml; needs root there",
    )


def _switch_on(patient: Patient) -> str:
    """The line for this board's way to set the kernel's command line."""
    files = patient.capture.files
    for path in ("boot/firmware/cmdline.txt", "boot/cmdline.txt"):
        if path in files:
            return f"sudo sed -i '1s/$/ cgroup_enable=memory/' /{path} && sudo reboot"
    if "boot/armbianEnv.txt" in files:
        return "echo extraargs=cgroup_enable=memory | sudo tee -a /boot/armbianEnv.txt && sudo reboot"
    if "boot/extlinux/extlinux.conf" in files:
        path = "/boot/extlinux/extlinux.conf"
        return f"sudo sed -i '/^ *append/s/$/ cgroup_enable=memory/' {path} && sudo reboot"
    return (
        "add cgroup_enable=memory to the kernel's command line (its boot loader's configuration), and reboot"
    )


# ---- storage -------------------------------------------------------------------------------------------


class _Mount(NamedTuple):
    """The file system that our files lie on, and its disk: "mmcblk0", or "" where /sys does not say."""

    point: str
    options: tuple[str, ...]
    kind: str
    source: str
    disk: str


def _mount(patient: Patient) -> _Mount | None:
    tree = patient.tree
    path = patient.capture.work_dir or "/"
    best: tuple[str, str, tuple[str, ...], str, str] | None = None
    for line in (tree.text("proc/self/mountinfo") or "").splitlines():
        before, mark, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if not mark or len(left) < 6 or len(right) < 2:
            continue
        point = left[4].replace("\\040", " ")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and (best is None or len(point) >= len(best[0])):
            options = (*left[5].split(","), *(right[2].split(",") if len(right) > 2 else ()))
            best = (point, left[2], options, right[0], right[1])
    if best is None:
        return None
    point, number, options, kind, source = best
    name = tree.fields(f"sys/dev/block/{number}/uevent", "=").get("DEVNAME") or source.rpartition("/")[2]
    part = not tree.names(f"sys/class/block/{name}/queue")
    disk = re.sub(r"(?<=\d)p\d+$|(?<=[a-z])\d+$", "", name) if part else name
    return _Mount(point, options, kind, source, disk if tree.names(f"sys/class/block/{disk}/queue") else "")


_OR_ELSEWHERE = "# or another work_dir in devices.yaml"
_ELSEWHERE = "work_dir: /mnt/nvme/stbench   # in devices.yaml: a place on NVMe, SSD or eMMC"


def _storage(patient: Patient) -> Iterator[Finding]:
    mount = _mount(patient)
    if mount is None:
        return
    tree, base = patient.tree, f"sys/class/block/{mount.disk}/"
    model = printable((tree.text(base + "device/name") or tree.text(base + "device/model") or "").strip())
    slow = ""
    if mount.kind in _NETWORK:
        slow = f"a network file system ({printable(mount.kind)})"
    elif mount.disk and tree.text(base + "device/type") == "SD":
        slow = f"an SD card{f' ({model})' if model else ''}, some 20 to 90 MB/s"
    # Virtual disks say that they turn, too.
    elif re.match("[sh]d[a-z]", mount.disk) and tree.text(base + "queue/rotational") == "1":
        slow = f"a disk that turns{f' ({model})' if model else ''}"
    if slow:
        yield Finding(
            "slow-storage",
            WRONG,
            f"models lie on {slow}: rows with a memory limit, which read experts while decoding, measure it",
            _ELSEWHERE,
        )
    if mount.kind in _IN_MEMORY:
        yield Finding(
            "storage-in-memory",
            WRONG,
            f"models lie in memory ({printable(mount.kind)} on {printable(mount.point)}), which "
            "they take from the run",
            _ELSEWHERE,
        )
    ahead = tree.number(base + "queue/read_ahead_kb") if mount.disk else None
    if ahead is not None and (ahead < _READ_AHEAD_KB or ahead > _READ_AHEAD_FLATTERS_KB):
        little = ahead < _READ_AHEAD_KB
        yield Finding(
            "read-ahead",
            WRONG if little else NOTE,
            f"its disk reads {ahead} KiB ahead, and boards usually {_READ_AHEAD_KB}: mapped models load "
            + ("slower" if little else "faster")
            + " than elsewhere",
            f"echo {_READ_AHEAD_KB} | sudo tee /{base}queue/read_ahead_kb",
        )


def _work_dir(patient: Patient) -> Iterator[Finding]:
    capture, mount = patient.capture, _mount(patient)
    shown, word = printable(capture.work_dir) or "/", _word(capture.work_dir or "/")
    read_only = mount is not None and "ro" in mount.options
    if capture.problem or (read_only and capture.work_dir):
        yield Finding(
            "work-dir",
            FAILS,
            f"nothing can be written to its work_dir {shown}"
            + (f" ({printable(capture.problem)})" if capture.problem else ": it is mounted read-only"),
            f"sudo mount -o remount,rw {_word(mount.point)}"
            if mount is not None and read_only
            else f"sudo mkdir -p {word} && sudo chown $(id -u) {word}   {_OR_ELSEWHERE}",
        )
    if mount is not None and "noexec" in mount.options and capture.work_dir:
        yield Finding(
            "noexec",
            FAILS,
            f"{printable(mount.point)} is mounted noexec: the runtime in {shown} cannot be loaded",
            f"sudo mount -o remount,exec {_word(mount.point)}   {_OR_ELSEWHERE}",
        )
    free = capture.free_bytes
    if free is not None and free < _TIGHT_BYTES:
        yield Finding(
            "disk-full",
            FAILS if free < _FULL_BYTES else WRONG,
            f"{free / 1e6:.0f} MB are free on the disk of {shown}"
            + (": nothing fits" if free < _FULL_BYTES else ": few models fit"),
            f"stbench devices clean {patient.name}   {_OR_ELSEWHERE}",
        )


CHECKS: tuple[Check, ...] = (_swap, _memory_controller, _storage, _work_dir)
