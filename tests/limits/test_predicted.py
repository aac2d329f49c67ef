"""``stbench simulate --from``: runs predicted by what storage gave them, committed ones within a tenth."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from stbench.agent import wire
from stbench.agent.wire import Bandwidth, Bracket, CacheUse, RunRecord, Workload
from stbench.caches import measured_caches, predicted, routings, simulate
from tests.host.conftest import Sandbox
from tests.limits.test_simulate_command import MODEL, UNIT, campaign, counters, store
from tests.tables.factory import record


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "hot.routing"
    routings.save(path, routings.make("hot", 32, 32, 4, 80, model=MODEL))
    return path


def probed(run: RunRecord, storage: float, one: float) -> RunRecord:
    """With storage probed beside it, GB/s: all readers at work, and one unit at a time."""
    rates = {"storage": storage, "storage_one": one}
    rate = {name: Bandwidth(int(gb * 1e9), 10**9) for name, gb in rates.items()}
    sides = {f"{name}_{side}": found for name, found in rate.items() for side in ("before", "after")}
    read = Bandwidth(20 * 10**9, 10**9)
    return dataclasses.replace(run, bracket=Bracket(2, 1 << 26, read, read, storage_unit_bytes=UNIT, **sides))


def test_a_run_is_predicted_from_what_storage_gave_and_its_unlimited_partner() -> None:
    """30 ms a token in 32 layers; a unit takes 1 ms at 1.990656 GB/s, probed or while the run read."""
    run = cached_alone()
    assert run.cache is not None
    outcome = simulate.Outcome(8, 4, (1, 0, 3, 0, 0), 0.0)
    shares = {"outside": 0.0, "lead": 0.2, "tail": 0.1}
    layer_ms = 30 / 32
    busy = dataclasses.replace(run.cache.decode, bytes_read=10 * UNIT, ns_io_busy=10**7, late=4)
    run = dataclasses.replace(run, cache=dataclasses.replace(run.cache, decode=busy))
    own = predicted.machine_of(run, 1 / 0.030, shares)
    assert own is not None
    assert own.pieces_at_once == 4, "pread's: one unit at a time"
    # Of two units one is computed while the other is read.
    waits_ms = 0.3 * layer_ms + 2 * 1.0
    found = predicted.tokens_per_s(run, outcome, own)
    assert found == pytest.approx(1e3 / (8 * layer_ms + 24 * waits_ms), rel=1e-6)
    assert predicted.machine_of(run, math.nan, shares) is None
    assert predicted.tokens_per_s(run, None, own) is None
    assert predicted.first_read_s([run]) is None, "nothing was probed"
    assert predicted.machine_of(run, 1 / 0.030, shares, 0.0) is None
    # Ten units in 10 ms of reading where the probe takes 5: in four waits 5 ms came on top.
    beside = probed(run, 2 * 1.990656, 1.0)
    assert predicted.first_read_s([beside]) == pytest.approx(0.005 / 4)
    machine = predicted.machine_of(beside, 1 / 0.030, shares, 0.005 / 4)
    assert machine is not None
    waits_ms = 0.3 * layer_ms + 1.25 + 2 * 0.5
    found = predicted.tokens_per_s(beside, outcome, machine)
    assert found == pytest.approx(1e3 / (8 * layer_ms + 24 * waits_ms), rel=1e-6)


COMMITTED = Path(__file__).parents[2] / "results" / "epyc-2core-cache-sizes-4b"


def test_the_committed_sizes_are_predicted_within_a_tenth(sandbox: Sandbox) -> None:
    """SmallThinker 4B in 1 GiB with 63 to 594 MiB of cache, measured: results/epyc-2core-cache-sizes-4b."""
    trace = sorted((COMMITTED / "routing").glob("*pp39+tg256-0-*.routing"))[0]
    words = ("simulate", str(trace), "--from", str(COMMITTED), "--cache", "134", "--json", "--warmup", "39")
    found = json.loads(sandbox.run(*words)[1])["measured"]
    assert len(found) == 5
    for each in found:
        assert each["predicted_tokens_per_s"] == pytest.approx(each["tokens_per_s"], rel=0.10), each["label"]
        assert each["simulated_hit_rate"] == pytest.approx(each["hit_rate"], abs=0.02)


def test_what_a_guess_brought_is_no_hit_and_what_it_read_in_vain_no_miss() -> None:
    plain = counters(requests=100, hits=60)
    assert measured_caches.hit_rate(plain) == pytest.approx(0.60)
    # 30 guesses, of which 20 were asked for (15 of them in time), 5 cancelled and 5 read in vain.
    guessed = dataclasses.replace(
        plain, hits=75, loads=40 + 5, guesses=30, guesses_used=20, guesses_cancelled=5
    )
    assert measured_caches.hit_rate(guessed) == pytest.approx(0.60)


def test_guesses_are_simulated_as_often_right_as_runs_were(
    sandbox: Sandbox, trace: Path, tmp_path: Path
) -> None:
    words = ("simulate", str(trace), "--cache", "25%", "--policy", "lru,static", "--prefetch", "next-2")
    code, _, err = sandbox.run(*words)
    assert (code, "so its rate must be known" in " ".join(err.split())) == (2, True)
    rates = ("--storage-rate", "2.5", "--compute-rate", "90")
    code, _, err = sandbox.run(*words, *rates)
    assert (code, "--guess-right 0.8" in err) == (2, True)
    code, _, err = sandbox.run(*words, *rates, "--guess-right", "1.1")
    assert (code, "--guess-right 1.1: expected a share" in err) == (2, True)
    right = json.loads(sandbox.run(*words, *rates, "--guess-right", "1", "--json")[1])
    exact = json.loads(sandbox.run(*words[:-2], *rates, "--json")[1])
    assert (right["prefetch"], exact["prefetch"]) == ("next-2", "exact")
    assert right["points"][0]["tokens_per_s"] > exact["points"][0]["tokens_per_s"]
    assert {**right["points"][1], "seconds": 0} == {**exact["points"][1], "seconds": 0}, "an oracle's"
    results = campaign(tmp_path / "c", trace)
    runs = [wire.loads(RunRecord, line) for line in (results / "records.jsonl").read_text().splitlines()]
    store(results, [guessing(run) for run in runs])
    found = json.loads(sandbox.run(*words, "--from", str(results), "--json")[1])
    assert found["prefetch"] == "next-2"
    assert found["measured"][0]["predicted_tokens_per_s"] > 0


def guessing(run: RunRecord) -> RunRecord:
    """As if it had used next-2, three of four names being right."""
    if run.cache is None:
        return run
    decode = dataclasses.replace(run.cache.decode, predicted=400, predicted_right=300)
    return dataclasses.replace(run, cache=dataclasses.replace(run.cache, prefetch="next-2", decode=decode))


def cached_alone() -> RunRecord:
    plain = record(MODEL, tps=20, ffn=True)
    use = CacheUse(
        "experts",
        "",
        512 * UNIT,
        UNIT,
        512,
        UNIT,
        1024 * UNIT,
        "lru",
        "pread",
        True,
        "exact",
        counters(100, 10),
        counters(512, 440),
    )
    return dataclasses.replace(plain, cache=use)


def test_the_table_says_how_far_off_the_simulation_is(sandbox: Sandbox, tmp_path: Path, trace: Path) -> None:
    results = campaign(tmp_path / "c", trace)
    runs = [wire.loads(RunRecord, line) for line in (results / "records.jsonl").read_text().splitlines()]
    store(results, [probed(run, 3.0, 2.0) if run.cache is not None else run for run in runs])
    words = ("simulate", str(trace), "--from", str(results))
    data = json.loads(sandbox.run(*words, "--json")[1])
    assert data["machine"]["storage_bytes_per_s"] == 3e9, "as probed, not as busy"
    assert data["machine"]["latency_s"] == 0, "no run says how often it waited"
    (point,) = data["measured"]
    assert 0 < point["predicted_tokens_per_s"] < 30
    code, out, err = sandbox.run(*words)
    assert code == 0, err
    off = 100 * (point["predicted_tokens_per_s"] / point["tokens_per_s"] - 1)
    assert f"{off:+.0f} %" in out
    points = 100 * (point["simulated_hit_rate"] - point["hit_rate"])
    assert f"{points:+.1f}" in out


def test_a_recorded_run_is_simulated_from_its_prompt_on(trace: Path) -> None:
    loaded = routings.load(trace)
    seen: list[tuple[int, int]] = []

    def simulator(found: Any, units: int, warmup: int) -> simulate.Outcome:
        seen.append((found.n_tokens, warmup))
        return simulate.Outcome(4, 1, (0, 0), 0.0)

    assert measured_caches.simulated(cached_alone(), loaded, simulator) is not None
    assert seen == [(80, 39)]
    bare = dataclasses.replace(cached_alone(), workload=Workload(0, 4))
    assert measured_caches.simulated(bare, loaded, simulator) is None
