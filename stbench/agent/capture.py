"""A picture of the machine for ``stbench devices doctor``: files of /proc and /sys, a few commands' outputs.

:func:`capture` takes the root of a tree, as the probe does. Sizes are bounded: a file of 64 KiB (cpuinfo of
a server: 512 KiB), 4 MiB and 6000 files in all.
"""

import fnmatch
import os
import platform
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
import time
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

from .tree import Tree, cpu_list
from .wirecapture import Capture

FILE_BYTES = 64 << 10
TOTAL_BYTES = 4 << 20
MAX_FILES = 6000
COMMAND_BYTES = 16 << 10

# Files with a length of their own; of smaps only the page size is read.
_LENGTHS = {"proc/cpuinfo": 512 << 10, "proc/self/smaps": 2 << 10, "proc/stat": 128 << 10}

# What the probe, the sensors and the doctor read. A * is one level of names.
PATTERNS = (
    "etc/os-release",
    "etc/rpi-issue",
    "usr/lib/os-release",
    "system/build.prop",
    "boot/cmdline.txt",
    "boot/firmware/cmdline.txt",
    "boot/armbianEnv.txt",
    "boot/extlinux/extlinux.conf",
    "proc/cgroups",
    "proc/cmdline",
    "proc/cpuinfo",
    "proc/device-tree/compatible",
    "proc/device-tree/model",
    "proc/loadavg",
    "proc/meminfo",
    "proc/pressure/*",
    "proc/self/cgroup",
    "proc/self/mountinfo",
    "proc/self/smaps",
    "proc/self/status",
    "proc/stat",
    "proc/swaps",
    "proc/sys/kernel/arch",
    "proc/sys/kernel/hostname",
    "proc/sys/kernel/osrelease",
    "proc/sys/kernel/perf_event_paranoid",
    "proc/sys/kernel/random/boot_id",
    "proc/sys/vm/swappiness",
    "proc/uptime",
    "sys/block/zram*/comp_algorithm",
    "sys/block/zram*/disksize",
    "sys/block/zram*/mm_stat",
    "sys/class/block/*/device/model",
    "sys/class/block/*/device/name",
    "sys/class/block/*/device/type",
    "sys/class/block/*/queue/logical_block_size",
    "sys/class/block/*/queue/read_ahead_kb",
    "sys/class/block/*/queue/rotational",
    "sys/class/block/*/queue/scheduler",
    "sys/class/block/*/size",
    "sys/class/devfreq/*/available_frequencies",
    "sys/class/devfreq/*/available_governors",
    "sys/class/devfreq/*/cur_freq",
    "sys/class/devfreq/*/governor",
    "sys/class/devfreq/*/max_freq",
    "sys/class/devfreq/*/min_freq",
    "sys/class/dmi/id/product_name",
    "sys/class/dmi/id/sys_vendor",
    "sys/class/hwmon/*/*_alarm",
    "sys/class/hwmon/*/*_input",
    "sys/class/hwmon/*/*_label",
    "sys/class/hwmon/*/name",
    "sys/class/power_supply/*/current_now",
    "sys/class/power_supply/*/online",
    "sys/class/power_supply/*/status",
    "sys/class/power_supply/*/type",
    "sys/class/power_supply/*/voltage_now",
    "sys/class/powercap/*/energy_uj",
    "sys/class/powercap/*/max_energy_range_uj",
    "sys/class/powercap/*/name",
    "sys/class/thermal/cooling_device*/cur_state",
    "sys/class/thermal/cooling_device*/max_state",
    "sys/class/thermal/cooling_device*/type",
    "sys/class/thermal/thermal_zone*/mode",
    "sys/class/thermal/thermal_zone*/policy",
    "sys/class/thermal/thermal_zone*/temp",
    "sys/class/thermal/thermal_zone*/trip_point_*_temp",
    "sys/class/thermal/thermal_zone*/trip_point_*_type",
    "sys/class/thermal/thermal_zone*/type",
    "sys/dev/block/*/uevent",
    "sys/devices/cpu_*/cpus",
    "sys/devices/platform/soc*/*:firmware/get_throttled",
    "sys/devices/system/cpu/cpu*/cache/index*/level",
    "sys/devices/system/cpu/cpu*/cache/index*/size",
    "sys/devices/system/cpu/cpu*/cache/index*/type",
    "sys/devices/system/cpu/cpu*/cpu_capacity",
    "sys/devices/system/cpu/cpu*/cpufreq/*",
    "sys/devices/system/cpu/cpu*/thermal_throttle/*",
    "sys/devices/system/cpu/cpu*/topology/*_list",
    "sys/devices/system/cpu/isolated",
    "sys/devices/system/cpu/online",
    "sys/devices/system/cpu/possible",
    "sys/devices/system/cpu/present",
    "sys/devices/system/cpu/smt/active",
    "sys/fs/cgroup/cgroup.controllers",
    "sys/fs/cgroup/cgroup.subtree_control",
    "sys/fs/cgroup/memory/memory.limit_in_bytes",
    "sys/hypervisor/type",
    "sys/kernel/mm/transparent_hugepage/enabled",
)

COMMANDS = (
    ("vcgencmd", "get_throttled"),
    ("vcgencmd", "measure_temp"),
    ("vcgencmd", "pmic_read_adc"),
    ("getprop", "ro.product.model"),
    ("getprop", "ro.build.version.release"),
)

_CPUS = "sys/devices/system/cpu/"

# How long others are watched; our own part of it is sleeping.
_WATCH_S = 1.0


def capture(tree: Optional[Tree] = None, work_dir: str = "") -> Capture:
    """Reads the machine whose files ``tree`` holds (this one by default). Commands, clock, the work directory
    and others' work are this machine's: they are left out for another's tree."""
    tree = tree if tree is not None else Tree()
    files: Dict[str, str] = {}
    cut: List[str] = []
    left = TOTAL_BYTES
    for path in _paths(tree):
        if len(files) >= MAX_FILES or left <= 0:
            cut.append(path)
            continue
        data = _read(tree, path)
        if data is None:
            continue
        length = min(_LENGTHS.get(path, FILE_BYTES), left)
        if len(data) > length:
            cut.append(path)
            data = data[:length]
        left -= len(data)
        files[path] = data.decode("utf-8", "replace")
    # Bounded, too: a tree of refusals would be as long as it likes.
    found = Capture(files=files, denied=sorted(tree.denied)[:MAX_FILES], cut=cut[:MAX_FILES])
    if not tree.live:
        return found
    problem, free, total = _work_dir(work_dir)
    busy, busiest = _others()
    return Capture(
        **dict(
            found.__dict__,
            commands=_outputs(),
            python=platform.python_version(),
            work_dir=work_dir,
            problem=problem,
            free_bytes=free,
            total_bytes=total,
            busy_cpus=busy,
            busiest=busiest,
            private=_private(tree),
            time_s=time.time(),
        )
    )


# ---- files -------------------------------------------------------------------------------------------


def _paths(tree: Tree) -> Iterator[str]:
    for pattern in PATTERNS:
        for path in _matches(tree, "", pattern.split("/")):
            yield path


def _matches(tree: Tree, base: str, parts: Sequence[str]) -> Iterator[str]:
    """Paths that a pattern stands for; directories are listed only where it has a *."""
    first, rest = parts[0], parts[1:]
    if "*" not in first:
        path = base + first
        if rest:
            for found in _matches(tree, path + "/", rest):
                yield found
        else:
            yield path
        return
    names = tree.names(base.rstrip("/"))
    if base == _CPUS:
        # Phones let files be read in directories that they do not list.
        online = cpu_list(tree.text(_CPUS + "online") or "")[:1024]
        names = sorted({*names, *("cpu%d" % cpu for cpu in online)})
    for name in names:
        if fnmatch.fnmatchcase(name, first):
            if rest:
                for found in _matches(tree, base + name + "/", rest):
                    yield found
            else:
                yield base + name


def _read(tree: Tree, path: str) -> Optional[bytes]:
    """A file's bytes; None when it is absent, refused, or no file: a pipe would never end."""
    try:
        if not stat.S_ISREG(os.stat(str(tree.root / path)).st_mode):
            return None
    except (OSError, ValueError):
        # Reading it says whether it is absent or refused.
        pass
    try:
        return tree.raw(path)
    except PermissionError:
        if path not in tree.denied:
            tree.denied.append(path)
    except OSError:
        pass
    return None


# ---- what no file says -------------------------------------------------------------------------------


def _outputs() -> Dict[str, str]:
    found: Dict[str, str] = {}
    for command in COMMANDS:
        if shutil.which(command[0]) is None:
            continue
        try:
            done = subprocess.run(
                list(command), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=5.0
            )
        except (OSError, subprocess.SubprocessError):
            continue
        if done.returncode == 0:
            found[" ".join(command)] = done.stdout[:COMMAND_BYTES].decode("utf-8", "replace")
    return found


def _work_dir(path: str) -> Tuple[str, Optional[int], Optional[int]]:
    """(why nothing can be written there, free bytes, total bytes)."""
    path = os.path.expanduser(path)
    if not path:
        return "", None, None
    place = path
    while not os.path.exists(place) and os.path.dirname(place) != place:
        place = os.path.dirname(place)
    problem = ""
    try:
        # No name: nothing stays behind, however this ends.
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        problem = "%s: %s" % (place, error.strerror)
    try:
        usage = shutil.disk_usage(place)
    except OSError:
        return problem, None, None
    return problem, usage.free, usage.total


def _ticks(text: str) -> Optional[int]:
    """utime + stime of /proc/PID/stat; the name before them may hold anything, so it is cut off first."""
    words = text.rpartition(")")[2].split()
    return int(words[11]) + int(words[12]) if len(words) > 12 else None


def _processes() -> Dict[int, Tuple[str, int]]:
    found: Dict[int, Tuple[str, int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and len(found) < 10000:
            try:
                with open("/proc/%s/stat" % name, "rb") as file:
                    text = file.read(4096).decode("utf-8", "replace")
            except OSError:
                continue
            used = _ticks(text)
            if used is not None:
                found[int(name)] = (text[text.find("(") + 1 : text.rfind(")")], used)
    return found


def _busy(text: str) -> Optional[int]:
    """Ticks of all CPUs that were not idle, of /proc/stat."""
    match = re.match(r"cpu +(\d+(?: \d+){6,})", text)
    if not match:
        return None
    ticks = [int(word) for word in match.group(1).split()]
    return ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6]


def _others() -> Tuple[Optional[float], Dict[str, float]]:
    """CPUs in use while we sleep, and by which programs, the five busiest."""
    tree = Tree()
    try:
        before = _processes()
    except OSError:
        return None, {}
    first, begin = _busy(tree.text("proc/stat") or ""), time.monotonic()
    time.sleep(_WATCH_S)
    last = _busy(tree.text("proc/stat") or "")
    passed_s = time.monotonic() - begin
    after = _processes()
    ticks_per_s = float(os.sysconf("SC_CLK_TCK"))
    used: Dict[str, float] = {}
    for number, (name, ticks) in after.items():
        # One that is new was started meanwhile: all of its time is of this moment.
        share = (ticks - before.get(number, (name, 0))[1]) / ticks_per_s / passed_s
        if share > 0 and number != os.getpid():
            used[name] = used.get(name, 0.0) + share
    busiest = sorted(used.items(), key=lambda item: -item[1])[:5]
    busy = None if first is None or last is None else (last - first) / ticks_per_s / passed_s
    return (
        None if busy is None else round(max(busy, 0.0), 3),
        {name: round(share, 3) for name, share in busiest},
    )


def _private(tree: Tree) -> List[str]:
    """What names this machine and its people, each for being replaced wherever it stands."""
    found = [tree.text("proc/sys/kernel/hostname") or "", tree.text("etc/hostname") or "", platform.node()]
    try:
        for user in pwd.getpwall():
            if 1000 <= user.pw_uid < 65000 or user.pw_uid == os.getuid() != 0:
                # The fifth field is the person's name, rooms and telephones after it.
                found += [user.pw_name, *user.pw_gecos.split(",")]
    except (OSError, KeyError):
        pass
    found += [os.environ.get(name, "") for name in ("USER", "LOGNAME")]
    for path in ("etc/machine-id", "proc/device-tree/serial-number", "sys/class/dmi/id/product_serial"):
        found.append(tree.text(path) or "")
    for name in tree.names("sys/class/net"):
        found.append(tree.text("sys/class/net/%s/address" % name) or "")
    for name in tree.names("sys/class/block"):
        for part in ("cid", "serial"):
            found.append(tree.text("sys/class/block/%s/device/%s" % (name, part)) or "")
    for line in (tree.text("proc/cpuinfo") or "").splitlines():
        if line.lower().startswith("serial"):
            found.append(line.partition(":")[2])
    return sorted({text.strip(" \0\n\t")[:200] for text in found} - {""})[:500]
