"""``-t auto`` from the command line to records and notes: planned, searched once, resumed, said."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stbench.agent.probe import probe
from stbench.agent.tree import Tree
from stbench.agent.wire import CpuCluster, DeviceFacts, Program, RunRecord, Telemetry
from stbench.builds.programs import TargetProgram
from stbench.devices.inventory import Device, parse_inventory
from stbench.errors import SweepError
from stbench.records.store import read_records
from stbench.sweeps.candidates import MOST, candidates
from stbench.sweeps.plan import Plan, Target, build_plan
from stbench.sweeps.sweep import AUTO_THREADS, Sweep, build_sweep
from tests.host.conftest import Sandbox
from tests.host.test_plan import FACTS, target
from tests.tables import factory

RK3588 = probe(Tree(Path(__file__).parents[1] / "agent" / "trees" / "rk3588"))


def board(*names: str, device: Device | None = None, **changes: Any) -> Target:
    return target(*names, device=device, **{"facts": replace(RK3588, fingerprint="f00"), **changes})


def auto(models: str = "smallthinker-4b", **options: Any) -> Sweep:
    return build_sweep({"models": models, "threads": "auto", "gen": "8", "replicates": 2, **options})


# ---- the plan ----------------------------------------------------------------------------------------


def test_a_search_per_model_and_engine_setting() -> None:
    sweep = auto("smallthinker-4b,qwen3-0.6b", sparse_ffn="on,off", prompt="4", gen="8,9")
    plan = build_plan(sweep, [board("smallthinker-4b", "qwen3-0.6b")], "c")
    assert [search.label for search in plan.searches] == [
        "board:smallthinker-4b/sparse/tauto/search",
        "board:smallthinker-4b/dense/tauto/search",
        "board:qwen3-0.6b/dense/tauto/search",
    ]
    names = {search.id: search.case.removesuffix("/search") for search in plan.searches}
    assert len(plan.jobs) == 3 * 3 * 2
    for job in plan.jobs:
        assert job.choice is not None
        assert job.case.startswith(names[job.choice.search] + "/")
    for search in plan.searches:
        assert search.purpose == "search"
        assert search.candidates == candidates(RK3588)
        assert search.bracket_ms == 0


def test_the_plan_says_what_will_be_tried_and_its_time() -> None:
    plan = build_plan(auto(), [board("smallthinker-4b")], "c")
    (sentence,) = plan.search_sentences()
    assert sentence.startswith(
        "board:smallthinker-4b/dense/tauto/search: -t auto tries 5 settings first (about "
    )
    assert "4 threads on CPUs 6,7,4,5 (4 x Cortex-A76); " in sentence
    without = replace(plan, searches=(), search_s={})
    (seconds,) = plan.search_s.values()
    assert plan.expected_s() == pytest.approx(without.expected_s() + seconds)
    assert seconds > 1
    described = plan.describe()["searches"]["board:smallthinker-4b/dense/tauto/search"]
    assert len(described["candidates"]) == 5
    assert described["job"] == plan.searches[0].id
    assert plan.reruns_s() == without.reruns_s()


def test_ids_follow_the_search_and_not_its_result() -> None:
    def ids(**changes: Any) -> set[str]:
        plan = build_plan(auto(), [board("smallthinker-4b", **changes)], "c")
        return {job.id for job in [*plan.jobs, *plan.searches]}

    assert ids() == ids()
    fewer = replace(RK3588, fingerprint="f00", allowed_cpus=[4, 5, 6, 7])
    assert not ids() & ids(facts=fewer), "other candidates"
    fixed = build_plan(replace(auto(), threads=(8,)), [board("smallthinker-4b")], "c")
    assert not {job.id for job in fixed.jobs} & ids()


def test_a_sweep_of_counts_has_no_searches() -> None:
    sweep = build_sweep({"models": "tiny-llama", "gen": "1", "replicates": 1})
    plan = build_plan(sweep, [target("tiny-llama")], "c")
    assert plan.searches == ()
    assert plan.describe()["searches"] == {}
    assert [(job.choice, job.candidates) for job in plan.jobs] == [(None, [])]


def programs(*models: str, to: str = "") -> dict[str, TargetProgram]:
    files = {name: name + to for name in models}
    return {"llama-bench": TargetProgram(Program("llama-bench", ["llama-bench"]), "b", 60.0, files)}


def of_engine(plan: Plan, engine: str) -> set[str]:
    return {job.choice.search for job in plan.jobs if job.engine == engine and job.choice is not None}


def test_a_program_follows_the_dense_search_on_the_same_weights() -> None:
    sweep = auto(engines="llama-bench,sbr", sparse_ffn="on,off", one_model_at_a_time=True)
    names = ("smallthinker-4b", "smallthinker-4b:standard")
    found = programs("smallthinker-4b", to=":standard")
    plan = build_plan(sweep, [board(*names, programs=found)], "c")
    dense = next(search for search in plan.searches if "/dense/" in search.label)
    assert of_engine(plan, "llama-bench") == {dense.id}
    assert len(of_engine(plan, "sbr")) == 2
    plan = build_plan(replace(sweep, sparse_ffn=(False,)), [board(*names, programs=found)], "c")
    assert [group[0].engine for group in plan.groups()] == ["sbr", "llama-bench"], "found before it is needed"


def test_a_program_without_our_engine_runs_on_the_default_and_says_so() -> None:
    device = Device("board", threads=(3,))
    for sweep in (auto(engines="llama-bench"), auto(engines="sbr,llama-bench", filter="*/llama-bench/*")):
        found = programs("smallthinker-4b")
        plan = build_plan(sweep, [board("smallthinker-4b", device=device, programs=found)], "c")
        assert plan.searches == ()
        assert {job.settings.threads for job in plan.jobs} == {3}
        (note,) = [note for note in plan.notes if "-t auto" in note]
        assert "board:smallthinker-4b/llama-bench: 3 threads, the device's default" in note
        assert {job.choice.why in note for job in plan.jobs if job.choice} == {True}


def test_one_candidate_needs_no_search() -> None:
    device = Device("board", cpus=(6,), threads=(AUTO_THREADS,))
    plan = build_plan(replace(auto(), threads=None), [board("smallthinker-4b", device=device)], "c")
    assert plan.searches == ()
    for job in plan.jobs:
        assert (job.settings.threads, job.settings.cpus) == (1, [6])
        assert job.choice is not None
        assert job.choice.why == "1 thread on CPU 6 (1 x Cortex-A76), the only candidate"


def test_any_machine_has_few_candidates_once_each() -> None:
    chance = random.Random(7)
    for _ in range(300):
        clusters, cpu = [], 0
        for _ in range(chance.randrange(5)):
            cpus = list(range(cpu, cpu + chance.randrange(1, 9)))
            cpu = cpus[-1] + 1
            cores = cpus[::2] if chance.random() < 0.3 and len(cpus) > 1 else []
            khz = chance.choice([None, 1800000, 2300000, 2400000])
            clusters.append(CpuCluster(cpus, chance.choice("ab"), khz, None, None, "", cores))
        n = cpu + chance.randrange(1, 3)
        allowed = sorted(chance.sample(range(n), chance.randrange(1, n + 1)))
        facts: DeviceFacts = replace(FACTS, clusters=clusters, allowed_cpus=allowed, n_cpus=n)
        found = candidates(facts)
        assert 1 <= len(found) <= MOST
        keys = [(one.threads, tuple(sorted(one.cpus))) for one in found]
        assert len(set(keys)) == len(keys)
        assert 1 in {one.threads for one in found}
        for one in found:
            assert set(one.cpus) <= set(allowed)
            assert len(one.cpus) in (0, one.threads)
            assert 1 <= one.threads <= len(allowed)


# ---- where it is said --------------------------------------------------------------------------------


def test_auto_on_the_command_line_in_sweep_files_and_in_devices_yaml() -> None:
    assert build_sweep({"threads": "auto"}).threads == (AUTO_THREADS,)
    assert build_sweep({}, b"threads: auto\n").threads == (AUTO_THREADS,)
    assert build_sweep({}, b"threads: [auto]\n").threads == (AUTO_THREADS,)
    (device,) = parse_inventory(b"devices: {d: {threads: auto}}", "f").devices
    assert device.threads == (AUTO_THREADS,)
    with pytest.raises(SweepError) as caught:
        build_sweep({"threads": "auto,4"})
    assert '--threads: expected thread counts, all, or auto by itself, got "auto,4"' in str(caught.value)


# ---- a sweep -----------------------------------------------------------------------------------------


def records(sandbox: Sandbox) -> list[RunRecord]:
    reading = read_records(sandbox.directory / "results" / "c")
    assert reading.problems == []
    return reading.records


@pytest.fixture
def two_cpus(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """A device of two equal CPUs, whatever runs the tests."""
    from stbench.campaigns.agentclient import Agent

    own = Agent.facts
    cluster = [CpuCluster([0, 1], "CPU")]
    monkeypatch.setattr(
        Agent, "facts", lambda self: replace(own(self), clusters=cluster, allowed_cpus=[0, 1], n_cpus=2)
    )
    sandbox.write("devices.yaml", "devices: {local: {threads: auto, timeout: 60}}")
    return sandbox


def test_a_sweep_searches_once_and_says_what_it_found(two_cpus: Sandbox) -> None:
    sweep = two_cpus.fake_sweep("fake:scale=1", "fake:scale=2", replicates=2)
    code, out, err = two_cpus.run("sweep", sweep, "--campaign", "c")
    assert code == 0, err
    found = records(two_cpus)
    assert [record.purpose for record in found] == ["search"] * 2 + ["measure"] * 4
    by_model = {record.model.name: record for record in found if record.search is not None}
    for record in found[2:]:
        search = by_model[record.model.name]
        assert record.label == f"local:{record.model.name}/dense/tauto/tg4/fake"
        assert record.choice is not None
        assert record.choice.search == search.id
        assert search.search is not None
        assert record.choice.why == search.search.why
        assert record.settings.threads == {"fake:scale=1": 1, "fake:scale=2": 2}[record.model.name]
        assert record.check is not None
        assert record.check.verdict == "ok"
    assert err.count("-t auto tries 2 settings first") == 2
    assert "local:fake:scale=1/dense/tauto/search: 1 thread at 1" in err
    table = (two_cpus.directory / "reports" / "c" / "table.md").read_text()
    assert "local: fake:scale=1/dense: -t auto chose 1 thread at 1" in table
    assert "the fastest; tried, too: 2 threads at 1" in table
    assert "-t auto chose 2 threads at 0.5" in " ".join(out.split())


def test_resume_does_not_search_again(two_cpus: Sandbox) -> None:
    sweep = two_cpus.fake_sweep("fake:scale=1", replicates=3)
    assert two_cpus.run("sweep", sweep, "--campaign", "c")[0] == 0
    path = two_cpus.directory / "results" / "c" / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    first = json.loads(lines[0])
    assert first["purpose"] == "search"
    # What the first search chose counts, even where another one would choose otherwise.
    first["search"]["chosen"] = 0
    assert first["search"]["tried"][0]["candidate"]["threads"] == 2
    path.write_text(json.dumps(first) + "\n" + lines[1])
    code, _, err = two_cpus.run("sweep", "--campaign", "c", "--resume")
    assert code == 0, err
    found = records(two_cpus)
    assert [record.purpose for record in found] == ["search"] + ["measure"] * 3
    assert [record.settings.threads for record in found[1:]] == [1, 2, 2]
    assert [record.id for record in found] == [json.loads(line)["id"] for line in lines]


def test_a_killed_search_is_repeated(two_cpus: Sandbox) -> None:
    sweep = two_cpus.fake_sweep("fake:scale=1", replicates=1)
    assert two_cpus.run("sweep", sweep, "--campaign", "c")[0] == 0
    (two_cpus.directory / "results" / "c" / "records.jsonl").write_text("")
    assert two_cpus.run("sweep", "--campaign", "c", "--resume")[0] == 0
    assert [record.purpose for record in records(two_cpus)] == ["search", "measure"]


def test_a_failed_search_leaves_the_default(two_cpus: Sandbox) -> None:
    sweep = two_cpus.fake_sweep("fake:exit", replicates=1)
    code, _, err = two_cpus.run("sweep", sweep, "--campaign", "c")
    assert code == 3
    search, job = records(two_cpus)
    assert (search.status, search.purpose, search.search) == ("crashed", "search", None)
    assert job.choice is not None
    assert job.choice.why.startswith("2 threads, the device's default: the search ended as crashed (")
    assert "its cases run on the device's default" in err
    two_cpus.run("sweep", "--campaign", "c", "--resume", "--retry-failed")
    assert [record.purpose for record in records(two_cpus)] == ["search", "measure"] * 2


def test_max_time_ends_searches_too(two_cpus: Sandbox) -> None:
    sweep = two_cpus.fake_sweep("fake:scale=1,sleep=0.2", "fake:scale=2", replicates=1)
    _, _, err = two_cpus.run("sweep", sweep, "--campaign", "c", "--max-time", "3")
    assert "stopped: --max-time 3s is over; 2 jobs left" in err
    assert [record.purpose for record in records(two_cpus)] in (["search"], [])


def test_plan_prints_the_search(two_cpus: Sandbox) -> None:
    code, out, err = two_cpus.run("plan", two_cpus.fake_sweep("fake:scale=1"))
    assert code == 0, err
    flat = " ".join(out.split())
    assert "-t auto tries 2 settings first (about" in flat
    assert "2 threads; 1 thread" in flat
    assert not (two_cpus.directory / "results").exists()
    code, out, _ = two_cpus.run("plan", two_cpus.fake_sweep("fake:scale=1"), "--json")
    assert list(json.loads(out)["searches"]) == ["local:fake:scale=1/dense/tauto/search"]
    assert "threads auto" in two_cpus.run("devices")[1]


def test_a_disturbed_search_is_done_once_more(two_cpus: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    from stbench.sweeps import auto_threads

    hit: set[int] = {0}
    monkeypatch.setattr(auto_threads, "disturbances", lambda record: ("a hog",) * (record.attempt in hit))
    sweep = two_cpus.fake_sweep("fake:scale=1", replicates=1)
    _, _, err = two_cpus.run("sweep", sweep, "--campaign", "c")
    assert [(r.purpose, r.attempt) for r in records(two_cpus)] == [
        ("search", 0),
        ("search", 1),
        ("measure", 0),
    ]
    assert "disturbed, searching again" in err
    assert "a hog" not in err
    # Killed between the two: the first one is no result.
    path = two_cpus.directory / "results" / "c" / "records.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    assert two_cpus.run("sweep", "--campaign", "c", "--resume")[0] == 0
    assert [(r.purpose, r.attempt) for r in records(two_cpus)][1:] == [
        ("search", 0),
        ("search", 1),
        ("measure", 0),
    ]
    hit |= {1}
    _, _, err = two_cpus.run("sweep", sweep, "--campaign", "d")
    assert (
        "the fastest; tried, too: 2 threads at 1.14 ms a token (disturbed, in a second search, too: a hog)"
        in err
    )


def test_what_disturbs_a_search_is_what_disturbs_a_run() -> None:
    from stbench.sweeps.auto_threads import disturbances

    quiet = Telemetry([], [], {}, {}, "unknown", other_cpu_s=0.02, steal_s=0.0, window_s=3.0)
    search = factory.record(purpose="search", samples=None, telemetry=quiet)
    assert disturbances(search) == ()
    loud = replace(search, telemetry=replace(quiet, other_cpu_s=1.5))
    assert disturbances(loud) == ("other processes took 50 % of a CPU",)
