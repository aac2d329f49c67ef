"""Where a machine's thermal and frequency sensors are, found once; reading them again costs a few files each.

Every file is optional: what is absent or refused is left out, and :attr:`Sensors.absent` says so.
"""

import re
from typing import Dict, List, NamedTuple, Optional, Sequence

from .tree import Tree, cpu_list
from .wire import ThermalState

# A phone has 80 zones and a server 100 CPUs with a domain each; a timeline keeps so many of a kind.
MAX_COLUMNS = 8

# 1/1000 deg C. Zones without a sensor behind them say 0, -273 or +200 deg C and more.
_PLAUSIBLE_MC = range(-40000, 150000)

# Zones that follow the CPUs, best first; a battery or a radio cools at a pace of its own.
_CPU_ZONES = (
    re.compile(r"cpu|x86_pkg|core|cluster|k10temp|zenpower", re.IGNORECASE),
    re.compile(r"(^|[^a-z])soc([^a-z]|$)|package|tsens|acpitz", re.IGNORECASE),
)
_CPU_MONITORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")

# Drivers whose frequencies move with load and neighbours by design: below the maximum is no sign of anything.
_TURBO_DRIVERS = re.compile(r"intel|amd|acpi|pcc")

# So much below its limit a frequency that is set to its maximum counts as lowered: drivers round.
_LOWERED = 0.98


class Domain(NamedTuple):
    """CPUs whose frequency is set together."""

    name: str
    cpus: List[int]
    path: str
    governor: str
    driver: str
    max_khz: Optional[int]

    @property
    def holds_its_maximum(self) -> bool:
        """A lower frequency than the limit is not of its own choice."""
        return self.governor == "performance" and not _TURBO_DRIVERS.search(self.driver)

    def is_held_down(self, khz: int, limit_khz: int) -> bool:
        """Whether a frequency below the limit says that something else lowered it."""
        return self.holds_its_maximum and khz < _LOWERED * limit_khz


def temperatures(tree: Tree) -> Dict[str, str]:
    """Label -> path of every temperature: thermal zones by their type, equal types told apart by number, and
    CPUs' own monitors where no zone is one of theirs."""
    found: Dict[str, str] = {}
    for name in tree.names("sys/class/thermal"):
        if name.startswith("thermal_zone"):
            base = "sys/class/thermal/%s/" % name
            kind = tree.text(base + "type") or name
            found[kind if kind not in found else "%s (%s)" % (kind, name)] = base + "temp"
    if any(_CPU_ZONES[0].search(label) for label in found):
        return found
    for name in tree.names("sys/class/hwmon"):
        base = "sys/class/hwmon/%s/" % name
        kind = tree.text(base + "name") or ""
        if kind in _CPU_MONITORS:
            for entry in tree.names(base.rstrip("/")):
                if re.match(r"temp\d+_input$", entry):
                    label = tree.text(base + entry.replace("_input", "_label")) or entry[:-6]
                    found["%s %s (%s)" % (kind, label, name)] = base + entry
    return found


def cooling_devices(tree: Tree) -> Dict[str, str]:
    """Label -> path of the states of devices that cool by slowing CPUs down (no fans)."""
    found: Dict[str, str] = {}
    for name in tree.names("sys/class/thermal"):
        base = "sys/class/thermal/%s/" % name
        if name.startswith("cooling_device"):
            kind = tree.text(base + "type") or name
            if "cpu" in kind.lower():
                found["%s (%s)" % (kind, name)] = base + "cur_state"
    return found


def domains(tree: Tree) -> List[Domain]:
    """Frequency domains of the CPUs that are online."""
    found: List[Domain] = []
    seen: Dict[int, bool] = {}
    for cpu in cpu_list(tree.text("sys/devices/system/cpu/online") or ""):
        base = "sys/devices/system/cpu/cpu%d/cpufreq/" % cpu
        if cpu in seen or tree.number(base + "scaling_max_freq") is None:
            continue
        # Lists are written with blanks here. Without one the CPUs count as independent.
        together = [int(n) for n in (tree.text(base + "related_cpus") or "").split() if n.isdigit()]
        cpus = sorted({cpu, *together})
        seen.update(dict.fromkeys(cpus, True))
        found.append(
            Domain(
                "cpu%d" % cpus[0],
                cpus,
                base,
                tree.text(base + "scaling_governor") or "",
                tree.text(base + "scaling_driver") or "",
                tree.number(base + "cpuinfo_max_freq"),
            )
        )
    return found


class Sensors:
    """The thermal sensors of one machine. With ``cpus`` only the frequency domains of these count."""

    def __init__(self, tree: Tree, cpus: Sequence[int] = ()) -> None:
        self._tree = tree
        self.domains = [one for one in domains(tree) if not cpus or set(cpus) & set(one.cpus)]
        zones = temperatures(tree)
        now = self._read(zones)
        plausible = {label: path for label, path in zones.items() if _is_plausible(now.get(label))}
        self._zones = _of_cpus(plausible)
        self._cooling = cooling_devices(tree)
        found = (
            ("temperatures", self._zones, "sys/class/thermal"),
            ("CPU frequencies", self.domains, "sys/devices/system/cpu/cpu0/cpufreq"),
            ("cooling devices", self._cooling, "sys/class/thermal"),
        )
        self.absent = ["%s: %s" % (what, _why(tree, path)) for what, sensors, path in found if not sensors]

    @property
    def any(self) -> bool:
        """Whether there is anything that a thermal gate could watch."""
        return bool(self._zones or self.domains or self._cooling)

    def governors(self) -> Dict[str, str]:
        """Domain -> governor, where it can be read."""
        return {one.name: one.governor for one in self.domains if one.governor}

    def state(self) -> ThermalState:
        """One look at all of them."""
        now = self._read(self._zones)
        cooling = self._read(self._cooling)
        return ThermalState(
            temperature_mc={label: value for label, value in now.items() if _is_plausible(value)},
            cpu_khz=self._read({one.name: one.path + "scaling_cur_freq" for one in self.domains}),
            limit_khz=self._read({one.name: one.path + "scaling_max_freq" for one in self.domains}),
            cooling={label: level for label, level in cooling.items() if level > 0},
        )

    def _read(self, paths: Dict[str, str]) -> Dict[str, int]:
        values = {label: self._tree.number(path) for label, path in paths.items()}
        return {label: value for label, value in values.items() if value is not None}


def _is_plausible(value: Optional[int]) -> bool:
    return value is not None and value != 0 and value in _PLAUSIBLE_MC


def _of_cpus(zones: Dict[str, str]) -> Dict[str, str]:
    for pattern in _CPU_ZONES:
        chosen = {label: path for label, path in zones.items() if pattern.search(label)}
        if chosen:
            return chosen
    return zones


def _why(tree: Tree, path: str) -> str:
    """A second look at a directory says whether it is missing or kept from us."""
    tree.names(path)
    denied = any(one == path or one.startswith(path + "/") for one in tree.denied)
    return "denied" if denied else "absent"
