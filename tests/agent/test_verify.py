"""The check against a reference: what passes, what fails, and how the sample is drawn."""

from __future__ import annotations

import dataclasses
import itertools
import random
from array import array

import pytest

from stbench.agent import verify, wire
from tests.agent.conftest import fake_job

N_VOCAB = 3000
MINUS_INFINITY = float("-inf")
STEPS = [0, 5, 9]


def rows(seed: int = 1) -> list[array[float]]:
    generator = random.Random(seed)
    return [array("f", (generator.gauss(0.0, 2.0) for _ in range(N_VOCAB))) for _ in STEPS]


def captured(logits: list[array[float]], scores: list[array[float]] | None = None) -> verify.Captured:
    return verify.Captured(STEPS, N_VOCAB, logits, scores or [])


def dense_reference() -> wire.Reference:
    return verify.make_reference(captured(rows()), "key", "digest", 0.0)


def sparse() -> tuple[list[array[float]], list[array[float]]]:
    """Logits with two thirds left out by a predictor with threshold 0.9."""
    scores = rows(seed=2)
    logits = [
        array(
            "f",
            (value if score > 0.9 else MINUS_INFINITY for value, score in zip(row, score_row, strict=True)),
        )
        for row, score_row in zip(rows(), scores, strict=True)
    ]
    return logits, scores


@pytest.mark.parametrize("n_gen", [0, 1, 2, 15, 16, 17, 20, 128, 256, 1000])
def test_positions_are_spread_and_include_both_ends(n_gen: int) -> None:
    found = verify.positions(n_gen)
    assert len(found) == min(n_gen, 16)
    assert found == sorted(set(found))
    if n_gen:
        assert found[0] == 0
        assert found[-1] == n_gen - 1
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_the_same_floats_are_bit_equal() -> None:
    check = verify.check(captured(rows()), dense_reference())
    assert (check.verdict, check.bit_equal, check.argmax_equal, check.kept_equal) == ("ok", 3, 3, 3)
    assert check.worst == 0.0
    assert check.reference == "key"


def test_a_reference_survives_the_wire_exactly() -> None:
    reference = dense_reference()
    assert wire.loads(wire.Reference, wire.dumps(reference)) == reference
    position = reference.positions[0]
    expected = rows()[0]
    assert array("f", position.logits) == array("f", (expected[row] for row in position.rows))
    assert len(position.rows) == verify.TOP_ROWS + verify.RANDOM_ROWS
    assert position.argmax in position.rows
    assert set(sorted(range(N_VOCAB), key=expected.__getitem__)[-16:]) <= set(position.rows)
    assert position.sd == pytest.approx(2.0, rel=0.1)


def test_small_differences_are_ok_and_counted_as_not_equal() -> None:
    logits = rows()
    for row in logits:
        for i in range(N_VOCAB):
            row[i] += 0.005 * 2.0 * (1 if i % 2 else -1)
    check = verify.check(captured(logits), dense_reference())
    assert (check.verdict, check.bit_equal) == ("ok", 0)
    assert check.worst is not None
    assert 0.004 < check.worst < 0.006


def test_one_sampled_logit_beyond_the_tolerance_is_wrong() -> None:
    reference = dense_reference()
    logits = rows()
    row = reference.positions[1].rows[40]
    logits[1][row] -= 0.02 * 2.0
    check = verify.check(captured(logits), reference)
    assert check.verdict == "wrong"
    assert check.detail.startswith(f"step 5: the logit of row {row} is off by 0.0")
    assert check.bit_equal == 2


def test_another_argmax_is_wrong_only_where_the_margin_says_so() -> None:
    reference = dense_reference()
    position = reference.positions[0]
    unsampled = next(i for i in range(N_VOCAB) if i not in position.rows)
    logits = rows()
    logits[0][unsampled] = logits[0][position.argmax] + 0.001
    check = verify.check(captured(logits), reference)
    assert check.verdict == "wrong"
    assert check.detail == f"step 0: the largest logit is row {unsampled}, not {position.argmax}"
    close = dataclasses.replace(position, margin=0.001)
    lenient = dataclasses.replace(reference, positions=[close, *reference.positions[1:]])
    check = verify.check(captured(logits), lenient)
    assert (check.verdict, check.argmax_equal) == ("ok", 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), MINUS_INFINITY])
def test_what_is_no_number_is_wrong(value: float) -> None:
    logits = rows()
    unsampled = next(i for i in range(N_VOCAB) if i not in dense_reference().positions[2].rows)
    logits[2][unsampled] = value
    check = verify.check(captured(logits), dense_reference())
    assert check.verdict == "wrong"
    wire.dumps(check)


def test_kept_rows_must_be_equal() -> None:
    logits, scores = sparse()
    reference = verify.make_reference(captured(logits, scores), "key", "digest", 0.9)
    assert reference.positions[0].n_kept == sum(score > 0.9 for score in scores[0])
    assert verify.check(captured(logits), reference).kept_equal == 3
    sampled = set(reference.positions[0].rows)
    borderline = set(reference.positions[0].borderline)
    lost = next(
        i for i, v in enumerate(logits[0]) if v != MINUS_INFINITY and i not in sampled and i not in borderline
    )
    logits[0][lost] = MINUS_INFINITY
    check = verify.check(captured(logits), reference)
    assert check.verdict == "wrong"
    assert check.kept_equal == 2
    assert "the lm_head kept other rows" in check.detail


def test_borderline_rows_may_be_kept_or_not() -> None:
    logits, scores = sparse()
    reference = verify.make_reference(captured(logits, scores), "key", "digest", 0.9)
    position = reference.positions[0]
    assert position.borderline
    assert all(abs(scores[0][i] - 0.9) <= 0.0201 for i in position.borderline)
    for i in position.borderline:
        logits[0][i] = 0.0 if logits[0][i] == MINUS_INFINITY else MINUS_INFINITY
    check = verify.check(captured(logits), reference)
    assert (check.verdict, check.bit_equal, check.kept_equal) == ("ok", 2, 3)


def test_a_predictor_that_keeps_almost_nothing() -> None:
    scores = [array("f", [-1.0] * N_VOCAB) for _ in STEPS]
    logits = [array("f", [MINUS_INFINITY] * N_VOCAB) for _ in STEPS]
    for step, row in enumerate(logits):
        row[7] = 1.0
        scores[step][7] = 5.0
    reference = verify.make_reference(captured(logits, scores), "key", "digest", 0.0)
    assert reference.positions[0].rows == [7]
    assert verify.check(captured(logits), reference).verdict == "ok"


def test_a_reference_is_not_made_of_nonsense() -> None:
    logits = rows()
    logits[0][3] = float("nan")
    with pytest.raises(ValueError, match="not numbers at step 0"):
        verify.make_reference(captured(logits), "key", "digest", 0.0)
    logits = rows()
    logits[1][3] = MINUS_INFINITY
    with pytest.raises(ValueError, match="left rows out of a dense lm_head at step 5"):
        verify.make_reference(captured(logits), "key", "digest", 0.0)


def test_a_reference_of_other_steps_or_another_vocabulary_is_refused() -> None:
    reference = dense_reference()
    with pytest.raises(ValueError, match="other decode steps"):
        verify.check(captured(rows())._replace(steps=[0, 5, 8]), reference)
    small = [row[:100] for row in rows()]
    with pytest.raises(ValueError, match="larger vocabulary"):
        verify.check(verify.Captured(STEPS, 100, small), reference)


def test_without_a_reference_there_is_still_a_hash() -> None:
    check = verify.check(captured(rows()), None)
    assert (check.verdict, len(check.output_hash)) == ("unchecked", 64)
    logits = rows()
    logits[1][0] += 1e-6
    assert verify.check(captured(logits), None).output_hash != check.output_hash


def test_the_hash_is_over_little_endian_float32() -> None:
    # SHA-256 of the four bytes 00 00 80 3f, and of the hexadecimal digits of that.
    check = verify.check(verify.Captured([0], 1, [array("f", [1.0])]), None)
    assert check.output_hash == "a01e7c6aca575cc13ee303252c2c7de142bf8eace0816bd3158b009a4e725afd"


def test_the_key_depends_on_what_changes_results_and_on_nothing_else() -> None:
    job = fake_job()
    key = verify.reference_key(job)

    def with_settings(**changes: object) -> str:
        return verify.reference_key(
            dataclasses.replace(job, settings=dataclasses.replace(job.settings, **changes))  # type: ignore[arg-type]
        )

    assert key == with_settings(threads=7, isa="avx2", n_batch=3, n_ctx=999, cpus=[1], load="read")
    assert key == with_settings(lm_head_threshold=0.5)
    others = [
        with_settings(kv_type="f32"),
        with_settings(sparse_ffn=True),
        with_settings(sparse_lm_head=True),
        with_settings(sparse_lm_head=True, lm_head_threshold=0.5),
        with_settings(requantise_down=True),
        verify.reference_key(dataclasses.replace(job, workload=wire.Workload(8, 21))),
        verify.reference_key(dataclasses.replace(job, model=dataclasses.replace(job.model, digest="d"))),
    ]
    assert len({key, *others}) == 8
