"""Cases -> the JSON that pytest-benchmark stores and compares.

A round is one process. Its duration is the mean time of one token, in seconds, so the column OPS is
tokens/s. In pytest-benchmark's storage a file is ``<machine>/<number>_<name>.json``.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

from stbench.exchange.selection import METRICS, Case, Selection

# Of pytest-benchmark's JSON; it reads files of all versions from 3 on.
VERSION = "5.0.0"


def pytest_benchmark(selection: Selection) -> str:
    """One benchmark per case and phase."""
    benchmarks = []
    for case in selection.cases:
        for metric, name, _ in METRICS:
            values = case.values(metric)
            if values:
                benchmarks.append(_benchmark(case, name, values))
    records = [run.record for case in selection.cases for run in case.runs]
    facts = next((record.facts for record in records if record.facts), None)
    document = {
        "machine_info": {
            "node": facts.hostname if facts else "unknown",
            "machine": facts.machine if facts else "unknown",
            "system": facts.os if facts else "unknown",
            "release": facts.kernel if facts else "unknown",
            "python_version": facts.python if facts else "unknown",
            "cpu": {
                "brand_raw": facts.cpu_model if facts else "unknown",
                "count": facts.n_cpus if facts else 0,
            },
        },
        "commit_info": {"id": "unversioned", "dirty": False, "branch": "unknown"},
        "benchmarks": benchmarks,
        "datetime": max((record.started_at for record in records), default=""),
        "version": VERSION,
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _benchmark(case: Case, phase: str, speeds: Sequence[float]) -> dict[str, Any]:
    seconds = [1 / speed for speed in speeds]
    name = f"{case.name} {phase}"
    return {
        "group": phase,
        "name": name,
        "fullname": name,
        "params": None,
        "param": None,
        "extra_info": extra_info(case, phase),
        "options": {"disable_gc": False, "timer": "stbench", "min_rounds": 1, "warmup": False},
        "stats": stats(seconds) | {"iterations": 1},
    }


def extra_info(case: Case, phase: str) -> dict[str, Any]:
    """What a duration does not say: speed with interval, device, check, marks."""
    estimate = case.estimate(f"{phase}_tps")
    rows = [run.row for run in case.runs]
    return {
        "tokens_per_s": round(estimate.median, 6) if estimate else None,
        "tokens_per_s_low": round(estimate.low, 6) if estimate else None,
        "tokens_per_s_high": round(estimate.high, 6) if estimate else None,
        "interval": estimate.kind if estimate else "none",
        "device": case.device,
        "fingerprint": _one(rows, "fingerprint"),
        "engine": _one(rows, "engine"),
        "model": _one(rows, "model"),
        "model_sha256": _one(rows, "digest"),
        "library_sha256": _one(rows, "library"),
        "synthetic_weights": any(bool(row["synthetic"]) for row in rows),
        "check": _one(rows, "check"),
        "output_hash": _one(rows, "output_hash"),
        "throttled": _one(rows, "throttled"),
        "disturbed": sum(bool(row["disturbed"]) for row in rows),
        "records": [run.record.id for run in case.runs],
    }


def _one(rows: Sequence[Any], column: str) -> str:
    return ", ".join(sorted({str(row[column]) for row in rows}))


def stats(seconds: Sequence[float]) -> dict[str, Any]:
    """The statistics that pytest-benchmark keeps of rounds, in seconds."""
    ordered = sorted(seconds)
    mean, median = statistics.fmean(ordered), statistics.median(ordered)
    stddev = statistics.stdev(ordered) if len(ordered) > 1 else 0.0
    q1, q3 = _quartiles(ordered)
    low, high = q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1)
    iqr_outliers = sum(not low <= value <= high for value in ordered)
    far = sum(not mean - stddev <= value <= mean + stddev for value in ordered)
    values = {
        "min": ordered[0],
        "max": ordered[-1],
        "mean": mean,
        "stddev": stddev,
        "rounds": len(ordered),
        "median": median,
        "iqr": q3 - q1,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": iqr_outliers,
        "stddev_outliers": far,
        "outliers": f"{far};{iqr_outliers}",
        "ld15iqr": next(value for value in ordered if value >= low),
        "hd15iqr": next(value for value in reversed(ordered) if value <= high),
        "ops": 1 / mean,
        "total": math.fsum(ordered),
        "data": list(seconds),
    }
    return values


def _quartiles(ordered: Sequence[float]) -> tuple[float, float]:
    if len(ordered) < 2:
        return ordered[0], ordered[0]
    q1, _, q3 = statistics.quantiles(ordered, n=4, method="inclusive")
    return q1, q3
