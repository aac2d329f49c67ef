"""Energy: which sensor is taken, counters that wrap around, power that is averaged, joules of the decode
phase."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stbench.agent import energy
from stbench.agent.sampler import Sampler
from stbench.agent.tree import Tree
from stbench.agent.wire import Settings
from tests.agent.conftest import fake_job
from tests.agent.test_probe import CapturedTree

PMIC = """\
       3V7_WL_SW_A current(0)=0.10000000A
       3V3_SYS_A current(1)=0.50000000A
       VDD_CORE_A current(7)=2.00000000A
       3V7_WL_SW_V volt(8)=3.70000000V
       3V3_SYS_V volt(9)=3.30000000V
       VDD_CORE_V volt(15)=0.80000000V
       EXT5V_V volt(24)=5.15000000V
       BATT_V volt(25)=0.00000000V
"""
CORE = "sys/class/powercap/intel-rapl:0"


class Machine:
    """A tree of files to change, and a clock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tree = Tree(root)
        self.now = 0.0

    def write(self, path: str, value: object) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(f"{value}\n")

    def monitor(self, number: int, name: str, **files: object) -> None:
        for file, value in {"name": name, **files}.items():
            self.write(f"sys/class/hwmon/hwmon{number}/{file}", value)

    def clock(self) -> float:
        return self.now

    def found(self) -> energy.Source:
        source = energy.find(self.tree)
        assert source is not None
        return source

    def meter(self) -> energy.Meter:
        return energy.Meter(self.tree, self.found())


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def rapl(machine: Machine) -> Machine:
    """A desktop: a package of 262 kJ, and zones of which only memory is not in it."""
    zones = {
        "intel-rapl:0": ("package-0", 1_000_000),
        "intel-rapl:0:0": ("core", 400_000),
        "intel-rapl:0:1": ("dram", 50_000),
        "intel-rapl:1": ("psys", 9_000_000),
        "intel-rapl-mmio:0": ("package-0", 1_000_000),
    }
    for zone, (name, value) in zones.items():
        machine.write(f"sys/class/powercap/{zone}/name", name)
        machine.write(f"sys/class/powercap/{zone}/energy_uj", value)
        machine.write(f"sys/class/powercap/{zone}/max_energy_range_uj", 262_143_328_850)
    return machine


def test_rapl_is_packages_and_memory(rapl: Machine) -> None:
    assert rapl.found().sensor == "RAPL package-0+dram"
    meter = rapl.meter()
    meter.look(0.0, "load", boundary=True)
    rapl.write(f"{CORE}/energy_uj", 6_000_000)
    meter.look(1.0, "load", boundary=True)
    rapl.write(f"{CORE}/energy_uj", 66_000_000)
    rapl.write(f"{CORE}:1/energy_uj", 4_050_000)
    assert meter.look(3.0, "decode") == 23.0
    found = meter.energy("decode", 128)
    assert found is not None
    assert (found.joules, found.window_s, found.tokens) == (64.0, 2.0, 128)
    rapl.write(f"{CORE}/energy_uj", 99_000_000)
    meter.look(4.0, "check")
    assert meter.energy("decode", 128) == found, "what comes later is not decoding"


def test_a_counter_that_wraps_around_is_followed(rapl: Machine) -> None:
    meter = rapl.meter()
    rapl.write(f"{CORE}/energy_uj", 262_143_328_850 - 10_000_000)
    meter.look(0.0, "decode", boundary=True)
    joules = 0.0
    for second in range(1, 4):
        joules += 100.0
        rapl.write(f"{CORE}/energy_uj", (262_143_328_850 - 10_000_000 + second * 10**8) % 262_143_328_851)
        meter.look(float(second), "decode")
    found = meter.energy("decode", 1)
    assert found is not None
    assert found.joules == joules


def test_a_counter_that_goes_missing_gives_no_number(rapl: Machine) -> None:
    meter = rapl.meter()
    meter.look(0.0, "decode")
    rapl.write(f"{CORE}/energy_uj", 5_000_000)
    meter.look(1.0, "decode")
    rapl.write(f"{CORE}/energy_uj", "")
    meter.look(2.0, "decode")
    rapl.write(f"{CORE}/energy_uj", 9_000_000)
    meter.look(3.0, "decode")
    assert meter.energy("decode", 10) is None


def test_a_counter_that_stands_still_or_a_moment_gives_no_number(rapl: Machine) -> None:
    meter = rapl.meter()
    meter.look(0.0, "decode", boundary=True)
    meter.look(5.0, "decode", boundary=True)
    assert meter.energy("decode", 10) is None
    meter = rapl.meter()
    meter.look(0.0, "decode", boundary=True)
    rapl.write(f"{CORE}/energy_uj", 2_000_000)
    meter.look(0.01, "decode", boundary=True)
    assert meter.energy("decode", 10) is None


def test_rapl_is_roots_alone_on_most_machines(rapl: Machine) -> None:
    (rapl.root / "DENIED").write_text("sys/class/powercap/*/energy_uj\n")
    tree = CapturedTree(rapl.root)
    assert energy.find(tree) is None
    assert energy.why_none(tree) == "energy: denied"
    assert energy.why_none(Tree(rapl.root / "nowhere")) == "energy: absent"


def test_sockets_before_cores_in_hwmon(machine: Machine) -> None:
    machine.monitor(
        3, "amd_energy", energy1_input=1, energy1_label="Ecore000", energy9_input=2, energy9_label="Esocket0"
    )
    assert machine.found().sensor == "hwmon amd_energy Esocket0"


def test_a_graphics_card_is_not_the_board(machine: Machine) -> None:
    machine.monitor(0, "amdgpu", power1_average=30_000_000)
    assert energy.find(machine.tree) is None
    machine.monitor(1, "ina226", power1_input=5_000_000, power1_label="VDD_IN")
    assert machine.found().sensor == "hwmon ina226 VDD_IN"


def test_power_is_averaged_over_the_phase(machine: Machine) -> None:
    machine.monitor(1, "ina226", power1_input=90_000_000)
    meter = machine.meter()
    meter.look(0.0, "load")
    meter.look(1.5, "load", boundary=True)
    for second, watts in ((2.0, 4), (3.0, 6), (4.0, 5)):
        machine.write("sys/class/hwmon/hwmon1/power1_input", watts * 1_000_000)
        assert meter.look(second, "decode") == watts
    meter.look(4.5, "decode", boundary=True)
    found = meter.energy("decode", 30)
    assert found is not None
    assert (found.sensor, found.joules, found.window_s, found.readings) == (
        "hwmon ina226 power1",
        15.0,
        3.0,
        3,
    )


def test_one_reading_of_power_is_no_average(machine: Machine) -> None:
    machine.monitor(1, "ina226", power1_input=5_000_000)
    meter = machine.meter()
    meter.look(0.0, "decode", boundary=True)
    meter.look(1.0, "decode")
    assert meter.energy("decode", 10) is None


def test_the_pmic_of_a_pi_5(machine: Machine) -> None:
    assert energy.pmic_watts(PMIC) == pytest.approx(0.1 * 3.7 + 0.5 * 3.3 + 2.0 * 0.8)
    assert energy.pmic_watts('error=1 error_msg="Command not registered"') is None
    source = energy.find(machine.tree, lambda: PMIC)
    assert source is not None
    assert source.sensor == "Pi 5 PMIC, sum of rails"
    assert energy.find(machine.tree, lambda: None) is None


def test_garbage_is_no_sensor(rapl: Machine) -> None:
    for path in rapl.root.rglob("*"):
        if path.is_file():
            path.write_bytes(b"\xff\x00garbage\n")
    assert energy.find(rapl.tree) is None


def test_a_job_on_a_machine_with_rapl_has_joules_of_its_decode_phase(rapl: Machine) -> None:
    seen = Sampler(fake_job(settings=Settings(threads=1)), rapl.tree, rapl.clock)
    seen.start(os.getpid())
    used = 1_000_000
    for phase, seconds, watts in (("load", 3, 90), ("prefill", 2, 50), ("decode", 4, 20), ("results", 1, 90)):
        seen.told(b'{"phase": "%s"}\n' % phase.encode())
        for _ in range(seconds):
            seen.look()
            rapl.now += 1.0
            used += watts * 1_000_000
            rapl.write(f"{CORE}/energy_uj", used)
    seen.told(b'{"phase": "check"}\n')
    found = seen.energy(40)
    assert found is not None
    assert (found.sensor, found.joules, found.window_s) == ("RAPL package-0+dram", 80.0, 4.0)
    assert seen.timeline().power_mw == [None, *[90000] * 3, *[50000] * 2, *[20000] * 4]
    assert not [text for text in seen.timeline().absent if text.startswith("energy")]
