"""The level that a thermal gate waits for, learned from the gates before."""

from __future__ import annotations

import dataclasses

from stbench.agent.wire import Gate, RunRecord, ThermalState
from stbench.campaigns.idle import IdleLevels
from tests.agent.conftest import fake_job
from tests.tables.factory import record


def seen(outcome: str, mc: int, *, limit: int = 2400000, khz: int = 600000, device: str = "pi") -> RunRecord:
    state = ThermalState({"cpu-thermal": mc}, {"cpu0": khz}, {"cpu0": limit}, {"cpu (0)": 1})
    return dataclasses.replace(record(device=device), gate=Gate(outcome, 1.0, state, state))


def level(*records: RunRecord, device: str = "pi") -> ThermalState | None:
    return IdleLevels(records).sent_with(fake_job(device=device, cool_down_s=60.0)).idle


def test_nothing_is_known_before_the_first_gate_opened() -> None:
    assert level() is None
    assert level(record(device="pi"), seen("timeout", 60000), seen("absent", 0)) is None
    assert level(seen("cool", 40000), device="other") is None


def test_the_coolest_state_counts_zone_by_zone() -> None:
    found = level(seen("settled", 43000), seen("cool", 41000, khz=1500000), seen("cool", 42000))
    assert found == ThermalState({"cpu-thermal": 41000}, {"cpu0": 600000}, {"cpu0": 2400000})


def test_a_warmer_room_is_a_new_level() -> None:
    found = level(seen("cool", 40000), seen("settled", 47000), seen("cool", 48000))
    assert found is not None
    assert found.temperature_mc == {"cpu-thermal": 47000}


def test_a_gate_that_gave_up_teaches_nothing() -> None:
    found = level(seen("cool", 40000), seen("timeout", 70000))
    assert found is not None
    assert found.temperature_mc == {"cpu-thermal": 40000}


def test_a_clock_that_is_held_down_is_no_level() -> None:
    found = level(seen("cool", 40000), seen("settled", 41000, limit=1200000))
    assert found is not None
    assert found.limit_khz == {"cpu0": 2400000}


def test_a_job_without_a_gate_is_sent_as_it_is() -> None:
    job = fake_job(device="pi")
    assert IdleLevels([seen("cool", 40000)]).sent_with(job) is job
