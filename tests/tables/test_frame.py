"""Records -> rows: every number by hand, every oddity with its reason."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from stbench.agent.wire import Samples
from stbench.records.frame import (
    COLUMNS,
    affinity_label,
    catalogue_model,
    profile_label,
    to_frame,
    unique_records,
)
from tests.tables.factory import record, shape


def row(**changes: Any) -> Any:
    return to_frame([record(**changes)]).iloc[0]


def test_speeds_by_hand() -> None:
    samples = Samples(
        ttft_ns=260_000_000,
        prefill_ns=[100_000_000, 150_000_000],
        prefill_tokens=[64, 36],
        decode_ns=[10_000_000, 30_000_000, 20_000_000, 40_000_000],
    )
    found = row(samples=samples, n_prompt=100, n_gen=4)
    assert found["decode_tps"] == pytest.approx(4 / 0.1)
    assert found["prefill_tps"] == pytest.approx(100 / 0.25)
    assert found["ttft_ms"] == pytest.approx(260)
    assert found["tpot_ms"] == pytest.approx(25)
    assert found["tpot_p95_ms"] == pytest.approx(40)


def test_shares_and_bytes_are_per_token() -> None:
    found = row(ffn=True, head=True, tps=50.0)
    assert found["weight_bytes_per_token"] == 263_500_000
    assert found["weight_gb_per_s"] == pytest.approx(0.2635 * 50)
    assert found["active_share"] == pytest.approx(0.294, abs=1e-5)
    assert found["lm_head_share"] == pytest.approx(0.1, abs=1e-4)


def test_what_a_failed_run_never_reached_is_empty_not_zero() -> None:
    found = row(status="timeout", detail="no record after 600 s")
    assert not found["usable"]
    assert found["status"] == "timeout"
    assert math.isnan(found["decode_tps"])
    assert math.isnan(found["peak_rss_bytes"])
    assert found["throttled"] == "unknown"
    assert found["check"] == "unchecked"
    assert found["threads"] == 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"samples": None}, "no samples"),
        ({"samples": Samples(1, [1], [1], [5, 5])}, "2 decode samples for n_gen 4"),
        ({"samples": Samples(1, [1], [1], [5, 5, -5, 5])}, "zero or negative"),
        ({"samples": Samples(1, [1], [1], [5, 5, 0, 5])}, "zero or negative"),
        ({"samples": Samples(1, [1, 1], [1], [5, 5, 5, 5])}, "differ in length"),
        ({"samples": Samples(1, [1], [1], [5], [0]), "n_gen": 0}, "durations of no tokens"),
        ({"samples": Samples(1, [1], [0], [5, 5, 5, 5])}, "durations of no tokens"),
        ({"verdict": "wrong"}, "wrong output"),
    ],
)
def test_ok_records_that_make_no_sense_have_no_speed(changes: dict[str, Any], reason: str) -> None:
    found = row(**changes)
    assert not found["usable"]
    assert reason in found["problem"]
    assert math.isnan(found["decode_tps"])


def test_wrong_output_has_no_speed_although_it_has_samples() -> None:
    made = record(status="wrong-output", verdict="wrong")
    assert made.samples is not None
    assert math.isnan(to_frame([made]).iloc[0]["decode_tps"])


def test_columns_and_types_hold_with_and_without_records() -> None:
    for frame in (to_frame([]), to_frame([record(), record(status="crashed")])):
        assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == COLUMNS


def test_a_prefill_only_case_has_no_decode_speed() -> None:
    found = row(n_prompt=512, n_gen=0)
    assert found["usable"]
    assert math.isnan(found["decode_tps"])
    assert found["prefill_tps"] > 0
    assert found["workload"] == "pp512"


def test_a_real_file_is_known_by_its_shape() -> None:
    known = shape(record().model.synthetic)
    real = record("my-finetune", synthetic=False, shape=known)
    assert catalogue_model(real) == "smallthinker-4b"
    bigger = dataclasses.replace(known, weight_bytes=known.weight_bytes * 2)
    assert catalogue_model(record("my-q8", synthetic=False, shape=bigger)) == ""
    other = dataclasses.replace(known, n_layer=31)
    assert catalogue_model(record("my-31", synthetic=False, shape=other)) == ""


def test_the_twin_counts_as_its_original_for_other_engines_only() -> None:
    assert catalogue_model(record("smallthinker-4b:standard", engine="llama-bench")) == "smallthinker-4b"
    assert catalogue_model(record("smallthinker-4b:standard")) == "smallthinker-4b:standard"


def test_profile_in_words() -> None:
    spec = record().model.synthetic
    assert spec is not None
    text = profile_label(spec, "report-5.3")
    assert text.startswith(
        "profile report-5.3: ReLU zeros per layer 0.97, 0.95, 0.92, 0.88, then 0.62 to 0.72"
    )
    assert "8 hot experts take 60 % of selections" in text
    assert "lm_head predictor keeps 10 % of rows" in text
    flat = dataclasses.replace(spec, zero_share=[700] * 32, hot_share=0, predictor_rank=0)
    assert profile_label(flat) == "ReLU zeros per layer 0.70 in every layer; routing not skewed"
    assert profile_label(None) == ""


def test_affinity_in_short() -> None:
    assert affinity_label([[0], [1]]) == "0|1"
    assert affinity_label([[0, 1, 2, 3, 8]] * 2) == "0-3,8 (all threads)"
    assert affinity_label([]) == ""


def test_repetitions_are_dropped_and_order_is_forgotten() -> None:
    a, b = record(replicate=0), record(replicate=1)
    assert unique_records([b, a, b, a]) == [a, b]
