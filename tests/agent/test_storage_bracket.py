"""Storage beside a job: probed by the runtime's own readers for runs that may read from it, never a reason
to fail; and what a cache that never changes would have met."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from stbench.agent import bracket, lease, routing, sbr, static_cache, wirejson
from stbench.agent.wire import Bracket, JobSpec, RunRecord, Settings, Workload
from stbench.caches import simulate
from tests.agent.conftest import fake_job, run_job

CACHED = Settings(threads=1, n_ctx=256, cache="25%", bundle="/x.bundle")


@pytest.fixture(scope="module")
def bundle(library: sbr.Library, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "tiny.bundle"
    sbr.bundle_write(library, str(tiny_model), "", 0, str(path))
    return path


def bracketed(job: JobSpec) -> Bracket:
    record = run_job(replace(job, bracket_ms=20))
    assert record.status == "ok", record.detail
    assert record.bracket is not None
    return record.bracket


def test_only_runs_that_may_read_from_storage_have_it_probed() -> None:
    assert bracketed(fake_job()).storage_before is None
    limit = bracketed(fake_job(settings=replace(CACHED, cache="", memory_limit_bytes=1 << 40)))
    cached = bracketed(fake_job(settings=CACHED))
    for found in (limit, cached):
        assert found.storage_before is not None
        assert found.storage_before == found.storage_after
        assert (found.storage_io, found.storage_direct) == ("pread", True)


def test_the_fake_engine_has_a_slower_disk_on_request_up_to_an_attempt() -> None:
    for attempt, rates in ((0, (4.0, 2.0)), (1, (4.0, 4.0))):
        job = fake_job("disk=4,slower", settings=CACHED, attempt=attempt)
        found = bracketed(job)
        sides = [found.storage_before, found.storage_after]
        assert tuple(side.bytes / side.ns for side in sides if side) == rates


@pytest.mark.parametrize("io", ["auto", "pread"])
def test_a_cached_run_has_the_units_of_its_own_bundle_probed(
    sbr_job: Callable[..., JobSpec], bundle: Path, io: str
) -> None:
    record = run_job(replace(sbr_job(cache="25%", bundle=str(bundle), io=io), bracket_ms=40))
    found, use = record.bracket, record.cache
    assert record.status == "ok", record.detail
    assert record.warnings == []
    assert found is not None
    assert use is not None
    assert found.storage_unit_bytes == use.unit_bytes
    assert found.storage_io == "pread" if io == "pread" else found.storage_io in ("pread", "io_uring")
    sides = (found.storage_before, found.storage_after, found.storage_one_before, found.storage_one_after)
    for side in sides:
        assert side is not None
        assert side.bytes > 0
        assert side.ns > 0


def test_without_a_bundle_parts_of_the_model_file_are_read(sbr_job: Callable[..., JobSpec]) -> None:
    job = replace(sbr_job(memory_limit_bytes=1 << 40), bracket_ms=20)
    probed = bracket.measure(job, after=False).storage
    assert probed is not None
    assert probed.problem == ""
    assert probed.unit_bytes % 4096 == 0
    assert 4096 <= probed.unit_bytes <= bracket.FILE_UNIT_BYTES


def test_storage_that_cannot_be_probed_is_a_warning_and_memory_is_still_judged(
    sbr_job: Callable[..., JobSpec], tmp_path: Path
) -> None:
    job = replace(sbr_job(cache="25%", bundle=str(tmp_path / "absent")), bracket_ms=20)
    before = bracket.measure(job, after=False)
    assert before.storage is not None
    assert "absent" in before.storage.problem
    found = bracket.joined(before, before)
    assert (found.storage_before, found.storage_io) == (None, "")
    assert found.read_before.bytes > 0
    assert "absent" in bracket.storage_problem(before, before)
    calm = bracket.measure(fake_job(settings=CACHED), after=False)
    assert bracket.storage_problem(calm, calm) == ""


def test_a_lease_has_room_for_the_probes_of_storage() -> None:
    job = fake_job(bracket_ms=1000)
    longer = lease.lease_s(replace(job, settings=CACHED)) - lease.lease_s(job)
    assert longer == 2 * bracket.STORAGE_SHARE * (1 + bracket.ONE_SHARE)


def test_old_records_have_none() -> None:
    old = wirejson.to_json(run_job(fake_job(settings=CACHED, bracket_ms=20)))
    for name in [key for key in old["bracket"] if key.startswith("storage")]:
        del old["bracket"][name]
    del old["cache"]["static_hits"]
    read = wirejson.from_json(RunRecord, old)
    assert read.bracket is not None
    assert read.bracket.storage_before is None
    assert read.cache is not None
    assert read.cache.static_hits is None


# ---- the cache that never changes -------------------------------------------------------------------


def test_static_hits_by_hand() -> None:
    """Over both phases experts 1 and 3 were used most; of the second phase they have 2 + 4."""
    before, now = [0, 9, 1, 2], [3, 2, 1, 4]
    assert static_cache.static_hits(before, now, 2) == 6
    assert static_cache.static_hits([], now, 2) == 7
    assert static_cache.static_hits(before, now, 4) == sum(now)
    assert static_cache.static_hits(before, now, 0) == 0


def counted(experts: Sequence[int], trace: routing.Routing) -> list[int]:
    """How often each unit was chosen."""
    counts = [0] * (trace.n_layer * trace.n_expert)
    for place, expert in enumerate(experts):
        counts[place // trace.n_expert_used % trace.n_layer * trace.n_expert + expert] += 1
    return counts


def test_static_hits_are_those_that_the_simulator_counts(
    sbr_job: Callable[..., JobSpec], bundle: Path, library: sbr.Library, tmp_path: Path
) -> None:
    """The warm-up is in a run's counts, not in its recording, so there is none here. Of experts that were
    used equally often the simulator may keep another one."""
    path = tmp_path / "r.routing"
    work = Workload(n_prompt=8, n_gen=30)
    for share in ("25%", "60%"):
        job = sbr_job(work, cache=share, bundle=str(bundle), record_routing=str(path))
        record = run_job(replace(job, warmup_tokens=0))
        assert record.status == "ok", record.detail
        use, trace = record.cache, routing.read(str(path))
        assert use is not None
        assert use.static_hits is not None
        outcome = simulate.native(library, "static")(trace, use.units, work.n_prompt)
        assert outcome.requests == use.decode.requests
        assert abs(outcome.hits - use.static_hits) <= 2 * use.units
        assert use.static_hits >= outcome.hits
        row, split = trace.n_layer * trace.n_expert_used, work.n_prompt
        halves = trace.experts[: split * row], trace.experts[split * row :]
        before, now = (counted(part, trace) for part in halves)
        assert use.static_hits == static_cache.static_hits(before, now, use.units)


def test_static_hits_fall_with_no_size() -> None:
    chance = random.Random(1)
    now = [chance.randrange(100) for _ in range(64)]
    found = [static_cache.static_hits([], now, units) for units in range(65)]
    assert found == sorted(found)
