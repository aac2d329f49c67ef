"""Looks at the machine about once a second while a job runs: frequencies, temperatures, memory, power.

It is not a thread of the measuring process but its supervisor, which has nothing else to do meanwhile: it
takes no lock that inference needs and adds no memory to what is measured. It goes to CPUs that the job does
not use, where there are others. Memory is bounded: when :data:`MAX_POINTS` are kept, every other one is
dropped and half as many kept from then on; what is judged and added up is so at every look all the same.
"""

import contextlib
import dataclasses
import os
import resource
import time
from typing import Callable, Dict, List, NamedTuple, Optional, Set, Tuple

from . import energy, monitor
from .childloop import phases_told
from .sensors import MAX_COLUMNS, Sensors
from .tree import Tree, cpu_list, processes
from .wire import Energy, JobSpec, Settings, Telemetry, ThermalState, Timeline

MAX_POINTS = 240
MAX_HZ = 10.0

# The timed phases of our own engine, and those of programs, which are timed as a whole.
_TIMED = ("prefill", "decode", "llama-bench", "external program")
DECODE = "decode"

# PSS makes the kernel walk all pages of a process (about 10 ms for 2 GiB in small ones), so it may take this
# share of the time.
_PSS_SHARE = 0.005

# Looks that have to see the maximum before it counts as held.
_HELD_LOOKS = 3
_MAX_REASONS = 16


class Place(NamedTuple):
    """CPUs to look from, and whether the job leaves them alone."""

    cpus: List[int]
    apart: bool


def place(settings: Settings, allowed: Set[int], tree: Tree) -> Place:
    """Where to look from: CPUs that the job does not use, and if possible none that share a core with one
    that it does. Threads that are not pinned may be anywhere."""
    count = settings.threads or len(settings.cpus) or len(allowed)
    used = set(settings.cpus[:count])
    others = allowed - used if used else set()
    if not others:
        return Place(sorted(allowed), False)
    siblings: Set[int] = set()
    for cpu in used:
        siblings.update(
            cpu_list(tree.text("sys/devices/system/cpu/cpu%d/topology/thread_siblings_list" % cpu) or "")
        )
    return Place(sorted(others - siblings or others), True)


class _Point(NamedTuple):
    at_ms: int
    state: ThermalState
    rss: Optional[int]
    pss: Optional[int]
    milliwatts: Optional[int]


class Sampler:
    """Watches one measuring process from :meth:`start` until :meth:`close`."""

    def __init__(
        self,
        job: JobSpec,
        tree: Optional[Tree] = None,
        clock: Callable[[], float] = time.monotonic,
        source: Optional[energy.Source] = None,
    ) -> None:
        self._tree = tree = tree if tree is not None else Tree()
        self._job, self._pid, self._clock = job, 0, clock
        self._every_s = 1.0 / min(job.sample_hz, MAX_HZ)
        self._before = set(os.sched_getaffinity(0))
        self._place = Place(sorted(self._before), False)
        self._sensors = Sensors(tree, job.settings.cpus)
        first = self._sensors.state()
        self._limit_khz = first.limit_khz
        self._has_flags = monitor.pi_flags(tree) is not None
        hottest = sorted(first.temperature_mc, key=lambda label: -first.temperature_mc[label])
        self._zones = hottest[:MAX_COLUMNS]
        source = source or energy.find(tree)
        self._meter = energy.Meter(tree, source) if source is not None else None
        self._absent = self._sensors.absent + ([] if source is not None else [energy.why_none(tree)])
        self._phase = "start"
        self._phases: Dict[str, int] = {}
        self._partial = b""
        self._points: List[_Point] = []
        self._keep = 1
        self._looks = self._timed_looks = 0
        self._cost_s = 0.0
        self._pss_due = 0.0
        self._reasons: Dict[str, str] = {}
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self._began = self._next = clock()

    def start(self, pid: int) -> None:
        """The process was started: from now on this one keeps off its CPUs."""
        self._pid = pid
        self._began = self._next = self._clock()
        self._place = self._move(place(self._job.settings, self._before, self._tree))
        if self._meter is not None:
            self._meter.look(self._began, self._phase, boundary=True)

    def _move(self, to: Place) -> Place:
        if to.apart:
            try:
                os.sched_setaffinity(0, to.cpus)
            except OSError:
                return Place(sorted(self._before), False)
        # What the kernel made of it, not what it was asked.
        now = sorted(os.sched_getaffinity(0))
        return Place(now, to.apart and set(now) <= set(to.cpus))

    # ---- while the job runs ------------------------------------------------------------------------------

    def told(self, data: bytes) -> None:
        """What the measuring process reported just now; its phases count."""
        phases, self._partial = phases_told(self._partial + data)
        for phase in phases:
            self._enter(phase)

    def _enter(self, phase: str) -> None:
        now = self._clock()
        if self._meter is not None:
            self._meter.look(now, self._phase, boundary=True)
        self._phase = phase
        self._phases.setdefault(phase, round((now - self._began) * 1000))

    def pause(self, limit: float) -> float:
        """Seconds until the next look, at most ``limit``."""
        return min(limit, max(self._next - self._clock(), 0.0))

    def look(self) -> None:
        """A look, if it is due."""
        now = self._clock()
        if now < self._next:
            return
        self._next = max(self._next + self._every_s, now)
        cost = _cpu_s()
        state = self._sensors.state()
        rss, pss = self._memory(now)
        watts = self._meter.look(now, self._phase) if self._meter is not None else None
        if self._phase.startswith(_TIMED):
            self._judge(state, now)
        if self._looks % self._keep == 0:
            milliwatts = round(watts * 1000) if watts is not None else None
            self._points.append(_Point(round((now - self._began) * 1000), state, rss, pss, milliwatts))
            if len(self._points) > MAX_POINTS:
                self._points = self._points[::2]
                self._keep *= 2
        self._looks += 1
        self._cost_s += _cpu_s() - cost

    def _memory(self, now: float) -> Tuple[Optional[int], Optional[int]]:
        """RSS and, now and then, PSS of the largest process."""
        largest, rss = self._pid, None
        for pid in processes(self._tree, self._pid):
            words = (self._tree.text("proc/%d/statm" % pid) or "").split()
            # Of a process that has ended it says 0 until somebody reaps it.
            if len(words) > 1 and words[1].isdigit() and int(words[1]) * self._page_bytes > (rss or 0):
                largest, rss = pid, int(words[1]) * self._page_bytes
        if now < self._pss_due or not self._phase.startswith(_TIMED):
            return rss, None
        begin = time.monotonic()
        pss = self._tree.kibibytes(self._tree.fields("proc/%d/smaps_rollup" % largest), "Pss")
        self._pss_due = now + max((time.monotonic() - begin) / _PSS_SHARE, self._every_s)
        return rss, pss

    def _judge(self, state: ThermalState, now: float) -> None:
        """Notes the first sign of each kind of throttling."""
        self._timed_looks += 1
        when = "%d s after the start (%s)" % (now - self._began, self._phase)
        for label, level in state.cooling.items():
            self._note(label, "%s: state %d %s" % (label, level, when))
        flags = monitor.pi_flags(self._tree) if self._has_flags else None
        for said in monitor.pi_says((flags or 0) & monitor.PI_NOW):
            self._note(said, "%s %s" % (said, when))
        for domain in self._sensors.domains:
            khz, limit = state.cpu_khz.get(domain.name), state.limit_khz.get(domain.name)
            first = self._limit_khz.get(domain.name)
            if limit is not None and first is not None and limit < first:
                text = "%s: limited from %d to %d MHz %s" % (domain.name, first // 1000, limit // 1000, when)
                self._note(domain.name, text)
            elif khz is not None and limit is not None and domain.is_held_down(khz, limit):
                text = "%s: %d of %d MHz under governor performance %s"
                self._note(domain.name, text % (domain.name, khz // 1000, limit // 1000, when))

    def _note(self, key: str, text: str) -> None:
        if len(self._reasons) < _MAX_REASONS:
            self._reasons.setdefault(key, text)

    # ---- afterwards --------------------------------------------------------------------------------------

    def close(self) -> None:
        """Back to the CPUs from before."""
        if self._place.apart:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, self._before)

    def judged(self, telemetry: Telemetry) -> Telemetry:
        """The verdict of before and after, with what was seen between. Where nothing else could tell,
        frequencies that are bound to their maximum and were there at every look say no."""
        by = telemetry.throttled_by + list(self._reasons.values())
        domains = self._sensors.domains
        held = domains and all(domain.holds_its_maximum for domain in domains)
        verdict = telemetry.throttled
        if by:
            verdict = "yes"
        elif verdict == "unknown" and held and self._timed_looks >= _HELD_LOOKS:
            verdict = "no"
        return dataclasses.replace(telemetry, throttled=verdict, throttled_by=by)

    def energy(self, tokens: int) -> Optional[Energy]:
        """What decoding ``tokens`` took; None without a sensor."""
        return self._meter.energy(DECODE, tokens) if self._meter is not None else None

    def timeline(self) -> Timeline:
        """What a record keeps."""
        points = self._points
        names = sorted({name for point in points for name in point.state.cpu_khz}, key=_numbered)
        n_pss = any(point.pss is not None for point in points)
        n_power = any(point.milliwatts is not None for point in points)
        return Timeline(
            every_s=round(self._every_s, 6),
            looks=self._looks,
            cost_s=round(self._cost_s, 6),
            cpus=self._place.cpus,
            apart=self._place.apart,
            at_ms=[point.at_ms for point in points],
            phase_ms=self._phases,
            cpu_khz={
                name: [point.state.cpu_khz.get(name) for point in points] for name in names[:MAX_COLUMNS]
            },
            temperature_mc={
                zone: [point.state.temperature_mc.get(zone) for point in points] for zone in self._zones
            },
            rss_bytes=[point.rss for point in points],
            pss_bytes=[point.pss for point in points] if n_pss else [],
            power_mw=[point.milliwatts for point in points] if n_power else [],
            absent=self._absent,
        )


def _numbered(name: str) -> Tuple[int, str]:
    digits = "".join(c for c in name if c.isdigit())
    return int(digits or 0), name


def _cpu_s() -> float:
    """CPU time of this process and of the programs it asked and has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
