"""The gates: this tree's runtime against the previous commit's, and gates that can fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stbench.agent import probe
from tests.benchmarks import builds, counts, gate, pairs
from tests.workshop import Edit, Workshop, edited, working_tree

Say = Callable[[object], None]


def busy_loop(turns: str) -> Edit:
    """A loop of two instructions per turn at the end of the gemv kernels of all vector instruction sets."""
    call = "rows_times_vector<Type>(w, row_bytes, nullptr, n_rows, n, *x, y);"
    loop = f'for (size_t busy = {turns}; busy != 0; --busy) __asm__ volatile("");'
    return Edit("a busy loop", "src/kernels/matrix_table.h", call, f"{call} {loop}")


# With AVX2 a block of 32 weights takes 16 instructions.
FIVE_PERCENT = busy_loop("n_rows * n / 32 * 2 / 5")
# A block takes 2 to 4 cycles, a turn one.
TWICE_AS_SLOW = busy_loop("n_rows * n / 32 * 4")


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gates")


@pytest.fixture(scope="session")
def built(scratch: Path, say: Say) -> gate.Builds | None:
    """Both builds; None when there is no earlier one, which the summary then explains."""
    try:
        both = gate.build_both(scratch)
    except builds.NothingToCompare as error:
        say(f"nothing to compare: {error}")
        return None
    say(f"against {both.commit[:12]}, both by {builds.describe_compiler(both.now)}")
    return both


@pytest.fixture(scope="session")
def now(scratch: Path) -> Path:
    return Workshop().library(working_tree(), scratch / "tree" / "libsbr.so")


@pytest.fixture(scope="session")
def five(scratch: Path) -> Path:
    """The tree with the busy loop of 5 % in one kernel."""
    return Workshop().library(edited(working_tree(), FIVE_PERCENT), scratch / "five" / "libsbr.so")


@pytest.fixture(scope="session")
def model(scratch: Path, now: Path) -> Path:
    return builds.write_model(now, scratch / "tree.gguf")


# ---- against the previous commit ----


@pytest.mark.slow
def test_no_rise_of_instructions(built: gate.Builds | None, scratch: Path, say: Say) -> None:
    if built is None:
        return
    rises = gate.compare_counts(built, scratch)
    for rise in rises:
        say(rise)
    refused = gate.unaccepted(rises, built.commit)
    hint = 'wanted? python -m tests.benchmarks.gate --accept "why"'
    assert not refused, "\n".join([*map(str, refused), hint])


@pytest.mark.quiet
@pytest.mark.slow
def test_no_loss_of_speed(built: gate.Builds | None, say: Say) -> None:
    if built is None:
        return
    judged = pairs.interleave(built.driver, built.before, built.now, built.model)
    for judgement in judged:
        say(judgement)
    assert not [str(judgement) for judgement in judged if judgement.regressed]


# ---- the gates notice ----


@pytest.mark.slow
def test_a_busy_loop_of_five_percent_is_counted(now: Path, five: Path, model: Path, scratch: Path) -> None:
    driver = builds.compile_driver(scratch / "counting", counting=True)
    sound = counts.count(driver, now, model, scratch / "counts-sound")
    assert counts.count(driver, now, model, scratch / "counts-again") == sound
    risen = {
        rise.name: rise.ratio for rise in counts.rises(sound, counts.count(driver, five, model, scratch))
    }
    assert 1.03 < risen["avx2/gemv-q4_0"] < 1.09
    assert "avx2/decode-dense" in risen
    assert not any(name.startswith("scalar/") for name in risen)


@pytest.mark.quiet
@pytest.mark.slow
def test_a_slow_kernel_is_measured(now: Path, model: Path, scratch: Path) -> None:
    slower = Workshop().library(edited(working_tree(), TWICE_AS_SLOW), scratch / "twice" / "libsbr.so")
    driver = builds.compile_driver(scratch / "timing")
    # More pairs while it is not told: the direction is known here.
    for pair_count in (9, 18, 36):
        judged = {j.name: j for j in pairs.interleave(driver, now, slower, model, "avx2", pair_count)}
        if judged["avx2/decode-dense"].regressed:
            break
    assert judged["avx2/decode-dense"].regressed, str(judged["avx2/decode-dense"])
    assert not judged["avx2/prefill-dense"].regressed, str(judged["avx2/prefill-dense"])


@pytest.mark.quiet
@pytest.mark.slow
def test_a_busy_loop_of_five_percent_is_regressed(
    now: Path, five: Path, model: Path, scratch: Path, say: Say
) -> None:
    """Judged as ``stbench compare`` judges, by processor time. More pairs are taken while it is inconclusive,
    since the direction is known here; a machine too noisy for 60 of them may leave it so, and says it."""
    driver = builds.compile_driver(scratch / "timing-five")
    for pair_count in (15, 30, 60):
        all_judged = pairs.interleave(driver, now, five, model, "avx2", pair_count)
        (judged,) = (judgement for judgement in all_judged if judgement.name == "avx2/decode-dense")
        if judged.verdict == "regressed":
            break
    say(f"with a busy loop of 5 % in one kernel, {judged}")
    assert judged.verdict in ("regressed", "inconclusive"), str(judged)


# ---- judging ----


@pytest.mark.parametrize(
    ("ratios", "regressed"),
    [
        ([0.90] * 8 + [0.94], True),
        ([0.90] * 4 + [1.0] * 5, False),  # the interval reaches 1
        ([0.97] * 9, False),  # slower, within the threshold
        ([1.2] * 9, False),
    ],
)
def test_only_an_interval_below_the_threshold_fails(ratios: list[float], regressed: bool) -> None:
    before = [100.0 + i for i in range(len(ratios))]
    now = [b / ratio for b, ratio in zip(before, ratios, strict=True)]
    assert pairs.judge("x", before, now).regressed is regressed


def test_rises_beyond_the_tolerance_only() -> None:
    before = {"a": 100.0, "b": 100.0, "gone": 1.0}
    (rise,) = counts.rises(before, {"a": 101.9, "b": 102.1, "new": 5.0})
    assert rise.name == "b"
    assert "+2.1 %" in str(rise)


def test_accepted_rises_hold_over_their_commit_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "ACCEPTED", tmp_path / "accepted.json")
    rises = [counts.Rise("a", 100, 110)]
    assert gate.unaccepted(rises, "c0ffee") == rises
    gate.accept(rises, "c0ffee", "prefetching")
    assert gate.unaccepted(rises, "c0ffee") == []
    assert gate.unaccepted(rises, "decade") == rises
    further = [counts.Rise("a", 100, 120)]
    assert gate.unaccepted(further, "c0ffee") == further


def test_a_stored_baseline_counts_on_its_device_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = {"auto/decode-dense": [100.0] * 9}
    monkeypatch.setattr(gate, "take_samples", lambda *_: samples)
    monkeypatch.setattr(gate.Workshop, "library", lambda _self, _files, to: to)
    monkeypatch.setattr(builds, "compile_driver", lambda to: to)
    monkeypatch.setattr(builds, "write_model", lambda _library, to: to)
    stored = tmp_path / "baseline.json"
    assert gate.main(["--save", str(stored)]) == gate.OK
    assert gate.main(["--baseline", str(stored)]) == gate.OK
    samples["auto/decode-dense"] = [120.0] * 9
    assert gate.main(["--baseline", str(stored)]) == gate.REGRESSED
    content = json.loads(stored.read_text())
    assert content["fingerprint"] == probe.probe().fingerprint
    stored.write_text(json.dumps({**content, "fingerprint": "another"}))
    assert gate.main(["--baseline", str(stored)]) == gate.NO_VERDICT
    assert "another kind of device" in capsys.readouterr().out


def test_without_history_there_is_nothing_to_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(builds.NothingToCompare, match="no commit HEAD"):
        builds.earlier({})
