"""Was the machine itself? Frequencies, temperatures and throttling before and after a run.

The verdict has three values. "yes": something recorded throttling during the run. "no": something that would
have recorded it did not. "unknown": nothing here could tell; a frequency or a temperature alone cannot.

What can tell: x86 counters of thermal throttling, the Raspberry Pi firmware's flags (sysfs, else
``vcgencmd``), and cpufreq cooling devices (the kernel's thermal governor lowering the maximal frequency).
What :mod:`stbench.agent.sampler` saw meanwhile is added to that.

And was it ours? CPU time that went neither to this process, nor to children it has waited for, nor to idling,
went to others; counted on the CPUs that our threads may use, so that a busy neighbour on other CPUs of a big
machine is not ours to mind.
"""

import os
import re
import resource
import subprocess
import time
from typing import Callable, Dict, List, NamedTuple, Optional

from . import sensors
from .tree import Tree, cpu_list
from .wire import Telemetry

# get_throttled: now, bits 0-3 (under-voltage, capped, throttled, soft temperature limit); since boot, bits
# 16-19.
PI_NOW = 0x0000F
_PI_SINCE_BOOT = 0xF0000
_PI_WORDS = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")


class CpuTime(NamedTuple):
    """Of one CPU since the machine started, seconds: not idle, and taken away by a hypervisor."""

    busy_s: float
    steal_s: float


class Snapshot(NamedTuple):
    """The sensors at one moment; a None or empty member has no sensor. ``cpu_times`` are those of the CPUs
    that our threads may use, ``own_cpu_s`` is what we used ourselves."""

    khz: List[int]
    temperature_mc: Dict[str, int]
    throttle_counts: Dict[str, int]
    pi_flags: Optional[int]
    cooling: Dict[str, int]
    max_khz: Dict[str, int]
    load_average: Optional[float]
    time_s: float
    own_cpu_s: float
    cpu_times: Dict[int, CpuTime]


def _vcgencmd() -> Optional[str]:
    try:
        done = subprocess.run(
            ["vcgencmd", "get_throttled"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=2.0
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("ascii", "replace") if done.returncode == 0 else None


def pi_flags(tree: Tree, vcgencmd: Optional[Callable[[], Optional[str]]] = None) -> Optional[int]:
    """The Raspberry Pi firmware's flags; None on other boards."""
    for soc in tree.names("sys/devices/platform"):
        if soc == "soc" or soc.startswith("soc@"):
            for firmware in tree.names("sys/devices/platform/" + soc):
                if firmware.endswith(":firmware"):
                    flags = tree.number("sys/devices/platform/%s/%s/get_throttled" % (soc, firmware), 16)
                    if flags is not None:
                        return flags
    text = vcgencmd() if vcgencmd is not None else None
    match = re.search(r"throttled=(0x[0-9a-fA-F]+)", text or "")
    return int(match.group(1), 16) if match else None


def _load_average(tree: Tree) -> Optional[float]:
    match = re.match(r"\d+\.\d+", tree.text("proc/loadavg") or "")
    return float(match.group()) if match else None


def _own_cpu_s() -> float:
    """CPU time of this process, all threads, and of the children that it has waited for, with theirs."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _usable_cpus(tree: Tree) -> List[int]:
    """CPUs that some thread of this process may run on; [] when /proc does not say. Threads are pinned one
    by one, so the main thread's mask alone is not it."""
    paths = ["proc/self/task/%s/status" % name for name in tree.names("proc/self/task")]
    cpus = set()
    for path in paths or ["proc/self/status"]:
        cpus.update(cpu_list(tree.fields(path).get("Cpus_allowed_list", "")))
    return sorted(cpus)


def _cpu_times(tree: Tree, hertz: float) -> Dict[int, CpuTime]:
    """/proc/stat per CPU: user, nice, system, idle, iowait, irq, softirq, steal in ticks; guests are in user
    and nice already."""
    found: Dict[int, CpuTime] = {}
    for line in (tree.text("proc/stat") or "").splitlines():
        match = re.match(r"cpu(\d+)((?: \d+){7,})", line)
        if match:
            ticks = [int(word) for word in match.group(2).split()]
            busy = ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6]
            steal = ticks[7] if len(ticks) > 7 else 0
            found[int(match.group(1))] = CpuTime(busy / hertz, steal / hertz)
    usable = _usable_cpus(tree)
    return {cpu: times for cpu, times in found.items() if cpu in usable or not usable}


def _numbers(tree: Tree, paths: Dict[str, str]) -> Dict[str, int]:
    found = {label: tree.number(path) for label, path in paths.items()}
    return {label: value for label, value in found.items() if value is not None}


def snapshot(tree: Optional[Tree] = None, vcgencmd: Optional[Callable[[], Optional[str]]] = None) -> Snapshot:
    """Reads the sensors. On a live Raspberry Pi ``vcgencmd`` is asked when sysfs does not answer."""
    tree = tree if tree is not None else Tree()
    if vcgencmd is None and tree.live and "Raspberry Pi" in (tree.text("proc/device-tree/model") or ""):
        vcgencmd = _vcgencmd
    khz: List[int] = []
    max_khz: Dict[str, int] = {}
    counts: Dict[str, int] = {}
    for cpu in cpu_list(tree.text("sys/devices/system/cpu/online") or ""):
        base = "sys/devices/system/cpu/cpu%d/" % cpu
        now = tree.number(base + "cpufreq/scaling_cur_freq")
        if now is not None:
            khz.append(now)
        limit = tree.number(base + "cpufreq/scaling_max_freq")
        if limit is not None:
            max_khz["cpu%d" % cpu] = limit
        for kind in ("core", "package"):
            count = tree.number(base + "thermal_throttle/%s_throttle_count" % kind)
            if count is not None:
                counts["cpu%d %s" % (cpu, kind)] = count
    temperatures = _numbers(tree, sensors.temperatures(tree))
    cooling = _numbers(tree, sensors.cooling_devices(tree))
    return Snapshot(
        khz=khz,
        temperature_mc=temperatures,
        throttle_counts=counts,
        pi_flags=pi_flags(tree, vcgencmd),
        cooling=cooling,
        max_khz=max_khz,
        load_average=_load_average(tree),
        time_s=time.monotonic(),
        own_cpu_s=_own_cpu_s(),
        cpu_times=_cpu_times(tree, float(os.sysconf("SC_CLK_TCK"))),
    )


def throttled_by(before: Snapshot, after: Snapshot) -> List[str]:
    """What shows throttling between two readings, in words."""
    found = []
    for key, count in after.throttle_counts.items():
        events = count - before.throttle_counts.get(key, count)
        if events > 0:
            found.append("%s: throttled %d times" % (key, events))
    if after.pi_flags is not None:
        fresh = after.pi_flags & ~(before.pi_flags or 0) & _PI_SINCE_BOOT
        found += pi_says(after.pi_flags & PI_NOW | fresh >> 16)
    for key in sorted(before.cooling.keys() | after.cooling.keys()):
        state = max(before.cooling.get(key, 0), after.cooling.get(key, 0))
        if state > 0:
            found.append("%s: state %d" % (key, state))
    for key, khz in after.max_khz.items():
        if khz < before.max_khz.get(key, khz):
            found.append("%s: limited from %d to %d MHz" % (key, before.max_khz[key] // 1000, khz // 1000))
    return found


def pi_says(flags: int) -> List[str]:
    """The firmware's flags in words; bits 16 and up are moved down to those of now."""
    return ["firmware: " + text for bit, text in enumerate(_PI_WORDS) if flags >> bit & 1]


def throttled(before: Snapshot, after: Snapshot) -> str:
    """ "yes", "no" or "unknown"; see the module's text."""
    if throttled_by(before, after):
        return "yes"
    return "no" if after.throttle_counts or after.pi_flags is not None or after.cooling else "unknown"


def telemetry(before: Snapshot, after: Snapshot) -> Telemetry:
    """What a record keeps."""
    steal_s = _passed(before, after, lambda times: times.steal_s)
    busy_s = _passed(before, after, lambda times: times.busy_s)
    own_s = after.own_cpu_s - before.own_cpu_s
    return Telemetry(
        khz_before=before.khz,
        khz_after=after.khz,
        temperature_mc_before=before.temperature_mc,
        temperature_mc_after=after.temperature_mc,
        throttled=throttled(before, after),
        throttled_by=throttled_by(before, after),
        load_average=before.load_average,
        other_cpu_s=None if busy_s is None else round(max(busy_s - own_s, 0.0), 3),
        steal_s=None if steal_s is None else round(steal_s, 3),
        window_s=round(after.time_s - before.time_s, 6),
    )


def _passed(before: Snapshot, after: Snapshot, part: Callable[[CpuTime], float]) -> Optional[float]:
    """What passed between two readings, over the CPUs that both know; None when they know none."""
    cpus = before.cpu_times.keys() & after.cpu_times.keys()
    if not cpus:
        return None
    return sum(max(part(after.cpu_times[cpu]) - part(before.cpu_times[cpu]), 0.0) for cpu in cpus)
