"""Energy, where a machine measures it: the first of RAPL, hwmon energy counters, hwmon power, the PMIC of a
Raspberry Pi 5.

Counters are read at the ends of a phase, and at every look between, so that one that wraps around (RAPL does
after minutes to hours) is followed. Power sensors show one moment: their readings within a phase are averaged
and multiplied by its length.
"""

import re
import subprocess
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

from .tree import Tree
from .wire import Energy

# A counter of RAPL moves about once in 1 ms; 1 % of the window may be lost at its ends.
_MIN_WINDOW_S = 0.1
_MIN_POWER_READINGS = 2

# Monitors of other things than the board and its CPUs.
_NOT_THE_BOARD = re.compile(r"amdgpu|nouveau|radeon|i915|^xe$|nvme|drivetemp|iwlwifi|mlx|bnxt|BAT|ucsi", re.I)

_VCGENCMD_S = 2.0


class Channel(NamedTuple):
    """A counter file in microjoules; ``wraps_at``: the largest value, None: it never wraps."""

    path: str
    wraps_at: Optional[int]


class Source(NamedTuple):
    """A sensor: counters to be added, or a function that gives watts (None: no answer)."""

    sensor: str
    channels: List[Channel]
    watts: Optional[Callable[[], Optional[float]]] = None


def find(tree: Tree, pmic: Optional[Callable[[], Optional[str]]] = None) -> Optional[Source]:
    """The best sensor that answers; ``pmic`` gives the output of ``vcgencmd pmic_read_adc`` (default: asked
    on a live Raspberry Pi 5)."""
    if pmic is None and tree.live and "Raspberry Pi 5" in (tree.text("proc/device-tree/model") or ""):
        pmic = _pmic
    found = _rapl(tree) or _hwmon_energy(tree) or _hwmon_power(tree)
    return found or (_pmic_source(pmic) if pmic is not None else None)


def why_none(tree: Tree) -> str:
    """Whether energy sensors are absent or kept from us (RAPL is root's alone since Linux 5.10)."""
    for name in tree.names("sys/class/powercap"):
        tree.text("sys/class/powercap/%s/energy_uj" % name)
    for name in tree.names("sys/class/hwmon"):
        for entry in tree.names("sys/class/hwmon/" + name):
            if re.match(r"(energy|power)\d+_(input|average)$", entry):
                tree.text("sys/class/hwmon/%s/%s" % (name, entry))
    denied = any(path.startswith(("sys/class/powercap", "sys/class/hwmon")) for path in tree.denied)
    return "energy: %s" % ("denied" if denied else "absent")


def _rapl(tree: Tree) -> Optional[Source]:
    """Packages with what is in them, and memory, which is beside them. Not ``psys``: it holds both again; not
    ``intel-rapl-mmio``: the same package another way."""
    channels, names = [], []
    for zone in tree.names("sys/class/powercap"):
        base = "sys/class/powercap/%s/" % zone
        name = tree.text(base + "name") or ""
        is_package = re.match(r"intel-rapl:\d+$", zone) and name.startswith("package")
        is_memory = re.match(r"intel-rapl:\d+:\d+$", zone) and name == "dram"
        if (is_package or is_memory) and tree.number(base + "energy_uj") is not None:
            channels.append(Channel(base + "energy_uj", tree.number(base + "max_energy_range_uj")))
            names.append(name)
    return Source("RAPL " + "+".join(names), channels) if channels else None


def _monitors(tree: Tree, pattern: str) -> List[Tuple[str, str, str]]:
    """(monitor's name, path, label) of the readable hwmon files whose names match."""
    found = []
    for folder in tree.names("sys/class/hwmon"):
        base = "sys/class/hwmon/%s/" % folder
        name = tree.text(base + "name") or folder
        if _NOT_THE_BOARD.search(name):
            continue
        for entry in tree.names(base.rstrip("/")):
            if re.match(pattern, entry) and tree.number(base + entry) is not None:
                label = tree.text(base + entry.rpartition("_")[0] + "_label") or entry.rpartition("_")[0]
                found.append((name, base + entry, label))
    return found


def _hwmon_energy(tree: Tree) -> Optional[Source]:
    """Sockets where they are labelled so; else the first counter: others may hold it again."""
    found = _monitors(tree, r"energy\d+_input$")
    sockets = [one for one in found if one[2].startswith("Esocket")]
    chosen = sockets or found[:1]
    if not chosen:
        return None
    labels = "+".join(label for _, _, label in chosen)
    return Source("hwmon %s %s" % (chosen[0][0], labels), [Channel(path, None) for _, path, _ in chosen])


def _hwmon_power(tree: Tree) -> Optional[Source]:
    found = _monitors(tree, r"power1_(input|average)$")
    if not found:
        return None
    name, path, label = found[0]

    def watts() -> Optional[float]:
        value = tree.number(path)
        return value / 1e6 if value is not None else None

    return Source("hwmon %s %s" % (name, label), [], watts)


def _pmic() -> Optional[str]:
    try:
        done = subprocess.run(
            ["vcgencmd", "pmic_read_adc"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_VCGENCMD_S,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("ascii", "replace") if done.returncode == 0 else None


def pmic_watts(text: str) -> Optional[float]:
    """The sum over rails that show both a current and a voltage. None when there is none."""
    current = {rail: float(value) for rail, value in re.findall(r"(\w+)_A current\(\d+\)=([\d.]+)A", text)}
    volts = {rail: float(value) for rail, value in re.findall(r"(\w+)_V volt\(\d+\)=([\d.]+)V", text)}
    rails = current.keys() & volts.keys()
    return sum(current[rail] * volts[rail] for rail in rails) if rails else None


def _pmic_source(pmic: Callable[[], Optional[str]]) -> Optional[Source]:
    if pmic_watts(pmic() or "") is None:
        return None
    return Source("Pi 5 PMIC, sum of rails", [], lambda: pmic_watts(pmic() or ""))


class _Phase:
    """What one phase took so far."""

    def __init__(self) -> None:
        self.joules = 0.0
        self.seconds = 0.0
        self.watts = 0.0
        self.readings = 0
        self.whole = True


class Meter:
    """Adds up a source's energy by phase. Call :meth:`look` once first, then at every look and at every
    change of phase."""

    def __init__(self, tree: Tree, source: Source) -> None:
        self._tree = tree
        self._source = source
        self._phases: Dict[str, _Phase] = {}
        self._at: Optional[float] = None
        self._last: List[Optional[int]] = []
        # Since the last look that was no boundary.
        self._since_s: Optional[float] = None
        self._since_j = 0.0

    def look(self, now_s: float, phase: str, boundary: bool = False) -> Optional[float]:
        """Books what passed since the call before on ``phase``. Returns the watts since the last look that
        was no ``boundary``, where None is returned. A power sensor, which may take a program's start to read,
        is left alone there."""
        found = self._phases.setdefault(phase, _Phase())
        passed = now_s - self._at if self._at is not None else 0.0
        self._at = now_s
        found.seconds += passed
        if self._source.watts is not None:
            watts = None if boundary else self._source.watts()
            if watts is not None:
                found.watts += watts
                found.readings += 1
            return watts
        values = [self._tree.number(channel.path) for channel in self._source.channels]
        last, self._last = self._last, values
        if not last:
            self._since_s = now_s
            return None
        steps = [
            _step(earlier, now, channel.wraps_at)
            for earlier, now, channel in zip(last, values, self._source.channels)
        ]
        known = [step for step in steps if step is not None]
        if len(known) < len(steps):
            found.whole = False
        found.joules += sum(known) / 1e6
        self._since_j += sum(known) / 1e6
        if boundary:
            return None
        joules, self._since_j = self._since_j, 0.0
        before, self._since_s = self._since_s, now_s
        is_whole = before is not None and now_s > before and len(known) == len(steps)
        return joules / (now_s - (before or 0.0)) if is_whole else None

    def energy(self, phase: str, tokens: int) -> Optional[Energy]:
        """What ``phase`` took; None when it was too short to say or a reading is missing."""
        found = self._phases.get(phase)
        if found is None or tokens < 1 or found.seconds < _MIN_WINDOW_S:
            return None
        if self._source.watts is not None:
            readings = found.readings
            joules = found.watts / readings * found.seconds if readings >= _MIN_POWER_READINGS else 0.0
        else:
            readings, joules = 2, found.joules if found.whole else 0.0
        if joules <= 0:
            return None
        return Energy(self._source.sensor, round(joules, 6), round(found.seconds, 6), tokens, readings)


def _step(before: Optional[int], now: Optional[int], wraps_at: Optional[int]) -> Optional[int]:
    if before is None or now is None:
        return None
    if now >= before:
        return now - before
    return now + wraps_at + 1 - before if wraps_at else None
