"""The thermal gate: what it waits for, how it ends, and that it never costs a job."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from stbench.agent import gate, sampler, sensors, supervise, wire
from stbench.agent.tree import Tree
from stbench.agent.wire import Gate, JobSpec, ModelRef, Program, Reading, ThermalState, Workload
from tests.agent.conftest import TREES, fake_job
from tests.agent.heating import Board
from tests.agent.test_probe import CapturedTree

HOT_S = 80.0  # the load has just ended


def job(
    cool_down_s: float = 300.0, idle: ThermalState | None = None, script: str = "echo speed 5"
) -> JobSpec:
    """A job that is gated: an external program."""
    program = Program("external", ["sh", "-c", script], decode=Reading(regex=r"speed (\S+)"))
    return fake_job(
        engine="mine",
        program=program,
        model=ModelRef("m", "/m"),
        workload=Workload(0, 20),
        cool_down_s=cool_down_s,
        idle=idle,
    )


def idle_state(folder: Path) -> ThermalState:
    """What the board's sensors say before anything has run."""
    return sensors.Sensors(Board(folder / "idle").tree).state()


def wait(board: Board, spec: JobSpec) -> Gate:
    found = gate.wait(spec, board.tree, board.clock, board.sleep)
    assert wire.loads(Gate, wire.dumps(found)) == found
    return found


def hottest(state: ThermalState) -> int:
    return max(state.temperature_mc.values())


def test_a_cool_board_is_not_waited_for(tmp_path: Path) -> None:
    found = wait(Board(tmp_path), job(idle=idle_state(tmp_path)))
    assert (found.outcome, found.waited_s, found.detail) == ("cool", 0.0, "")
    assert found.governors == {"cpu0": "performance", "cpu4": "performance", "cpu6": "performance"}
    assert found.after.limit_khz == {"cpu0": 1800000, "cpu4": 2256000, "cpu6": 2304000}


def test_a_hot_board_is_waited_for_until_it_is_as_cool_as_when_idle(tmp_path: Path) -> None:
    found = wait(Board(tmp_path, HOT_S), job(idle=idle_state(tmp_path)))
    assert found.outcome == "cool"
    assert hottest(found.before) > 70000
    assert found.before.cooling
    assert not found.after.cooling
    assert hottest(found.after) <= hottest(idle_state(tmp_path / "again")) + gate.MARGIN_MC
    assert 80 < found.waited_s < 160


def test_without_a_known_level_it_waits_until_nothing_falls_any_more(tmp_path: Path) -> None:
    found = wait(Board(tmp_path, HOT_S), job())
    assert (found.outcome, found.idle) == ("settled", None)
    assert hottest(found.after) < 45000
    assert found.waited_s > 100


def test_a_board_that_cannot_get_as_cool_as_it_was_has_settled(tmp_path: Path) -> None:
    """A summer's day: the level was seen in the morning."""
    idle = ThermalState(temperature_mc={"bigcore1-thermal": 31000})
    found = wait(Board(tmp_path, 250), job(idle=idle))
    assert found.outcome == "settled"
    assert found.waited_s < 2 * gate.SETTLE_S
    assert found.detail == "bigcore1-thermal: 42.5 deg C, 31.0 when idle"


def test_the_time_out_is_kept_and_recorded(tmp_path: Path) -> None:
    found = wait(Board(tmp_path, HOT_S), job(25.0, idle_state(tmp_path)))
    assert (found.outcome, found.waited_s) == ("timeout", 25.0)
    assert "bigcore1-thermal: " in found.detail
    assert found.detail.endswith("deg C, 41.6 when idle")


def test_a_cool_board_whose_clock_is_held_down_is_waited_for(tmp_path: Path) -> None:
    idle = idle_state(tmp_path)
    board = Board(tmp_path)
    limit = "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq"
    board.write(limit, "1200000")
    board.write("sys/class/thermal/cooling_device0/cur_state", "3")
    sleeps = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        board.sleep(seconds)
        if len(sleeps) == 8:
            board.write(limit, "1800000")
            board.write("sys/class/thermal/cooling_device0/cur_state", "0")

    found = gate.wait(job(idle=idle), board.tree, board.clock, sleep)
    assert (found.outcome, found.waited_s) == ("cool", 8.0)
    assert found.before.cooling == {"thermal-cpufreq-0 (cooling_device0)": 3}


def test_a_clock_above_its_idle_level_is_waited_for(tmp_path: Path) -> None:
    """Somebody computes: the temperature has not followed yet."""
    quiet = {"cpu0": 408000, "cpu4": 408000, "cpu6": 408000}
    idle = ThermalState(idle_state(tmp_path).temperature_mc, quiet)
    found = wait(Board(tmp_path), job(idle=idle))
    assert found.outcome == "settled"
    assert "cpu4: 2256 MHz, 408 when idle" in found.detail


def test_one_reading_of_a_low_clock_is_enough(tmp_path: Path) -> None:
    """The gate itself wakes the CPU that it reads on."""
    idle = idle_state(tmp_path)
    idle.cpu_khz["cpu0"] = 408000
    board = Board(tmp_path)
    file = "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"
    values = iter(["1800000", "408000", "1800000", "1800000"])

    def sleep(seconds: float) -> None:
        board.sleep(seconds)
        board.write(file, next(values))

    assert gate.wait(job(idle=idle), board.tree, board.clock, sleep).waited_s == 2.0


@pytest.mark.parametrize(("name", "why"), [("x86-vm", "absent"), ("android", "denied")])
def test_nothing_to_look_at_is_said_and_costs_no_time(name: str, why: str) -> None:
    def never(_seconds: float) -> None:
        raise AssertionError("slept")

    found = gate.wait(job(), CapturedTree(TREES / name), sleep=never)
    assert (found.outcome, found.waited_s) == ("absent", 0.0)
    assert f"temperatures: {why}" in found.detail
    assert f"CPU frequencies: {why}" in found.detail


def test_zones_without_a_sensor_do_not_count(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.write("sys/class/thermal/thermal_zone2/temp", "-273000")
    board.write("sys/class/thermal/thermal_zone1/temp", "0")
    assert set(sensors.Sensors(board.tree).state().temperature_mc) == {"littlecore-thermal"}


def test_zones_of_cpus_are_preferred_to_a_battery(tmp_path: Path) -> None:
    for number, (kind, temp) in enumerate([("battery", "31000"), ("cpu-0-1", "44000"), ("socd", "88000")]):
        base = tmp_path / f"sys/class/thermal/thermal_zone{number}"
        base.mkdir(parents=True)
        (base / "type").write_text(kind)
        (base / "temp").write_text(temp)
    assert sensors.Sensors(Tree(tmp_path)).state().temperature_mc == {"cpu-0-1": 44000}
    (tmp_path / "sys/class/thermal/thermal_zone1/type").write_text("modem")
    assert len(sensors.Sensors(Tree(tmp_path)).state().temperature_mc) == 3


def test_a_cpu_without_a_zone_has_its_own_monitor(tmp_path: Path) -> None:
    base = tmp_path / "sys/class/hwmon/hwmon2"
    base.mkdir(parents=True)
    for name, text in (("name", "k10temp"), ("temp1_input", "47125"), ("temp1_label", "Tctl")):
        (base / name).write_text(text + "\n")
    assert sensors.Sensors(Tree(tmp_path)).state().temperature_mc == {"k10temp Tctl (hwmon2)": 47125}


# ---- through the supervisor --------------------------------------------------------------------------


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    """A hot board that the supervisor takes for this machine, at fifty times the speed."""
    board = Board(tmp_path, HOT_S)
    monkeypatch.setattr(gate, "Tree", lambda: board.tree)
    monkeypatch.setattr(sampler, "Tree", lambda: board.tree)
    monkeypatch.setattr(gate, "LOOK_S", 0.02)
    return board


def test_a_job_starts_when_the_gate_opens(
    live: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, over, real = tmp_path / "looked", threading.Event(), gate.wait

    def rest(seconds: float) -> None:
        looked.touch()
        time.sleep(seconds)

    def cool() -> None:
        while not over.wait(0.02):
            if looked.exists():  # earlier, it might not be hot any more when the gate begins
                live.sleep(2.0)

    monkeypatch.setattr(gate, "wait", lambda job: real(job, sleep=rest))
    thread = threading.Thread(target=cool)
    thread.start()
    try:
        record = supervise.run_job(job(60.0, idle_state(tmp_path)))
    finally:
        over.set()
        thread.join()
    assert (record.status, record.detail) == ("ok", "")
    assert record.gate is not None
    assert record.gate.outcome == "cool"
    assert hottest(record.gate.before) > 70000
    assert hottest(record.gate.after) < 46000


def test_a_gate_is_cancelled_like_a_job(live: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, ended, real = tmp_path / "waits", threading.Event(), gate.wait

    def told(job: JobSpec) -> Gate:
        waits.touch()
        return real(job)

    def cancel() -> None:
        while not ended.wait(0.01):
            if waits.exists():  # earlier, nobody might hear it but these tests
                os.kill(os.getpid(), signal.SIGTERM)
                return

    monkeypatch.setattr(gate, "wait", told)
    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        record = supervise.run_job(job(120.0, idle_state(tmp_path), "echo started >&2; echo speed 5"))
    finally:
        ended.set()
        thread.join()
    assert (record.status, record.detail) == ("cancelled", "SIGTERM during thermal gate")
    assert record.samples is None


def test_a_sensor_that_hangs_costs_the_gate_and_not_the_job(
    live: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "PATIENCE_S", 0.5)
    sensor = live.root / "sys/class/thermal/thermal_zone2/temp"
    sensor.unlink()
    os.mkfifo(sensor)
    begin = time.monotonic()
    record = supervise.run_job(job(0.5))
    assert time.monotonic() - begin < 60
    assert record.status == "ok"
    assert record.gate is None
    (warning,) = record.warnings
    assert warning.startswith(
        "the thermal gate failed: not sampled, and perhaps started on a warm device: not"
    )
    assert record.timeline is None, "the supervisor would have hung in that sensor itself"


def test_what_no_heat_can_change_is_not_gated() -> None:
    assert gate.is_wanted(job())
    assert not gate.is_wanted(job(0.0))
    assert not gate.is_wanted(fake_job(cool_down_s=10.0))
    assert not gate.is_wanted(fake_job(engine="sbr", cool_down_s=10.0, purpose="reference"))
    assert gate.is_wanted(fake_job(engine="sbr", cool_down_s=10.0, purpose="search"))
