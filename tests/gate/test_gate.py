"""What a baseline holds, what is refused, and what is said of a build: with speeds to order."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from lxml import etree

from stbench.agent.wire import RunRecord
from stbench.comparison.noise import Noise
from stbench.devices.device_entry import CheckEntry
from stbench.devices.inventory import parse_inventory
from stbench.errors import CellsFailed, Inconclusive, InputError
from stbench.gate import baseline_file, confirming, judging, outputs, summary, taking
from stbench.gate.judging import FAILED, IMPROVED, INCONCLUSIVE, REGRESSED, UNCHANGED, Finding, Judge
from stbench.gate.thresholds import METRICS, thresholds_of
from stbench.records.sides import Side
from tests.compare.records import case, disturbed, noisy, side, write

SCHEMA = Path(__file__).parents[1] / "exchange" / "junit.xsd"

JUDGE = Judge(thresholds_of([]), [])


def memory(runs: Sequence[RunRecord], factor: float) -> list[RunRecord]:
    made = []
    for one in runs:
        assert one.memory is not None
        peak = round(one.memory.peak_rss_bytes * factor)
        made.append(dataclasses.replace(one, memory=dataclasses.replace(one.memory, peak_rss_bytes=peak)))
    return made


def verdicts(a: Side, b: Side, judge: Judge = JUDGE) -> dict[str, str]:
    return {f.metric.name if f.metric else "": f.verdict for f in judge.findings(a, b)}


BEFORE = case(noisy(12))


def later(factor: float = 1.0, n: int = 12, seed: int = 1, library: str = "cd" * 32) -> list[RunRecord]:
    speeds = [factor * speed for speed in noisy(n, seed=seed)]
    return case(speeds, start=5000, campaign="c2", library=library)


# ---- the file ----


def test_a_baseline_is_the_same_bytes_and_the_same_side(tmp_path: Path) -> None:
    results = write(tmp_path / "results" / "c1", BEFORE)
    made, notes = taking.take([results])
    assert notes == []
    text = baseline_file.text_of(made)
    assert text == baseline_file.text_of(taking.take([results])[0])
    assert str(tmp_path) not in text
    assert "bench" not in text.replace("stbench", "")
    path = tmp_path / "base.json"
    baseline_file.write(made, path)
    read = baseline_file.read(path)
    assert baseline_file.text_of(read) == text
    assert verdicts(read.side("A"), side(BEFORE, name="B"))["decode_tps"] == UNCHANGED
    (about,) = read.devices.values()
    assert (about["fingerprint"], about["cpu_model"]) == ("f00d", "Example CPU @ 3 GHz")
    assert list(read.builds) == ["ab" * 32]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda runs: [*runs[:7], *map(disturbed, runs[7:])][-10:], Inconclusive, "5 undisturbed replicates"),
        (
            lambda runs: [dataclasses.replace(runs[0], status="crashed", detail="SIGSEGV"), *runs[1:]],
            CellsFailed,
            "1 run of 12 failed: SIGSEGV",
        ),
        (
            lambda runs: [dataclasses.replace(runs[0], status="wrong-output"), *runs[1:]],
            CellsFailed,
            "computed wrong output",
        ),
        (
            lambda runs: [
                dataclasses.replace(
                    one, settings=dataclasses.replace(one.settings, memory_limit_bytes=1 << 30)
                )
                for one in runs
            ],
            CellsFailed,
            "is not proven to hold",
        ),
    ],
)
def test_what_is_no_measure_is_refused(
    tmp_path: Path, change: object, error: type[Exception], said: str
) -> None:
    assert callable(change)
    with pytest.raises(error, match=said):
        taking.take([write(tmp_path / "c1", change(BEFORE))])


def test_a_long_label_is_never_cut(tmp_path: Path) -> None:
    """What is measured again is found by its label: of a model's file, by a name as long as files have."""
    long = [dataclasses.replace(one, label=f"local:{'m' * 250}/dense/t2/pp39+tg4") for one in BEFORE]
    made, _ = taking.take([write(tmp_path / "c1", long)])
    slower = [dataclasses.replace(one, label=long[0].label) for one in later(0.7)]
    found = JUDGE.findings(made.side("A"), side(slower, name="B"))
    assert {finding.label for finding in found} == {long[0].label}


def test_disturbed_runs_are_left_out_and_said(tmp_path: Path) -> None:
    made, notes = taking.take([write(tmp_path / "c1", [*BEFORE[:9], *map(disturbed, BEFORE[9:])])])
    assert len(made.cases[0].samples) == 9
    assert notes[0].endswith("3 disturbed runs left out")


HOGGED = [*BEFORE[:4], *map(disturbed, BEFORE[4:])]


def test_disturbed_runs_are_taken_on_request_and_keep_their_mark(tmp_path: Path) -> None:
    results = write(tmp_path / "c1", HOGGED)
    with pytest.raises(Inconclusive, match="4 undisturbed replicates of 12") as error:
        taking.take([results])
    assert "--allow-disturbed" in error.value.hint
    made, notes = taking.take([results], allow_disturbed=True)
    assert notes[0].endswith(
        "8 of 12 runs disturbed, and taken: a check of it needs this build, to run both by turns"
    )
    path = tmp_path / "base.json"
    baseline_file.write(made, path)
    (case,) = baseline_file.read(path).cases
    assert (len(case.samples), case.disturbed) == (12, 8)
    assert "The runs of 1 case were disturbed when it was taken." in summary.markdown([], made, "check")
    calm, _ = taking.take([write(tmp_path / "c2", BEFORE)], allow_disturbed=True)
    assert "disturbed" not in baseline_file.text_of(calm)
    assert "disturbed: 8 of 12 replicates, were 0 of 12" in taking.updated(calm, made)[1][0].text
    with pytest.raises(Inconclusive, match="5 replicates; below 6") as error:
        taking.take([write(tmp_path / "c3", HOGGED[-5:])], allow_disturbed=True)
    assert "-r 10" in error.value.hint


def test_disturbed_samples_decide_nothing_and_pairs_do(tmp_path: Path) -> None:
    """Neither for the worse nor for the better; by turns a regression of the same case is confirmed."""
    hogged = list(map(disturbed, BEFORE))
    made, _ = taking.take([write(tmp_path / "c1", hogged)], allow_disturbed=True)
    for factor in (0.5, 1.0, 2.0):
        found = JUDGE.findings(made.side("base.json"), side(later(factor)))
        assert {f.verdict for f in found} == {INCONCLUSIVE}
        assert "the baseline has no usable replicate of 12 records, 12 disturbed" in found[0].reason
    for factor, verdict in ((0.9, REGRESSED), (1.0, UNCHANGED)):
        bench = Played(factor, paired=True)
        anew = confirming.unconfirmed(confirming.settle(found, bench, JUDGE))
        (decode,) = [f for f in anew if f.metric and f.metric.name == "decode_tps"]
        assert (decode.verdict, decode.measured_again, decode.first) == (verdict, True, None)


def test_update_says_what_changes_and_keeps_the_rest(tmp_path: Path) -> None:
    other = case(noisy(8), model="qwen3-0.6b")
    old, _ = taking.take([write(tmp_path / "c1", [*BEFORE, *other])])
    new, _ = taking.take([write(tmp_path / "c2", later(0.8))])
    made, changes = taking.updated(old, new)
    (change,) = changes
    assert change.kind == "replaced"
    assert "(regressed)" in change.text
    assert {c.label for c in made.cases} == {c.label for c in old.cases}
    assert {c.settings["campaign"] for c in made.cases} == {"c1", "c2"}
    assert set(made.builds) == {"ab" * 32, "cd" * 32}
    assert taking.updated(made, new)[1][0].kind == "same"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[]", "no baseline of stbench"),
        ('{"stbench_baseline": 9}', "a baseline of version 9"),
        ('{"stbench_baseline": 1, "cases": 3}', "not a whole baseline"),
    ],
)
def test_what_is_no_baseline_is_said(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "base.json"
    path.write_text(content)
    with pytest.raises(InputError, match=said):
        baseline_file.read(path)


def test_impossible_samples_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    baseline_file.write(taking.take([write(tmp_path / "c1", BEFORE)])[0], path)
    whole = json.loads(path.read_text())
    whole["cases"][0]["samples"][0]["disturbed"] = "no"
    path.write_text(json.dumps(whole))
    with pytest.raises(InputError, match="disturbed is 'no'"):
        baseline_file.read(path)
    del whole["cases"][0]["samples"][0]["disturbed"]
    for value in (-1, 0, "12", None, True):
        whole["cases"][0]["samples"][0]["decode_tps"] = value
        path.write_text(json.dumps(whole))
        with pytest.raises(InputError, match="decode_tps"):
            baseline_file.read(path)


# ---- verdicts and thresholds ----


def test_each_metric_has_its_direction() -> None:
    a = side(BEFORE)
    assert verdicts(a, side(later(0.9))) == {"decode_tps": REGRESSED, "peak_rss_bytes": UNCHANGED}
    assert verdicts(a, side(later(1.1)))["decode_tps"] == IMPROVED
    assert verdicts(a, side(memory(later(), 1.1)))["peak_rss_bytes"] == REGRESSED
    assert verdicts(a, side(memory(later(), 0.9)))["peak_rss_bytes"] == IMPROVED


DEVICES = b"""
devices:
  local:
    check: {decode_tps: 20, peak_rss_bytes: off, prefill_tps: 5}
  other:
    extends: local
    check: {decode_tps: 3}
"""


def test_thresholds_of_devices_are_inherited_each_by_itself() -> None:
    local, other = parse_inventory(DEVICES, "devices.yaml").devices
    assert local.check == {"decode_tps": 20.0, "peak_rss_bytes": None, "prefill_tps": 5.0}
    assert other.check == {"decode_tps": 3.0, "peak_rss_bytes": None, "prefill_tps": 5.0}
    judge = Judge(thresholds_of([local, other]), [])
    found = verdicts(side(BEFORE), side(later(0.9)), judge)
    assert found["decode_tps"] == UNCHANGED
    assert set(found) == {"decode_tps", "prefill_tps"}
    assert set(CheckEntry.model_fields) == set(METRICS)


def test_no_threshold_is_below_the_device_s_noise() -> None:
    row = side(BEFORE).frame.iloc[0]
    noise = Noise(
        **{n: str(row[n]) for n in ("device", "fingerprint", "engine", "model", "switches", "workload")},
        threads=int(row["threads"]),
        metric="decode_tps",
        half=12,
        floor=0.15,
        drift=0.0,
        spread=0.1,
        alarms=0.0,
        campaign="n",
        library="",
        measured_at="",
    )
    (finding, *_) = Judge(thresholds_of([]), [noise]).findings(side(BEFORE), side(later(0.9)))
    assert finding.comparison is not None
    assert finding.comparison.threshold == pytest.approx(0.15)
    assert finding.verdict == UNCHANGED


def test_another_device_and_other_settings_have_no_verdict_but_a_reason() -> None:
    other = case(noisy(12), campaign="c2", fingerprint="beef")
    (finding,) = JUDGE.findings(side(BEFORE, name="base.json"), side(other, name="now"))
    assert (finding.verdict, finding.metric) == (INCONCLUSIVE, None)
    assert finding.reason == "fingerprint is f00d in base.json, beef in now"
    renamed = case(noisy(12), campaign="c2", device="board")
    (finding,) = JUDGE.findings(side(BEFORE, name="base.json"), side(renamed, name="now"))
    assert "device local in base.json, board in now" in finding.reason
    assert judging.exit_code([finding], inconclusive_fails=True) == 5
    assert judging.exit_code([finding], inconclusive_fails=False) == 0


def test_failed_and_missing_cases_do_not_pass() -> None:
    failed = [dataclasses.replace(one, status="crashed", samples=None) for one in later()]
    (finding,) = JUDGE.findings(side(BEFORE), side(failed))
    assert finding.verdict == FAILED
    assert judging.exit_code([finding], inconclusive_fails=False) == 3
    wrong = [dataclasses.replace(later()[0], status="wrong-output"), *later()[1:]]
    assert JUDGE.findings(side(BEFORE), side(wrong))[0].verdict == FAILED
    more = [*BEFORE, *case(noisy(12), model="qwen3-0.6b")]
    found = JUDGE.findings(side(more), side(later()))
    assert [f.reason for f in found if f.verdict == INCONCLUSIVE] == ["in the baseline, and not in A"]
    assert not [f for f in JUDGE.findings(side(more), side(later()), expected=False) if f.reason]
    hogged = JUDGE.findings(side(BEFORE), side([disturbed(one) for one in later()]))
    said = "this run has no usable replicate of 12 records, 12 disturbed"
    assert [(f.verdict, f.reason) for f in hogged] == [(INCONCLUSIVE, said)] * 2
    assert confirming.suspects(hogged) == hogged


def test_runs_that_did_not_end_well_fail_a_case_unless_they_were_lost() -> None:
    def ended(n: int, status: str, of: int = 16) -> list[Finding]:
        bad = {"status": status, "detail": "SIGSEGV", "samples": None}
        runs = later(n=of)
        return JUDGE.findings(
            side(BEFORE), side([*(dataclasses.replace(x, **bad) for x in runs[:n]), *runs[n:]])
        )

    for n, status in ((8, "crashed"), (1, "timeout"), (1, "out-of-memory"), (1, "failed")):
        (finding,) = ended(n, status)
        assert (finding.verdict, finding.metric) == (FAILED, None)
        assert finding.reason == f"{n} of 16 runs did not end well: SIGSEGV"
        assert judging.exit_code([finding], inconclusive_fails=False) == 3
        assert not confirming.suspects([finding])
    found = ended(2, "lost")
    assert {f.verdict for f in found} == {UNCHANGED}
    assert [f.comparison.b.failed for f in found if f.comparison] == [2, 2]
    assert [f.reason for f in ended(16, "lost")] == ["no run ended well: SIGSEGV"]


def test_pairs_on_a_machine_that_others_use_are_all_taken() -> None:
    """Where fewer than 6 undisturbed ones are left: what comes and goes hits either build alike."""
    before = case(noisy(9), campaign="again")
    slower = case([0.9 * speed for speed in noisy(9, seed=1)], campaign="again", library="cd" * 32)
    hogged = side(map(disturbed, before)), side(map(disturbed, slower))
    assert verdicts(*hogged)["decode_tps"] == REGRESSED
    assert verdicts(hogged[0], side(map(disturbed, later(0.9))))["decode_tps"] == INCONCLUSIVE


# ---- measuring again ----


class Played:
    """A bench whose builds have speeds to order; ``rounds`` of them until the time is over."""

    def __init__(self, factor: float, *, paired: bool, rounds: int = 100, noise: float = 0.01) -> None:
        self.paired, self.looks = paired, []  # type: tuple[bool, list[int]]
        self._factor, self._rounds, self._noise = factor, rounds, noise

    def time_left(self) -> bool:
        return not self.looks or self.looks[-1] < self._rounds

    def more(self, labels: Sequence[str], replicates: int) -> tuple[Side, Side] | None:
        assert labels == [BEFORE[0].label]
        replicates = min(replicates, self._rounds)
        if not replicates:
            return None
        self.looks.append(replicates)
        now = [self._factor * speed for speed in noisy(replicates, seed=9, noise=self._noise)]
        if not self.paired:
            return side(BEFORE), side(case(now, start=9000, campaign="again", library="cd" * 32))
        before = case(noisy(replicates, seed=8, noise=self._noise), campaign="again")
        return side(before), side(case(now, campaign="again", library="cd" * 32))


def settled(first: float, bench: Played) -> dict[str, Finding]:
    found = JUDGE.findings(side(BEFORE), side(later(first)))
    found = confirming.without_own_builds(confirming.unconfirmed(confirming.settle(found, bench, JUDGE)))
    return {f.metric.name: f for f in found if f.metric}


@pytest.mark.parametrize("paired", [True, False])
def test_a_regression_counts_when_it_is_confirmed(paired: bool) -> None:
    finding = settled(0.9, Played(0.9, paired=paired))["decode_tps"]
    assert finding.verdict == REGRESSED
    assert (finding.reason == confirming.DRIFT) is not paired
    assert finding.first is not None
    assert finding.comparison is not None
    assert finding.comparison.paired is paired


def test_a_suspicion_that_is_not_confirmed_passes() -> None:
    finding = settled(0.9, Played(1.0, paired=True))["decode_tps"]
    assert (finding.verdict, finding.reason) == (
        UNCHANGED,
        "suspected at first, not confirmed by measuring again",
    )


def test_without_time_a_suspicion_is_no_verdict() -> None:
    finding = settled(0.9, Played(0.9, paired=True, rounds=0))["decode_tps"]
    assert (finding.verdict, finding.reason) == (INCONCLUSIVE, confirming.NOT_AGAIN)


def test_replicates_are_added_until_it_is_settled() -> None:
    bench = Played(1.0, paired=True, noise=0.03)
    finding = settled(0.9, bench)["decode_tps"]
    assert finding.verdict == UNCHANGED
    assert len(bench.looks) > 1
    assert bench.looks == sorted(set(bench.looks))
    assert all(b <= 2 * a for a, b in zip(bench.looks, bench.looks[1:], strict=False))
    short = Played(1.0, paired=True, noise=0.03, rounds=6)
    finding = settled(0.9, short)["decode_tps"]
    assert finding.verdict == INCONCLUSIVE
    assert finding.reason == "suspected at first, neither confirmed nor refuted by measuring again"


def test_one_build_cannot_regress_against_itself() -> None:
    found = JUDGE.findings(side(BEFORE), side(later(0.9, library="ab" * 32)))
    again = [dataclasses.replace(f, first=f.comparison) for f in found]
    worst = judging.ordered(confirming.without_own_builds(again))[0]
    assert (worst.verdict, worst.reason) == (INCONCLUSIVE, confirming.SAME_BUILD)


# ---- what others read ----


def findings() -> list[Finding]:
    failed = Finding(
        "local", "local:x<&>\x1b[31m/t2", None, FAILED, reason="it said <b>&amp;\x00 %0A ::error"
    )
    return [*JUDGE.findings(side(BEFORE), side(later(0.9))), failed]


def test_junit_is_xml_with_the_right_counts() -> None:
    text = outputs.junit(findings(), inconclusive_fails=True)
    root = ElementTree.fromstring(text.encode())
    (suite,) = root
    assert [suite.get(key) for key in ("tests", "failures", "errors", "skipped")] == ["3", "1", "1", "0"]
    schema = etree.XMLSchema(etree.parse(SCHEMA))
    schema.assertValid(etree.fromstring(text.encode()))
    (failure,) = root.iter("failure")
    assert (failure.get("type"), "decode" in str(failure.get("message"))) == ("regressed", True)
    unsure = [Finding("local", "local:x", None, INCONCLUSIVE, reason="why")]
    for fails, tag in ((True, "error"), (False, "skipped")):
        text = outputs.junit(unsure, inconclusive_fails=fails)
        schema.assertValid(etree.fromstring(text.encode()))
        assert [one.get("message") for one in ElementTree.fromstring(text.encode()).iter(tag)] == [
            "inconclusive: why"
        ]


def test_annotations_are_one_line_each_and_escaped() -> None:
    lines = outputs.github(findings(), inconclusive_fails=True)
    assert [line.partition(" ")[0] for line in lines] == ["::error", "::error"]
    assert "%250A" in lines[1]
    assert all(line.isprintable() for line in lines)
    assert lines[1].count("::") == 3


def test_the_summary_shows_what_changed_and_folds_the_rest(tmp_path: Path) -> None:
    made, _ = taking.take([write(tmp_path / "c1", BEFORE)])
    text = summary.markdown(findings(), made, "check")
    assert text.startswith("## check: 1 regressed, 1 failed, 1 unchanged\n")
    assert "<details><summary>1 unchanged number</summary>" in text
    assert "library abababababab" in text
    assert "<b>" not in text
    assert summary.json_of(findings(), 1, [])["findings"][0]["verdict"] == REGRESSED
