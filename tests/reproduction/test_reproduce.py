"""Published cells by name, their conditions beside the measured ones, and the verdict."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from stbench import cli
from stbench.agent.wire import RunRecord, ThreadChoice
from stbench.errors import UsageError
from stbench.reproduction import conditions as under
from stbench.reproduction import verdict
from stbench.reproduction.published_cells import PublishedCell, find_cell, published_cells
from stbench.sweeps.sweep import build_sweep
from tests.host.conftest import Sandbox, sandbox
from tests.tables.factory import facts, record, table_4b
from tests.tables.test_limited_grid import limited
from tests.tables.test_reporting import stored

__all__ = ["sandbox"]

PI_LIMITED = "raspberry-pi-5 / SmallThinker 4B sparse limited"


@pytest.mark.parametrize(
    ("text", "device", "row"),
    [
        (PI_LIMITED, "raspberry-pi-5", "smallthinker-4b/sparse-ffn+sparse-lm_head+limited"),
        ("Raspberry PI 5 / smallthinker-4b", "raspberry-pi-5", "smallthinker-4b/sparse-ffn+sparse-lm_head"),
        (
            "pi5/SMALLTHINKER 4B limit 1G",
            "raspberry-pi-5",
            "smallthinker-4b/sparse-ffn+sparse-lm_head+limited",
        ),
        ("i9 / qwen3 0.6b", "i9-14900", "qwen3-0.6b/dense"),
        ("1+13 8gen4 / Qwen3-1.7B limited", "snapdragon-8-elite", "qwen3-1.7b/limited"),
        ("x5 / gemma3n", "rdk-x5", "gemma3n-e2b/dense"),
        ("rk3588 (16G) / 30B", "rk3588", "qwen3-30b-a3b/dense"),
        ("rk3588 / SmallThinker 21B 8g", "rk3588", "smallthinker-21b/sparse+limited"),
        ("i9 / unlimited 21b", "i9-14900", "smallthinker-21b/sparse"),
    ],
)
def test_cells_are_found_by_what_people_type(text: str, device: str, row: str) -> None:
    cell = find_cell(text)
    assert (cell.device.key, cell.row.key) == (device, row)


def test_every_cell_has_a_name_that_finds_it() -> None:
    cells = published_cells()
    assert len(cells) == 62
    for cell in cells:
        assert find_cell(cell.name) == cell


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raspberry-pi-5", 'expected "DEVICE / ROW"'),
        ("/ qwen3", 'expected "DEVICE / ROW"'),
        ("moon / qwen3 0.6b", '"moon" is no published device: i9-14900'),
        ("rk / qwen3 0.6b", "fits several published devices: rk3566, rk3576, rk3588"),
        ("i9 / qwen3", "fits several published rows:\n  i9-14900 / Qwen3 0.6B\n"),
        ("i9 / llama", "fits no published row of that device:\n  i9-14900 / SmallThinker 4B"),
        ("rdk-x5 / SmallThinker 21B", "fits no published row"),
    ],
)
def test_names_that_fit_none_or_several_list_candidates(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        find_cell(text)
    assert said in str(error.value)


def test_a_cell_is_measured_as_it_was_published() -> None:
    sweep = build_sweep(under.sweep_options(find_cell(PI_LIMITED), gen=None, replicates=6, threads=None))
    assert (sweep.models, sweep.workloads) == (("smallthinker-4b",), ((39, 256, 0),))
    assert (sweep.memory_limit, sweep.cache, sweep.warmup_tokens) == ((1 << 30,), ("auto",), 32)
    assert (sweep.sparse_ffn, sweep.sparse_lm_head, sweep.n_ctx) == ((True,), (True,), 4096)
    qwen = under.sweep_options(find_cell("i9 / qwen3 1.7b limited"), gen=16, replicates=2, threads=None)
    assert (qwen["cache"], qwen["threads"], qwen["prompt_gen"]) == (["none"], [4, "all"], [[39, 16]])
    gemma = under.sweep_options(find_cell("pi 5 / gemma3n e2b"), gen=None, replicates=2, threads=None)
    assert (gemma["engines"], gemma["threads"]) == (["llama-bench"], "auto")


PI = {"board": "Raspberry Pi 5 Model B Rev 1.0", "cpu_model": "Cortex-A76", "machine": "aarch64"}


@pytest.mark.parametrize(
    ("cell", "device", "changes", "same"),
    [
        ("pi 5 / qwen3 0.6b", "desk", PI, True),
        ("rk3588 / qwen3 0.6b", "desk", PI, False),
        ("rk3588 / qwen3 0.6b", "rk3588", {"board": "Orange Pi 5 Plus", "machine": "aarch64"}, True),
        ("rk3588 / qwen3 0.6b", "rk3588", {"machine": "x86_64"}, False),
        ("rk3588 / qwen3 0.6b", "rk3588", PI, False),
        ("i9 / qwen3 0.6b", "local", {"cpu_model": "Intel(R) Core(TM) i9-14900K"}, True),
        ("i9 / qwen3 0.6b", "local", {}, False),
    ],
)
def test_the_machine_is_known_by_what_it_says(
    cell: str, device: str, changes: dict[str, Any], same: bool
) -> None:
    assert under.same_machine(find_cell(cell), device, facts(**changes)) is same


def on_pi(speeds: list[float], **changes: Any) -> list[RunRecord]:
    """Qwen3 0.6B on a Raspberry Pi 5: published 27.44."""
    made = [record("qwen3-0.6b", tps=tps, replicate=i, n_gen=256) for i, tps in enumerate(speeds)]
    return [dataclasses.replace(r, device="pi", facts=facts(**PI), **changes) for r in made]


def judged(records: list[RunRecord], cell: str = "pi 5 / qwen3 0.6b", within: float = 0.1) -> verdict.Verdict:
    return verdict.judge(find_cell(cell), records, within)


@pytest.mark.parametrize(
    ("speeds", "kind", "said", "code"),
    [
        ([27.0] * 6, "reproduced", "reproduced within 1.6 %: 27.00 tokens/s [27.00, 27.00], 0.98", 0),
        ([20.0, 21.0], "slower", "slower by 25 %: 20.50 tokens/s (range of 2: 20.00…21.00), 0.75", 1),
        ([40.0] * 3, "faster", "faster by 46 %", 0),
        ([22.0, 24.0, 26.0], "inconclusive", "the range reaches within 10 % of it", 5),
        ([27.44], "reproduced", "(one run)", 0),
    ],
)
def test_verdicts(speeds: list[float], kind: str, said: str, code: int) -> None:
    found = judged(on_pi(speeds))
    assert found.kind == kind
    assert said in found.sentence
    assert "published 27.44" in found.sentence
    assert verdict.EXIT_CODES[found.kind] == code


def test_another_machine_reproduces_nothing() -> None:
    found = judged([record("qwen3-0.6b", tps=27.44, n_gen=256)])
    assert found.kind == "not comparable"
    assert found.ratio == pytest.approx(1.0)
    assert "local is another machine than Raspberry Pi 5" in found.sentence
    assert "For what it is worth: 27.44 tokens/s" in found.sentence


def test_wrong_output_and_failures_have_no_speed() -> None:
    wrong = judged([*on_pi([27.0] * 5), dataclasses.replace(on_pi([27.0] * 6)[5], status="wrong-output")])
    assert (wrong.kind, wrong.estimate) == ("not comparable", None)
    assert "computed wrong output" in wrong.sentence
    failed = judged([dataclasses.replace(r, status="crashed", detail="SIGILL") for r in on_pi([27.0])])
    assert "no run has a speed (crashed: SIGILL)" in failed.sentence


@pytest.mark.parametrize(("state", "kind"), [("held", "slower"), ("not-enforced", "not comparable")])
def test_a_limit_that_did_not_hold_reproduces_nothing(state: str, kind: str) -> None:
    records = [limited(0.5 + i / 100, replicate=i, verdict=state) for i in range(2)]
    records = [dataclasses.replace(r, facts=facts(**PI)) for r in records]
    found = judged(records, PI_LIMITED)
    assert found.kind == kind
    assert ("limit was not held" in found.sentence) == (state != "held")


def test_a_published_dash_has_no_verdict() -> None:
    records = [dataclasses.replace(limited(0.5), facts=facts(**PI))]
    assert 'the published cell is "-"' in judged(records, "pi 5 / qwen3 1.7b limited").sentence


def states(cell: PublishedCell, records: list[RunRecord]) -> dict[str, str]:
    return {one.name: one.state for one in under.conditions(cell, records)}


def test_conditions_differ_are_the_same_or_were_never_stated() -> None:
    cell = find_cell("pi 5 / qwen3 0.6b")
    found = states(cell, on_pi([27.0]))
    assert found["machine"] == found["prompt"] == found["generation"] == found["quantisation"] == "same"
    assert found["weights"] == found["threads"] == found["text"] == "differs"
    never = {name for name, state in found.items() if state == "never stated"}
    assert never == {"context", "repetitions and spread", "instruction set", "clocks", "cooling"}
    short = [dataclasses.replace(r, workload=dataclasses.replace(r.workload, n_gen=8)) for r in on_pi([27.0])]
    assert states(cell, short)["generation"] == "differs"
    choice = ThreadChoice("s", "2 threads at 30 ms a token, the fastest")
    searched = [dataclasses.replace(r, choice=choice) for r in on_pi([27.0])]
    assert states(cell, searched)["threads"] == "same"


def test_conditions_of_a_limit() -> None:
    found = {one.name: one for one in under.conditions(find_cell(PI_LIMITED), [limited(9.0)])}
    assert (found["memory limit"].state, found["memory limit"].here) == ("same", "1 GiB")
    assert found["limit enforced by"].here == "cgroup-v1 (held)"
    assert found["limit enforced by"].state == found["cache of weights"].state == "never stated"
    half = under.conditions(find_cell(PI_LIMITED), [limited(9.0, limit=1 << 29)])
    assert {one.name: one.state for one in half}["memory limit"] == "differs"


def test_stored_runs_are_judged_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = stored(tmp_path / "c1", [*table_4b(), *on_pi([27.0] * 6)])
    argv = ["reproduce", "pi 5 / qwen3 0.6b", "--from", str(results), "--device", "pi"]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("reproduced within 1.6 %")
    assert "never stated" in out
    assert cli.main([*argv, "--json", "--within", "1"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["verdict"]["kind"] == "slower"
    assert data["published_tps"] == 27.44
    assert len(data["records"]) == 6
    assert cli.main(["reproduce", PI_LIMITED, "--from", str(results), "--device", "pi"]) == 2
    assert "no finished run of SmallThinker 4B" in capsys.readouterr().err


@pytest.mark.parametrize("cell", ["i9 / qwen3 0.6b", "i9 / qwen3 1.7b limited"])
def test_the_command_measures(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, cell: str) -> None:
    """Through the whole pipeline with a made-up engine in place of the cell's model."""
    asked = []

    def small(wanted: PublishedCell, **how: Any) -> dict[str, Any]:
        asked.append(how)
        axes = {"models": ["fake"], "engines": ["fake"], "gen": [4], "replicates": how["replicates"]}
        return {**axes, "threads": [4, "all"], "bracket_ms": 0, "sample_hz": 0}

    monkeypatch.setattr(under, "sweep_options", small)
    words = ["reproduce", cell, "-n", "4", "-r", "2", "--campaign", "again", "--max-reruns", "0"]
    code, out, err = sandbox.run(*words)
    assert code == 5, err
    assert asked == [{"gen": 4, "replicates": 2, "threads": None}]
    assert "another machine than" in out.splitlines()[-1]
    assert ("limit was not held" in out) == ("limited" in cell)
    code, out, _ = sandbox.run(*words[:2], "--campaign", "third", "-r", "1", "--json")
    data = json.loads(out)
    assert (code, data["verdict"]["kind"], data["campaign"]) == (5, "not comparable", "third")
    assert len(data["records"]) == 1
    assert sandbox.run(*words)[0] == 2, "a campaign is measured once"


def test_the_command_lists_cells_and_refuses_nonsense(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 62
    assert cli.main(["reproduce"]) == 2
    assert cli.main(["reproduce", PI_LIMITED, "-n", "0"]) == 2
    assert cli.main(["reproduce", PI_LIMITED, "--within", "0"]) == 2
