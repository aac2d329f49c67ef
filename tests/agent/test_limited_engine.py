"""The native engine with a cache, and routings in a run: what is recorded, replayed and shifted."""

from __future__ import annotations

import array
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace as changed
from pathlib import Path

import pytest

from stbench.agent import engines, replay, routing, sbr
from stbench.agent.routing import Routing, from_sets
from stbench.agent.wire import JobSpec, ModelRef, Settings, Workload
from tests.agent.conftest import TINY, run_job

# As many tokens as the workload of the jobs here, so that a replay of a recording repeats it.
WORK = Workload(n_prompt=6, n_gen=10)


@pytest.fixture(scope="module")
def bundle(library: sbr.Library, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "tiny.bundle"
    digest = hashlib.sha256(tiny_model.read_bytes()).hexdigest()
    sbr.bundle_write(library, str(tiny_model), digest, 0, str(path))
    return path


@pytest.fixture
def engine(library_path: Path) -> engines.SbrEngine:
    return engines.SbrEngine(str(library_path))


def test_a_cached_run_computes_the_same_and_counts_its_phases_apart(
    sbr_job: Callable[..., JobSpec], bundle: Path
) -> None:
    plain = run_job(sbr_job(WORK))
    cached = run_job(
        sbr_job(
            WORK,
            cache="25%",
            bundle=str(bundle),
            cache_policy="lru",
            io="pread",
            io_direct="off",
            prefetch="exact",
        )
    )
    for record in (plain, cached):
        assert record.status == "ok", record.detail
        assert record.check is not None
    assert plain.check is not None
    assert cached.check is not None
    assert cached.check.output_hash == plain.check.output_hash
    assert plain.cache is plain.account is None
    use, account = cached.cache, cached.account
    assert use is not None
    assert account is not None
    assert (use.kind, use.policy, use.io, use.direct, use.chosen) == ("experts", "lru", "pread", False, "")
    assert use.units == 6, "a quarter of 3 x 8 experts"
    assert use.bytes == 6 * use.unit_bytes == account.cache
    assert use.total_bytes == 24 * use.unit_bytes
    # Each token asks for 2 experts in 3 layers; in a batch an expert is asked for once.
    assert use.decode.requests == 10 * 2 * 3
    assert 0 < use.prefill.requests < 6 * 2 * 3
    assert use.decode.loads == use.decode.requests - use.decode.hits - use.decode.hits_on_the_way
    assert use.decode.bytes_read >= use.decode.loads * use.unit_bytes // 2
    assert account.kv_touched == account.kv_allocated


def test_a_warm_start_fills_the_cache_before_anything_is_timed(
    sbr_job: Callable[..., JobSpec], bundle: Path
) -> None:
    """Room for all units: a few tokens leave some of them on storage, a warm start next to none."""
    cold, warm = (
        run_job(sbr_job(WORK, cache="100%", bundle=str(bundle), io="pread", start=start))
        for start in ("cold", "warm")
    )
    small = run_job(sbr_job(WORK, cache="25%", bundle=str(bundle), io="pread", start="warm"))
    for record in (cold, warm, small):
        assert record.status == "ok", record.detail
    assert cold.cache is not None
    assert warm.cache is not None
    assert small.cache is not None
    assert cold.check is not None
    assert warm.check is not None
    assert cold.check.output_hash == warm.check.output_hash
    assert cold.cache.warmup_tokens == 2 * 4
    assert small.cache.warmup_tokens == 2 * 32, "six of 24 units are full after one round"
    assert warm.cache.warmup_tokens >= 2 * 2 * 32, "never full, and so until hardly anything is missed"
    assert warm.cache.warmup_tokens % (2 * 32) == 0
    missed = warm.cache.decode.requests - warm.cache.decode.hits
    assert missed <= 0.1 * warm.cache.decode.requests


def test_kv_memory_that_was_not_touched_is_said(sbr_job: Callable[..., JobSpec]) -> None:
    record = run_job(sbr_job(WORK, kv_touch=False, memory_limit_bytes=256 << 20))
    assert record.status == "ok", record.detail
    assert record.account is not None
    assert record.account.kv_touched == record.account.kv_allocated * 16 // 256


def test_one_cache_at_a_time(engine: engines.SbrEngine, tiny_model: Path, bundle: Path) -> None:
    """A session for other threads has a cache of its own: the one before gives its memory back first."""
    settings = Settings(threads=1, n_ctx=64, cache="auto", bundle=str(bundle))
    engine.open(ModelRef("tiny", str(tiny_model)), settings)
    try:
        first = engine._session
        for threads in (2, 1, 2):
            engine.use_threads(threads, [])
            assert len(engine._sessions) == 1
            assert engine.effective().threads == threads
        assert first is not None
        with pytest.raises(sbr.NativeError, match="closed"):
            first.handle  # noqa: B018
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache": "auto"}, "names no bundle to read units from"),
        ({"cache": "auto", "bundle": "/nowhere", "load": "mmap"}, "load mmap goes without a cache"),
        ({"cache": "auto", "bundle": "/nowhere"}, "/nowhere"),
        ({"cache": "5000", "bundle": "BUNDLE"}, r"is too small: .* is the smallest that works here"),
        ({"cache": "5 MB", "bundle": "BUNDLE"}, "expected auto, bytes, or a share"),
    ],
)
def test_what_cannot_be_opened_says_why(
    sbr_job: Callable[..., JobSpec], bundle: Path, settings: dict[str, str], message: str
) -> None:
    given = {key: str(bundle) if value == "BUNDLE" else value for key, value in settings.items()}
    record = run_job(sbr_job(WORK, **given))
    assert record.status == "failed"
    assert re.search(message, record.detail), record.detail


def test_a_limit_too_small_for_any_cache_names_one_that_works(
    sbr_job: Callable[..., JobSpec], bundle: Path
) -> None:
    """The number in the message is tried."""
    job = sbr_job(WORK, cache="auto", bundle=str(bundle), memory_limit_bytes=16 << 20)
    small = run_job(job)
    assert small.status == "out-of-memory"
    named = int(small.detail.split("the smallest limit for it is ")[1].split()[0]) << 20
    assert named > 16 << 20
    found = run_job(changed(job, settings=changed(job.settings, memory_limit_bytes=named)))
    assert found.status == "ok", found.detail


# ---- routings --------------------------------------------------------------------------------------------


def test_both_phases_are_recorded_and_repeat_the_run(
    sbr_job: Callable[..., JobSpec], bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "own.routing"
    plain = run_job(sbr_job(WORK, record_routing=str(path)))
    assert plain.status == "ok", plain.detail
    assert plain.routing is not None
    assert plain.routing.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    trace = routing.read(str(path))
    assert (trace.n_tokens, plain.routing.n_tokens) == (16, 16)
    assert trace.source == "recorded by local:fake/dense/t1/pp8+tg20"
    again = tmp_path / "again.routing"
    replayed = run_job(
        sbr_job(
            WORK,
            routing=str(path),
            routing_digest=plain.routing.sha256,
            record_routing=str(again),
            cache="50%",
            bundle=str(bundle),
        )
    )
    assert replayed.status == "ok", replayed.detail
    assert plain.check is not None
    assert replayed.check is not None
    assert replayed.check.output_hash == plain.check.output_hash
    assert routing.read(str(again)).digest() == trace.digest(), "warm-up and shifts leave no trace"
    wrong = run_job(sbr_job(WORK, routing=str(path), routing_digest="0" * 64))
    assert wrong.status == "failed"
    assert "the job asks for 000000000000..." in wrong.detail


def tokens(n: int) -> Routing:
    """Token i uses the experts i and i + 10."""
    return from_sets([[token, token + 10] for token in range(n)], 1, 32, 2)


@pytest.mark.parametrize(("shift", "first"), [(0, 0), (2, 3), (5, 0), (7, 3), (-1, 1)])
def test_a_shifted_trace_begins_earlier(shift: int, first: int) -> None:
    found = replay.shifted(tokens(5), shift)
    assert [found.experts[2 * i] for i in range(5)] == [(first + i) % 5 for i in range(5)]
    assert found.n_tokens == 5


def test_parts_of_a_run_are_one_trace(tmp_path: Path) -> None:
    path = tmp_path / "t.routing"
    kept = replay.kept(str(path), [tokens(2), None, tokens(3)], "x" * 5000)
    assert kept is not None
    assert kept.n_tokens == 5
    assert routing.read(str(path)).experts == array.array("H", [0, 10, 1, 11, 0, 10, 1, 11, 2, 12])
    assert replay.kept(str(tmp_path / "none"), [None, None], "") is None
    assert not (tmp_path / "none").exists()


def test_the_tiny_model_is_what_these_tests_take_it_for() -> None:
    assert (TINY.n_layer, TINY.n_expert, TINY.n_expert_used) == (3, 8, 2)
