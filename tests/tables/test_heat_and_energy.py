"""Throttling, warm starts and joules per token: from records to cells, notes and the page."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from stbench.agent.wire import Energy, Gate, RunRecord, ThermalState
from stbench.records.frame import to_frame
from stbench.tables import cells, notes, render
from stbench.tables.grid import build_tables
from tests.tables.factory import record, table_4b

STATE = ThermalState({"cpu-thermal": 61000})


def marked(*, by: str = "", joules: float | None = None, gate: str = "", **changes: Any) -> RunRecord:
    made = record(throttled="yes" if by else "no", **changes)
    tokens = made.workload.n_gen
    energy = Energy("RAPL package-0", joules * tokens, 2.0, tokens, 2) if joules is not None else None
    return dataclasses.replace(
        made,
        gate=Gate(gate, 120.0, STATE, STATE, "cpu-thermal: 61.0 deg C, 41.6 when idle") if gate else None,
        telemetry=(
            dataclasses.replace(made.telemetry, throttled_by=[by])
            if made.telemetry and by
            else made.telemetry
        ),
        energy=energy,
    )


def test_records_without_any_of_it_have_empty_columns() -> None:
    (row,) = to_frame([record()]).to_dict("records")
    assert (row["throttled_by"], row["energy_sensor"], row["gate"]) == ("", "", "")
    assert math.isnan(row["joules_per_token"])
    details = cells.speed_cell(to_frame([record()]), "decode_tps").details
    assert not {"throttled_by", "gate", "joules_per_token"} & details.keys()


def test_a_cell_has_joules_per_token_with_its_sensor() -> None:
    frame = to_frame([marked(joules=j, replicate=i) for i, j in enumerate((0.5, 0.75, 0.625))])
    details = cells.speed_cell(frame, "decode_tps").details
    assert (details["joules_per_token"], details["energy_sensor"]) == (0.625, ["RAPL package-0"])
    assert notes.energy_sentences("x", frame) == [
        "x: 0.625 J/token while decoding (RAPL package-0, median of 3 replicates, 0.5 to 0.75; "
        "nothing subtracted for an idle device)."
    ]


@pytest.mark.parametrize("changes", [{"status": "crashed"}, {"verdict": "wrong"}])
def test_energy_of_a_run_that_is_no_result_is_none(changes: dict[str, Any]) -> None:
    frame = to_frame([marked(joules=0.5, **changes)])
    assert notes.energy_sentences("x", frame) == []
    assert cells.speed_cell(frame, "decode_tps").details.get("joules_per_token") is None


def test_one_wrong_output_takes_the_energy_of_the_cell_away() -> None:
    frame = to_frame([marked(joules=0.5), marked(joules=0.5, verdict="wrong", replicate=1)])
    assert notes.energy_sentences("x", frame) == []
    assert cells.speed_cell(frame, "decode_tps").details.get("joules_per_token") is None


def test_who_throttled_and_what_showed_it_is_said() -> None:
    frame = to_frame([marked(by="cpu4: limited", replicate=0), marked(replicate=1)])
    cell = cells.speed_cell(frame, "decode_tps")
    assert "T" in cell.marks
    assert cell.details["throttled"] == {"no": 1, "yes": 1}
    assert cell.details["throttled_by"] == ["cpu4: limited"]
    assert notes.heat_sentences("x", frame) == ["x: 1 of 2 replicates throttled (cpu4: limited)."]


def test_a_warm_start_is_said() -> None:
    frame = to_frame([marked(gate="timeout", replicate=0), marked(gate="cool", replicate=1)])
    assert cells.speed_cell(frame, "decode_tps").details["gate"] == {"cool": 1, "timeout": 1}
    assert notes.heat_sentences("x", frame) == [
        "x: 1 of 2 replicates started warm, after the longest wait (120 s) "
        "(cpu-thermal: 61.0 deg C, 41.6 when idle)."
    ]


def test_the_page_has_a_column_for_it_only_where_it_was_measured() -> None:
    plain = table_4b()
    assert "J/token" not in render.markdown(build_tables(plain))
    energy = Energy("RAPL package-0", 32.0, 2.0, plain[0].workload.n_gen, 2)
    page = render.markdown(build_tables([dataclasses.replace(one, energy=energy) for one in plain]))
    assert "| throttled | J/token |" in page
    assert f"| {32.0 / plain[0].workload.n_gen:.3f} |" in page
