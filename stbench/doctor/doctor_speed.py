"""The doctor's checks of what sets a device's speed: governors, power, heat, other load, instructions."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from stbench.agent import monitor
from stbench.agent.probe import probe
from stbench.agent.tree import cpu_list
from stbench.doctor.findings import NOTE, WRONG, Check, Finding, Patient
from stbench.yamlfile import printable

_CPU = "sys/devices/system/cpu/"
_COOL = "give it a heat sink or a fan; it throttles again otherwise"

# Of get_throttled, now and since boot.
_UNDERVOLTAGE, _HEAT = 0x1, 0xE
_SINCE_BOOT = 16

# CPUs in use by others: an idle system's own housekeeping stays below.
_BUSY_CPUS = 0.15
_LOAD = 0.7

_HOT_MC = 80000
_NEAR_TRIP_MC = 5000


def _online(patient: Patient) -> list[int]:
    return cpu_list(patient.tree.text(_CPU + "online") or "")


def _governor(patient: Patient) -> Iterator[Finding]:
    tree = patient.tree
    found: dict[str, list[int]] = {}
    for cpu in _online(patient):
        governor = tree.text(f"{_CPU}cpu{cpu}/cpufreq/scaling_governor")
        if governor is not None and governor != "performance":
            found.setdefault(printable(governor), []).append(cpu)
    for governor, cpus in found.items():
        yield Finding(
            "governor",
            WRONG,
            f"CPUs {_ranges(cpus)} have the governor {governor}: a run's speed depends on how soon it "
            "clocks up",
            f"echo performance | sudo tee /{_CPU}cpu*/cpufreq/scaling_governor",
        )


def _frequency_cap(patient: Patient) -> Iterator[Finding]:
    if any(state for _, state in _cooling(patient)):
        # The thermal governor lowers the same file; that is a finding of its own.
        return
    tree = patient.tree
    capped = {}
    for cpu in _online(patient):
        base = f"{_CPU}cpu{cpu}/cpufreq/"
        limit, top = tree.number(base + "scaling_max_freq"), tree.number(base + "cpuinfo_max_freq")
        if limit is not None and top is not None and limit < top:
            capped[cpu] = (limit, top)
    if capped:
        cpu, (limit, top) = min(capped.items())
        yield Finding(
            "frequency-cap",
            WRONG,
            f"CPUs {_ranges(list(capped))} may not use their full clock: CPU {cpu} {limit // 1000} of "
            f"{top // 1000} MHz",
            f"for d in /{_CPU}cpu*/cpufreq; do sudo cp $d/cpuinfo_max_freq $d/scaling_max_freq; done",
        )


def _offline(patient: Patient) -> Iterator[Finding]:
    present = cpu_list(patient.tree.text(_CPU + "present") or "")
    missing = sorted(set(present) - set(_online(patient)))
    if missing and len(missing) < len(present):
        yield Finding(
            "cpus-offline",
            WRONG,
            f"CPUs {_ranges(missing)} are switched off",
            f"for n in {' '.join(map(str, missing[:64]))}; do echo 1 | sudo tee /{_CPU}cpu$n/online; done",
        )


def _dram_governor(patient: Patient) -> Iterator[Finding]:
    tree = patient.tree
    for name in tree.names("sys/class/devfreq"):
        file = f"/sys/class/devfreq/{name}/governor"
        governor = tree.text(file)
        is_memory = any(word in name.lower() for word in ("dmc", "dram", "ddr", "emc", "memory"))
        if is_memory and governor is not None and governor != "performance":
            yield Finding(
                "dram-governor",
                WRONG,
                f"the memory's clock ({printable(name)}) has the governor {printable(governor)}: decoding is "
                "as fast as memory is",
                f"echo performance | sudo tee {shlex.quote(printable(file))}",
            )


def _pi(patient: Patient) -> Iterator[Finding]:
    flags = monitor.pi_flags(patient.tree, lambda: patient.capture.commands.get("vcgencmd get_throttled"))
    flags = flags or 0
    now, since = flags & 0xF, (flags >> _SINCE_BOOT) & 0xF
    if (now | since) & _UNDERVOLTAGE or _undervoltage_alarm(patient):
        when = "has" if now & _UNDERVOLTAGE or not flags else "had since it started"
        yield Finding(
            "undervoltage",
            WRONG,
            f"it {when} too low a supply voltage, and lowers its clock then",
            "use the board's own power supply (Pi 5: 5.1 V, 5 A) and a short cable, then: sudo reboot",
        )
    if (now | since) & _HEAT:
        when = "is throttled" if now & _HEAT else "was throttled since it started"
        said = ", ".join(monitor.pi_says(flags & ~(_UNDERVOLTAGE | _UNDERVOLTAGE << _SINCE_BOOT)))
        yield Finding("throttled", WRONG, f"it {when}" + (f" ({said})" if said else ""), _COOL)


def _undervoltage_alarm(patient: Patient) -> bool:
    tree = patient.tree
    return any(
        tree.number(f"sys/class/hwmon/{name}/in0_lcrit_alarm") == 1
        for name in tree.names("sys/class/hwmon")
        if tree.text(f"sys/class/hwmon/{name}/name") == "rpi_volt"
    )


def _cooling(patient: Patient) -> list[tuple[str, int]]:
    """CPUs' cooling devices and their states; above 0 they lower the clock."""
    tree = patient.tree
    found = []
    for name in tree.names("sys/class/thermal"):
        kind = tree.text(f"sys/class/thermal/{name}/type") or ""
        if name.startswith("cooling_device") and "cpu" in kind.lower():
            state = tree.number(f"sys/class/thermal/{name}/cur_state")
            if state is not None:
                found.append((printable(kind), state))
    return found


def _throttled(patient: Patient) -> Iterator[Finding]:
    active = [f"{kind} in state {state}" for kind, state in _cooling(patient) if state > 0]
    if active:
        yield Finding("throttled", WRONG, f"heat lowers its clock now: {', '.join(active[:4])}", _COOL)


def _throttle_counters(patient: Patient) -> Iterator[Finding]:
    tree = patient.tree
    counts = {
        cpu: max(
            tree.number(f"{_CPU}cpu{cpu}/thermal_throttle/{kind}_throttle_count") or 0
            for kind in ("core", "package")
        )
        for cpu in _online(patient)
    }
    hit = {cpu: count for cpu, count in counts.items() if count > 0}
    if hit:
        yield Finding(
            "throttle-counters",
            WRONG,
            f"CPUs {_ranges(list(hit))} were throttled by heat since it started, at most "
            f"{max(hit.values())} times",
            _COOL,
        )


def _hot(patient: Patient) -> Iterator[Finding]:
    tree = patient.tree
    hottest: tuple[int, str, int] | None = None
    for name in tree.names("sys/class/thermal"):
        base = f"sys/class/thermal/{name}/"
        temperature = tree.number(base + "temp") if name.startswith("thermal_zone") else None
        # Zones without a sensor say 0, -273 or some hundreds of degrees.
        if temperature is None or not 0 < temperature < 150000:
            continue
        trips = [
            trip
            for entry in tree.names(base.rstrip("/"))
            if entry.startswith("trip_point_")
            and entry.endswith("_type")
            and tree.text(base + entry) == "passive"
            if (trip := tree.number(base + entry.replace("_type", "_temp"))) and trip > 40000
        ]
        limit = min(trips) - _NEAR_TRIP_MC if trips else _HOT_MC
        if temperature >= limit and (hottest is None or temperature > hottest[0]):
            hottest = (temperature, tree.text(base + "type") or name, min(trips) if trips else 0)
    if hottest is not None:
        temperature, zone, trip = hottest
        yield Finding(
            "hot",
            WRONG,
            f"{printable(zone)} has {temperature / 1000:.0f} °C"
            + (f", and it throttles at {trip / 1000:.0f} °C" if trip else " before anything runs"),
            _COOL,
        )


def _load(patient: Patient) -> Iterator[Finding]:
    capture = patient.capture
    busy, text = capture.busy_cpus, ""
    if busy is not None and busy > _BUSY_CPUS:
        who = ", ".join(f"{printable(name)[:40]} {share:.0%}" for name, share in capture.busiest.items())
        text = f"other programs use {busy:.1f} of its CPUs" + (f": {who}" if who else "")
    elif busy is None:
        load = monitor.snapshot(patient.tree).load_average
        if load is not None and load > _LOAD:
            text = f"its load average is {load:g}: other programs are at work"
    if text:
        yield Finding("load", WRONG, text, "top -b -n 1 | head -15   # then stop what does not belong there")


def _instructions(patient: Patient) -> Iterator[Finding]:
    facts = probe(patient.tree)
    if not facts.features:
        return
    if facts.machine == "aarch64" and "asimddp" not in facts.features:
        yield Finding(
            "no-dotprod",
            NOTE,
            f"not all of its CPUs ({printable(facts.cpu_model)}) have dot product instructions: quantised "
            "matrices cost 1.3 to 1.6 times the cycles of cores that have them (estimated, docs/kernels.md)",
            "nothing mends it: compare it with boards that lack them, too, or pin it to cores that have them",
        )
    if facts.machine == "x86_64" and "avx2" not in facts.features:
        yield Finding(
            "no-avx2",
            NOTE,
            "its CPUs have no AVX2: the runtime falls back to plain code, several times slower",
            "nothing mends it, unless a virtual machine hides them: give it the host's CPU model",
        )


def _unseen(patient: Patient) -> Iterator[Finding]:
    """What is denied is said, so that silence means health."""
    tree = patient.tree
    online = _online(patient)
    has_governor = any(tree.text(f"{_CPU}cpu{cpu}/cpufreq/scaling_governor") for cpu in online)
    has_zones = any(name.startswith("thermal_zone") for name in tree.names("sys/class/thermal"))
    denied = tree.denied
    hidden = [
        what
        for what, seen, parts in (
            ("governors", has_governor, ("/cpufreq", "devices/system/cpu")),
            ("temperatures", has_zones, ("class/thermal",)),
            (
                "other load",
                patient.capture.busy_cpus is not None or tree.text("proc/loadavg"),
                ("proc/loadavg",),
            ),
        )
        if not seen and any(part in path for path in denied for part in parts)
    ]
    if hidden:
        yield Finding(
            "unseen",
            NOTE,
            f"it does not let us see its {', '.join(hidden)}: records say throttled: unknown",
            "only root may read them there; let it rest between runs (devices.yaml: cool_down: 300)",
        )


def _ranges(cpus: list[int]) -> str:
    """[0, 1, 2, 5] as 0-2,5."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and parts[-1][-1] == cpu - 1:
            parts[-1].append(cpu)
        else:
            parts.append([cpu])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


CHECKS: tuple[Check, ...] = (
    _governor,
    _frequency_cap,
    _offline,
    _dram_governor,
    _pi,
    _throttled,
    _throttle_counters,
    _hot,
    _load,
    _instructions,
    _unseen,
)
