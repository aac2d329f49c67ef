"""Runs -> rows as llama-bench writes them, as JSON lines or SQL.

A row is one test of one process: a prompt (``pp``) or a generation (``tg``). llama.cpp's own comparison joins
rows by their settings and averages what is equal, so whatever of ours has no field there (switches, memory
limit, cache, and what else tells exported cases of one label apart) stands in ``backends``, and the device in
``cpu_info``: different things are never averaged.
The SQL has llama-bench's fields only; JSON lines have one more, ``stbench``, which other readers ignore.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from stbench.agent.wire import RunRecord
from stbench.exchange.selection import Run, Selection

# What tells cases apart and has a field of its own, or is what the comparison is between.
_TOLD = {
    *("library", "campaign", "workload", "model", "threads_requested", "cpus", "n_batch", "kv_type"),
    *("load_requested", "engine", "device", "provenance"),
}

# Where an import keeps the row as it was.
ORIGINAL = "llama_bench_row"

# Name -> type in SQL, in llama-bench's order.
FIELDS = {
    "build_commit": "TEXT",
    "build_number": "INTEGER",
    "cpu_info": "TEXT",
    "gpu_info": "TEXT",
    "backends": "TEXT",
    "model_filename": "TEXT",
    "model_type": "TEXT",
    "model_size": "INTEGER",
    "model_n_params": "INTEGER",
    "n_batch": "INTEGER",
    "n_ubatch": "INTEGER",
    "n_threads": "INTEGER",
    "cpu_mask": "TEXT",
    "cpu_strict": "INTEGER",
    "poll": "INTEGER",
    "type_k": "TEXT",
    "type_v": "TEXT",
    "n_gpu_layers": "INTEGER",
    "n_cpu_moe": "INTEGER",
    "split_mode": "TEXT",
    "main_gpu": "INTEGER",
    "no_kv_offload": "INTEGER",
    "flash_attn": "INTEGER",
    "devices": "TEXT",
    "tensor_split": "TEXT",
    "tensor_buft_overrides": "TEXT",
    "load_mode": "TEXT",
    "lazy_mode": "TEXT",
    "embeddings": "INTEGER",
    "no_op_offload": "INTEGER",
    "no_host": "INTEGER",
    "repack": "INTEGER",
    "fit_target": "INTEGER",
    "fit_min_ctx": "INTEGER",
    "n_prompt": "INTEGER",
    "n_gen": "INTEGER",
    "n_depth": "INTEGER",
    "test_time": "TEXT",
    "avg_ns": "INTEGER",
    "stddev_ns": "INTEGER",
    "avg_ts": "REAL",
    "stddev_ts": "REAL",
}


def rows(selection: Selection) -> list[dict[str, Any]]:
    """A row per test and process, in the order of cases and starts. What was imported leaves as it came."""
    found: list[dict[str, Any]] = []
    for case in selection.cases:
        untold = [f"{name}={text}" for name, text in case.differs if name not in _TOLD]
        for run in case.runs:
            found += _original(run.record) or _rows_of(run, untold)
    return found


def _original(record: RunRecord) -> list[dict[str, Any]]:
    kept = record.versions.runtime.get(ORIGINAL) if record.versions else None
    return [dict(row) for row in kept] if record.provenance == "imported" and isinstance(kept, list) else []


def is_original(record: RunRecord) -> bool:
    """Whether it was imported from llama-bench's output: later repetitions hold no row of their own."""
    return (
        record.provenance == "imported"
        and record.versions is not None
        and ORIGINAL in record.versions.runtime
    )


def _rows_of(run: Run, untold: list[str]) -> Iterator[dict[str, Any]]:
    """``untold``: what tells the run's case from others and has no field."""
    record, samples = run.record, run.record.samples
    if samples is None or is_original(record):
        return
    workload = record.workload
    if samples.prefill_ns:
        tokens, ns = sum(samples.prefill_tokens), sum(samples.prefill_ns)
        yield _row(record, tokens, 0, workload.n_depth, ns, untold)
    if samples.decode_ns:
        depth = workload.n_depth + workload.n_prompt
        yield _row(record, 0, workload.n_gen, depth, sum(samples.decode_ns), untold)


def _row(
    record: RunRecord, n_prompt: int, n_gen: int, n_depth: int, ns: int, untold: list[str]
) -> dict[str, Any]:
    runtime = record.versions.runtime if record.versions else {}
    settings, effective, facts = record.settings, record.effective, record.facts
    shape, library = record.shape, record.versions.library_sha256 if record.versions else ""
    speed = round((n_prompt + n_gen) * 1e9 / ns, 6)
    kv_type = effective.kv_type if effective and effective.kv_type else settings.kv_type
    load = effective.load if effective and effective.load else settings.load
    row: dict[str, Any] = {
        "build_commit": str(runtime.get("build_commit") or library[:9] or "unknown"),
        "build_number": int(runtime.get("build_number") or 0),
        "cpu_info": f"{facts.cpu_model if facts else 'unknown'} ({record.device})",
        "gpu_info": "",
        "backends": " ".join([_backends(record, runtime), *untold]),
        "model_filename": record.model.path or record.model.name,
        "model_type": str(runtime.get("model_type") or record.model.name),
        "model_size": shape.weight_bytes if shape else 0,
        "model_n_params": shape.n_params if shape else 0,
        "n_batch": int(runtime.get("n_batch") or settings.n_batch),
        "n_ubatch": settings.n_batch,
        "n_threads": effective.threads if effective and effective.threads else settings.threads,
        "cpu_mask": f"0x{sum(1 << cpu for cpu in settings.cpus):x}",
        "cpu_strict": bool(settings.cpus),
        "poll": 0,
        "type_k": kv_type,
        "type_v": kv_type,
        "n_gpu_layers": 0,
        "n_cpu_moe": 0,
        "split_mode": "none",
        "main_gpu": 0,
        "no_kv_offload": False,
        "flash_attn": int(runtime.get("flash_attn") or 0),
        "devices": "none",
        "tensor_split": "0.00",
        "tensor_buft_overrides": "none",
        "load_mode": {"mmap": "mmap", "read": "none"}.get(load, load),
        "lazy_mode": "off",
        "embeddings": False,
        "no_op_offload": 0,
        "no_host": 0,
        "repack": int(bool(effective and effective.weights_repacked)),
        "fit_target": 0,
        "fit_min_ctx": 0,
        "n_prompt": n_prompt,
        "n_gen": n_gen,
        "n_depth": n_depth,
        "test_time": record.started_at[:19] + "Z" if len(record.started_at) >= 19 else record.started_at,
        "avg_ns": ns,
        "stddev_ns": 0,
        "avg_ts": speed,
        "stddev_ts": 0.0,
        "samples_ns": [ns],
        "samples_ts": [speed],
        "stbench": {
            "id": record.id,
            "attempt": record.attempt,
            "replicate": record.replicate,
            "campaign": record.campaign,
            "device": record.device,
            "case": record.case,
            "engine": record.engine,
            "model": record.model.name,
            "n_prompt": record.workload.n_prompt,
            "n_gen": record.workload.n_gen,
            "n_depth": record.workload.n_depth,
            "seed": record.workload.seed,
        },
    }
    return row


def _backends(record: RunRecord, runtime: dict[str, Any]) -> str:
    """Engine and everything of the case that llama-bench has no field for."""
    if record.engine == "llama-bench" and isinstance(runtime.get("backends"), str):
        own = str(runtime["backends"])
    else:
        own = f"stbench {record.engine}"
    middle = record.case.split("/")[1:-1]
    extra = [part for part in middle if part != record.engine and not re.fullmatch(r"t\d+|tall", part)]
    return " ".join([own, *extra])


def jsonl(selection: Selection) -> str:
    """A JSON object per line."""
    return "".join(
        json.dumps(row, separators=(", ", ": "), allow_nan=False) + "\n" for row in rows(selection)
    )


def sql(selection: Selection) -> str:
    """What ``llama-bench -o sql`` prints: one table and an INSERT per row, for ``sqlite3``. Without the
    samples and without what is ours, for which that table has no columns."""
    columns = ",\n".join(f"  {name} {kind}" for name, kind in FIELDS.items())
    lines = [f"CREATE TABLE IF NOT EXISTS llama_bench (\n{columns}\n);\n"]
    for row in rows(selection):
        # A row of an older or newer llama-bench may lack fields or have others.
        names = [name for name in FIELDS if name in row]
        values = ", ".join(_literal(row[name]) for name in names)
        lines.append(f"INSERT INTO llama_bench ({', '.join(names)}) VALUES ({values});")
    return "\n".join(lines) + "\n"


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, (int, float)):
        return repr(value)
    # A NUL would end the statement in sqlite3's shell.
    text = str(value).replace("\0", "").replace("'", "''")
    return f"'{text}'"
