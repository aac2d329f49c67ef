"""``stbench check`` and ``stbench baseline`` as typed, on the fake engine and on results made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.compare.records import case, disturbed, noisy, write
from tests.host.conftest import Sandbox, sandbox

__all__ = ["sandbox"]

BEFORE = case(noisy(12))


@pytest.fixture
def baseline(sandbox: Sandbox) -> str:
    results = write(sandbox.directory / "results" / "before", BEFORE)
    code, out, _ = sandbox.run("baseline", "set", "base.json", results)
    assert code == 0
    assert "tokens/s" in out
    return "base.json"


def now(sandbox: Sandbox, factor: float, **common: str) -> str:
    speeds = [factor * speed for speed in noisy(12, seed=1)]
    runs = case(speeds, start=5000, campaign="c2", library="cd" * 32, **common)
    return write(sandbox.directory / "results" / "now", runs)


def test_baseline_set_show_update(sandbox: Sandbox, baseline: str) -> None:
    code, out, err = sandbox.run("baseline", "set", baseline, "results/before")
    assert (code, "is there already" in err, "baseline update" in err) == (2, True, True)
    code, out, _ = sandbox.run("baseline", "show", baseline, "--json")
    assert json.loads(out)["cases"][0]["n"] == 12
    before = Path(baseline).read_bytes()
    results = now(sandbox, 0.8)
    code, out, _ = sandbox.run("baseline", "update", baseline, results, "--dry-run")
    assert (code, "(regressed)" in out, Path(baseline).read_bytes() == before) == (0, True, True)
    assert sandbox.run("baseline", "update", baseline, results)[0] == 0
    assert Path(baseline).read_bytes() != before
    assert sandbox.run("check", "--baseline", baseline, results)[0] == 0


def test_results_are_judged_and_reported(sandbox: Sandbox, baseline: str) -> None:
    """Nothing says how these were measured, so nothing can confirm the suspicion."""
    slower = now(sandbox, 0.9)
    outputs = ["--summary", "s.md", "--junit", "out/j.xml", "--github"]
    code, out, err = sandbox.run("check", "--baseline", baseline, slower, *outputs)
    assert code == 5, err
    for said in ("not measured again", "no campaign.json", "::error title="):
        assert said in out
    assert Path("s.md").read_text().startswith("## stbench check: 1 inconclusive")
    assert 'errors="1"' in Path("out/j.xml").read_text()
    assert sandbox.run("check", "--baseline", baseline, slower, "--on-inconclusive", "pass")[0] == 0
    code, out, _ = sandbox.run("check", "--baseline", baseline, now(sandbox, 1.0), "--json")
    assert (code, json.loads(out)["exit_code"]) == (0, 0)


def test_a_baseline_of_disturbed_runs_is_on_request_and_says_so(sandbox: Sandbox) -> None:
    results = write(sandbox.directory / "results" / "hogged", map(disturbed, BEFORE))
    code, _, err = sandbox.run("baseline", "set", "base.json", results)
    assert (code, "--allow-disturbed" in err, Path("base.json").exists()) == (5, True, False)
    code, out, err = sandbox.run("baseline", "set", "base.json", results, "--allow-disturbed")
    assert (code, "12, 12 disturbed" in out, "needs this build" in err) == (0, True, True)
    code, out, _ = sandbox.run("check", "--baseline", "base.json", now(sandbox, 0.5), "--json")
    found = json.loads(out)
    assert (code, {one["verdict"] for one in found["findings"]}) == (5, {"inconclusive"})
    assert "--allow-disturbed): its numbers decide nothing" in found["notes"][0]


def test_a_baseline_of_another_device_exits_with_5_and_the_field(sandbox: Sandbox, baseline: str) -> None:
    other = now(sandbox, 1.0, fingerprint="beef")
    code, out, _ = sandbox.run("check", "--baseline", baseline, other)
    assert code == 5
    assert "fingerprint is f00d in base.json, beef in" in out.replace("\n", " ").replace("  ", " ")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["results/before", "--models", "fake"], "RESULTS are given"),
        (["results/before", "--metric", "speed"], "--metric speed: expected some of decode_tps"),
        ([], "does not say how"),
    ],
)
def test_impossible_options_are_refused(
    sandbox: Sandbox, baseline: str, options: list[str], said: str
) -> None:
    code, _, err = sandbox.run("check", "--baseline", baseline, *options)
    assert (code, said in err) == (2, True), err


def test_measured_against_its_own_baseline(sandbox: Sandbox) -> None:
    """Through the whole pipeline: one build twice is no regression, another device's is seen before anything
    is measured."""
    sweep = sandbox.fake_sweep("fake", replicates=6, extra="depth: [0, 2]\nbracket_ms: 0\nsample_hz: 0")
    assert sandbox.run("sweep", sweep, "--campaign", "night")[0] == 0
    quiet = sandbox.directory / "results" / "night" / "records.jsonl"
    quiet.write_text("".join(_undisturbed(line) + "\n" for line in quiet.read_text().splitlines()))
    assert sandbox.run("baseline", "set", "base.json", "results/night")[0] == 0
    for contradiction, said in (
        (["--load", "mmap"], "--load mmap: base.json was measured with --load auto"),
        (["-n", "8", "-d", "2"], "--gen 8: base.json was measured with --gen 4"),
        (["--filter", "qwen3*"], "--filter qwen3*: no case of base.json fits"),
    ):
        code, _, err = sandbox.run("check", "--baseline", "base.json", *contradiction)
        assert (code, said in err) == (2, True), err
    # A part of the baseline, named by an axis: the other case is not missed.
    words = ["--baseline", "base.json", "-d", "2", "-r", "6", "--max-time", "20s", "--json"]
    code, out, err = sandbox.run("check", *words)
    assert code in (0, 5), out + err
    found = json.loads(out)["findings"]
    assert {one["case"] for one in found} == {"local:fake/dense/t2/tg4@d2/fake"}
    assert not [one for one in found if one["verdict"] == "regressed"]
    text = Path("base.json").read_text()
    known = json.loads(text)["devices"]["local"]["fingerprint"]
    Path("base.json").write_text(text.replace(known, "beefbeefbeefbeef"))
    before = sorted(Path("results").iterdir())
    code, _, err = sandbox.run("check", "--baseline", "base.json")
    assert (code, "is of another device: the fingerprint of local is beefbeefbeefbeef" in err) == (5, True)
    assert not [
        path for path in Path("results").iterdir() if path not in before and any(path.glob("records.jsonl"))
    ]


def _undisturbed(line: str) -> str:
    """The same run, with nobody else on the machine."""
    record = json.loads(line)
    if record["telemetry"]:
        record["telemetry"].update(other_cpu_s=0.0, steal_s=0.0)
    return json.dumps(record)
