"""What kind of machine is this? Facts from /proc and /sys, each optional, with a note where one is missing.

:func:`probe` takes the root of a tree, so captured /proc and /sys trees test it. The fingerprint identifies
the machine *kind* (two boards of one model and memory size share it): records of equal fingerprints may be
compared.
"""

import hashlib
import json
import os
import platform
import re
import shutil
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from .tree import Tree, cpu_list
from .wire import CpuCluster, DeviceFacts

# ARM "CPU part" numbers of implementer 0x41 (Arm Limited), as in the kernel's cputype.h.
_ARM_PARTS = {
    0xD03: "Cortex-A53",
    0xD04: "Cortex-A35",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD0D: "Cortex-A77",
    0xD40: "Neoverse-V1",
    0xD41: "Cortex-A78",
    0xD44: "Cortex-X1",
    0xD46: "Cortex-A510",
    0xD47: "Cortex-A710",
    0xD48: "Cortex-X2",
    0xD49: "Neoverse-N2",
    0xD4B: "Cortex-A78C",
    0xD4D: "Cortex-A715",
    0xD4E: "Cortex-X3",
    0xD4F: "Neoverse-V2",
    0xD80: "Cortex-A520",
    0xD81: "Cortex-A720",
    0xD82: "Cortex-X4",
    0xD85: "Cortex-X925",
    0xD87: "Cortex-A725",
}
_IMPLEMENTERS = {
    0x41: "Arm",
    0x48: "HiSilicon",
    0x51: "Qualcomm",
    0x53: "Samsung",
    0x61: "Apple",
    0xC0: "Ampere",
}


class _Cpu(NamedTuple):
    number: int
    model: str
    max_khz: Optional[int]
    capacity: Optional[int]
    governor: Optional[str]
    kind: str
    # The first CPU of its core; itself where the device does not say.
    core: int


def probe(tree: Optional[Tree] = None, isas: Sequence[str] = (), work_path: str = "/") -> DeviceFacts:
    """Facts of the machine whose files ``tree`` holds (this one by default). ``isas`` are the supported
    instruction sets as the library says, ``work_path`` is where models lie (for the storage facts)."""
    tree = tree if tree is not None else Tree()
    notes: List[str] = []
    cpuinfo = tree.text("proc/cpuinfo") or ""
    cpus = _cpus(tree, cpuinfo)
    clusters = _clusters(cpus)
    meminfo = tree.fields("proc/meminfo")
    memory = tree.kibibytes(meminfo, "MemTotal")
    allowed = cpu_list(tree.fields("proc/self/status").get("Cpus_allowed_list", ""))
    storage, read_ahead = _storage(tree, work_path)
    board = _board(tree)
    facts = DeviceFacts(
        hostname=tree.text("proc/sys/kernel/hostname") or (platform.node() if tree.live else ""),
        machine=_machine(tree, cpuinfo),
        kernel=tree.text("proc/sys/kernel/osrelease") or (platform.release() if tree.live else ""),
        os=_os(tree),
        python=platform.python_version(),
        cpu_model=_cpu_model(cpuinfo, clusters),
        n_cpus=len(cpus),
        allowed_cpus=allowed or [cpu.number for cpu in cpus],
        clusters=clusters,
        features=_features(cpuinfo),
        isas=list(isas),
        page_bytes=_page_bytes(tree),
        memory_bytes=memory or 0,
        memory_available_bytes=tree.kibibytes(meminfo, "MemAvailable") or 0,
        swap_bytes=tree.kibibytes(meminfo, "SwapTotal") or 0,
        storage=storage,
        storage_free_bytes=_free_bytes(tree, work_path),
        read_ahead_kb=read_ahead,
        caches=_caches(tree, cpus),
        virtualisation=_virtualisation(tree, cpuinfo),
        boot_id=tree.text("proc/sys/kernel/random/boot_id"),
        fingerprint="",
        notes=notes,
        board=board,
    )
    _note_missing(facts, cpus, tree, notes)
    return DeviceFacts(**dict(facts.__dict__, fingerprint=fingerprint(facts)))


def fingerprint(facts: DeviceFacts) -> str:
    """16 hexadecimal digits over what identifies the machine kind: board, CPU clusters, memory, page size.
    Not its name, its kernel or where it lies."""
    identity = {
        "machine": facts.machine,
        "board": facts.board,
        "cpu": facts.cpu_model,
        "clusters": [[cluster.model, len(cluster.cpus), cluster.max_khz] for cluster in facts.clusters],
        # MemTotal moves by some MiB with kernel and firmware: half a gibibyte is the same machine.
        "memory_half_gib": round(facts.memory_bytes / (1 << 29)),
        "page": facts.page_bytes,
        "virtualisation": facts.virtualisation,
    }
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---- CPUs --------------------------------------------------------------------------------------------


def _processors(cpuinfo: str) -> Dict[int, Dict[str, str]]:
    """/proc/cpuinfo by processor number."""
    found: Dict[int, Dict[str, str]] = {}
    for block in re.split(r"\n\s*\n", cpuinfo):
        values = {}
        for line in block.splitlines():
            key, mark, value = line.partition(":")
            if mark:
                values[key.strip()] = value.strip()
        if values.get("processor", "").isdigit():
            found[int(values["processor"])] = values
    return found


def _model_of(values: Dict[str, str]) -> str:
    if "CPU part" in values:
        try:
            implementer, part = int(values.get("CPU implementer", "0"), 16), int(values["CPU part"], 16)
        except ValueError:
            return "unknown"
        if implementer == 0x41 and part in _ARM_PARTS:
            return _ARM_PARTS[part]
        return "%s part 0x%03x" % (_IMPLEMENTERS.get(implementer, "implementer 0x%02x" % implementer), part)
    return values.get("model name") or values.get("uarch") or "unknown"


def _cpus(tree: Tree, cpuinfo: str) -> List[_Cpu]:
    """CPUs that are online. /proc/cpuinfo of some Android kernels lists only awake ones, so /sys comes
    first."""
    processors = _processors(cpuinfo)
    online = cpu_list(tree.text("sys/devices/system/cpu/online") or "") or sorted(processors)
    if not online and tree.live:
        online = list(range(os.cpu_count() or 1))
    kinds = _kinds(tree)
    cpus = []
    for index in online:
        base = "sys/devices/system/cpu/cpu%d/" % index
        cpus.append(
            _Cpu(
                index,
                _model_of(processors.get(index, {})),
                tree.number(base + "cpufreq/cpuinfo_max_freq"),
                tree.number(base + "cpu_capacity"),
                tree.text(base + "cpufreq/scaling_governor"),
                kinds.get(index, ""),
                min([index, *_siblings(tree, base)]),
            )
        )
    return cpus


def _kinds(tree: Tree) -> Dict[int, str]:
    """CPU -> "core" or "atom", as the performance counters of hybrid x86 CPUs are listed."""
    return {
        cpu: kind
        for kind in ("core", "atom")
        for cpu in cpu_list(tree.text("sys/devices/cpu_%s/cpus" % kind) or "")
    }


def _siblings(tree: Tree, base: str) -> List[int]:
    """CPUs of the same physical core."""
    for name in ("core_cpus_list", "thread_siblings_list"):
        text = tree.text(base + "topology/" + name)
        if text:
            return cpu_list(text)
    return []


def _clusters(cpus: Sequence[_Cpu]) -> List[CpuCluster]:
    """CPUs of one model, frequency, capacity and kind together, in order of the first CPU."""
    groups: Dict[Tuple[str, Optional[int], Optional[int], str], List[_Cpu]] = {}
    for cpu in cpus:
        groups.setdefault((cpu.model, cpu.max_khz, cpu.capacity, cpu.kind), []).append(cpu)
    return [_cluster(group) for group in groups.values()]


def _cluster(group: Sequence[_Cpu]) -> CpuCluster:
    first = group[0]
    cores = sorted({cpu.core for cpu in group})
    return CpuCluster(
        [cpu.number for cpu in group],
        first.model,
        first.max_khz,
        first.governor,
        first.capacity,
        first.kind,
        cores if len(cores) < len(group) else [],
    )


def _cpu_model(cpuinfo: str, clusters: Sequence[CpuCluster]) -> str:
    """ "AMD EPYC", or "4x Cortex-A55 + 4x Cortex-A76"."""
    names: Dict[str, int] = {}
    for cluster in clusters:
        names[cluster.model] = names.get(cluster.model, 0) + len(cluster.cpus)
    if len(names) == 1:
        return next(iter(names))
    return " + ".join("%dx %s" % (count, name) for name, count in names.items()) or "unknown"


def _features(cpuinfo: str) -> List[str]:
    """Features that every CPU has."""
    sets = []
    for values in _processors(cpuinfo).values():
        text = values.get("flags") or values.get("Features")
        if text:
            sets.append(set(text.split()))
    return sorted(set.intersection(*sets)) if sets else []


_UNITS = {"K": 1 << 10, "M": 1 << 20}


def _caches(tree: Tree, cpus: Sequence[_Cpu]) -> Dict[str, int]:
    """Bytes of one cache of each level ("L1d", "L2", "L3"): the largest where clusters differ."""
    found: Dict[str, int] = {}
    for cpu in cpus:
        base = "sys/devices/system/cpu/cpu%d/cache/" % cpu.number
        for name in tree.names(base):
            level, kind = tree.text(base + name + "/level"), tree.text(base + name + "/type")
            size = re.match(r"^(\d+)([KM])$", tree.text(base + name + "/size") or "")
            if level and kind and size:
                key = "L" + level + {"Data": "d", "Instruction": "i"}.get(kind, "")
                found[key] = max(found.get(key, 0), int(size.group(1)) * _UNITS[size.group(2)])
    return found


# ---- the rest of the machine -------------------------------------------------------------------------


def _machine(tree: Tree, cpuinfo: str) -> str:
    arch = tree.text("proc/sys/kernel/arch")
    if arch or tree.live:
        return arch or platform.machine()
    return "aarch64" if "CPU implementer" in cpuinfo else "x86_64"


def _os(tree: Tree) -> str:
    for path in ("etc/os-release", "usr/lib/os-release"):
        name = tree.fields(path, "=").get("PRETTY_NAME", "").strip("\"'")
        if name:
            return name
    release = tree.fields("system/build.prop", "=").get("ro.build.version.release")
    if release:
        return "Android " + release
    return "Android" if "system/build.prop" in tree.denied else "unknown"


def _board(tree: Tree) -> Optional[str]:
    """ "Raspberry Pi 5 Model B Rev 1.0"; on PCs what the firmware calls the product."""
    model = tree.text("proc/device-tree/model")
    if model:
        return model
    parts = [tree.text("sys/class/dmi/id/" + name) for name in ("sys_vendor", "product_name")]
    return " ".join(part.strip() for part in parts if part and part.strip()) or None


def _page_bytes(tree: Tree) -> int:
    if tree.live:
        return os.sysconf("SC_PAGE_SIZE")
    return tree.kibibytes(tree.fields("proc/self/smaps"), "KernelPageSize") or 0


def _virtualisation(tree: Tree, cpuinfo: str) -> Optional[str]:
    vendor = (tree.text("sys/class/dmi/id/sys_vendor") or "").strip()
    kind = tree.text("sys/hypervisor/type")
    if "hypervisor" in _features(cpuinfo) or kind:
        return kind or (vendor if vendor else "hypervisor")
    return "qemu" if vendor == "QEMU" else None


def _storage(tree: Tree, work_path: str) -> Tuple[Optional[str], Optional[int]]:
    """("ext4 on /dev/mmcblk0p2 (SD64G)", read-ahead in KiB) of the file system that holds ``work_path``."""
    path = os.path.realpath(work_path) if tree.live else work_path
    best: Optional[Tuple[str, str, str, str]] = None
    for line in (tree.text("proc/self/mountinfo") or "").splitlines():
        before, mark, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if not mark or len(left) < 5 or len(right) < 2:
            continue
        mount = left[4].replace("\\040", " ")
        inside = path == mount or path.startswith(mount.rstrip("/") + "/")
        if inside and (best is None or len(mount) >= len(best[0])):
            best = (mount, left[2], right[0], right[1])
    if best is None:
        return None, None
    _, device, kind, source = best
    name = tree.fields("sys/dev/block/%s/uevent" % device, "=").get("DEVNAME") or os.path.basename(source)
    disk = (
        name
        if tree.names("sys/class/block/%s/queue" % name)
        else re.sub(r"(?<=\d)p\d+$|(?<=[a-z])\d+$", "", name)
    )
    base = "sys/class/block/%s/" % disk
    model = (tree.text(base + "device/model") or tree.text(base + "device/name") or "").strip()
    described = "%s on %s" % (kind, source) + (" (%s)" % model if model else "")
    return described, tree.number(base + "queue/read_ahead_kb")


def _free_bytes(tree: Tree, work_path: str) -> Optional[int]:
    if not tree.live:
        return None
    try:
        return shutil.disk_usage(work_path).free
    except OSError:
        return None


def _note_missing(facts: DeviceFacts, cpus: Sequence[_Cpu], tree: Tree, notes: List[str]) -> None:
    """A note per missing fact, saying whether the file is absent or reading it was denied."""

    def missing(what: str, pattern: str) -> None:
        denied = any(pattern in path for path in tree.denied)
        notes.append("%s: %s" % (what, "denied" if denied else "absent"))

    if all(cpu.max_khz is None for cpu in cpus):
        missing("CPU frequencies", "/cpufreq")
    if not facts.caches:
        missing("cache sizes", "/cache")
    if not facts.memory_bytes:
        missing("memory size", "proc/meminfo")
    if not facts.features:
        missing("CPU features", "proc/cpuinfo")
    if facts.storage is None:
        missing("storage", "proc/self/mountinfo")
    elif facts.read_ahead_kb is None:
        missing("read-ahead", "sys/class/block")
    if facts.boot_id is None:
        missing("boot id", "boot_id")
    if not tree.names("sys/class/thermal"):
        missing("temperatures", "sys/class/thermal")
    if not facts.isas:
        notes.append("instruction sets: unknown without the native library")
