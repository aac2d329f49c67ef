"""llama-bench's output as records: the same numbers, what is unknown said to be, and out again unchanged."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from stbench.exchange import llama_rows
from stbench.exchange.llama_import import import_llama_bench
from stbench.exchange.selection import select
from stbench.records.frame import to_frame
from stbench.records.store import read_records
from tests.exchange import real
from tests.host.conftest import Sandbox, sandbox

__all__ = ["sandbox"]

# What the pinned llama-bench printed (tests/data/README.md), and a row of it with other names and numbers.
PRINTED = real.ROOT / "tests" / "data" / "llama-bench" / "tiny-qwen3.jsonl"
REAL: list[dict[str, Any]] = [json.loads(line) for line in PRINTED.read_text().splitlines()]
ROW: dict[str, Any] = {
    **REAL[1],
    "cpu_info": "Cortex-A76",
    "model_filename": "/models/qwen3-0.6b-q4_0.gguf",
    "n_threads": 4,
    "cpu_mask": "0xf0",
    "cpu_strict": True,
    "load_mode": "mmap",
    "n_gen": 128,
    "avg_ns": 4100000000,
    "samples_ns": [4000000000, 4200000000],
    "samples_ts": [32.0, 30.476],
}
PROMPT = {**ROW, "n_prompt": 512, "n_gen": 0, "samples_ns": [9000000000, 9100000000]}


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_what_llama_bench_prints_is_read_and_leaves_as_it_came(sandbox: Sandbox) -> None:
    code, _, said = sandbox.run("import", "llama-bench", str(PRINTED), "--campaign", "theirs")
    assert (code, said) == (0, "18 runs stored in results/theirs\n")
    records = read_records(sandbox.directory / "results" / "theirs").records
    assert {record.device for record in records} == {"imported-Example-CPU"}
    frame = to_frame(records)
    assert frame["usable"].all()
    speeds = frame["decode_tps"].fillna(frame["prefill_tps"])
    printed = [speed for row in REAL for speed in row["samples_ts"]]
    assert sorted(speeds) == pytest.approx(sorted(printed), rel=1e-5)
    assert set(frame["workload"]) == {"pp32", "tg16", "tg32", "pp32@d64", "tg16@d64", "tg32@d64"}
    code, out, _ = sandbox.run("export", "results/theirs", "--to", "llama-bench-jsonl", "--quiet")
    left = [json.loads(line) for line in out.splitlines()]
    assert sorted(map(repr, left)) == sorted(map(repr, REAL))


def test_the_sql_that_llama_bench_prints_is_read_and_leaves_as_it_came(sandbox: Sandbox) -> None:
    printed = PRINTED.with_suffix(".sql")
    code, _, said = sandbox.run("import", "llama-bench", str(printed), "--campaign", "theirs")
    assert (code, said) == (0, "2 runs stored in results/theirs\n")
    code, out, _ = sandbox.run("export", "results/theirs", "--to", "llama-bench-sql", "--quiet")
    assert code == 0
    tables = [table(script) for script in (printed.read_text(), out)]
    assert tables[0] == tables[1]
    assert len(tables[0][1]) == 2


def table(script: str) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Columns with their types, and sorted rows."""
    database = sqlite3.connect(":memory:")
    database.executescript(script)
    columns = [row[1:3] for row in database.execute("PRAGMA table_info(llama_bench)")]
    rows = sorted(database.execute("SELECT * FROM llama_bench"))
    database.close()
    return columns, rows


def test_our_rows_have_the_fields_that_llama_bench_prints() -> None:
    assert list(REAL[0]) == [*llama_rows.FIELDS, "samples_ns", "samples_ts"]
    columns, _ = table(PRINTED.with_suffix(".sql").read_text())
    assert columns == list(llama_rows.FIELDS.items())
    ours = llama_rows.rows(select(real.quick()))[0]
    assert list(ours) == [*REAL[0], "stbench"]


def test_every_repetition_becomes_a_record_that_says_what_is_unknown(sandbox: Sandbox) -> None:
    lines(sandbox.directory / "theirs.jsonl", ROW, PROMPT)
    code, _, said = sandbox.run("import", "llama-bench", "theirs.jsonl")
    assert (code, said) == (0, "4 runs stored in results/imported-theirs\n")
    reading = read_records(sandbox.directory / "results" / "imported-theirs")
    assert reading.problems == []
    frame = to_frame(reading.records)
    assert frame["usable"].all()
    assert list(frame["decode_tps"].dropna().round(3)) == [32.0, 30.476]
    assert frame["prefill_tps"].max() == pytest.approx(512 / 9)
    record = reading.records[0]
    assert (record.status, record.engine, record.provenance) == ("ok", "llama-bench", "imported")
    assert record.device == "imported-Cortex-A76"
    assert record.settings.cpus == [4, 5, 6, 7]
    assert (record.facts, record.telemetry, record.model.digest) == (None, None, "")
    assert record.check is not None
    assert record.check.verdict == "unchecked"
    assert "who else used the machine" in record.warnings[0]
    assert "one of 2 repetitions within one process" in record.warnings[1]
    code, _, said = sandbox.run("import", "llama-bench", "theirs.jsonl")
    assert "0 runs stored" in said
    assert "4 were there already" in said
    assert len(read_records(sandbox.directory / "results" / "imported-theirs").records) == 4
    code, out, _ = sandbox.run("grid", "results/imported-theirs", "--format", "md")
    assert code == 0
    assert "imported-Cortex-A76" in out


def test_forms_of_the_file(tmp_path: Path) -> None:
    as_list = tmp_path / "a.json"
    as_list.write_text(json.dumps([ROW, PROMPT], indent=2))
    found = import_llama_bench(as_list, "c").records
    assert [r.samples for r in found] == [
        r.samples for r in import_llama_bench(lines(tmp_path / "a.jsonl", ROW, PROMPT), "c").records
    ]
    columns = [name for name in llama_rows.FIELDS if name in ROW]
    values = ", ".join("'" + str(int(v) if isinstance(v, bool) else v) + "'" for v in map(ROW.get, columns))
    kinds = ",".join(f"{name} {llama_rows.FIELDS[name]}" for name in columns)
    script = tmp_path / "a.sql"
    script.write_text(
        f"CREATE TABLE IF NOT EXISTS llama_bench ({kinds});\n\n"
        f"INSERT INTO llama_bench ({', '.join(columns)}) VALUES ({values});\n"
    )
    database = sqlite3.connect(tmp_path / "a.sqlite")
    database.executescript(script.read_text())
    database.close()
    for path in (script, tmp_path / "a.sqlite"):
        (record,) = import_llama_bench(path, "c").records
        assert record.samples is not None
        assert record.samples.decode_ns == [4100000000]
        assert record.settings.cpus == [4, 5, 6, 7]
        assert "a mean of repetitions whose number and spread are unknown" in record.warnings


def test_a_script_can_do_nothing_else(tmp_path: Path) -> None:
    script = tmp_path / "evil.sql"
    evil = tmp_path / "evil"
    script.write_text(f"CREATE TABLE llama_bench (a TEXT);\nATTACH '{evil}' AS x;\nCREATE TABLE x.y (a);\n")
    with pytest.raises(Exception, match="not authorized"):
        import_llama_bench(script, "c")
    assert not evil.exists()


def test_rows_that_are_none_are_named_and_the_rest_is_read(sandbox: Sandbox) -> None:
    bad: list[Any] = [
        {**ROW, "samples_ns": [0]},
        {**ROW, "samples_ns": [-5]},
        {**ROW, "samples_ns": ["fast"]},
        {**ROW, "n_prompt": 5},
        {**ROW, "n_gen": 2**70},
        {"hello": 1},
        [1],
        {**ROW, "stbench": {"id": "x"}},
    ]
    path = lines(sandbox.directory / "bad.jsonl", *bad, ROW)
    path.write_bytes(path.read_bytes() + b'{"n_prompt": \n\xff\xfe\n')
    code, _, said = sandbox.run("import", "llama-bench", "bad.jsonl", "--campaign", "bad")
    assert code == 3
    for number in (*range(1, 9), 10, 11):
        assert f"bad.jsonl:{number}: " in said
    assert "one time for prompt and generation together" in said
    assert len(read_records(sandbox.directory / "results" / "bad").records) == 2
    (sandbox.directory / "empty.jsonl").write_text("\n")
    assert sandbox.run("import", "llama-bench", "empty.jsonl")[0] == 2


def test_out_in_and_out_again(tmp_path: Path) -> None:
    """The numbers come back; what the format cannot hold does not."""
    found = select(real.quick())
    first = tmp_path / "first.jsonl"
    first.write_text(llama_rows.jsonl(found))
    again = import_llama_bench(first, "again")
    assert again.problems == []
    runs = {run.record.id: run for case in found.cases for run in case.runs}
    assert len(again.records) == len(runs)
    frame = to_frame(again.records).set_index("record_id")
    for record_id, run in runs.items():
        row = frame.loc[record_id]
        for name in ("decode_tps", "prefill_tps", "label", "engine", "replicate", "n_depth", "seed"):
            assert row[name] == pytest.approx(run.row[name], nan_ok=True), name
        assert row["provenance"] == "imported"
        assert row["digest"] == ""
    second = llama_rows.jsonl(select(again.records))
    assert sorted(second.splitlines()) == sorted(first.read_text().splitlines())


def test_switches_of_ours_make_no_other_build(tmp_path: Path) -> None:
    """They stand in ``backends``, beside which llama-bench's own words say what was built."""
    path = tmp_path / "ours.jsonl"
    path.write_text(llama_rows.jsonl(select([r for r in real.quick() if r.engine == "sbr"])))
    found = import_llama_bench(path, "again").records
    assert len({one.case for one in found}) > 3
    assert len({one.versions.library_sha256 for one in found if one.versions}) == 1
    other = import_llama_bench(lines(tmp_path / "a.jsonl", ROW, {**ROW, "backends": "CUDA"}), "c").records
    assert len({one.versions.library_sha256 for one in other if one.versions}) == 2


@pytest.mark.parametrize("name", ["a#b", "a?b", "50%41", "a b"])
def test_a_database_is_read_by_its_name_and_nothing_is_made(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.sqlite"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE llama_bench (n_prompt INTEGER, n_gen INTEGER, avg_ns INTEGER)")
    database.execute("INSERT INTO llama_bench VALUES (0, 32, 1000000000)")
    database.commit()
    database.close()
    assert len(import_llama_bench(path, "c").records) == 1
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_in_and_out_is_equal(tmp_path: Path) -> None:
    rows = [ROW, PROMPT, {**ROW, "n_depth": 4096, "new_field": "of a later version"}]
    found = import_llama_bench(lines(tmp_path / "a.jsonl", *rows), "c")
    left = [json.loads(line) for line in llama_rows.jsonl(select(found.records)).splitlines()]
    assert sorted(map(str, left)) == sorted(map(str, rows))


def test_imported_is_never_compared_as_if_measured(sandbox: Sandbox) -> None:
    path = sandbox.directory / "ours.jsonl"
    path.write_text(llama_rows.jsonl(select(real.quick())))
    assert sandbox.run("import", "llama-bench", "ours.jsonl", "--campaign", "again")[0] == 0
    code, _, said = sandbox.run("compare", str(real.QUICK), "results/again")
    assert code == 2
    assert "provenance is measured in" in said
    code, out, said = sandbox.run("compare", "results/again", "results/again", "--json")
    assert code in (0, 3), said
    assert {case["verdict"] for case in json.loads(out)["cases"]} <= {"unchanged", "inconclusive"}


def test_other_settings_are_another_device(tmp_path: Path) -> None:
    locked = import_llama_bench(lines(tmp_path / "b.jsonl", {**ROW, "load_mode": "mlock"}), "c").records
    assert {r.device for r in locked} == {"imported-Cortex-A76-load_mode=mlock"}
    gpu = {**ROW, "gpu_info": "RTX 4090", "backends": "CUDA", "n_gpu_layers": 20, "flash_attn": True}
    found = import_llama_bench(lines(tmp_path / "a.jsonl", ROW, gpu), "c").records
    assert {r.device for r in found} == {
        "imported-Cortex-A76",
        "imported-Cortex-A76-RTX-4090-n_gpu_layers=20-flash_attn=True-CUDA",
    }
