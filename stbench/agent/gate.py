"""Before a job: waits until the machine is as cool, and its clock as free, as it is when idle.

A board that has just worked starts its next run with less thermal room than the first one had: the order of
jobs would be in the numbers. The idle level is the coolest state that was seen on the device; the host
learns it from records and sends it along (``JobSpec.idle``). Until one is known, and where a summer's day has
put it out of reach, the wait ends when temperatures stop falling.
"""

import time
from collections import deque
from typing import Callable, Deque, Dict, List, NamedTuple, Optional

from .sensors import Sensors
from .tree import Tree
from .wire import Gate, JobSpec, ThermalState

LOOK_S = 1.0
# Above its idle level a zone may be so much, 1/1000 deg C: less is noise of sensors and of a day.
MARGIN_MC = 3000
# A frequency is back at its idle level within this factor.
KHZ_MARGIN = 1.1
# A zone has stopped falling when the lowest reading of the second half of so many seconds is less than this
# below that of the first half. A heat sink that loses 30 deg C in five minutes falls 1.5 deg C in 15 s at
# first and 0.3 when 5 are left; sensors show steps of 0.5 to 1 deg C.
SETTLE_S = 30.0
SETTLE_MC = 500
# What a gate that hangs in a sensor may take beyond its time, seconds.
PATIENCE_S = 15.0


class _Look(NamedTuple):
    at_s: float
    state: ThermalState


def is_wanted(job: JobSpec) -> bool:
    """Whether a job has a gate: not one whose numbers no heat can change."""
    return job.cool_down_s > 0 and job.purpose != "reference" and job.engine != "fake"


def wait(
    job: JobSpec,
    tree: Optional[Tree] = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Gate:
    """Waits, at most ``job.cool_down_s`` seconds, and says how it ended."""
    sensors = Sensors(tree if tree is not None else Tree())
    begin = clock()
    before = sensors.state()
    if not sensors.any:
        return Gate("absent", 0.0, before, before, "; ".join(sensors.absent))
    looks: Deque[_Look] = deque([_Look(begin, before)])
    while True:
        now = looks[-1].at_s
        waited = round(now - begin, 3)
        above = _above(looks, job.idle, sensors)
        outcome, detail = "", "; ".join(above)
        if job.idle is not None and not above:
            outcome = "cool"
        elif now - begin >= job.cool_down_s:
            outcome = "timeout"
        elif _settled(looks, now):
            outcome = "settled"
        if outcome:
            return Gate(outcome, waited, before, looks[-1].state, detail, job.idle, sensors.governors())
        sleep(min(LOOK_S, max(begin + job.cool_down_s - now, 0.0)))
        looks.append(_Look(clock(), sensors.state()))
        while looks[0].at_s < looks[-1].at_s - SETTLE_S - LOOK_S:
            looks.popleft()


def _above(looks: Deque[_Look], idle: Optional[ThermalState], sensors: Sensors) -> List[str]:
    """What is above the idle level, in words; without a level what is held down."""
    now = looks[-1].state
    found = ["%s: state %d" % item for item in sorted(now.cooling.items())]
    limits = idle.limit_khz if idle is not None else {one.name: one.max_khz for one in sensors.domains}
    for name, khz in now.limit_khz.items():
        free = limits.get(name)
        if free is not None and khz < free:
            found.append("%s: limited to %d of %d MHz" % (name, khz // 1000, free // 1000))
    if idle is None:
        return found
    for zone, value in now.temperature_mc.items():
        level = idle.temperature_mc.get(zone)
        if level is not None and value > level + MARGIN_MC:
            found.append("%s: %.1f deg C, %.1f when idle" % (zone, value / 1000, level / 1000))
    # This process itself wakes the CPU that it reads on: the lowest of the last looks counts.
    recent = [look.state.cpu_khz for look in looks][-5:]
    for name, level in idle.cpu_khz.items():
        khz = min((one[name] for one in recent if name in one), default=level)
        if khz > KHZ_MARGIN * level:
            found.append("%s: %d MHz, %d when idle" % (name, khz // 1000, level // 1000))
    return found


def _settled(looks: Deque[_Look], now: float) -> bool:
    """Whether nothing has become cooler or freer for a while."""
    if now - looks[0].at_s < SETTLE_S:
        return False
    middle = now - SETTLE_S / 2
    earlier = [look.state for look in looks if look.at_s < middle]
    later = [look.state for look in looks if look.at_s >= middle]
    lowest = _lowest([state.temperature_mc for state in earlier])
    for zone, value in _lowest([state.temperature_mc for state in later]).items():
        if value <= lowest.get(zone, value) - SETTLE_MC:
            return False
    return later[-1].cooling == earlier[0].cooling and later[-1].limit_khz == earlier[0].limit_khz


def _lowest(readings: List[Dict[str, int]]) -> Dict[str, int]:
    found: Dict[str, int] = {}
    for reading in readings:
        for name, value in reading.items():
            found[name] = min(value, found.get(name, value))
    return found
