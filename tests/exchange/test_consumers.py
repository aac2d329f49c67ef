"""What other programs make of our exports: each is run, not imitated."""

from __future__ import annotations

import io
import json
import sqlite3
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from stbench import cli
from stbench.agent.wire import RunRecord, Versions
from stbench.commands import export as command
from stbench.exchange import formats, llama_rows
from stbench.exchange.selection import select
from stbench.records.store import read_records
from tests.exchange import real
from tests.tables.factory import record

CASE = "local:qwen3-0.6b/dense/t2/pp39+tg64"


def export(tmp_path: Path, *words: str, results: Path = real.QUICK) -> bytes:
    out = tmp_path / "out"
    assert cli.main(["export", str(results), *words, "--out", str(out), "--quiet"]) == 0
    return out.read_bytes()


def values(results: Path, metric: str) -> list[float]:
    found = select(read_records(results).latest())
    (case,) = [case for case in found.cases if case.label == CASE]
    return case.values(metric)


@pytest.fixture
def two_builds(tmp_path: Path) -> tuple[Path, Path]:
    """The runs of our engine, and those of a build that decodes a quarter faster."""
    ours = [r for r in real.quick() if r.engine == "sbr" and r.model.name.startswith("qwen3-0.6b")]
    return real.write(tmp_path / "a", ours), real.write(tmp_path / "b", real.faster(ours, 0.8))


@pytest.mark.parametrize("kind", ["llama-bench-jsonl", "llama-bench-sql"])
def test_llama_cpps_script_compares_two_builds(
    tmp_path: Path, two_builds: tuple[Path, Path], kind: str
) -> None:
    script = real.compare_script()
    a, b = map(str, two_builds)
    out = tmp_path / "both"
    assert cli.main(["export", a, b, "--to", kind, "--out", str(out), "--quiet"]) == 0
    if kind == "llama-bench-sql":
        database = sqlite3.connect(tmp_path / "both.sqlite")
        database.executescript(out.read_text())
        database.close()
        out = tmp_path / "both.sqlite"
    builds = sorted({row["build_commit"] for row in json_rows(tmp_path, *two_builds)})
    first = json_rows(tmp_path, two_builds[0])[0]["build_commit"]
    second = next(build for build in builds if build != first)
    done = subprocess.run(
        [sys.executable, str(script), "-t", "llama-bench", "-i", str(out), "-b", first, "-c", second],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    table = {row[rows[0].index("Test")]: row for row in rows[2:]}
    speeds = [row["avg_ts"] for row in json_rows(tmp_path, two_builds[0]) if row["n_gen"]]
    assert float(table["tg64@d39"][-3]) == pytest.approx(statistics.fmean(speeds), abs=0.01)
    assert table["tg64@d39"][-1] == "1.25"
    assert table["pp39"][-1] == "1.00"


def json_rows(tmp_path: Path, *results: Path) -> list[Any]:
    out = tmp_path / "rows"
    words = ["export", *map(str, results), "--to", "llama-bench-jsonl", "--out", str(out), "--quiet"]
    assert cli.main(words) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_rows_that_llama_cpps_script_would_join_are_of_one_case() -> None:
    ours = llama_rows.rows(select([*real.quick(), *read_records(real.LIMITED).latest()]))
    said = ("test_time", "avg_ns", "avg_ts", "samples_ns", "samples_ts", "stbench")
    cases: dict[str, set[str]] = {}
    for row in ours:
        key = str([value for name, value in row.items() if name not in said])
        cases.setdefault(key, set()).add(row["stbench"]["device"] + row["stbench"]["case"])
    assert [found for found in cases.values() if len(found) > 1] == []
    assert len(cases) > 10


def test_pytest_benchmark_compares_two_exports(tmp_path: Path, two_builds: tuple[Path, Path]) -> None:
    storage = tmp_path / ".benchmarks" / "board"
    storage.mkdir(parents=True)
    for number, folder in enumerate(two_builds, 1):
        out = storage / f"{number:04}_build.json"
        words = ["export", str(folder), "--to", "pytest-benchmark", "--out", str(out), "--quiet"]
        assert cli.main(words) == 0
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest_benchmark", "compare", "--columns=median,ops,rounds"),
            *("--group-by=name", "--csv=table.csv"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"{CASE} decode" in done.stdout
    lines = [line.split(",") for line in (tmp_path / "table.csv").read_text().splitlines()]
    header, rows = lines[0], lines[1:]
    decode = [row for row in rows if row[header.index("name")].endswith("decode")]
    ops = sorted(1 / float(row[header.index("median")]) for row in decode)
    assert ops[1] / ops[0] == pytest.approx(1.25, rel=1e-3)
    of_first = values(two_builds[0], "decode_tps")
    assert 1 / ops[0] == pytest.approx(statistics.median(1 / speed for speed in of_first), rel=1e-6)


def test_junit_is_read_back_and_fits_its_schema(tmp_path: Path) -> None:
    import junitparser

    bad = [
        record(status="crashed", detail="signal 11 <&> \x01 \U0001f600"),
        record(status="wrong-output", replicate=1, verdict="wrong"),
        record(status="unsupported", detail="no", replicate=2),
        record(replicate=3),
    ]
    text = export(tmp_path, "--to", "junit", results=real.write(tmp_path / "bad", bad)).decode()
    suite = next(iter(junitparser.JUnitXml.fromstring(text.encode())))
    assert (suite.tests, suite.errors, suite.failures, suite.skipped) == (4, 1, 1, 1)
    results = [[type(result).__name__ for result in case.result] for case in suite]
    assert sorted(map(str, results)) == ["['Error']", "['Failure']", "['Skipped']", "[]"]
    assert "decode: 30.0000 tokens/s" in next(case for case in suite if not case.result).system_out
    from lxml import etree

    schema = etree.XMLSchema(etree.parse(Path(__file__).with_name("junit.xsd")))
    for data in (text.encode(), export(tmp_path, "--to", "junit")):
        schema.assertValid(etree.fromstring(data))
    wrong = text.replace("<testcase ", '<testcase colour="red" ', 1)
    assert not schema.validate(etree.fromstring(wrong.encode()))


# What stbench.exchange.continuous cites. An empty array is "No benchmark result was found" to the action.
_GITHUB = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["name", "unit", "value"],
        "additionalProperties": False,
        "properties": {
            **{key: {"type": "string", "minLength": 1} for key in ("name", "unit", "range", "extra")},
            "value": {"type": "number"},
        },
    },
}

# Stricter than Bencher's own schema: measures by slug, so that no name is made into another, and no key that
# it does not document.
_BENCHER = {
    "type": "object",
    "propertyNames": {"minLength": 1, "maxLength": 1024},
    "additionalProperties": {
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"pattern": "^[a-z0-9]+(-[a-z0-9]+)*$", "maxLength": 64},
        "additionalProperties": {
            "type": "object",
            "required": ["value"],
            "additionalProperties": False,
            "properties": {key: {"type": "number"} for key in ("value", "lower_value", "upper_value")},
        },
    },
}


def test_github_action_benchmark_has_the_documented_shape(tmp_path: Path) -> None:
    entries = json.loads(export(tmp_path, "--to", "github-action-benchmark"))
    jsonschema.validate(entries, _GITHUB)
    names = [entry["name"] for entry in entries]
    assert len(set(names)) == len(names), "a chart per name"
    (decode,) = [entry for entry in entries if entry["name"] == f"{CASE} decode"]
    assert decode["value"] == pytest.approx(statistics.median(values(real.QUICK, "decode_tps")), abs=1e-4)
    assert decode["unit"] == "tokens/s"
    assert "synthetic weights" in decode["extra"]


def test_bencher_has_the_documented_shape(tmp_path: Path) -> None:
    found = json.loads(export(tmp_path, "--to", "bencher"))
    jsonschema.validate(found, _BENCHER)
    value = found[CASE]["decode-tokens-per-second"]
    assert value["value"] == pytest.approx(statistics.median(values(real.QUICK, "decode_tps")), abs=1e-4)
    assert value["lower_value"] <= value["value"] <= value["upper_value"]


@pytest.mark.parametrize("kind", ["github-action-benchmark", "bencher", "pytest-benchmark"])
def test_two_machines_of_one_name_are_two_names(tmp_path: Path, kind: str) -> None:
    """Both are called `local`; in these formats the second would be taken for the first."""
    there = [one for one in real.quick() if one.label == CASE]
    elsewhere = [replace(one.facts, fingerprint="beef") for one in there if one.facts is not None]
    moved = [replace(one, id=one.id[::-1], facts=facts) for one, facts in zip(there, elsewhere, strict=True)]
    data = json.loads(export(tmp_path, "--to", kind, results=real.write(tmp_path / "two", [*there, *moved])))
    entries = data["benchmarks"] if kind == "pytest-benchmark" else data
    names = list(entries) if kind == "bencher" else [entry["name"] for entry in entries]
    assert len(names) == len(set(names)) == (2 if kind == "bencher" else 4)
    assert len([name for name in names if "[fingerprint" in name and "beef" in name]) == len(names) / 2
    assert not any(len(name.encode()) > 1024 for name in names)


_OTHER: dict[str, Any] = {"routing": "5" * 16, "isa": "avx2", "n_ctx": 8192, "n_batch": 32}


def _apart(change: str) -> list[RunRecord]:
    """Three slow runs and three fast ones of one label, which ``change`` tells apart."""
    slow = [record(replicate=i) for i in range(3)]
    fast = []
    for i, one in enumerate(slow):
        assert one.samples is not None
        samples = replace(one.samples, decode_ns=[ns // 2 for ns in one.samples.decode_ns])
        one = replace(one, id=f"fast-{i}", samples=samples)
        if change == "library":
            one = replace(one, versions=Versions("0.1.0", {}, "cd" * 32))
        elif change == "campaign":
            one = replace(one, campaign="another")
        else:
            name = "routing_digest" if change == "routing" else change
            one = replace(one, settings=replace(one.settings, **{name: _OTHER[change]}))
        fast.append(one)
    return [*slow, *fast]


@pytest.mark.parametrize("change", ["library", "campaign", "routing", "isa", "n_ctx", "n_batch"])
@pytest.mark.parametrize("kind", ["github-action-benchmark", "bencher", "pytest-benchmark"])
def test_what_no_label_tells_is_never_one_number(tmp_path: Path, kind: str, change: str) -> None:
    data = json.loads(export(tmp_path, "--to", kind, results=real.write(tmp_path / "c", _apart(change))))
    if kind == "bencher":
        speeds = {name: value["decode-tokens-per-second"]["value"] for name, value in data.items()}
    elif kind == "pytest-benchmark":
        speeds = {b["name"]: b["stats"]["ops"] for b in data["benchmarks"] if b["group"] == "decode"}
    else:
        speeds = {one["name"]: one["value"] for one in data if one["name"].endswith(" decode")}
    assert sorted(speeds.values()) == pytest.approx([30.0, 60.0])
    assert len(speeds) == 2
    assert all(f"[{'isa_requested' if change == 'isa' else change} " in name for name in speeds), speeds


@pytest.mark.parametrize("kind", ["github-action-benchmark", "bencher", "pytest-benchmark"])
def test_names_that_depend_on_what_is_exported_together_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """A service that keeps numbers by name would begin a new chart."""
    both = _apart("campaign")
    for records, said in ((both[:3], False), (both, True)):
        folder = real.write(tmp_path / str(said), records)
        assert cli.main(["export", str(folder), "--to", kind, "--out", str(tmp_path / "out")]) == 0
        text = capsys.readouterr().err
        assert ("2 cases share their label with others" in text) == said
        assert ("apart (campaign)" in text and "export one campaign" in text) == said
        assert ("[campaign" in (tmp_path / "out").read_text()) == said


@pytest.mark.parametrize("change", ["library", "campaign", "routing", "isa", "n_ctx", "n_batch"])
def test_llama_cpps_script_averages_no_two_settings_and_still_joins_builds(change: str) -> None:
    """It averages rows that are equal in all that is no result, and holds two commits against each other
    where they are equal in all else."""
    said = ("test_time", "avg_ns", "avg_ts", "samples_ns", "samples_ts", "stbench", "build_commit")
    rows = [row for row in llama_rows.rows(select(_apart(change))) if row["n_gen"]]
    alike = {str([value for name, value in row.items() if name not in said]) for row in rows}
    assert len(alike) == (1 if change in ("library", "campaign") else 2)
    assert len({row["build_commit"] for row in rows}) == (2 if change == "library" else 1)


def test_names_that_would_look_the_same_in_short_are_told_apart() -> None:
    digests = ["0123456789ab0000", "0123456789ab1111"]
    records = [
        replace(one, settings=replace(one.settings, routing_digest=digests[i // 3]))
        for i, one in enumerate(_apart("routing"))
    ]
    names = [case.name for case in select(records).cases]
    assert len(set(names)) == len(names) == 2


def test_a_copy_made_while_a_campaign_ran_adds_no_run() -> None:
    """A run that was repeated has an attempt in the copy and another in the campaign; the last counts."""
    first = [record(replicate=i) for i in range(3)]
    again = [replace(one, attempt=1, started_at="2030-01-01T00:00:00.000+00:00") for one in first[1:]]
    (case,) = select([*first, *again]).cases
    assert [run.record.attempt for run in case.runs] == [0, 1, 1]


@pytest.mark.parametrize("kind", [name for name, form in formats.FORMATS.items() if not form.whole])
def test_nothing_to_hold_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    folder = real.write(tmp_path / "c", [record(status="crashed")])
    assert cli.main(["export", str(folder), "--to", kind, "--out", str(tmp_path / "out")]) == 3
    assert f"no case has a number that --to {kind} could hold" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_parquet_is_read_by_pyarrow_and_pandas_with_nothing_lost(tmp_path: Path) -> None:
    import pandas
    import pyarrow.parquet

    from stbench.records.frame import COLUMNS
    from stbench.records.lines import parse_record

    data = export(tmp_path, "--to", "parquet")
    table = pyarrow.parquet.read_table(io.BytesIO(data))
    assert set(COLUMNS) < set(table.column_names)
    frame = pandas.read_parquet(io.BytesIO(data))
    again = [parse_record(text) for text in frame["record"]]
    assert sorted(r.id for r in again) == sorted(r.id for r in real.quick())
    assert set(map(repr, again)) == set(map(repr, real.quick()))
    one = frame[frame["label"] == CASE].iloc[0]
    assert one["decode_tps"] == pytest.approx(len(one["decode_ns"]) * 1e9 / sum(one["decode_ns"]))


def test_the_same_records_give_the_same_bytes() -> None:
    there, back = select(real.quick()), select(reversed(real.quick()))
    for name, form in formats.FORMATS.items():
        assert form.write(there) == form.write(back), name


def test_the_command_offers_what_there_is() -> None:
    assert tuple(formats.FORMATS) == command.FORMATS
    page = (real.ROOT / "docs" / "exchange.md").read_text()
    for name, form in formats.FORMATS.items():
        assert f"`{name}`" in page
        assert form.lost in " ".join(page.split())


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = real.write(
        tmp_path / "c",
        [
            record(),
            record(status="crashed", replicate=1),
            record("qwen3-0.6b", status="wrong-output", verdict="wrong"),
        ],
    )
    assert cli.main(["export", str(folder), "--to", "bencher"]) == 0
    said = capsys.readouterr()
    assert "2 of 3 runs have no number (1 crashed, 1 wrong-output)" in said.err
    assert "1 cases computed wrong output" in said.err
    assert list(json.loads(said.out)) == ["local:smallthinker-4b/dense/t2/pp39+tg4"]
