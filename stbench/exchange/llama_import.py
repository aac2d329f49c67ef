"""What llama-bench printed -> records that say which of their parts are unknown.

JSON lines, JSON and SQL (as ``-o sql`` prints it, or the SQLite file made of it). Every repetition becomes a
record of its own: unlike ours, repetitions of llama-bench share a process, which each says. Facts about the
machine, the model's digest and the output stay unknown; ``stbench compare`` refuses to hold such a record
against a measured one. The row is kept as it was, so that it leaves again unchanged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from stbench.agent.wire import Check, Effective, ModelRef, RunRecord, Samples, Settings, Versions, Workload
from stbench.devices.engine_names import LLAMA_BENCH
from stbench.errors import InputError, unreadable
from stbench.exchange.llama_rows import ORIGINAL
from stbench.sweeps.sweep import workload_label

MAX_BYTES = 256 << 20

# What a row must have; SQL has the mean in place of the samples.
_NEEDED = ("n_prompt", "n_gen")

# Settings that a record has no field for -> their usual values. Others become part of the device's name, so
# that tables keep such rows apart.
_USUAL: dict[str, tuple[Any, ...]] = {
    "n_gpu_layers": (0, -1, 99),
    "n_cpu_moe": (0,),
    "split_mode": ("layer", "none"),
    "main_gpu": (0,),
    "no_kv_offload": (False, 0),
    "flash_attn": (False, 0, -1),
    "devices": ("none", "auto", ""),
    "tensor_split": ("0.00", "0", ""),
    "tensor_buft_overrides": ("none", ""),
    # "auto" is mmap where the system can; others have no word of ours.
    "load_mode": ("auto", "mmap", "mmap+mlock", "none", ""),
    "lazy_mode": ("auto", "off", ""),
    "embeddings": (False, 0),
    "no_op_offload": (False, 0),
    "no_host": (False, 0),
    "repack": (True, 1, 0),
}
_SQL_BOOLEANS = ("cpu_strict", "no_kv_offload", "embeddings")


@dataclass(frozen=True)
class Imported:
    """``records`` in the order of the file; ``problems``: a sentence for every row that is none."""

    records: list[RunRecord]
    problems: list[str]


def import_llama_bench(path: Path, campaign: str) -> Imported:
    """Reads a file of llama-bench's. Raises :class:`InputError` when it is of no known form."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES >> 20} MiB, which no llama-bench prints")
    records: list[RunRecord] = []
    problems: list[str] = []
    known: dict[tuple[str, int], int] = {}
    for where, row in _rows(path, data):
        try:
            if not isinstance(row, dict):
                raise ValueError(row if isinstance(row, str) else "not a JSON object")
            made = _records(row, campaign, path.name)
        except ValueError as error:
            problems.append(f"{path}:{where}: {error}")
            continue
        for record in made:
            at = known.setdefault((record.id, record.attempt), len(records))
            if at == len(records):
                records.append(record)
            elif isinstance(row.get("stbench"), dict):
                # Prompt and generation of one of our runs were written as two rows.
                records[at] = _joined(records[at], record)
            else:
                problems.append(f"{path}:{where}: the same row as one before it")
    if not records and not problems:
        raise InputError(f"{path}: holds no result of llama-bench", hint="llama-bench -o jsonl > FILE")
    return Imported(records, problems)


# ---- forms of files ----------------------------------------------------------------------------------


def _rows(path: Path, data: bytes) -> Iterator[tuple[str, Any]]:
    """(line or row, object, or a sentence about what is none)."""
    if data.startswith(b"SQLite format 3\0"):
        yield from _of_database(path, None)
        return
    text = data.decode("utf-8-sig", "replace")
    if "llama_bench" in text and re.search(r"^\s*(CREATE TABLE|INSERT INTO)\b", text, re.MULTILINE):
        yield from _of_database(path, text)
        return
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not JSON: {error}") from error
        yield from ((f"row {i + 1}", row) for i, row in enumerate(rows))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield str(number), json.loads(line)
            except (ValueError, RecursionError) as error:
                yield str(number), f"not JSON: {error}"


def _of_database(path: Path, script: str | None) -> Iterator[tuple[str, Any]]:
    """Rows of the table llama_bench. A script may do no more than make and fill that table."""
    # As a URI made by pathlib: a path may hold "#", "?" and "%", which have a meaning there.
    name = ":memory:" if script is not None else path.resolve().as_uri() + "?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(name, uri=script is None)) as connection:
            if script is not None:
                connection.set_authorizer(_only_the_table)
                connection.executescript(script)
                connection.set_authorizer(None)
            cursor = connection.execute("SELECT * FROM llama_bench")
            names = [column[0] for column in cursor.description]
            for i, values in enumerate(cursor):
                row = dict(zip(names, values, strict=True))
                yield f"row {i + 1}", row | {key: bool(row[key]) for key in _SQL_BOOLEANS if key in row}
    except sqlite3.Error as error:
        raise InputError(f"{path}: cannot be read as llama-bench's SQL: {error}") from error


_ALLOWED = {
    sqlite3.SQLITE_CREATE_TABLE,
    sqlite3.SQLITE_INSERT,
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_TRANSACTION,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_UPDATE,
}


def _only_the_table(action: int, one: str | None, _two: Any, _three: Any, _four: Any) -> int:
    """SQL from elsewhere attaches no file, makes no trigger and writes to nothing else."""
    ours = one in ("llama_bench", "sqlite_master", None, "BEGIN", "COMMIT", "ROLLBACK")
    return sqlite3.SQLITE_OK if action in _ALLOWED and ours else sqlite3.SQLITE_DENY


# ---- a row -------------------------------------------------------------------------------------------


def _records(row: dict[str, Any], campaign: str, source: str) -> list[RunRecord]:
    """One record per repetition. Raises ValueError with what is wrong with the row."""
    missing = [key for key in _NEEDED if key not in row]
    if missing:
        raise ValueError(f"not a result of llama-bench: no {', '.join(missing)}")
    n_prompt, n_gen, n_depth = (_count(row, key) for key in ("n_prompt", "n_gen", "n_depth"))
    if n_prompt and n_gen:
        raise ValueError("one time for prompt and generation together (-pg), which is the speed of neither")
    if not n_prompt and not n_gen:
        raise ValueError("n_prompt and n_gen are both 0")
    samples, mean_only = _samples(row)
    kept = {key: value for key, value in row.items() if _is_plain(value) or key == "stbench"}
    text = json.dumps(kept, sort_keys=True, default=str)
    ours = row.get("stbench") if isinstance(row.get("stbench"), dict) else None
    warnings = _unknowns(row, source, len(samples), mean_only)
    found = []
    for i, ns in enumerate(samples):
        part = Samples(0, [ns], [n_prompt], []) if n_prompt else Samples(0, [], [], [ns], [n_gen])
        record = _record(row, campaign, (n_prompt, n_gen, n_depth), part)
        runtime: dict[str, Any] = {"imported_from": source, ORIGINAL: [kept] if i == 0 else []}
        own_id = hashlib.sha256(f"{i} {text}".encode("utf-8", "replace")).hexdigest()[:16]
        record = replace(
            record,
            id=own_id,
            replicate=i,
            warnings=warnings,
            versions=Versions("", runtime | {"build_commit": _text(row, "build_commit")}, _build(row)),
        )
        found.append(_as_it_was(record, ours, part) if ours else record)
    return found


def _samples(row: dict[str, Any]) -> tuple[list[int], bool]:
    """Durations in ns, and whether all that is known is their mean."""
    samples = row.get("samples_ns")
    mean_only = not isinstance(samples, list) or not samples
    values = [row.get("avg_ns")] if mean_only else samples
    assert isinstance(values, list)
    for value in values:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not 1 <= value < 1e18:
            raise ValueError(f"{'avg_ns' if mean_only else 'samples_ns'} is no duration: {str(values)[:60]}")
    return [int(value) for value in values], mean_only


def _record(row: dict[str, Any], campaign: str, tokens: tuple[int, int, int], samples: Samples) -> RunRecord:
    n_prompt, n_gen, n_depth = tokens
    threads = _count(row, "n_threads")
    file = _text(row, "model_filename")
    name = _slug(PurePosixPath(file).stem or _text(row, "model_type")) or "unknown"
    device = _device(row)
    mask = _text(row, "cpu_mask")
    strict = bool(row.get("cpu_strict")) and re.fullmatch(r"0x[0-9a-fA-F]{1,64}", mask)
    bits = int(mask, 16) if strict else 0
    kv_type = _text(row, "type_k") or "f16"
    load = {"mmap": "mmap", "mmap+mlock": "mmap", "none": "read"}.get(_text(row, "load_mode"), "")
    if not load and isinstance(row.get("use_mmap"), (bool, int)):
        load = "mmap" if row["use_mmap"] else "read"
    case = f"{name}/{LLAMA_BENCH}/t{threads or 'all'}/{workload_label(n_prompt, n_gen, n_depth)}"
    n_batch = _count(row, "n_ubatch")
    return RunRecord(
        id="",
        label=f"{device}:{case}",
        campaign=campaign,
        device=device,
        case=case,
        replicate=0,
        engine=LLAMA_BENCH,
        status="ok",
        detail="",
        started_at=_text(row, "test_time"),
        wall_s=0.0,
        model=ModelRef(name, file),
        workload=Workload(n_prompt, n_gen, n_depth),
        settings=Settings(
            threads=threads,
            cpus=[cpu for cpu in range(bits.bit_length()) if bits >> cpu & 1],
            # As always in llama-bench, what the test needs.
            n_ctx=n_prompt + n_gen + n_depth,
            n_batch=n_batch or Settings().n_batch,
            kv_type=kv_type,
            load=load or "auto",
        ),
        effective=Effective(threads, [], "", 0, n_batch, kv_type, 0, 0, "off", False, "", load),
        samples=samples,
        check=Check("unchecked", "", 0, detail="imported: the output of the run is unknown"),
        provenance="imported",
    )


def _as_it_was(record: RunRecord, ours: dict[str, Any], part: Samples) -> RunRecord:
    """A row that stbench wrote says which run it is of. Its words are taken, its facts stay unknown."""
    texts = {
        key: str(ours[key]) for key in ("id", "device", "case", "engine") if isinstance(ours.get(key), str)
    }
    numbers = {
        key: ours[key]
        for key in ("replicate", "attempt", "n_prompt", "n_gen", "n_depth", "seed")
        if type(ours.get(key)) is int and 0 <= ours[key] < 2**62
    }
    if len(texts) < 4 or len(numbers) < 6 or not all(len(text) <= 300 for text in texts.values()):
        raise ValueError("its part `stbench` is not what `stbench export` writes")
    workload = Workload(numbers["n_prompt"], numbers["n_gen"], numbers["n_depth"], numbers["seed"])
    name = ours["model"] if isinstance(ours.get("model"), str) else record.model.name
    return replace(
        record,
        id=texts["id"],
        device=texts["device"],
        case=texts["case"],
        engine=texts["engine"],
        label=f"{texts['device']}:{texts['case']}",
        replicate=numbers["replicate"],
        attempt=numbers["attempt"],
        workload=workload,
        model=ModelRef(name, record.model.path),
        samples=part,
    )


def _joined(first: RunRecord, second: RunRecord) -> RunRecord:
    """Prompt and generation of one run."""
    one, two = first.samples, second.samples
    assert one is not None
    assert two is not None
    assert first.versions is not None
    assert second.versions is not None
    samples = Samples(
        0,
        one.prefill_ns + two.prefill_ns,
        one.prefill_tokens + two.prefill_tokens,
        one.decode_ns + two.decode_ns,
        one.decode_tokens + two.decode_tokens,
    )
    both = [*first.versions.runtime[ORIGINAL], *second.versions.runtime[ORIGINAL]]
    return replace(
        first,
        samples=samples,
        versions=replace(first.versions, runtime={**first.versions.runtime, ORIGINAL: both}),
    )


def _unknowns(row: dict[str, Any], source: str, count: int, mean_only: bool) -> list[str]:
    said = [
        f"imported from {source}: who else used the machine, its memory, throttling and temperature, the "
        "model's digest and whether the output was right are unknown"
    ]
    if mean_only:
        said.append("a mean of repetitions whose number and spread are unknown")
    elif count > 1:
        said.append(f"one of {count} repetitions within one process, which are no replicates of their own")
    return said


def _device(row: dict[str, Any]) -> str:
    """No device of ours: what the row says of the machine, and settings that are not the usual ones."""
    gpu = _text(row, "gpu_info")
    parts = ["imported", _text(row, "cpu_info") or "unknown", gpu]
    for key, usual in _USUAL.items():
        value = row.get(key)
        if value is not None and value not in usual and (gpu or key != "n_gpu_layers"):
            parts.append(f"{key}={value}")
    backends = _text(row, "backends")
    if backends not in ("", "CPU"):
        parts.append(backends)
    return "-".join(filter(None, map(_slug, parts)))


def _build(row: dict[str, Any]) -> str:
    # In rows that stbench wrote, backends also hold the case's switches, which make no other build.
    ours = isinstance(row.get("stbench"), dict) or _text(row, "backends").startswith("stbench ")
    backends = "" if ours else _text(row, "backends")
    words = f"{_text(row, 'build_commit')} {row.get('build_number')} {backends}"
    return hashlib.sha256(words.encode("utf-8", "replace")).hexdigest()


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=+-]+", "-", text).strip("-")[:80]


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    return value[:1000] if isinstance(value, str) else ""


def _count(row: dict[str, Any], key: str) -> int:
    value = row.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise ValueError(f"{key}: expected a count, got {str(value)[:40]}")
    return value


def _is_plain(value: Any) -> bool:
    """What a row may hold: numbers and texts, and lists of numbers."""
    if isinstance(value, list):
        return all(isinstance(item, (int, float)) and math.isfinite(item) for item in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (str, bool)) or (isinstance(value, int) and abs(value) < 2**63)
