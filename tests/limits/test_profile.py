"""``stbench profile``: parts sum up to the token, in memory and with a cache under a limit; what
the trace and the picture hold; damaged files and impossible cases."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from stbench.agent import timelines
from stbench.agent.sbr import _abi_timeline as kinds
from stbench.agent.wire import RunRecord, Timeline
from stbench.errors import InputError
from stbench.profiles import profile
from stbench.profiles.profile_trace import trace_events
from stbench.records import store
from tests.conftest import require
from tests.host.conftest import ROOT, Sandbox
from tests.tables.factory import record as a_record

TINY = (
    "profile",
    "tiny-smallthinker",
    "--sparse-ffn",
    "on",
    "-t",
    "2",
    "--n-ctx",
    "128",
    "--bracket-ms",
    "0",
)
SCHEMA = json.loads((ROOT / "docs" / "trace-event.schema.json").read_text())


def run(sandbox: Sandbox, library: Path, *more: str) -> dict[str, Any]:
    code, out, err = sandbox.run(*TINY, "--library", str(library), "--campaign", "c", "--json", *more)
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def profiled(sandbox: Sandbox) -> RunRecord:
    (found,) = [r for r in store.read_records(sandbox.directory / "results" / "c").latest() if r.profile]
    return found


def check_sums(found: dict[str, Any], record: RunRecord) -> None:
    """Of every token; where it was put aside by the machine, of its neighbours. Its time is the one that the
    record's speed is made of."""
    assert record.samples is not None
    assert [token["total_ns"] for token in found["tokens"]] == record.samples.decode_ns
    assert found["n_lost"] == 0
    for token in found["tokens"]:
        assert sum(token["parts_ns"].values()) + token["other_ns"] == token["total_ns"]
        assert (
            token["compute_ns"] + token["io_busy_ns"] - token["overlap_ns"] + token["idle_ns"]
            == token["total_ns"]
        )
        assert 0 <= token["overlap_ns"] <= min(token["compute_ns"], token["io_busy_ns"])
        assert token["other_ns"] >= 0
    shares = sorted(token["other_ns"] / token["total_ns"] for token in found["tokens"])
    assert shares[len(shares) // 2] < 0.02, "what is nobody's is more than 2 % of a token"
    others = [token["other_ns"] for token in found["tokens"]]
    assert found["other_ns"] == pytest.approx(sum(others) / len(others), abs=1)


def test_parts_sum_up_and_files_are_written(sandbox: Sandbox, library_path: Path) -> None:
    found = run(sandbox, library_path, "-n", "24", "--trace", "t.json", "--chart", "c.svg")
    assert found["n_tokens"] == 24
    assert {"router", "attention", "gate", "lm_head", "barrier"} <= set(found["parts_ns"])
    assert {"up", "down"} <= set(found["parts_ns"]) or "up+down" in found["parts_ns"]
    assert found["io_busy_ns"] == found["wait_ns"] == 0
    assert len(found["layers_ns"]) > 1
    assert len(found["top"]) == 10
    trace = json.loads((sandbox.directory / "t.json").read_text())
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(trace, SCHEMA)
    names = Counter(e["name"] for e in trace["traceEvents"])
    assert names["token 0"] == 1
    assert {e["tid"] for e in trace["traceEvents"] if e.get("cat") == "phase"} == {0, 1}
    # What the supervisor saw lies on the same clock: decoding of the job is where its tokens are.
    jobs = {e["name"]: e for e in trace["traceEvents"] if e.get("cat") == "job"}
    assert {"start", "load", "warm-up", "prefill", "decode", "results"} <= set(jobs)
    tokens = [e for e in trace["traceEvents"] if e.get("cat") == "token" and e["name"].startswith("token")]
    slack = trace["otherData"]["device_clock_error_ns"] / 1000 + 0.01
    assert abs(jobs["decode"]["ts"] - tokens[0]["ts"]) <= slack
    assert abs(jobs["results"]["ts"] - tokens[-1]["ts"] - tokens[-1]["dur"]) <= slack
    assert any(e["name"] == "MB" and e["args"]["rss"] > 1 for e in trace["traceEvents"] if e["ph"] == "C")
    drawn = (sandbox.directory / "c.svg").read_bytes()
    assert drawn.startswith(b"<?xml")
    assert drawn.count(b"<path") > 10
    # The record says where the file lies, and nothing is left on the device.
    record = profiled(sandbox)
    check_sums(found, record)
    assert record.profile is not None
    assert record.check is not None
    assert record.check.verdict == "ok"
    assert (sandbox.directory / "results" / "c" / record.profile.path).exists()
    assert not list((sandbox.directory.parent / "cache").rglob(f"*{timelines.SUFFIX}"))
    # The same file, read again.
    path = str(sandbox.directory / "results" / "c" / record.profile.path)
    code, out, err = sandbox.run("profile", path, "--trace", "again.json")
    assert code == 0, err
    again = (sandbox.directory / "again.json").read_bytes()
    assert again == (sandbox.directory / "t.json").read_bytes()
    assert "Where a token's time goes" in out
    assert "other" in out


def test_a_cache_under_a_limit(sandbox: Sandbox, library_path: Path) -> None:
    more = ("-n", "24", "--memory-limit", "96MiB", "--cache", "40%", "--trace", "t.json")
    found = run(sandbox, library_path, *more)
    record = profiled(sandbox)
    check_sums(found, record)
    assert found["reads"] > 0
    assert found["bytes_read"] > 0
    assert found["io_busy_ns"] > 0
    assert found["cache_events"]["load"] > 0
    assert found["cache_events"]["evict"] > 0
    assert record.limit is not None
    require(
        record.limit.verdict != "not-enforced", f"no memory limit can be held here: {record.limit.detail}"
    )
    assert record.limit.verdict == "held"
    assert record.cache is not None
    n = found["n_tokens"]
    assert found["cache_events"]["hit"] * n == pytest.approx(record.cache.decode.hits, abs=1e-6)
    trace = json.loads((sandbox.directory / "t.json").read_text())
    jsonschema.validate(trace, SCHEMA)
    begun = Counter(e["id"] for e in trace["traceEvents"] if e["ph"] == "b")
    assert begun
    assert begun == Counter(e["id"] for e in trace["traceEvents"] if e["ph"] == "e")
    assert any(e["name"] == "cache" and e["args"]["evict"] > 0 for e in trace["traceEvents"])


# ---- numbers of a made-up timeline ------------------------------------------------------------------------


def made(*events: tuple[int, int, int, int], lost: int = 0, capacity: int = 99) -> profile.Timeline:
    """Events as (kind, thread, begin, end); reads have 10 bytes."""
    rows = np.zeros(len(events), dtype=profile._DTYPE)
    for row, (kind, thread, begin, end) in zip(rows, events, strict=True):
        row["kind"], row["thread"], row["begin"], row["end"] = kind, thread, begin, end
        row["bytes"] = 10 if kind == kinds.TIMELINE_READ else 0
        row["unit"] = 1 if kind == kinds.TIMELINE_TOKEN else 3
    rows.sort(order="begin")
    return profile.Timeline("made", 2, lost, capacity, rows)


NONE = profile.NONE
MADE = (
    (kinds.TIMELINE_TOKEN, 0, 100, 200),
    (kinds.TIMELINE_GATE, 0, 100, 140),
    (kinds.TIMELINE_IO_WAIT, 0, 140, 180),
    (kinds.TIMELINE_DOWN, 0, 180, 195),
    (kinds.TIMELINE_DOWN, 1, 130, 150),
    (kinds.TIMELINE_BARRIER, 1, 150, 200),
    (kinds.TIMELINE_READ, NONE, 90, 120),
    (kinds.TIMELINE_READ, NONE, 110, 170),
    (kinds.TIMELINE_READ, NONE, 175, 260),
)


def test_compute_storage_and_both() -> None:
    (token,) = profile.tokens(made(*MADE))
    assert token.parts == {kinds.TIMELINE_GATE: 40, kinds.TIMELINE_IO_WAIT: 40, kinds.TIMELINE_DOWN: 15}
    assert (token.total, token.other, token.wait) == (100, 5, 40)
    # Compute 100-150 and 180-195; reads 100-170 and 175-200.
    assert (token.compute, token.io_busy, token.overlap, token.idle) == (65, 95, 65, 5)
    # What ended in the token.
    assert (token.reads, token.bytes_read) == (2, 20)


def test_tokens_of_which_events_were_overwritten_do_not_count() -> None:
    later = tuple((kind, thread, begin + 200, end + 200) for kind, thread, begin, end in MADE)
    both = profile.tokens(made(*MADE, *later))
    assert [token.begin for token in both] == [100, 300]
    left = [event for event in MADE if event[0] != kinds.TIMELINE_GATE]
    (token,) = profile.tokens(made(*left, *later, lost=4, capacity=6))
    assert token.begin == 300
    with pytest.raises(InputError, match="no whole token"):
        profile.tokens(made(*MADE[1:]))


def test_events_of_a_span_are_those_that_overlap_it() -> None:
    rng = np.random.default_rng(1)
    begins = np.sort(rng.integers(0, 500, 300)).astype(np.uint64) + np.uint64(2**62)
    events = np.zeros(300, profile._DTYPE)
    events["begin"], events["end"] = begins, begins + rng.integers(0, 90, 300).astype(np.uint64)
    within = profile._Within(events)
    for low, length in rng.integers(0, 500, (200, 2)).tolist():
        begin, end = 2**62 + low, 2**62 + low + length
        wanted = [e for e in events.tolist() if e[0] < end and e[1] > begin]
        assert within.during(begin, end).tolist() == wanted


def test_trace_has_both_ends_of_every_read() -> None:
    trace = trace_events(made(*MADE))
    jsonschema.validate(trace, SCHEMA)
    assert [e["ts"] for e in trace["traceEvents"] if e["ph"] == "b"] == [0.0, 0.02, 0.085]
    broken = trace_events(made(*MADE))
    del next(e for e in broken["traceEvents"] if e["ph"] == "X")["dur"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA)


@pytest.mark.parametrize("late_ms", [0, 5])
def test_what_the_supervisor_saw_is_on_the_same_clock(late_ms: int) -> None:
    """A process that was started at 1 s of the events' clock and decoded from 3 s to 3.5 s. A supervisor that
    hears of the beginning late is set right by the end."""
    token, second = (kinds.TIMELINE_TOKEN, 0, 3_000_000_000, 3_500_000_000), 1_000_000
    seen = Timeline(
        1.0,
        2,
        0.0,
        [0],
        False,
        at_ms=[0, 2100],
        phase_ms={"load": 100, "decode": 2000 + late_ms, "results": 2500},
        cpu_khz={"0": [None, 1_500_000]},
        rss_bytes=[None, 2_000_000],
    )
    trace = trace_events(made(token), dataclasses.replace(a_record(), timeline=seen))
    jsonschema.validate(trace, SCHEMA)
    other = trace["otherData"]
    assert (other["start_monotonic_ns"], other["device_clock_error_ns"]) == (1_000_000_000, late_ms * 10**6)
    spans = {e["name"]: (e["ts"], e["dur"]) for e in trace["traceEvents"] if e["ph"] == "X"}
    assert spans["token 0"] == (2 * second, 0.5 * second)
    assert spans["load"] == pytest.approx((0.1 * second, (1.9 + late_ms / 1000) * second))
    assert spans["decode"][0] == pytest.approx((2 + late_ms / 1000) * second)
    assert spans["results"] == (2.5 * second, 0)
    counters = [(e["name"], e["ts"], e["args"]) for e in trace["traceEvents"] if e["ph"] == "C"]
    assert counters == [("MHz", 2.1 * second, {"0": 1500}), ("MB", 2.1 * second, {"rss": 2})]


# ---- what goes wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("-n", "4,8"), "profile runs one case, and this makes 2"),
        (("-p", "8"), "generates nothing"),
        (("-n", "4", "--models", "x"), "--models does not fit"),
        (("-n", "4", "-r", "3"), "--replicates does not fit: profile makes one run"),
        (("-n", "4", "--max-time", "1m"), "--max-time does not fit"),
        (("-n", "4", "-t", "auto"), "-t auto"),
        (("-n", "4", "--chart", "x.gif"), "expected a name that ends in .png or .svg"),
        (("-n", "4", "--engines", "fake"), "there is no timeline"),
    ],
)
def test_what_does_not_fit(sandbox: Sandbox, library_path: Path, more: tuple[str, ...], said: str) -> None:
    model = "fake:" if "fake" in more else "tiny-smallthinker"
    code, _, err = sandbox.run("profile", model, "--library", str(library_path), *more)
    assert code in (2, 3)
    assert said in " ".join(err.split())


def written(path: Path, events: bytes, **head: Any) -> Path:
    whole = {"label": "x", "n_threads": 2, "n_lost": 0, "n_events": len(events) // 48, "capacity": 99, **head}
    path.write_bytes(timelines.MAGIC + json.dumps(whole).encode() + b"\n" + zlib.compress(events))
    return path


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ({"n_threads": 10**11}, "n_threads must be 0 to 1024"),
        ({"n_threads": -1}, "n_threads must be 0 to 1024"),
        ({"n_lost": 1 << 64}, "n_lost must be"),
        ({"capacity": 1 << 17}, "capacity must be 0 to 65536"),
        ({"n_events": 3 * 65536 + 1}, "n_events must be 0 to 196608"),
        ({"n_events": 3 * 65536}, "cannot hold its events"),
        ({"n_events": float("inf")}, "its second line"),
    ],
)
def test_counts_that_no_run_writes_are_refused(tmp_path: Path, head: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=rf"x\.timeline: the timeline is damaged: .*{said}"):
        profile.load(written(tmp_path / "x.timeline", made(*MADE).events.tobytes(), **head))


def test_events_that_unpack_to_gigabytes_are_not_unpacked(tmp_path: Path) -> None:
    path = written(tmp_path / "x.timeline", bytes(48 * 3 * 65536))
    with pytest.raises(InputError, match=r"\d+ bytes cannot hold its events"):
        profile.load(path)


def test_counts_are_numbers(tmp_path: Path) -> None:
    path = written(tmp_path / "x.timeline", made(*MADE).events.tobytes(), n_threads="2", capacity="99")
    found = profile.load(path)
    assert (found.n_threads, found.capacity) == (2, 99)
    assert len(profile.tokens(found)) == 1


def test_layers_that_no_model_has_are_refused(tmp_path: Path) -> None:
    events = made(*MADE).events
    events["layer"] = NONE
    events["layer"][1] = 4095
    found = profile.load(written(tmp_path / "x.timeline", events.tobytes()))
    assert len(profile.summarise(found, profile.tokens(found)).layers) in (0, 4096)
    events["layer"][1] = NONE - 1
    with pytest.raises(InputError, match="an event is of a layer above 4095"):
        profile.load(written(tmp_path / "x.timeline", events.tobytes()))


@pytest.mark.parametrize("damage", ["cut", "magic", "packed", "count", "empty"])
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    raw = made(*MADE).events.tobytes()
    head = {"label": "x", "n_threads": 2, "n_lost": 0, "n_events": len(MADE), "capacity": 99}
    whole = timelines.MAGIC + json.dumps(head).encode() + b"\n" + zlib.compress(raw)
    other = json.dumps({**head, "n_events": len(MADE) - 1}).encode()
    data = {
        "cut": whole[:-9],
        "magic": b"x" + whole,
        "packed": whole[:-30] + b"\xff" * 30,
        "count": timelines.MAGIC + other + b"\n" + zlib.compress(raw),
        "empty": b"",
    }[damage]
    path = tmp_path / "x.timeline"
    path.write_bytes(whole)
    assert len(profile.load(path).events) == len(MADE)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"x\.timeline: (the timeline is damaged|this is no timeline)"):
        profile.load(path)
