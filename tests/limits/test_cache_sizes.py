"""A campaign of several cache sizes, from the sweep to the plot: every size is a mark, whichever run's own
trace is simulated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stbench.caches import measured_caches, routings
from stbench.records import store
from stbench.sweeps.presets import PRESETS
from stbench.sweeps.sweep import build_sweep
from stbench.tables import reporting
from tests.host.conftest import Sandbox


def test_every_size_of_a_campaign_is_measured_beside_the_simulation(
    sandbox: Sandbox, library_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "write_reports", lambda records, directory: [])
    library = ("--library", str(library_path))
    code, _, err = sandbox.run(
        *("sweep", "--models", "tiny-smallthinker", "-pg", "8,24", "-r", "1", "--bracket-ms", "0"),
        *("--memory-limit", "128MiB,none", "--cache", "25%,60%,none", "--record-routing", "--campaign", "c"),
        *("--filter", "*/mem128m/cache*", "--filter", "*/t2/pp*", *library),
    )
    assert code == 0, err
    results = sandbox.directory / "results" / "c"
    records = store.read_records(results).latest()
    traces = {r.case: results / r.routing.path for r in records if r.routing is not None}
    assert len(traces) == 3
    assert len({routings.file_digest(path) for path in traces.values()}) == 3, "each says whose it is"
    plot = tmp_path / "cache.svg"
    for path in traces.values():
        code, out, err = sandbox.run(
            *("simulate", str(path), "--from", str(results), "--warmup", "8", "--plot", str(plot), "--json"),
            *library,
        )
        assert code == 0, err
        assert [point["replicates"] for point in json.loads(out)["measured"]] == [1, 1]
        assert len({point["units"] for point in json.loads(out)["measured"]}) == 2
    assert b"measured" in plot.read_bytes()

    # Other choices are another routing, and a file that is gone or damaged is nobody's.
    other = tmp_path / "other.routing"
    known = routings.load(next(iter(traces.values())))
    routings.save(other, routings.make("uniform", known.n_layer, known.n_expert, known.n_expert_used, 32))
    assert measured_caches.same_choices(records, results, other) == {routings.file_digest(other)}
    code, out, err = sandbox.run("simulate", str(other), "--from", str(results), *library)
    assert code == 0, err
    assert "no run of" in err
    assert "--record-routing" in err
    first, second, third = traces.values()
    second.write_bytes(b"{}\n")
    third.unlink()
    assert measured_caches.same_choices(records, results / "records.jsonl", first) == {
        routings.file_digest(first)
    }


def test_the_preset_sweeps_sizes_beside_the_unlimited_case() -> None:
    sweep = build_sweep({"preset": "cache-sizes-4b"})
    assert [limited.label for limited in sweep.limited("sbr")][:5] == [
        f"/mem1g/cache{size}" for size in ("64m", "128m", "256m", "512m", "auto")
    ]
    assert sweep.record_routing
    assert PRESETS["cache-sizes-4b"]["replicates"] == 3
