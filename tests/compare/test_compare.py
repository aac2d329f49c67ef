"""Two sets of records: what is compared, what is refused, and what the verdict is."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stbench.agent.wire import Program, RunRecord, Settings
from stbench.comparison.compare import Comparison, compare
from stbench.comparison.inference import IMPROVED, INCONCLUSIVE, REGRESSED, UNCHANGED
from stbench.errors import CellsFailed, InputError, UsageError
from stbench.records.sides import read_side
from tests.compare.records import (
    another_build,
    beside,
    case,
    disturbed,
    in_cache,
    noisy,
    prompt_only,
    side,
    write,
)
from tests.host.conftest import ROOT

QUICK = ROOT / "results" / "epyc-2core-quick"


def only(a: list[RunRecord], b: list[RunRecord], **options: Any) -> Comparison:
    (found,) = compare(side(a), side(b, name="B"), **options).cases
    return found


def alternating(a: list[float], b: list[float]) -> tuple[list[RunRecord], list[RunRecord]]:
    """Two campaigns that ran one process each in turn."""
    return case(a, every=2), case(b, start=1, every=2, campaign="c2")


def test_a_five_percent_loss_is_found_and_so_is_its_inverse() -> None:
    before = noisy(12)
    after = [0.95 * speed for speed in noisy(12, seed=1)]
    found = only(*alternating(before, after))
    assert (found.verdict, found.paired, found.n, found.kind) == (REGRESSED, True, 12, "interval")
    assert found.low < found.ratio < found.high < 1
    assert found.ratio == pytest.approx(np.median(after) / np.median(before), rel=1e-6)
    back = only(*alternating(after, before))
    assert back.verdict == IMPROVED
    assert (back.ratio, back.low, back.high) == pytest.approx(
        (1 / found.ratio, 1 / found.high, 1 / found.low)
    )
    assert back.p == found.p


def test_the_same_records_are_unchanged_and_few_are_inconclusive() -> None:
    assert only(case(noisy(8)), case(noisy(8))).verdict == UNCHANGED
    few = only(case(noisy(3)), case(noisy(3)))
    assert (few.verdict, few.kind) == (INCONCLUSIVE, "range")
    assert few.repetitions == 6


def test_real_records_compared_with_themselves() -> None:
    found = compare(read_side(str(QUICK)), read_side(str(QUICK)))
    assert len(found.cases) == 10
    assert {one.verdict for one in found.cases} <= {UNCHANGED, INCONCLUSIVE}
    assert not found.failed
    assert not found.notes
    for metric in ("decode_tps", "prefill_tps"):
        cases = compare(read_side(f"{QUICK}:*qwen3*/dense/*"), read_side(str(QUICK)), metric=metric).cases
        assert {one.case for one in cases} == {
            "local:qwen3-0.6b/dense/t2/pp39+tg64",
            "local:qwen3-1.7b/dense/t2/pp39+tg64",
        }


def test_a_hundred_trials_of_a_against_a() -> None:
    """Of one build with itself: at least 95 of 100 are unchanged or inconclusive."""
    calm = 0
    for trial in range(100):
        a, b = noisy(9, seed=2 * trial, noise=0.03), noisy(9, seed=2 * trial + 1, noise=0.03)
        paired = trial % 2 == 0
        found = only(*(alternating(a, b) if paired else (case(a), case(b, start=600, campaign="c2"))))
        assert found.paired is paired
        calm += found.verdict in (UNCHANGED, INCONCLUSIVE)
    assert calm >= 95


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(450, 550), min_size=1, max_size=12), st.randoms())
def test_identical_samples_are_never_a_change_and_their_order_never_matters(
    tenths: list[int], rng: Any
) -> None:
    speeds = [n / 10 for n in tenths]
    shuffled = speeds[:]
    rng.shuffle(shuffled)
    found = only(case(speeds), case(shuffled, start=3000, campaign="c2"))
    assert not found.paired
    assert found.verdict in (UNCHANGED, INCONCLUSIVE)
    assert found == only(case(speeds), case(speeds, start=3000, campaign="c2"))


# ---- pairs ------------------------------------------------------------------------------------------------


def test_one_campaign_pairs_by_replicate_number() -> None:
    a = case(noisy(9), head=False)
    b = case(noisy(9, seed=1), start=100, head=True)
    found = only(a, b[:-1], ignore=["switches"])
    assert (found.paired, found.n, found.a.unpaired, found.b.unpaired) == (True, 8, 1, 0)
    assert found.test == "signed-rank"


def test_no_run_is_in_two_pairs() -> None:
    """Two context sizes on one side, ignored on request, have each replicate number twice: the six runs of
    the other side are six pairs, not twelve."""
    small = case(noisy(6, seed=2), start=100, settings=Settings(threads=2, n_ctx=512))
    both = [*case(noisy(6)), *(dataclasses.replace(one, id=one.id + "-512") for one in small)]
    other = case(noisy(6, seed=1), start=200, head=True)
    ignored = ["switches", "n_ctx"]
    found = only(both, other, ignore=ignored)
    assert (found.paired, found.n, found.a.n, found.a.unpaired) == (True, 6, 6, 6)
    back = only(other, both, ignore=ignored)
    assert (back.n, back.b.n, back.b.unpaired) == (6, 6, 6)


def test_small_models_are_pairs_where_the_cores_were_alike() -> None:
    """Cores that others shared in four rounds of ten, memory at another rate beside every run: each round has
    its pair but the one whose partner had them alone."""
    a, b = alternating(noisy(10, 0, 20), noisy(10, 1, 20))

    def beside_cores(runs: list[RunRecord], alone: set[int]) -> list[RunRecord]:
        return [
            in_cache(beside(one, 20.0 + 3 * one.replicate), 84.0 if one.replicate in alone else 49.0)
            for one in runs
        ]

    found = only(beside_cores(a, {0, 1, 2, 3}), beside_cores(b, {0, 1, 2}))
    assert (found.paired, found.a.n) == (True, 9)


def test_campaigns_one_after_the_other_are_not_paired() -> None:
    found = only(case(noisy(9)), case(noisy(12, seed=1), start=600, campaign="c2"))
    assert (found.paired, found.n, found.a.n, found.b.n) == (False, 9, 9, 12)
    assert found.test == "mann-whitney"
    assert found.p == found.mann_whitney_p


def test_pairing_survives_lost_replicates_and_either_order() -> None:
    a, b = alternating(noisy(12), noisy(12, seed=1))
    assert only(a[:5] + a[6:], b).paired
    # A B, B A, A B, ...
    swapped = [
        dataclasses.replace(x, started_at=y.started_at) if i % 2 else x
        for i, (x, y) in enumerate(zip(a, b, strict=True))
    ]
    after = [
        dataclasses.replace(y, started_at=x.started_at) if i % 2 else y
        for i, (x, y) in enumerate(zip(a, b, strict=True))
    ]
    assert only(swapped, after).n == 12


def test_disturbed_and_failed_replicates_are_left_out_and_counted() -> None:
    a, b = case(noisy(9)), case(noisy(9, seed=1), start=100, head=True)
    b[2] = disturbed(b[2])
    b += case([1.0], start=900, head=True, status="timeout")
    b[-1] = dataclasses.replace(b[-1], replicate=9, id="lost")
    found = only(a, b, ignore=["switches"])
    assert (found.n, found.b.disturbed, found.b.failed, found.a.unpaired) == (8, 1, 1, 1)


def test_wrong_output_has_no_speed() -> None:
    right, wrong = case(noisy(8)), case(noisy(8), campaign="c2", start=300)
    wrong[3] = dataclasses.replace(wrong[3], status="wrong-output")
    with pytest.raises(CellsFailed, match="B computed wrong output"):
        only(right, wrong)
    others = case(noisy(8), model="qwen3-0.6b")
    found = compare(side(right, others), side(wrong, others))
    assert [one.case for one in found.cases] == ["local:qwen3-0.6b/dense/t2/pp39+tg4"]
    assert found.failed == (
        "local:smallthinker-4b/dense/t2/pp39+tg4: B computed wrong output, which has no speed",
    )


# ---- unlike rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "changes", "said"),
    [
        (
            "isa_requested",
            {"settings": Settings(threads=2, isa="avx2")},
            "isa_requested is auto in A, avx2 in B",
        ),
        ("kv_type", {"settings": Settings(threads=2, kv_type="f32")}, "kv_type is f16 in A, f32 in B"),
        ("n_ctx", {"settings": Settings(threads=2, n_ctx=512)}, "n_ctx is 4096 in A, 512 in B"),
        ("fingerprint", {"fingerprint": "beef"}, "fingerprint is f00d in A, beef in B"),
    ],
)
def test_unlike_rows_are_refused_by_field_and_values(field: str, changes: Any, said: str) -> None:
    a, b = case(noisy(8)), case(noisy(8), campaign="c2", **changes)
    with pytest.raises(InputError, match=said):
        only(a, b)
    assert only(a, b, ignore=[field]).n == 8


def test_another_model_file_is_refused() -> None:
    a, b = case(noisy(8)), case(noisy(8), campaign="c2")
    b = [dataclasses.replace(x, model=dataclasses.replace(x.model, digest="e" * 64)) for x in b]
    with pytest.raises(InputError, match=r"digest is d1d1d1d1d1d1.* in A, e{12}.* in B"):
        only(a, b)


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (["-ub", "256"], {}, r"arguments is none in A, -ub 256 in B"),
        (["-fa", "on"], {"GGML_X": "1"}, r"arguments is none in A, GGML_X=1 -fa on in B"),
    ],
)
def test_other_arguments_of_a_program_are_refused_and_another_build_is_not(
    words: list[str], environment: dict[str, str], said: str
) -> None:
    def of(*command: str, variables: dict[str, str] | None = None) -> list[RunRecord]:
        program = Program("llama-bench", list(command), variables or {})
        return [dataclasses.replace(one, program=program) for one in case(noisy(8), engine="llama-bench")]

    assert only(of("/old/llama-bench"), of("/new/llama-bench")).n == 8
    with pytest.raises(InputError, match=said):
        only(of("/llama-bench"), of("/llama-bench", *words, variables=environment))
    long = "-x " * 40
    with pytest.raises(InputError, match=r"arguments is ….*-y 1.* in A, ….*-y 2.* in B"):
        only(of("/b", *long.split(), "-y", "1"), of("/b", *long.split(), "-y", "2"))
    assert only(of("/b", *words), of("/b"), ignore=["arguments"]).n == 8


@pytest.mark.parametrize(
    ("field", "changes", "values"),
    [
        ("threads", {"threads": 1}, "2 in A, 1 in B"),
        ("model", {"model": "qwen3-0.6b"}, "smallthinker-4b in A, qwen3-0.6b in B"),
        ("switches", {"ffn": True}, "dense in A, sparse in B"),
        ("engine", {"engine": "llama-bench"}, "sbr in A, llama-bench in B"),
        ("workload", {"n_prompt": 0}, "pp39.tg4 in A, tg4 in B"),
    ],
)
def test_sets_without_a_common_case_say_what_differs(field: str, changes: Any, values: str) -> None:
    a, b = case(noisy(8)), case(noisy(8), campaign="c2", **changes)
    with pytest.raises(InputError, match=f"the nearest two differ in {field} {values}"):
        only(a, b)
    assert only(a, b, ignore=[field]).n == 8


def test_a_side_of_two_conditions_is_refused() -> None:
    mixed = case(noisy(6)) + case(noisy(6), campaign="c3", settings=Settings(threads=2, isa="avx2"))
    with pytest.raises(InputError, match="isa_requested is auto and avx2 within A"):
        only(mixed, case(noisy(6), campaign="c2"))


def test_a_side_of_two_builds_is_refused() -> None:
    """A campaign resumed after an upgrade; without the refusal either sample is a mix, and runs count
    twice."""
    before, after = case(noisy(6)), another_build(case([0.7 * speed for speed in noisy(6)], start=50))
    for a, b, name in ((before + after, before, "A"), (before, before + after, "B")):
        said = f"library is abababababab and cdcdcdcdcdcd within {name}; give each build a campaign"
        with pytest.raises(InputError, match=said):
            only(a, b)
    assert only(before, after).verdict == REGRESSED
    # What the first build did not bring to an end is no run of it.
    ended = [dataclasses.replace(before[0], status="crashed", samples=None), *after]
    assert only(ended, after).n == 6


def test_ignoring_what_tells_cases_apart_is_refused_where_it_mixes_them() -> None:
    several = case(noisy(6)) + case(noisy(6), threads=1, start=100)
    with pytest.raises(InputError, match=r"several cases that differ in ignored fields only: .*t1.*t2"):
        only(several, case(noisy(6), campaign="c2"), ignore=["threads"])


def test_cases_of_one_side_only_are_named() -> None:
    a = side(case(noisy(6)), case(noisy(6), model="qwen3-0.6b"))
    found = compare(a, side(case(noisy(6)), name="B"))
    assert found.notes == ("only in A: local:qwen3-0.6b/dense/t2/pp39+tg4",)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ignore": ["colour"]}, "--ignore colour: no field"),
        ({"metric": "wall_s"}, "--metric wall_s: expected"),
    ],
)
def test_unknown_fields_and_metrics_are_refused(options: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        only(case(noisy(6)), case(noisy(6)), **options)


def test_prefill_is_a_metric_of_its_own() -> None:
    a = [prompt_only(one, tps) for one, tps in zip(case(noisy(8)), noisy(8, level=300), strict=True)]
    with pytest.raises(InputError, match="A has no record with decode"):
        only(a, a)
    assert only(a, a, metric="prefill_tps").a.median == pytest.approx(300, rel=0.02)


def test_one_change_among_many_cases_needs_more_than_its_own_p() -> None:
    """20 cases, 6 pairs: the smallest possible p, 1/32, becomes no q below 5 %."""
    models = [f"model-{i}" for i in range(20)]
    a = side(*(case(noisy(6, seed=i), model=m) for i, m in enumerate(models)))
    slower = [0.8 if i == 0 else 1.0 for i in range(20)]
    b = side(
        *(
            case([k * s for s in noisy(6, seed=i)], model=m)
            for i, (m, k) in enumerate(zip(models, slower, strict=True))
        )
    )
    found = compare(a, b).cases
    assert found[0].p == 2**-5
    assert found[0].q > 0.05
    assert found[0].verdict == INCONCLUSIVE
    assert found[0].repetitions == 10
    assert {one.verdict for one in found[1:]} == {UNCHANGED}


# ---- sides as typed ---------------------------------------------------------------------------------------


def test_a_glob_selects_by_label_or_case_and_paths_may_have_colons(tmp_path: Any) -> None:
    directory = tmp_path / "odd:name"
    typed = write(directory, case(noisy(2)) + case(noisy(2), threads=1, start=9))
    assert len(read_side(typed).frame) == 4
    assert set(read_side(typed + ":local:*/t1/*").frame["threads"]) == {1}
    assert set(read_side(f"{typed}/records.jsonl:smallthinker-4b/*/t2/*").frame["threads"]) == {2}
    with pytest.raises(InputError, match="no record fits 'gemma"):
        read_side(typed + ":gemma*")
    with pytest.raises(InputError, match="no such file"):
        read_side(str(tmp_path / "nothing:*"))


def test_of_two_records_of_one_run_the_newest_counts_and_it_is_said() -> None:
    runs = case(noisy(12))
    edited = [dataclasses.replace(one, started_at="2026-01-03T00:00:00Z") for one in case([1000.0])]
    found = side([*runs, *edited])
    assert len(found.frame) == 12
    assert found.frame["decode_tps"].max() == pytest.approx(1000)
    assert len(found.problems) == 1
    assert "claim to be replicate 0: the newest is taken" in found.problems[0]
