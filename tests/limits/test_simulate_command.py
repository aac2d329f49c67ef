"""``stbench simulate`` as typed: tables, CSV, JSON, charts, rates and points from records, and bad words."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest

from stbench import charts
from stbench.agent import wire
from stbench.agent.wire import CacheCounters, CacheUse, RunRecord
from stbench.caches import cache_chart, cache_tables, clock, measured_caches, routings, simulate
from stbench.errors import InputError
from stbench.models import catalogue
from stbench.tables import stamps
from tests.host.conftest import Sandbox
from tests.tables.factory import record

MODEL = "smallthinker-4b"
UNIT = 1_990_656
MACHINE = clock.Machine(1.5e9, 1 / 30)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "hot.routing"
    routings.save(path, routings.make("hot", 32, 32, 4, 80, model=MODEL))
    return path


def digest(path: Path) -> str:
    return routings.file_digest(path)


def counters(requests: int, hits: int) -> CacheCounters:
    loads = requests - hits
    zeros = dict.fromkeys((f.name for f in dataclasses.fields(CacheCounters)), 0)
    busy = {"bytes_read": loads * UNIT, "ns_io_busy": round(loads * UNIT / 1.2)}
    return CacheCounters(**{**zeros, "requests": requests, "hits": hits, "loads": loads, **busy})


def cached(path: Path, units: int, tps: float, hits: int, replicate: int = 0, **changes: Any) -> RunRecord:
    """A run of 4 tokens that replayed the trace, with 512 requests."""
    use = CacheUse(
        kind="experts",
        bundle="/x.bundle",
        bytes=units * UNIT,
        bytes_min=4 * UNIT,
        units=units,
        unit_bytes=UNIT,
        total_bytes=1024 * UNIT,
        policy="lru",
        io="pread",
        direct=True,
        prefetch="exact",
        prefill=counters(100, 10),
        decode=counters(512, hits),
    )
    plain = record(MODEL, tps=tps, replicate=replicate, ffn=True)
    settings = dataclasses.replace(plain.settings, cache=f"{units * UNIT}", routing_digest=digest(path))
    case = f"{plain.case}/cache{units}"
    made = dataclasses.replace(plain, id=f"{plain.id}-{units}", case=case, settings=settings, cache=use)
    return dataclasses.replace(made, **changes)


def store(folder: Path, records: list[RunRecord]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "records.jsonl").write_text("".join(wire.dumps(each) + "\n" for each in records))
    return folder


def campaign(folder: Path, path: Path) -> Path:
    free = [record(MODEL, tps=tps, replicate=i, ffn=True) for i, tps in enumerate((29.0, 30.0, 31.0))]
    with_cache = [
        cached(path, 512, tps, hits, i) for i, (tps, hits) in enumerate(((20, 440), (21, 450), (22, 460)))
    ]
    others = [
        cached(path, 256, 9.0, 300, settings=dataclasses.replace(free[0].settings, routing_digest="0" * 64)),
        record("qwen3-0.6b", tps=99.0),
        record(MODEL, tps=5.0, head=True),
    ]
    return store(folder, [*free, *with_cache, *others])


def test_a_table_of_every_size_and_policy(sandbox: Sandbox, trace: Path) -> None:
    code, out, err = sandbox.run("simulate", str(trace), "--cache", "25%,512", "--policy", "lru,reuse,static")
    assert (code, err) == (0, "")
    assert "80 tokens of smallthinker-4b, 32 layers, 4 of 32 experts (made: hot, seed 1)" in out
    assert "the first 20 tokens are not counted" in out
    assert "MB from storage per token" in out
    assert "486 MiB      256  25.0%" in out
    assert "tokens/s" not in out
    assert " points (reuse)" in out


def test_json_csv_and_table_say_the_same(sandbox: Sandbox, trace: Path) -> None:
    words = ("simulate", str(trace), "--cache", "100,400", "--storage-rate", "1.5", "--compute-rate", "30")
    data = json.loads(sandbox.run(*words, "--json")[1])
    rows = list(csv.DictReader(io.StringIO(sandbox.run(*words, "--csv")[1])))
    assert (
        [row["policy"] for row in rows]
        == [p["policy"] for p in data["points"]]
        == list(simulate.POLICIES) * 2
    )
    assert data["unit_bytes"] == UNIT
    assert data["machine"]["storage_bytes_per_s"] == 1.5e9
    assert 0.2 < data["machine"]["outside"] < 0.3
    table = sandbox.run(*words)[1]
    for row, point in zip(rows, data["points"], strict=True):
        assert float(row["hit_rate"]) == point["hit_rate"]
        assert float(row["tokens_per_s"]) == point["tokens_per_s"] <= 30
        assert point["bytes_per_token"] == pytest.approx((1 - point["hit_rate"]) * 128 * UNIT)
        assert f"{point['tokens_per_s']:.1f}" in table


def test_without_a_size_of_experts_shares_are_enough(sandbox: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "x.routing"
    routings.save(path, routings.make("uniform", 2, 6, 2, 20))
    code, out, _ = sandbox.run("simulate", str(path), "--plot", str(tmp_path / "x.svg"))
    assert code == 0
    assert "MiB" not in out
    assert b"</svg>" in (tmp_path / "x.svg").read_bytes()
    code, _, err = sandbox.run("simulate", str(path), "--cache", "1MiB")
    assert code == 2
    assert "--unit-bytes" in err
    code, out, _ = sandbox.run("simulate", str(path), "--cache", "1MiB", "--unit-bytes", "131072")
    assert code == 0
    assert " 8 " in out
    rates = ("--storage-rate", "1.5", "--compute-rate", "30")
    code, out, err = sandbox.run("simulate", str(path), *rates)
    assert (code, out) == (2, "")
    assert "tokens/s depend on the size of an expert" in err
    assert "--model NAME or --unit-bytes N" in err
    code, out, _ = sandbox.run("simulate", str(path), *rates, "--unit-bytes", "131072")
    assert (code, "predicted tokens/s" in out) == (0, True)


def test_a_trace_of_another_shape_is_replayed(sandbox: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "x.routing"
    routings.save(path, routings.make("hot", 8, 32, 4, 40))
    code, out, err = sandbox.run("simulate", str(path), "--model", MODEL, "--cache", "50%")
    assert code == 0
    assert "8 layers of 4 of 32 experts -> 32 layers of 4 of 32" in " ".join(err.split())
    assert " 512 " in out
    code, _, err = sandbox.run("simulate", str(path), "--model", "smallthinker-21b")
    assert code == 2
    assert "cannot be replayed on a model that uses 6 of 64" in err


def test_rates_and_points_of_a_campaign(sandbox: Sandbox, tmp_path: Path, trace: Path) -> None:
    """30 tokens/s without a cache, 1.2 GB/s while reading; runs with another routing, model or switches
    are left out."""
    results = campaign(tmp_path / "c", trace)
    plot = tmp_path / "p.png"
    words = ("simulate", str(trace), "--from", str(results), "--plot", str(plot))
    code, out, err = sandbox.run(*words)
    assert code == 0, err
    assert (
        "Predicted from 1.20 GB/s of storage and 30.0 tokens/s with all weights in memory (4 records with a "
        in out
    )
    stamp = stamps.words(stamps.digest([trace, results / "records.jsonl"]), chart="simulate")
    assert stamps.read(plot.read_bytes()) == (stamp, True)
    data = json.loads(sandbox.run(*words, "--json")[1])
    (point,) = data["measured"]
    assert point["hit_rate"] == 450 / 512
    assert point["tokens_per_s"] == pytest.approx(21, rel=1e-3)
    assert (point["policy"], point["units"], point["replicates"]) == ("lru", 512, 3)
    assert 0 < point["simulated_hit_rate"] < 1
    # Given rates take the place of measured ones.
    given = json.loads(sandbox.run(*words, "--json", "--storage-rate", "2")[1])
    assert given["machine"]["storage_bytes_per_s"] == 2e9
    assert given["machine"]["token_s"] == pytest.approx(1 / 30, rel=1e-3)


def test_the_simulated_rate_is_of_the_runs_own_tokens(trace: Path) -> None:
    """Of 80 tokens the last 64 (the warm-up's) and 39 of prompt fill the cache, and 4 count."""
    loaded = routings.load(trace)
    seen: list[tuple[int, int, int]] = []

    def simulator(found: Any, units: int, warmup: int) -> simulate.Outcome:
        seen.append((found.n_tokens, units, warmup))
        assert found.experts == loaded.experts[16 * 128 :] + loaded.experts[: 43 * 128]
        return simulate.Outcome(4, 1, (0, 0), 0.0)

    found = measured_caches.simulated(cached(trace, 512, 20, 440), loaded, simulator)
    assert found is not None
    assert found.hit_rate == 0.25
    assert seen == [(107, 512, 103)]


def test_campaigns_that_tell_no_rate(tmp_path: Path, trace: Path) -> None:
    loaded = routings.load(trace)

    def rates(*records: RunRecord) -> measured_caches.Rates:
        return measured_caches.rates(measured_caches.usable_runs(records, MODEL, loaded))

    with pytest.raises(InputError, match="how fast units are read"):
        rates(record(MODEL, ffn=True))
    with pytest.raises(InputError, match="how fast it computes"):
        rates(cached(trace, 512, 20, 440), record(MODEL), record(MODEL, ffn=True, threads=1))
    with pytest.raises(InputError, match="how fast units are read"):
        rates(cached(trace, 512, 20, 440, status="failed"), record(MODEL, ffn=True))
    limited = record(MODEL, ffn=True)
    limited = dataclasses.replace(
        limited, settings=dataclasses.replace(limited.settings, memory_limit_bytes=1 << 30)
    )
    with pytest.raises(InputError, match="how fast it computes"):
        rates(cached(trace, 512, 20, 440), limited)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--cache", "1KiB"), "--cache 1KiB: has no room"),
        (("--cache", "many"), "--cache many: expected a size"),
        (("--policy", "mru"), "--policy mru: expected auto, lru"),
        (("--policy", "lru,lru"), "named twice"),
        (("--policy", "x.py"), "expected FILE.py:CLASS"),
        (("--policy", "nowhere.py:X"), "there is no file nowhere.py"),
        (("--storage-rate", "1.5"), "need both"),
        (("--guess-right", "0.5"), "--guess-right 0.5: --prefetch exact guesses nothing"),
        (("--storage-rate", "0", "--compute-rate", "3"), "--storage-rate 0.0: expected"),
        (("--storage-rate", "nan", "--compute-rate", "3"), "--storage-rate nan: expected"),
        (("--warmup", "80"), "--warmup 80: expected 0 up to"),
        (("--warmup", "-1"), "--warmup -1: expected"),
        (("--unit-bytes", "0"), "--unit-bytes 0"),
        (("--plot", "x.pdf"), "ends in .png or .svg"),
        (("--plot", "/nowhere/x.png"), "/nowhere/x.png: No such file"),
        (("--model", "gpt"), "gpt"),
        (("--model", "qwen3-0.6b"), "has no experts"),
        (("--from", "/nowhere"), "/nowhere: no such file"),
        (("--csv", "--json"), "not both"),
    ],
)
def test_wrong_words_are_sentences(sandbox: Sandbox, trace: Path, words: tuple[str, ...], said: str) -> None:
    code, _, err = sandbox.run("simulate", str(trace), *words)
    assert code == 2
    assert said in err
    assert "Traceback" not in err


def test_what_is_no_trace(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("0,0,1 2\n")
    code, _, err = sandbox.run("simulate", str(tmp_path / "log.csv"))
    assert code == 2
    assert "not a routing" in err
    assert "stbench routing import" in err
    code, _, err = sandbox.run("simulate", str(tmp_path / "nowhere"))
    assert (code, "nowhere: No such file" in err) == (2, True)


# ---- charts and tables ----


def points(speed: bool = True) -> list[simulate.Point]:
    found = []
    for units in (64, 256, 512):
        for i, policy in enumerate(simulate.POLICIES):
            rate = 0.1 + units / 1000 + i / 25
            found.append(
                simulate.Point(
                    policy, units, units / 1024, units * UNIT if speed else None, rate, None,
                    30 * rate if speed else None, None, 0.0,
                )
            )  # fmt: skip
    return found


MEASURED = measured_caches.Measured("local:x", "lru", "exact", 256 * UNIT, 256, 0.33, 9e7, 11.0, 5, 0.34)


@pytest.mark.parametrize("theme", list(charts.THEMES))
def test_the_chart_has_both_panels_and_every_mark(theme: str) -> None:
    figure = cache_chart.cache_figure(points(), [MEASURED], "Cache", ["one", "two"], theme)
    rates, speeds = figure.axes
    assert [text.get_text() for text in rates.get_legend().get_texts()] == [
        "LRU",
        "LFU",
        "reuse",
        "static, most frequent (oracle)",
        "Belady (oracle)",
        "measured",
    ]
    mark = rates.lines[-1]
    assert [list(mark.get_xdata()), list(mark.get_ydata())] == [[256 * UNIT / 2**20], [33.0]]
    assert list(speeds.lines[-1].get_ydata()) == [11.0]
    assert "Filled marks: measured" in " ".join(text.get_text() for text in figure.texts)
    png = charts.png_bytes(figure)
    assert struct.unpack(">I", png[16:20])[0] == pytest.approx(8.3 * 144, abs=1)
    again = cache_chart.cache_figure(points(), [MEASURED], "Cache", ["one", "two"], theme)
    assert charts.svg_bytes(figure) == charts.svg_bytes(again)


def test_without_speeds_one_panel_in_shares() -> None:
    figure = cache_chart.cache_figure(points(speed=False), [], "Cache")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "cache, % of all experts"
    assert "measured" not in " ".join(text.get_text() for text in figure.texts)


def test_the_gap_that_is_closed() -> None:
    def row(**rates: float) -> dict[str, simulate.Point]:
        return {
            name: simulate.Point(name, 1, 0.1, None, rate, None, None, None, 0.0)
            for name, rate in rates.items()
        }

    assert cache_tables.gap_closed(row(lru=0.4, lfu=0.45, reuse=0.47, static=0.5)) == (
        "reuse",
        pytest.approx(0.7),
        pytest.approx(0.1),
    )
    assert cache_tables.gap_closed(row(lru=0.4, mine=0.35, static=0.5)) == (
        "mine",
        pytest.approx(-0.5),
        pytest.approx(0.1),
    )
    found = cache_tables.gap_closed(row(lru=0.4, reuse=0.404, static=0.5), 0.404)
    assert found is not None
    assert math.isnan(found[1]), "of a gap of 0.4 points no share"
    found = cache_tables.gap_closed(row(lru=0.4, reuse=0.404, static=0.5), 0.41)
    assert found == ("reuse", pytest.approx(0.4), pytest.approx(0.01))
    assert cache_tables.gap_closed(row(lru=0.4, static=0.5, belady=0.6)) is None
    assert cache_tables.gap_closed(row(reuse=0.4, static=0.5)) is None


def test_a_units_size_is_the_bundles() -> None:
    assert simulate.unit_bytes(catalogue.lookup(MODEL).spec) == UNIT
    for name in ("smallthinker-4b", "smallthinker-21b", "qwen3-30b-a3b"):
        entry = catalogue.lookup(name)
        shares = clock.shares_of(entry.spec)
        assert 0 < shares["tail"] < shares["lead"] + shares["tail"] < 1
        assert 0 < shares["outside"] < 0.5
