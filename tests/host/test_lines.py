"""Lines that are no record, or hardly one: each is named, counted, and hides no other."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stbench.agent import wire
from stbench.agent.wire import RunRecord, Samples, Versions
from stbench.records import lines
from stbench.records.frame import to_frame
from stbench.records.store import Store, read_records
from stbench.tables.grid import build_tables
from tests.host.conftest import Sandbox
from tests.tables.factory import record as made

GOOD, OTHER = made(), made(replicate=1)


def text(record: RunRecord, **changes: Any) -> bytes:
    """The record's line without its end; ``samples__ttft_ns=1`` changes what is within."""
    data = json.loads(wire.dumps(record))
    for path, value in changes.items():
        *parents, name = path.split("__")
        inner = data
        for parent in parents:
            inner = inner[parent]
        inner[name] = value
    return json.dumps(data).encode()


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (text(GOOD, wall_s=float("nan")), "RunRecord.wall_s: expected a number, got NaN"),
        (text(GOOD, wall_s=float("inf")), "RunRecord.wall_s: expected a number, got Infinity"),
        (text(GOOD).replace(b'"wall_s": 3.5', b'"wall_s": 1e999'), "RunRecord.wall_s: expected a number"),
        (text(GOOD, versions__runtime={"x": float("nan")}), "versions.runtime.x is nan, which is no number"),
        (text(GOOD, wall_s=-1), "wall_s is -1, which is below nothing"),
        (text(GOOD, replicate=-1), "replicate is -1"),
        (text(GOOD, samples__decode_ns=[5, -7, 5, 5]), "samples.decode_ns[1] is -7, a negative time"),
        (text(GOOD, samples__ttft_ns=-1), "samples.ttft_ns is -1 ns, a negative time"),
        (text(GOOD, settings__cpus=[0, 2**62]), "settings.cpus has 4611686018427387904, and CPUs have"),
        (text(GOOD, settings__cpus=[-1]), "settings.cpus has -1"),
        (text(GOOD, versions__runtime={"\x1b]0;owned\x07": float("nan")}), "versions.runtime. ]0;owned"),
        (text(GOOD, counters={"\x1b[2J": 1}), "RunRecord.counters"),
        (text(GOOD, replicate=10**30), "replicate: a number of 100 bits; 64 are the most"),
        (text(GOOD, samples__decode_ns=[1, 2**63]), "samples.decode_ns[1]: a number of 64 bits"),
        (
            text(GOOD).replace(b'"replicate": 0', b'"replicate": ' + b"9" * 5000),
            "not JSON: Exceeds the limit",
        ),
        (text(GOOD, versions__runtime={"x": deep(40)}), "versions.runtime.x is nested more than 32 deep"),
        (b'{"a":' * 100000, "not JSON"),
        (text(GOOD, status="fine"), "status 'fine' is none of ok, unsupported"),
        (text(GOOD, detail="\ud800"), "half a character (a lone surrogate)"),
        (text(GOOD).replace(b'"detail": ""', b'"detail": "\xff"'), "not UTF-8 (invalid start byte at byte"),
        (text(GOOD)[:50] + b"\0" * 30, "30 of its 81 bytes are NUL, as a power cut leaves them"),
        (b"", "an empty line"),
        (b"  \t", "an empty line"),
        (text(GOOD, schema=2), "written by a newer stbench (schema 2, this one reads 1); read it with"),
        (text(GOOD).decode().encode("utf-16"), "are NUL"),
    ],
)
def test_a_line_that_is_none_is_named_and_the_others_are_read(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(text(GOOD) + b"\n" + line.replace(b"\n", b"") + b"\n" + text(OTHER) + b"\n")
    reading = read_records(path)
    assert reading.records == [GOOD, OTHER]
    (problem,) = reading.problems
    assert problem.startswith(f"{path}:2: ")
    assert said in problem
    assert problem.isprintable()
    assert reading.left_out == 1


def test_names_in_repeated_lines_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    named = replace(GOOD, id="\x1b]0;owned\x07", label="local:\x1b[2J" + "x" * 10_000)
    path.write_bytes(text(named) + b"\n" + text(named, detail="again") + b"\n")
    (problem,) = read_records(path).problems
    assert problem.isprintable()
    assert "with the same result; the later counts" in problem
    assert len(problem) < 1500


def test_keys_of_the_other_side_are_harmless_in_messages() -> None:
    data = json.loads(text(replace(GOOD, program=wire.Program("external", ["x"], {}))))
    data["program"]["environment"] = {"\x1b[2J" + "k" * 1000: 1}
    with pytest.raises(wire.WireError) as caught:
        wire.from_json(RunRecord, data)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xef\xbb\xbf" + text(GOOD) + b"\n", ":1: begins with a byte order mark"),
        (text(GOOD) + b"\r\n", ":1: ends in CR LF"),
    ],
)
def test_what_editors_add_is_said_and_read(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "records.jsonl").write_bytes(data)
    reading = read_records(tmp_path)
    assert reading.records == [GOOD]
    assert [said in problem for problem in reading.problems] == [True]
    assert reading.left_out == 0


def test_many_bad_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes((b"nonsense\n" + text(GOOD, schema=7) + b"\n") * 50 + text(GOOD) + b"\n")
    reading = read_records(path)
    assert reading.records == [GOOD]
    assert len(reading.problems) == 2 * (lines.NAMED + 1) + 1
    assert f"{path}: and 45 more of that kind (newer)" in reading.problems
    assert reading.problems[-1] == f"{path}: 100 of 101 lines are left out"


def slower(record: RunRecord, **changes: Any) -> RunRecord:
    assert record.samples is not None
    doubled = [2 * ns for ns in record.samples.decode_ns]
    return replace(record, samples=replace(record.samples, decode_ns=doubled), **changes)


def test_contradictory_records_are_said_and_the_later_counts(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    stored = [GOOD, OTHER, slower(GOOD), OTHER, replace(OTHER, detail="again")]
    path.write_bytes(b"".join(text(record) + b"\n" for record in stored))
    reading = read_records(path)
    assert reading.latest() == [slower(GOOD), replace(OTHER, detail="again")]
    contradictory, same, again = reading.problems
    assert contradictory.startswith(
        f"{path}:3: contradicts line 1: job {GOOD.id} ({GOOD.label}), replicate 0"
    )
    assert "266666664 ns of decoding here and 133333332 ns of decoding there" in contradictory
    assert "this later line counts" in contradictory
    assert same == f"{path}:4: the same record as line 2; it counts once"
    assert "with the same result; the later counts" in again


def test_what_is_repeated_on_purpose_is_no_contradiction(tmp_path: Path) -> None:
    stored = [
        replace(GOOD, status="cancelled"),
        GOOD,
        slower(GOOD, attempt=1),
        made(status="crashed", replicate=1),
        OTHER,
    ]
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"".join(text(record) + b"\n" for record in stored))
    assert read_records(path).problems == []


def test_a_line_without_end_costs_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1 << 16)
    path = tmp_path / "records.jsonl"
    path.write_bytes(text(GOOD) + b"\n" + b"x" * (8 << 20) + b"\n" + text(OTHER) + b"\n")
    tracemalloc.start()
    found = list(lines.read_lines(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [line.record for line in found] == [GOOD, None, OTHER]
    assert found[1].problem == f"the line has {(8 << 20) + 1} bytes"
    assert peak < 2 << 20
    assert list(lines.read_lines(path, offset=found[2].offset, number=2)) == found[2:]


# What a hand or a defect may do to a record: any part replaced by anything that JSON can hold.
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
_PARTS = [(), *([name] for name in json.loads(wire.dumps(GOOD)))]
_PARTS += [
    [part, name]
    for part in (
        "model",
        "workload",
        "settings",
        "facts",
        "effective",
        "samples",
        "counters",
        "telemetry",
        "check",
    )
    for name in json.loads(wire.dumps(GOOD))[part]
]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(_PARTS[1:]), _JSON, st.binary(max_size=3), st.integers(0, 4000))
def test_whatever_is_read_can_be_tabulated_and_stored(
    part: list[str], value: Any, bytes_: bytes, at: int
) -> None:
    data = json.loads(wire.dumps(GOOD))
    inner = data
    for name in part[:-1]:
        inner = inner[name]
    inner[part[-1]] = value
    line = json.dumps(data).encode("utf-8", "surrogatepass")
    for one in (line, line[:at] + bytes_ + line[at + len(bytes_) :]):
        with contextlib.suppress(wire.WireError):
            record = lines.parse_record(one)
            again = lines.parse_record(wire.dumps(record))
            assert again == record
            assert len(to_frame([record, OTHER])) == 2
            build_tables([record, OTHER])


def test_every_command_shows_them_once(sandbox: Sandbox) -> None:
    folder = sandbox.directory / "results" / "c"
    with Store.open(folder) as store:
        for i in range(6):
            store.append(made(replicate=i))
    path = folder / "records.jsonl"
    path.write_bytes(path.read_bytes() + b"\0\0\0\n" + text(slower(GOOD)) + b"\n")
    for words in (
        ("grid", "results/c"),
        ("compare", "results/c", "results/c"),
        ("export", "results/c", "--to", "junit"),
    ):
        code, _, said = sandbox.run(*words)
        assert code in (0, 3), said
        flat = said.replace("\n", "")
        assert flat.count("3 of its 4 bytes are NUL") == 1, (words, said)
        assert flat.count("contradicts line 1") == 1, (words, said)


def test_samples_of_a_run_that_did_not_end_are_read(tmp_path: Path) -> None:
    odd = replace(GOOD, samples=Samples(0, [], [], []), versions=Versions("", {}, ""))
    (tmp_path / "records.jsonl").write_bytes(text(odd) + b"\n")
    assert read_records(tmp_path).records == [odd]
