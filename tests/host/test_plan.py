"""Plans are pure and deterministic; ids say what a job is and nothing else."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from stbench.agent.wire import DeviceFacts, JobSpec, ModelRef, to_json
from stbench.devices.inventory import Device
from stbench.errors import SweepError
from stbench.models import catalogue
from stbench.sweeps.guesses import GUESS_READ
from stbench.sweeps.plan import DeviceModel, Plan, Target, build_plan
from stbench.sweeps.sweep import Sweep, Traits, build_sweep

FACTS = DeviceFacts(
    hostname="h",
    machine="x86_64",
    kernel="6",
    os="Linux",
    python="3.11",
    cpu_model="c",
    n_cpus=4,
    allowed_cpus=[0, 1, 2, 3],
    clusters=[],
    features=[],
    isas=["scalar"],
    page_bytes=4096,
    memory_bytes=1 << 30,
    memory_available_bytes=1 << 29,
    swap_bytes=0,
    fingerprint="f00",
)


def target(*names: str, device: Device | None = None, **changes: Any) -> Target:
    models = {}
    for name in names:
        entry = catalogue.lookup(name)
        traits = Traits(entry.spec.architecture == "smallthinker", entry.spec.predictor_rank > 0)
        ref = ModelRef(name, f"/models/{name}.gguf", "", entry.spec, entry.profile)
        models[name] = DeviceModel(ref, traits, entry.sizes.weight_bytes, True, entry.sizes)
    found = Target(device or Device("board"), FACTS, "/lib/libsbr.so", "abc", models)
    return replace(found, **changes)


QUICK = build_sweep({})
ROWS = ("smallthinker-4b", "qwen3-0.6b", "qwen3-1.7b")


def plan(sweep: Sweep = QUICK, **changes: Any) -> Plan:
    return build_plan(sweep, [target(*ROWS, **changes)], "camp")


def test_the_same_input_gives_the_same_plan() -> None:
    assert plan() == plan()
    assert plan().describe() == plan().describe()


def test_every_round_runs_every_case_once_in_an_order_of_its_own() -> None:
    jobs = plan(replace(QUICK, replicates=8)).jobs
    n_cases = len({job.label for job in jobs})
    rounds = [jobs[i : i + n_cases] for i in range(0, len(jobs), n_cases)]
    assert len(rounds) == 8
    for number, block in enumerate(rounds):
        assert {job.replicate for job in block} == {number}
        assert max(Counter(job.label for job in block).values()) == 1
    assert len({tuple(job.label for job in block) for block in rounds}) > 4, "rounds share an order"


def blocks(jobs: Sequence[JobSpec], key: Callable[[JobSpec], Any]) -> list[Any]:
    """What stands side by side, each run of equal keys once."""
    return [found for found, _ in itertools.groupby(map(key, jobs))]


def test_engines_and_settings_of_one_case_are_neighbours_in_random_order() -> None:
    """What is compared runs in adjacent processes; a model and its twin share blocks, workloads do not."""
    names = ("smallthinker-4b", "smallthinker-4b:standard", "qwen3-0.6b")
    options = {"models": ",".join(names), "sparse_ffn": "on,off", "gen": "8,16", "threads": "1,2"}
    sweep = replace(build_sweep(options), replicates=12)
    jobs = build_plan(sweep, [target(*names)], "c").jobs
    rounds = [[job for job in jobs if job.replicate == number] for number in range(12)]

    def model(job: JobSpec) -> str:
        return job.model.name.partition(":")[0]

    for block in rounds:
        assert len(blocks(block, model)) == 2, "a model's jobs are apart"
        pairs = blocks(block, lambda job: (model(job), job.workload.n_gen, job.settings.threads))
        assert len(pairs) == len(set(pairs)) == 8, "a comparison's jobs are apart"
    assert {tuple(blocks(block, model)) for block in rounds} == {
        ("smallthinker-4b", "qwen3-0.6b"),
        ("qwen3-0.6b", "smallthinker-4b"),
    }
    one_pair = [
        tuple(
            (job.model.name, job.settings.sparse_ffn)
            for job in block
            if model(job) == "smallthinker-4b" and (job.workload.n_gen, job.settings.threads) == (8, 1)
        )
        for block in rounds
    ]
    assert len(set(one_pair)) > 6, "engines and settings have a fixed order"


def test_reruns_are_bounded_before_anything_runs() -> None:
    default = plan()
    assert (len(default.jobs), default.max_reruns) == (18, 9)
    assert default.reruns_s() == pytest.approx(sum(sorted(default.guess_s.values())[-9:]))
    assert "at most 9 (--max-reruns), each once" in default.rerun_sentence()
    assert default.describe()["max_reruns"] == 9
    assert plan(replace(QUICK, max_reruns=2)).max_reruns == 2
    assert plan(replace(QUICK, max_reruns=100)).max_reruns == 18, "each once"
    assert plan(replace(QUICK, bracket_ms=0)).max_reruns == 0
    assert "not run again" in plan(replace(QUICK, max_reruns=0)).rerun_sentence()
    assert {job.bracket_ms for job in default.jobs} == {200}


def test_brackets_do_not_make_another_job() -> None:
    assert [j.id for j in plan().jobs] == [j.id for j in plan(replace(QUICK, bracket_ms=50)).jobs]


def test_the_seed_changes_order_tokens_and_ids() -> None:
    a, b = plan(), plan(replace(QUICK, seed=1))
    assert [job.label for job in a.jobs] != [job.label for job in b.jobs]
    assert {job.workload.seed for job in b.jobs} == {1}
    assert not {job.id for job in a.jobs} & {job.id for job in b.jobs}


def test_ids_are_unique_and_stable() -> None:
    jobs = plan().jobs
    assert len({job.id for job in jobs}) == len(jobs) == 18
    # Paths, the campaign's name and other devices in the sweep do not make it another job.
    moved = target(*ROWS, library="/elsewhere/libsbr.so")
    ids = {job.id for job in build_plan(QUICK, [moved, target(*ROWS, device=Device("b2"))], "other").jobs}
    assert {job.id for job in jobs} < ids


@pytest.mark.parametrize(
    "changes",
    [
        {"library_sha256": "abd"},
        {"facts": replace(FACTS, fingerprint="f01")},
        {"device": Device("board2")},
        {"device": Device("board", cpus=(0, 1, 2, 3))},
    ],
)
def test_what_makes_another_job_changes_every_id(changes: dict[str, Any]) -> None:
    assert not {job.id for job in plan().jobs} & {job.id for job in plan(**changes).jobs}


@pytest.mark.parametrize(
    "changes",
    [
        {"n_ctx": 8192},
        {"isa": "scalar"},
        {"kv_type": "f32"},
        {"load": "read"},
        {"n_batch": 8},
        {"warmup_tokens": 9},
    ],
)
def test_every_setting_is_part_of_the_id(changes: dict[str, Any]) -> None:
    assert not {job.id for job in plan().jobs} & {job.id for job in plan(replace(QUICK, **changes)).jobs}


def test_another_synthetic_model_of_the_same_name_is_another_job() -> None:
    base = target("tiny-llama")
    model = base.models["tiny-llama"]
    assert model.ref.synthetic is not None
    other = replace(model, ref=replace(model.ref, synthetic=replace(model.ref.synthetic, seed=7)))
    sweep = build_sweep({"models": "tiny-llama", "gen": "1"})
    ids = [
        job.id
        for t in (base, replace(base, models={"tiny-llama": other}))
        for job in build_plan(sweep, [t], "c").jobs
    ]
    assert len(set(ids)) == len(ids)


def test_real_files_and_fakes_have_an_identity_too() -> None:
    models = {
        name: DeviceModel(ModelRef(name, "/x", digest), Traits(True, True), 1)
        for name, digest in (("a", "d1"), ("b", "d2"))
    } | {name: DeviceModel(ModelRef(name, ""), Traits(True, True), 0) for name in ("fake", "fake:crash")}
    sweep = build_sweep({"models": [*models], "gen": "1", "engines": "sbr,fake", "replicates": 1})
    jobs = build_plan(sweep, [replace(target(), models=models)], "c").jobs
    assert sorted(job.label for job in jobs) == [
        "board:a/dense/t4/tg1",
        "board:b/dense/t4/tg1",
        "board:fake/dense/t4/tg1/fake",
        "board:fake:crash/dense/t4/tg1/fake",
    ]
    assert len({job.id for job in jobs}) == 4


def test_threads_sweep_then_device_then_all_cpus() -> None:
    def threads(sweep: Sweep, device: Device) -> set[int]:
        return {
            job.settings.threads for job in build_plan(sweep, [target("tiny-llama", device=device)], "c").jobs
        }

    sweep = build_sweep({"models": "tiny-llama", "gen": "1"})
    assert threads(sweep, Device("d")) == {4}
    assert threads(sweep, Device("d", cpus=(2, 3))) == {2}
    assert threads(sweep, Device("d", threads=(1, 2))) == {1, 2}
    assert threads(replace(sweep, threads=(3,)), Device("d", threads=(1, 2))) == {3}


def test_more_threads_than_cpus_are_left_out_with_a_note() -> None:
    sweep = replace(build_sweep({"models": "tiny-llama", "gen": "1"}), threads=(4, 8))
    found = build_plan(sweep, [target("tiny-llama")], "c")
    assert {job.settings.threads for job in found.jobs} == {4}
    assert "board: t8 left out: 4 CPUs" in found.notes


@pytest.mark.parametrize(
    ("pattern", "labels"),
    [
        ("*/sparse+lmhead/*", 1),
        ("board:smallthinker-4b/*", 4),
        ("smallthinker-4b/*", 4),
        ("qwen3-?.?b/dense/t4/pp39+tg64", 2),
    ],
)
def test_filter_is_a_glob_over_labels(pattern: str, labels: int) -> None:
    assert len(plan(replace(QUICK, filter=(pattern,))).cases()) == labels


def test_a_filter_that_leaves_nothing_is_an_error() -> None:
    with pytest.raises(SweepError, match="nothing is left to run after --filter x"):
        plan(replace(QUICK, filter=("x",)))


def test_disk_and_time() -> None:
    found = plan()
    total = sum(catalogue.lookup(name).sizes.weight_bytes for name in ROWS)
    assert found.peak_disk_bytes("board") == total
    only = plan(replace(QUICK, filter=("qwen*",)))
    assert [m.ref.name for m in only.to_make["board"]] == ["qwen3-0.6b", "qwen3-1.7b"]
    assert found.expected_s() > only.expected_s() > 0
    dense, sparse = (
        found.guess_s[next(job.id for job in found.jobs if f"4b/{switches}/" in job.label)]
        for switches in ("dense", "sparse+lmhead")
    )
    assert sparse < dense


@pytest.mark.parametrize(("requantise_down", "skipped"), [(False, 1), (True, 2)])
def test_a_standard_layout_skips_only_where_rows_are_neurons(requantise_down: bool, skipped: int) -> None:
    """Up always; down only when it is turned neuron-major at load. Gate is read in full either way."""
    name = "smallthinker-4b:standard"
    sweep = build_sweep(
        {"models": name, "sparse_ffn": "on,off", "gen": "100", "requantise_down": requantise_down}
    )
    found = build_plan(replace(sweep, replicates=1), [target(name)], "c")
    guesses = {job.settings.sparse_ffn: found.guess_s[job.id] for job in found.jobs}
    spec = catalogue.lookup(name).spec
    q4_0_bytes = 18 / 32
    matrix = spec.n_expert_used * spec.n_embd * spec.n_ff * q4_0_bytes
    saved = skipped * matrix * sum(share / 1000 for share in spec.zero_share)
    tokens = 100 + sweep.warmup_tokens
    assert guesses[False] - guesses[True] == pytest.approx(tokens * saved / (4 * GUESS_READ))


def test_jobs_carry_what_the_agent_needs() -> None:
    job = plan().jobs[0]
    assert (job.campaign, job.device, job.library, job.timeout_s) == (
        "camp",
        "board",
        "/lib/libsbr.so",
        600.0,
    )
    assert job.label == f"board:{job.case}"
    assert job.settings.kv_touch
    assert to_json(job)["reference"] is None


def test_a_limit_that_the_weights_exceed_takes_longer() -> None:
    limits = {"memory_limit": ["1GiB", "none"], "cache": ["auto", "none"]}
    found = plan(build_sweep({"models": "qwen3-1.7b", "gen": "64", "replicates": 1, **limits}))
    guess = {job.case.split("/t4")[1]: found.guess_s[job.id] for job in found.jobs}
    assert guess["/tg64"] < guess["/mem1g/cacheauto/tg64"] < guess["/mem1g/tg64"]
