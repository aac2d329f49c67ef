"""Messages about the machine around a run: how cool it was before, what it did meanwhile, what it took.

Text in the keys (zones, policies, sensors) is the kernel's own: ``cpu0`` is the frequency domain whose first
CPU is 0.
"""

from dataclasses import dataclass, field
from typing import Dict, List, Optional

# How the thermal gate ended: at the idle level; not falling any more, above that level or without one known;
# still falling or held down when the time was over; nothing here to look at.
GATE_OUTCOMES = ("cool", "settled", "timeout", "absent")


@dataclass(frozen=True)
class ThermalState:
    """A machine at one moment: temperatures of zones, frequencies of domains and what they are limited to,
    and the states above 0 of cooling devices that slow CPUs down."""

    temperature_mc: Dict[str, int] = field(default_factory=dict)
    cpu_khz: Dict[str, int] = field(default_factory=dict)
    limit_khz: Dict[str, int] = field(default_factory=dict)
    cooling: Dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Gate:
    """The wait for the machine to cool down, before anything of a job is started. ``outcome`` is one of
    GATE_OUTCOMES; ``idle`` is the level that was waited for (None: none was known yet), ``governors`` those
    of the frequency domains."""

    outcome: str
    waited_s: float
    before: ThermalState
    after: ThermalState
    detail: str = ""
    idle: Optional[ThermalState] = None
    governors: Dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Telemetry:
    """Frequencies (per CPU) and temperatures before and after; empty where there are no sensors.
    ``throttled`` is one of THROTTLE_VERDICTS, ``throttled_by`` what showed it; ``load_average`` is the
    one-minute one before the run.
    ``other_cpu_s`` is the CPU time that other processes took during the run, ``steal_s`` what a hypervisor
    took away, summed over the run's CPUs; None: the kernel does not say. ``window_s`` is the time between
    the readings: the timed part of a run, or all of a program's."""

    khz_before: List[int]
    khz_after: List[int]
    temperature_mc_before: Dict[str, int]
    temperature_mc_after: Dict[str, int]
    throttled: str
    load_average: Optional[float] = None
    other_cpu_s: Optional[float] = None
    steal_s: Optional[float] = None
    window_s: Optional[float] = None
    throttled_by: List[str] = field(default_factory=list)


@dataclass(frozen=True)
class Timeline:
    """What the supervising process saw of the machine while the measuring one ran, about every ``every_s``
    seconds. The lists have one item per point, null where a sensor did not answer; of long runs every second,
    fourth, ... look is kept. ``at_ms`` is since the measuring process was started, ``phase_ms`` when each
    phase began. ``rss_bytes`` and ``pss_bytes`` are of the largest process; PSS is seldom read, being dear.
    ``looks`` counts all looks, which took ``cost_s`` of CPU time together. They were made on CPUs ``cpus``,
    which the job did not use if ``apart``. ``absent`` names what could not be read."""

    every_s: float
    looks: int
    cost_s: float
    cpus: List[int]
    apart: bool
    at_ms: List[int] = field(default_factory=list)
    phase_ms: Dict[str, int] = field(default_factory=dict)
    cpu_khz: Dict[str, List[Optional[int]]] = field(default_factory=dict)
    temperature_mc: Dict[str, List[Optional[int]]] = field(default_factory=dict)
    rss_bytes: List[Optional[int]] = field(default_factory=list)
    pss_bytes: List[Optional[int]] = field(default_factory=list)
    power_mw: List[Optional[int]] = field(default_factory=list)
    absent: List[str] = field(default_factory=list)


@dataclass(frozen=True)
class Energy:
    """What decoding took, all of it: nothing is subtracted for an idle machine. ``sensor`` says which and
    what it covers; ``joules`` over the ``window_s`` seconds in which ``tokens`` were decoded, from
    ``readings`` of a counter's end points or of a power sensor that was averaged."""

    sensor: str
    joules: float
    window_s: float
    tokens: int
    readings: int


@dataclass(frozen=True)
class Bandwidth:
    """``bytes`` read in ``ns``; bytes / ns is GB/s."""

    bytes: int
    ns: int


@dataclass(frozen=True)
class Bracket:
    """What the memory gave just before and just after a run, with the run's threads and CPUs: ``read``
    streams, ``gather`` reads whole rows of ``row_bytes`` in random order (None: not measured). ``storage``:
    random units of ``storage_unit_bytes`` of the run's bundle (without one: parts of its model file) by the
    runtime's own readers, ``storage_io`` being the faster of those that the run may use and
    ``storage_direct`` past the page cache; ``storage_one``: the same, one unit at a time, by ``storage_io``
    (None: the run had neither a cache nor a memory limit, or a warning says why not). ``core``: streams over
    16 KiB per thread, which every core has a cache of its own for: how fast the cores are just then, which
    their clocks and a hypervisor's other guests decide (None: not measured)."""

    threads: int
    buffer_bytes: int
    read_before: Bandwidth
    read_after: Bandwidth
    gather_before: Optional[Bandwidth] = None
    gather_after: Optional[Bandwidth] = None
    row_bytes: int = 0
    storage_before: Optional[Bandwidth] = None
    storage_after: Optional[Bandwidth] = None
    storage_unit_bytes: int = 0
    storage_io: str = ""
    storage_direct: Optional[bool] = None
    storage_one_before: Optional[Bandwidth] = None
    storage_one_after: Optional[Bandwidth] = None
    core_before: Optional[Bandwidth] = None
    core_after: Optional[Bandwidth] = None
