"""Limited sweeps from the command line to the record: the fake engine for what goes wrong, a tiny real model
for bundles, caches, recorded and replayed routings. Every output is held against the unlimited reference."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from stbench.agent import routing
from stbench.agent.wire import RoutingTrace, RunRecord
from stbench.campaigns import traces
from stbench.records import store
from stbench.records.frame import to_frame
from stbench.tables import reporting
from tests.host.conftest import ROOT, Sandbox

TINY = ("--models", "tiny-smallthinker", "-pg", "8,8", "-r", "1", "--bracket-ms", "0")


@pytest.fixture(autouse=True)
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "write_reports", lambda records, directory: [])


def records(sandbox: Sandbox, campaign: str = "c") -> dict[str, RunRecord]:
    """By their case."""
    found = store.read_records(sandbox.directory / "results" / campaign).latest()
    return {record.case: record for record in found if record.purpose == "measure"}


def sweep(sandbox: Sandbox, library: Path, *more: str, campaign: str = "c") -> tuple[int, str]:
    axes = () if "--resume" in more else TINY
    code, _, err = sandbox.run("sweep", *axes, "--library", str(library), "--campaign", campaign, *more)
    return code, err


def models(sandbox: Sandbox, suffix: str) -> list[Path]:
    return sorted((sandbox.directory.parent / "cache" / "stbench" / "models").glob(f"*{suffix}"))


# ---- the fake engine -------------------------------------------------------------------------------------


def test_a_fake_sweep_has_everything_that_a_limited_record_has(sandbox: Sandbox) -> None:
    extra = "memory_limit: 128MiB\ncache: [25%, auto, none]\nrecord_routing: true\n"
    path = sandbox.fake_sweep("fake:", replicates=1, extra=extra)
    code, _, err = sandbox.run("sweep", path, "--campaign", "c")
    assert code == 0, err
    found = records(sandbox)
    caches = ("/cache25%", "/cacheauto", "")
    assert set(found) == {f"fake:/dense/t2/mem128m{cache}/tg4/fake" for cache in caches}
    for case, record in found.items():
        assert record.check is not None
        assert (record.status, record.check.verdict) == ("ok", "ok"), case
        assert record.limit is not None, case
        assert record.account is not None, case
        assert (record.cache is not None) == ("cache" in case), case
        assert record.routing is not None
        assert routing.read(str(sandbox.directory / "results" / "c" / record.routing.path)).n_tokens == 4
    quarter = found["fake:/dense/t2/mem128m/cache25%/tg4/fake"].cache
    assert quarter is not None
    assert (quarter.units, quarter.bytes, quarter.total_bytes) == (16, 16 << 16, 64 << 16)
    assert quarter.decode.requests == 4 * 2 * 4
    frame = to_frame(found.values()).set_index("case")
    assert frame.loc["fake:/dense/t2/mem128m/cache25%/tg4/fake", "hit_rate"] == 0.25
    assert frame.loc["fake:/dense/t2/mem128m/tg4/fake", "memory_limit_bytes"] == 128 << 20
    # Nothing is left on the device.
    assert not list((sandbox.directory.parent / "cache").rglob(f"*{routing.SUFFIX}"))


@pytest.mark.parametrize(
    ("model", "extra", "status", "said"),
    [
        (
            "fake:unit=100000000",
            "memory_limit: 128MiB\ncache: auto\n",
            "out-of-memory",
            "the smallest limit for it is",
        ),
        (
            "fake:",
            "cache: 64KiB\n",
            "failed",
            "a cache of 0.1 MiB is too small: 0.2 MiB is the smallest that works",
        ),
        (
            "fake:unit=2000000",
            "memory_limit: 64MiB\ncache: 100%\n",
            "out-of-memory",
            "does not fit the limit of 64.0",
        ),
    ],
)
def test_sizes_that_cannot_be_say_what_would_do(
    sandbox: Sandbox, model: str, extra: str, status: str, said: str
) -> None:
    code, _, _ = sandbox.run("sweep", sandbox.fake_sweep(model, replicates=1, extra=extra), "--campaign", "c")
    assert code == 3
    (record,) = records(sandbox).values()
    assert record.status == status
    assert said in record.detail


# ---- a real model ----------------------------------------------------------------------------------------


def test_bundles_are_made_once_and_the_output_is_the_unlimited_one(
    sandbox: Sandbox, library_path: Path
) -> None:
    axes = ("--sparse-ffn", "on,off", "--cache", "25%,none", "--memory-limit", "128MiB")
    code, err = sweep(sandbox, library_path, *axes)
    assert code == 0, err
    assert err.count("making the bundle of tiny-smallthinker") == 2
    found = records(sandbox)
    assert len(found) == 4
    assert len({record.check.output_hash for record in found.values() if record.check}) == 1
    for record in found.values():
        assert record.check is not None
        assert record.check.verdict == "ok"
        assert record.check.bit_equal == record.check.positions == 8
        if "cache" in record.case:
            assert record.cache is not None
            assert record.cache.kind == "experts"
            assert record.cache.units == 8
            assert record.cache.decode.requests == 8 * 4 * 2
            assert record.cache.decode.loads > 0
            assert record.settings.bundle == record.cache.bundle
            assert record.account is not None
            assert record.account.cache == record.cache.bytes
        assert record.account is not None
        assert record.account.kv_touched == record.account.kv_allocated > 0
    bundles = models(sandbox, ".bundle")
    assert [path.name.rsplit("-", 1)[1] for path in bundles] == ["dense.bundle", "sparse.bundle"]
    before = [path.stat().st_mtime_ns for path in bundles]

    code, out, _ = sandbox.run("plan", *TINY, "--library", str(library_path), *axes, "--json")
    assert code == 0
    assert json.loads(out)["bundles_to_make"] == {"local": []}
    code, err = sweep(sandbox, library_path, "--cache", "auto", campaign="again")
    assert code == 0, err
    assert "making" not in err
    assert [path.stat().st_mtime_ns for path in bundles] == before
    (auto,) = records(sandbox, "again").values()
    assert auto.cache is not None
    assert auto.cache.chosen.startswith("auto: all units fit")
    assert auto.cache.decode.hits == auto.cache.decode.requests - auto.cache.decode.loads


def test_a_plan_says_what_bundles_take(sandbox: Sandbox, library_path: Path) -> None:
    code, out, _ = sandbox.run("plan", *TINY, "--library", str(library_path), "--cache", "auto", "--json")
    assert code == 0
    plan = json.loads(out)
    (bundle,) = plan["bundles_to_make"]["local"]
    (model,) = plan["to_make"]["local"]
    assert plan["peak_disk_bytes"]["local"] == bundle["bytes"] + model["bytes"]
    code, out, _ = sandbox.run("plan", *TINY, "--library", str(library_path), "--cache", "auto")
    assert "local: makes the bundle of tiny-smallthinker, 0.00 GB" in out


def test_one_model_at_a_time_deletes_bundles_with_their_model(sandbox: Sandbox, library_path: Path) -> None:
    """Also after a campaign that ended between making and measuring, whose files they are."""
    axes = ("--models", "tiny-smallthinker,tiny-qwen3", "--cache", "25%", "--one-model-at-a-time")
    code, _ = sweep(sandbox, library_path, *axes, "--max-time", "0.001s")
    assert code == 3, "nothing was run"
    assert len(models(sandbox, ".bundle")) == 1
    code, err = sweep(sandbox, library_path, "--resume", "--max-time", "1h")
    assert code == 0, err
    assert {record.status for record in records(sandbox).values()} == {"ok"}
    assert [path.name for path in models(sandbox, "")] == []
    assert json.loads((sandbox.directory / "results" / "c" / "made.json").read_text()) == []


def test_a_bundle_that_cannot_be_made_fails_its_own_jobs(sandbox: Sandbox, library_path: Path) -> None:
    code, err = sweep(sandbox, library_path, "--cache", "auto", campaign="first")
    assert code == 0, err
    (bundle,) = models(sandbox, ".bundle")
    bundle.write_bytes(b"somebody's file")
    code, err = sweep(sandbox, library_path, "--cache", "auto,none")
    assert code == 3
    found = records(sandbox)
    assert found["tiny-smallthinker/dense/t2/pp8+tg8"].status == "ok"
    failed = found["tiny-smallthinker/dense/t2/cacheauto/pp8+tg8"]
    assert failed.status == "failed"
    assert "is not a bundle and is left alone" in failed.detail
    assert bundle.read_bytes() == b"somebody's file"
    bundle.unlink()
    code, err = sweep(sandbox, library_path, "--resume", "--retry-failed")
    assert code == 0, err


def test_references_alone_need_no_bundle(sandbox: Sandbox, library_path: Path) -> None:
    code, err = sweep(sandbox, library_path, "--cache", "auto", "--references-only")
    assert code == 0, err
    assert models(sandbox, ".bundle") == []


def test_a_recorded_routing_can_be_replayed(sandbox: Sandbox, library_path: Path) -> None:
    """A run that replays its own choices computes what it computed; with another trace it does not, and is
    held against a reference with that trace."""
    code, err = sweep(sandbox, library_path, "--record-routing")
    assert code == 0, err
    (plain,) = records(sandbox).values()
    assert plain.routing is not None
    assert plain.check is not None
    path = sandbox.directory / "results" / "c" / plain.routing.path
    trace = routing.read(str(path))
    assert (trace.n_tokens, trace.n_layer, trace.n_expert, trace.n_expert_used) == (16, 4, 8, 2)
    assert trace.model_digest == plain.model.digest

    other = sandbox.directory / "other.routing"
    sets = [[(token + layer) % 8, (token + layer + 3) % 8] for token in range(5) for layer in range(4)]
    routing.write(str(other), routing.from_sets(sets, 4, 8, 2))
    hashes = {}
    for name, file in (("own", path), ("other", other)):
        code, err = sweep(
            sandbox, library_path, "--replay-routing", str(file), "--cache", "25%,none", campaign=name
        )
        assert code == 0, err
        found = records(sandbox, name)
        assert set(found) == {
            f"tiny-smallthinker/dense/t2{cache}/replay/pp8+tg8" for cache in ("/cache25%", "")
        }
        for record in found.values():
            assert record.check is not None
            assert record.check.verdict == "ok"
            hashes.setdefault(name, set()).add(record.check.output_hash)
    assert hashes["own"] == {plain.check.output_hash}
    assert len(hashes["other"]) == 1
    assert hashes["other"] != hashes["own"]


def test_a_trace_that_is_none_is_refused_before_anything_runs(sandbox: Sandbox, library_path: Path) -> None:
    bad = sandbox.write("bad.routing", "not a trace")
    code, err = sweep(sandbox, library_path, "--replay-routing", str(bad))
    assert code == 2
    assert "not a routing" in err


# ---- traces on their way -----------------------------------------------------------------------------------


class Device:
    """Files of a device, as the connector gives them."""

    def __init__(self, **files: bytes) -> None:
        self.files = files

    def read(self, path: str) -> bytes | None:
        return self.files.get(path)

    def remove(self, path: str) -> None:
        del self.files[path]


@pytest.mark.parametrize(
    ("files", "said"),
    [({}, "is gone from the device"), ({"trace": b"other"}, "is not the file that the run wrote")],
)
def test_a_trace_that_did_not_arrive_is_a_warning_in_the_record(
    tmp_path: Path, files: dict[str, bytes], said: str
) -> None:
    record = store.read_records(ROOT / "results" / "epyc-2core-quick").records[0]
    trace = RoutingTrace("trace", hashlib.sha256(b"whole").hexdigest(), 3)
    device = Device(**files)
    found = traces.fetched(device, replace(record, routing=trace), tmp_path)
    assert found.routing is None
    assert said in found.warnings[-1]
    assert device.files == files, "what is not kept here stays there"
    assert not list(tmp_path.iterdir())


def test_a_trace_that_arrived_is_deleted_on_the_device(tmp_path: Path) -> None:
    record = store.read_records(ROOT / "results" / "epyc-2core-quick").records[0]
    device = Device(trace=b"whole")
    trace = RoutingTrace("trace", hashlib.sha256(b"whole").hexdigest(), 3)
    found = traces.fetched(device, replace(record, routing=trace), tmp_path)
    assert found.routing is not None
    assert (tmp_path / found.routing.path).read_bytes() == b"whole"
    assert device.files == {}
    assert found.routing.path.startswith("routing/local_qwen3-1.7b_llama-bench_t2_pp39+tg64-0-")
