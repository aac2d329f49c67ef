"""Limits and caches as axes: what is typed, what it is called, what it means for ids, plans, references."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stbench.agent import verify, wire
from stbench.agent.wire import JobSpec, RunRecord, Settings
from stbench.builds.programs import TargetProgram
from stbench.campaigns.references import reference_job
from stbench.devices.inventory import Device
from stbench.errors import NoSpace, SweepError, UsageError
from stbench.models.bundles import GATHER_UP, Bundle
from stbench.models.catalogue import lookup
from stbench.records import store
from stbench.records.frame import to_frame
from stbench.records.limited_columns import LIMITED
from stbench.sweeps.identity import job_id
from stbench.sweeps.limited import Limited, bytes_label, parse_bytes
from stbench.sweeps.plan import Plan, Target, build_plan
from stbench.sweeps.presets import PRESETS
from stbench.sweeps.sweep import Sweep, Traits, build_sweep, expand, resumed_sweep, sweep_from_json
from stbench.tables.grid import CASE
from tests.host.test_plan import FACTS, target

ROOT = Path(__file__).resolve().parents[2]
GIB, MIB = 1 << 30, 1 << 20
MODELS = ("smallthinker-4b", "qwen3-1.7b")


def sweep_of(**options: Any) -> Sweep:
    return build_sweep({"models": "smallthinker-4b", "gen": "8", "replicates": 1, **options})


def plan_of(*, on: Target | None = None, **options: Any) -> Plan:
    sweep = sweep_of(**options)
    return build_plan(sweep, [on or target(*sweep.models)], "c")


# ---- what is typed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1GiB", GIB),
        ("1G", GIB),
        ("256 MiB", 256 * MIB),
        ("1.5g", 3 * GIB // 2),
        ("512KB", 1 << 19),
        ("4096", 4096),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("size", "label"),
    [(GIB, "1g"), (768 * MIB, "768m"), (3 * GIB // 2, "1536m"), (1000, "1000b"), (2 << 40, "2t")],
)
def test_labels_of_sizes(size: int, label: str) -> None:
    assert bytes_label(size) == label


def test_axes_as_typed_and_in_yaml_are_the_same() -> None:
    typed = sweep_of(
        memory_limit="1GiB,8GiB,none",
        cache="128MiB,25%,auto,none",
        policy="lru,auto",
        io="pread",
        prefetch="exact",
    )
    text = (
        b"models: [smallthinker-4b]\ngen: 8\nreplicates: 1\nmemory_limit: [1GiB, 8589934592, none]\n"
        b"cache: [134217728, 25%, auto, none]\npolicy: [lru, auto]\nio: pread\nprefetch: exact\n"
    )
    assert build_sweep({}, text) == typed
    assert typed.memory_limit == (GIB, 8 * GIB, 0)
    assert typed.cache == (str(128 * MIB), "25%", "auto", "")
    assert typed.policy == ("lru", "auto")


def test_everything_wrong_is_said_at_once() -> None:
    options = {
        "memory_limit": "1MB",
        "cache": "0%",
        "policy": "fifo",
        "io": "aio",
        "prefetch": "all",
        "io_direct": "1",
    }
    with pytest.raises(SweepError) as caught:
        sweep_of(**options)
    assert sorted(caught.value.problems) == [
        '--cache: expected sizes such as 256MiB, shares of all units such as 25%, auto or none, got "0%"',
        '--io-direct: expected auto, on or off, got "1"',
        '--io: expected one or several of auto, pread, io_uring, got "aio"',
        '--memory-limit: expected sizes such as 1GiB or 768MiB (8MiB at least), or none, got "1MB"',
        '--policy: expected one or several of auto, lru, lfu, reuse, got "fifo"',
        '--prefetch: expected one or several of auto, exact, next-layer, next-2, next-4, got "all"',
    ]


@pytest.mark.parametrize("value", [[], [[]], [True], [1.5], "", ",", "1e9", "-1", "101%", ["auto", None]])
def test_no_value_of_an_axis_is_taken_for_another(value: object) -> None:
    for key in ("memory_limit", "cache", "policy"):
        with pytest.raises(SweepError, match=f"--{key.replace('_', '-')}: expected "):
            sweep_of(**{key: value})


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"policy": "lru"}, "policy says how a cache works, and this sweep has none"),
        ({"io": "pread", "memory_limit": "1GiB"}, "io says how a cache works, and this sweep has none"),
        ({"io_direct": "off"}, "io_direct says how a cache works, and this sweep has none"),
        ({"cache": "auto", "load": "mmap"}, r"load mmap: a cache holds weights in the kernels' layout"),
        (
            {"cache": "auto", "requantise_down": True},
            "requantise_down: a bundle holds a file's weights as they are",
        ),
    ],
)
def test_axes_that_contradict_each_other_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(SweepError, match=problem) as caught:
        sweep_of(**options)
    assert "--cache" in str(caught.value.hint)


# ---- cases and labels ------------------------------------------------------------------------------------


def cases(sweep: Sweep, traits: Traits | None = None) -> tuple[list[str], list[str]]:
    known = traits or Traits(True, True, True)
    found, notes = expand(sweep, {model: known for model in sweep.models})
    return [case.label(2) for case in found], notes


def test_labels_say_what_is_not_left_to_the_runtime() -> None:
    labels, notes = cases(
        sweep_of(
            memory_limit="1GiB", cache="256MiB,25%,auto", policy="auto,lru", io="auto", prefetch="next-layer"
        )
    )
    assert labels == [
        f"smallthinker-4b/dense/t2/mem1g/{cache}{policy}/next-layer/tg8"
        for cache in ("cache256m", "cache25%", "cacheauto")
        for policy in ("", "/lru")
    ]
    assert notes == []
    assert Limited().label == ""


def test_a_case_without_a_cache_runs_once_whatever_the_policies() -> None:
    labels, notes = cases(sweep_of(cache="none,auto", policy="lru,lfu", io="pread,io_uring"))
    assert labels[0] == "smallthinker-4b/dense/t2/tg8"
    assert len(labels) == 1 + 4
    assert notes == [
        "--policy lru,lfu --io pread,io_uring left out for cases without a cache, which run once each"
    ]


def test_programs_run_under_the_limit_without_a_cache() -> None:
    sweep = sweep_of(engines="sbr,llama-bench", memory_limit="1GiB,none", cache="auto")
    labels, notes = cases(sweep)
    assert labels == [
        "smallthinker-4b/dense/t2/mem1g/cacheauto/tg8",
        "smallthinker-4b/dense/t2/cacheauto/tg8",
        "smallthinker-4b/llama-bench/t2/mem1g/tg8",
        "smallthinker-4b/llama-bench/t2/tg8",
    ]
    assert notes == ["caches are of sbr: llama-bench runs once under each memory limit without one"]


def test_only_models_with_experts_replay_a_routing() -> None:
    sweep = sweep_of(replay_routing="trace.routing", cache="auto")
    assert cases(sweep)[0] == ["smallthinker-4b/dense/t2/cacheauto/replay/tg8"]
    with pytest.raises(UsageError, match="it has no experts whose routing could be replayed"):
        cases(sweep, Traits(False, False, False))
    assert cases(sweep, Traits(None, None))[0], "a file that nobody looked into may have some"


def test_globs_select_limited_cases() -> None:
    options = {"memory_limit": "1GiB,none", "cache": "auto,256MiB,none"}
    assert [job.case for job in plan_of(**options, filter="*/mem1g/cache256m/*").jobs] == [
        "smallthinker-4b/dense/t4/mem1g/cache256m/tg8"
    ]
    assert len(plan_of(**options, filter="*/mem1g/*").jobs) == 3


# ---- jobs and ids ----------------------------------------------------------------------------------------


def committed() -> Iterator[tuple[str, list[RunRecord], dict[str, Any]]]:
    for folder in sorted((ROOT / "results").iterdir()):
        reading = store.read_records(folder)
        stored = store.read_campaign(folder)
        assert stored is not None
        yield folder.name, reading.records, stored


def test_old_sweeps_and_their_ids_are_what_they_were() -> None:
    """Of every committed record without limits: its id is computed again from what it says."""
    for name, records, stored in committed():
        sweep = sweep_from_json(stored["sweep"], ROOT)
        if sweep.limited("sbr") != [Limited()]:
            continue
        checked = 0
        for record in records:
            if record.versions is None or record.facts is None:
                continue
            build = record.versions.library_sha256
            program = TargetProgram(record.program, build, 1.0, {}) if record.program else None
            device = Target(
                Device(record.device),
                record.facts,
                "",
                build,
                {},
                {record.engine: program} if program else {},
            )
            job = JobSpec(
                **{
                    field.name: getattr(record, field.name)
                    for field in dataclasses.fields(JobSpec)
                    if hasattr(record, field.name)
                },
                library="",
                warmup_tokens=sweep.warmup_tokens,
            )
            assert job_id(job, device, sweep.seed) == record.id, record.label
            checked += 1
        assert checked, name


def test_the_settings_of_a_limited_job() -> None:
    (job,) = plan_of(
        memory_limit="1GiB",
        cache="25%",
        policy="lfu",
        io="io_uring",
        io_direct="on",
        prefetch="exact",
        record_routing=True,
    ).jobs
    settings = job.settings
    assert (settings.memory_limit_bytes, settings.cache, settings.cache_policy) == (GIB, "25%", "lfu")
    assert (settings.io, settings.io_direct, settings.prefetch) == ("io_uring", "on", "exact")
    assert (settings.bundle, settings.routing, settings.record_routing) == ("", "", "on")
    assert job.limit_method == "auto"


CHANGES: list[dict[str, Any]] = [
    {"memory_limit_bytes": GIB},
    {"cache": "auto"},
    {"cache_policy": "lru"},
    {"io": "pread"},
    {"io_direct": "on"},
    {"prefetch": "exact"},
    {"start": "warm"},
    {"routing_digest": "d"},
    {"record_routing": "on"},
]


def test_every_limited_setting_is_part_of_the_id_and_no_path_is() -> None:
    (job,) = plan_of().jobs
    there = target("smallthinker-4b")

    def id_with(**changes: Any) -> str:
        return job_id(replace(job, settings=replace(job.settings, **changes)), there, 0)

    ids = {id_with(**changes) for changes in CHANGES}
    assert len(ids | {job.id}) == len(CHANGES) + 1
    assert id_with(bundle="/b", routing="/r") == job.id == id_with()
    limited = replace(job, settings=replace(job.settings, memory_limit_bytes=GIB))
    by_ballast = replace(limited, limit_method="ballast")
    assert job_id(by_ballast, there, 0) != job_id(limited, there, 0), "two ways to limit are never compared"
    assert job_id(replace(job, limit_method="ballast"), there, 0) == job.id


def test_references_are_of_the_unlimited_run() -> None:
    """One serves every limit, cache, policy and I/O; a replayed routing computes something else."""
    (job,) = plan_of().jobs
    keys = {
        json.dumps(changes): verify.reference_key(replace(job, settings=replace(job.settings, **changes)))
        for changes in CHANGES
    }
    same = verify.reference_key(job)
    assert {text for text, key in keys.items() if key != same} == {'{"routing_digest": "d"}'}
    limited = Settings(
        **{key: value for changes in CHANGES for key, value in changes.items()}, bundle="/b", routing="/r"
    )
    made = reference_job(replace(job, settings=limited)).settings
    assert made == Settings(isa="scalar", load="mmap", routing="/r", routing_digest="d")


# ---- plans -----------------------------------------------------------------------------------------------


def test_a_plan_counts_bundles_beside_models() -> None:
    found = plan_of(models=",".join(MODELS), sparse_ffn="on,off", cache="none,25%,auto")
    moe, dense = (lookup(name).sizes for name in MODELS)
    assert set(found.bundles["board"]) == {
        Bundle("smallthinker-4b", GATHER_UP, moe.bundle_bytes),
        Bundle("smallthinker-4b", 0, moe.bundle_bytes),
        Bundle("qwen3-1.7b", 0, dense.bundle_bytes),
    }
    # 3072 matrices of 663,552 bytes; of Qwen3 1.7B everything but the embedding.
    assert moe.bundle_bytes == 3072 * 663552
    assert 0.75e9 < dense.bundle_bytes < 0.85e9
    one = 2 * moe.bundle_bytes + moe.weight_bytes
    two = dense.bundle_bytes + dense.weight_bytes
    assert found.peak_disk_bytes("board") == one + two
    assert replace(found, one_model_at_a_time=True).peak_disk_bytes("board") == one
    small = replace(found, free_bytes={"board": one + two})
    with pytest.raises(NoSpace, match=r"board: the models and bundles take 8\.\d GB at once"):
        small.check_room()
    assert found.expected_s() > plan_of(models=",".join(MODELS), sparse_ffn="on,off").expected_s()
    described = found.describe()["bundles_to_make"]["board"]
    assert sum(entry["bytes"] for entry in described) == 2 * moe.bundle_bytes + dense.bundle_bytes


def test_bundles_that_are_there_are_not_planned() -> None:
    there = target("smallthinker-4b")
    model = replace(there.models["smallthinker-4b"], to_make=False, bundles=frozenset({GATHER_UP}))
    there = replace(there, models={"smallthinker-4b": model})
    assert plan_of(on=there, sparse_ffn="on", cache="auto").bundles["board"] == ()
    only = plan_of(on=there, sparse_ffn="off", cache="auto")
    assert [bundle.gathers for bundle in only.bundles["board"]] == [0]
    assert only.peak_disk_bytes("board") == only.bundles["board"][0].bytes
    assert plan_of(on=there, sparse_ffn="off", memory_limit="1GiB").bundles["board"] == (), (
        "no cache, no bundle"
    )


def test_searches_keep_limits_apart() -> None:
    facts = replace(FACTS, n_cpus=4)
    found = plan_of(
        on=replace(target("smallthinker-4b"), facts=facts),
        cache="auto,none",
        memory_limit="1GiB,none",
        threads="auto",
    )
    assert sorted(job.case for job in found.searches) == [
        "smallthinker-4b/dense/tauto/cacheauto/search",
        "smallthinker-4b/dense/tauto/mem1g/cacheauto/search",
        "smallthinker-4b/dense/tauto/mem1g/search",
        "smallthinker-4b/dense/tauto/search",
    ]
    assert len({job.id for job in found.searches}) == 4


@pytest.mark.parametrize(
    ("preset", "labels"),
    [
        (
            "limited-4b",
            {
                "smallthinker-4b/sparse+lmhead/t4/mem1g/cacheauto/pp39+tg256",
                "qwen3-1.7b/dense/t4/mem1g/cacheauto/pp39+tg256",
                "qwen3-1.7b/dense/t4/mem1g/pp39+tg256",
                "smallthinker-4b/sparse+lmhead/t4/pp39+tg256",
                "qwen3-1.7b/dense/t4/pp39+tg256",
            },
        ),
        (
            "limited-4b-small-context",
            {"qwen3-1.7b/dense/t4/mem1g/cacheauto/pp39+tg256", "qwen3-1.7b/dense/t4/mem1g/pp39+tg256"},
        ),
        (
            "limited-21b",
            {
                "smallthinker-21b/sparse/t4/mem8g/cacheauto/pp39+tg256",
                "qwen3-30b-a3b/dense/t4/mem8g/cacheauto/pp39+tg256",
                "smallthinker-21b/sparse/t4/pp39+tg256",
                "qwen3-30b-a3b/dense/t4/pp39+tg256",
            },
        ),
    ],
)
def test_presets_are_the_limited_rows(preset: str, labels: set[str]) -> None:
    """Each with its unlimited partner, the compute rate that it is held against."""
    roomy = replace(target(*PRESETS[preset]["models"]), facts=replace(FACTS, memory_bytes=32 << 30))
    found = build_plan(build_sweep({"preset": preset}), [roomy], "c")
    assert {job.case for job in found.jobs} == labels
    assert {job.warmup_tokens for job in found.jobs} == {32}
    assert {job.settings.n_ctx for job in found.jobs} == {320 if "small" in preset else 4096}


def test_a_partner_that_does_not_fit_into_the_memory_is_left_out() -> None:
    """Of 8 GB; what a person names is run all the same."""
    small = replace(target("smallthinker-21b"), facts=replace(FACTS, memory_bytes=8 * 10**9))
    labels = ["smallthinker-21b/sparse/t4/mem8g/cacheauto/pp39+tg256"]
    found = build_plan(build_sweep({"preset": "limited-21b", "models": "smallthinker-21b"}), [small], "c")
    assert sorted({job.case for job in found.jobs}) == labels
    (said,) = [note for note in found.notes if "without a limit" in note]
    assert said.startswith("board: smallthinker-21b without a limit left out: its 12.")
    assert said.endswith("GB do not fit into 8.0 GB of memory")
    named = plan_of(on=small, models="smallthinker-21b", memory_limit="8GiB,none", cache="auto,none")
    assert any("mem8g" not in job.case and "cache" not in job.case for job in named.jobs)


def test_a_stored_limited_sweep_comes_back_and_goes_on() -> None:
    stored = sweep_of(
        memory_limit="1GiB", cache="25%,none", policy="lru", record_routing=True, replay_routing="t"
    )
    again = sweep_from_json(json.loads(json.dumps(dataclasses.asdict(stored))), Path("x"))
    assert again == stored
    assert resumed_sweep(again, {"memory_limit": "1GiB", "cache": "25%,none"}, None) == stored
    with pytest.raises(UsageError, match="--cache would change it"):
        resumed_sweep(again, {"cache": "auto"}, None)


# ---- tables ----------------------------------------------------------------------------------------------


def test_limited_and_unlimited_records_are_never_one_case() -> None:
    """Records of one model that differ in a limit alone are groups of their own wherever speeds are
    averaged."""
    _, records, _ = next(found for found in committed() if found[0].endswith("quick"))
    record = next(one for one in records if one.status == "ok" and one.engine == "sbr")
    others = [replace(record, settings=replace(record.settings, **changes)) for changes in CHANGES[:-1]]
    frame = to_frame([record, *others])
    assert set(LIMITED) <= set(CASE)
    assert frame.groupby(list(CASE), dropna=False).ngroups == len(others) + 1
    assert wire.from_json(RunRecord, wire.to_json(record)) == record


def test_a_warm_start_is_an_axis_of_cases_with_a_cache() -> None:
    sweep = sweep_of(memory_limit="1GiB", cache="auto,none", start="cold,warm")
    labels = [limited.label for limited in sweep.limited("sbr")]
    assert labels == ["/mem1g/cacheauto", "/mem1g/cacheauto/warm", "/mem1g"]
    _, notes = cases(sweep)
    assert "--start warm left out for cases without a cache, which run once each" in notes
    with pytest.raises(SweepError, match="start says how a cache works, and this sweep has none"):
        sweep_of(start="warm")
    jobs = {job.settings.start: job for job in plan_of(cache="auto", start="cold,warm").jobs}
    (alone,) = plan_of(cache="auto").jobs
    assert jobs["cold"].id == alone.id != jobs["warm"].id
