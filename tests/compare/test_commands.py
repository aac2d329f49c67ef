"""``stbench compare`` and ``stbench noise`` as typed: output, exit codes, refusals."""

from __future__ import annotations

import json

import pytest

from stbench.comparison.noise import read_floors
from tests.compare.records import case, noisy, write
from tests.compare.test_versus import campaign
from tests.host.conftest import Sandbox, sandbox

__all__ = ["sandbox"]


@pytest.fixture
def pair(sandbox: Sandbox) -> tuple[str, str]:
    """A campaign, and one of a build that is 10 % slower, run in turn with it."""
    before = case(noisy(9), every=2)
    after = case([0.9 * s for s in noisy(9, seed=1)], start=1, every=2, campaign="c2", library="cd" * 32)
    return write(sandbox.directory / "before", before), write(sandbox.directory / "after", after)


def test_exit_codes_follow_fail_on(sandbox: Sandbox, pair: tuple[str, str]) -> None:
    before, after = pair
    code, out, err = sandbox.run("compare", before, after)
    assert (code, err) == (0, "")
    for said in ("regressed", "9 pairs", "0.9", "stbench noise"):
        assert said in out
    assert sandbox.run("compare", before, after, "--fail-on", "regressed")[0] == 1
    assert sandbox.run("compare", after, before, "--fail-on", "regressed")[0] == 0
    few = [f"{path}:*/t2/*" for path in pair]
    assert sandbox.run("compare", *few, "--fail-on", "inconclusive")[0] == 0
    short = write(sandbox.directory / "short", case(noisy(3)))
    assert sandbox.run("compare", short, short)[0] == 0
    assert sandbox.run("compare", short, short, "--fail-on", "regressed", "--fail-on", "inconclusive")[0] == 5


def test_json_holds_every_number(sandbox: Sandbox, pair: tuple[str, str]) -> None:
    code, out, _ = sandbox.run("compare", *pair, "--json", "--fail-on", "regressed")
    assert code == 1
    (found,) = json.loads(out)["cases"]
    assert found["verdict"] == "regressed"
    assert found["test"] == "signed-rank"
    assert 0 < found["p"] <= found["q"] < 0.05
    assert found["low"] < found["ratio"] < found["high"] < 1
    assert found["a"]["library"] == ["ab" * 6]
    assert found["b"]["library"] == ["cd" * 6]
    assert sandbox.run("compare", *pair, "--format", "json")[1] == out


def test_markdown_is_a_table(sandbox: Sandbox, pair: tuple[str, str]) -> None:
    _, out, _ = sandbox.run("compare", *pair, "--format", "md")
    assert "| Case | A<br>tokens/s | B<br>tokens/s | B / A | n | q | verdict |" in out
    assert "| 9 pairs |" in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ignore", "colour"], "--ignore colour: no field that is compared; known: device, engine"),
        (["--threshold", "0"], "--threshold 0: expected percent"),
        (["--engines", "sbr"], "--engines sbr: expected two engines"),
        (["--engines", "sbr,llama-bench"], "--engines compares within one RESULTS"),
        (["--bandwidth", "60"], "--bandwidth 60: expected LOW:HIGH in GB/s"),
    ],
)
def test_impossible_options_are_refused(
    sandbox: Sandbox, pair: tuple[str, str], options: list[str], said: str
) -> None:
    code, out, err = sandbox.run("compare", *pair, *options)
    assert (code, out) == (2, "")
    assert said in err


def test_one_side_alone_and_unlike_rows_exit_with_2(sandbox: Sandbox, pair: tuple[str, str]) -> None:
    code, _, err = sandbox.run("compare", pair[0])
    assert (code, "expected two RESULTS, A and B, got 1" in err) == (2, True)
    other = write(sandbox.directory / "other", case(noisy(9), campaign="c3", fingerprint="beef"))
    code, _, err = sandbox.run("compare", pair[0], other)
    assert code == 2
    assert f"fingerprint is f00d in {pair[0]}, beef in {other}" in err
    assert "--ignore FIELD" in err


def test_engines_of_one_campaign(sandbox: Sandbox) -> None:
    results = write(sandbox.directory / "versus", campaign())
    code, out, _ = sandbox.run("compare", results, "--engines", "sbr,llama-bench")
    assert code == 0
    assert "1.4 met" in out
    code, out, _ = sandbox.run("compare", results, "--engines", "sbr,llama-bench", "--json")
    rows = json.loads(out)["rows"]
    assert {(row["model"], row["switches"]): row["bar_verdict"] for row in rows} == {
        ("smallthinker-4b", "dense"): "met",
        ("smallthinker-4b", "sparse"): "met",
        ("qwen3-0.6b", "dense"): "not met",
    }
    assert sandbox.run("compare", results, "--engines", "sbr,llama-bench", "--ignore", "cpus")[0] == 2


def test_noise_is_measured_stored_and_used(sandbox: Sandbox) -> None:
    """Of the fake engine, through the whole pipeline."""
    code, out, err = sandbox.run(
        "noise", "--models", "fake", "--engines", "fake", "-n", "4", "-r", "12", "--bracket-ms", "0"
    )
    assert code == 0, err
    assert "floor" in out
    (stored,), problems = read_floors()
    assert not problems
    assert (stored.engine, stored.model, stored.half, stored.metric) == ("fake", "fake", 6, "decode_tps")
    campaigns = [str(path) for path in (sandbox.directory / "results").iterdir()]
    code, out, _ = sandbox.run("compare", *campaigns, *campaigns, "--json")
    assert json.loads(out)["cases"][0]["floor"] == pytest.approx(stored.floor)
    code, out, _ = sandbox.run("noise", *campaigns, "--json", "--dry-run")
    assert json.loads(out)[0]["floor"] == stored.floor
    assert len(read_floors()[0]) == 1


def test_noise_of_too_few_replicates_or_with_axes_is_refused(sandbox: Sandbox) -> None:
    short = write(sandbox.directory / "short", case(noisy(5)))
    code, _, err = sandbox.run("noise", short)
    assert (code, "two halves need 12" in err) == (3, True)
    code, _, err = sandbox.run("noise", short, "-n", "8")
    assert (code, "--gen says what to measure" in err) == (2, True)
