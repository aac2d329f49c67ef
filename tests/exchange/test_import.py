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

# As llama-bench 0.5 prints it, with names and numbers made up.
ROW: dict[str, Any] = {
    "build_commit": "0c1e57098",
    "build_number": 7,
    "cpu_info": "Cortex-A76",
    "gpu_info": "",
    "backends": "CPU",
    "model_filename": "/models/qwen3-0.6b-q4_0.gguf",
    "model_type": "qwen3 0.6B Q4_0",
    "model_size": 335503360,
    "model_n_params": 596049920,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_threads": 4,
    "cpu_mask": "0xf0",
    "cpu_strict": True,
    "poll": 50,
    "type_k": "f16",
    "type_v": "f16",
    "n_gpu_layers": -1,
    "n_cpu_moe": 0,
    "split_mode": "layer",
    "main_gpu": 0,
    "no_kv_offload": False,
    "flash_attn": -1,
    "devices": "auto",
    "tensor_split": "0.00",
    "tensor_buft_overrides": "none",
    "load_mode": "mmap",
    "embeddings": False,
    "no_op_offload": 0,
    "fit_target": 0,
    "fit_min_ctx": 0,
    "n_prompt": 0,
    "n_gen": 128,
    "n_depth": 0,
    "test_time": "2026-01-02T03:04:05Z",
    "avg_ns": 4100000000,
    "stddev_ns": 100000000,
    "avg_ts": 31.25,
    "stddev_ts": 0.75,
    "samples_ns": [4000000000, 4200000000],
    "samples_ts": [32.0, 30.476],
}
PROMPT = {**ROW, "n_prompt": 512, "n_gen": 0, "samples_ns": [9000000000, 9100000000]}


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


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
    gpu = {**ROW, "gpu_info": "RTX 4090", "backends": "CUDA", "n_gpu_layers": 20, "flash_attn": True}
    found = import_llama_bench(lines(tmp_path / "a.jsonl", ROW, gpu), "c").records
    assert {r.device for r in found} == {
        "imported-Cortex-A76",
        "imported-Cortex-A76-RTX-4090-n_gpu_layers=20-flash_attn=True-CUDA",
    }
