"""Cases -> what continuous-benchmarking services read: github-action-benchmark and Bencher.

Both want one number per name, so a case leaves as its median with the interval (under 6 replicates: the
range) that tables show.

Sources, read in 2026. github-action-benchmark 1.22: README.md, "Examples" (the object's keys), and
src/extract.ts (an array of objects with ``name``, ``value`` and ``unit``, optionally the texts ``range`` and
``extra``; an empty array is an error). Bencher Metric Format, version 0:
https://bencher.dev/docs/reference/bencher-metric-format and its schema https://bencher.dev/bmf.json.
"""

from __future__ import annotations

import json
from typing import Any

from stbench.exchange.selection import METRICS, Case, Selection


def github_action_benchmark(selection: Selection) -> str:
    """The JSON of its tool ``customBiggerIsBetter``, so without what is better when less.

    The action compares entries of equal ``name`` by ``value`` alone, and shows ``range`` and ``extra`` beside
    a point. It rescales units of time from one commit to the next; ours stay as they are."""
    entries = []
    for case in selection.cases:
        for metric, name, unit in METRICS:
            estimate = case.estimate(metric)
            if estimate is None:
                continue
            kind = "interval" if estimate.kind == "interval" else "range"
            entries.append(
                {
                    "name": f"{case.name} {name}",
                    "unit": unit,
                    "value": round(estimate.median, 4),
                    "range": f"{estimate.low:.4g}…{estimate.high:.4g}",
                    "extra": "\n".join([f"{kind} of {estimate.n} processes", *_facts(case)]),
                }
            )
    return json.dumps(entries, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def bencher(selection: Selection) -> str:
    """Bencher Metric Format: benchmark -> measure -> value with its lower and upper end.

    A benchmark is known by its name, of at most 1024 bytes, a measure by its slug, of at most 64 letters,
    digits and single hyphens; Bencher makes those that a project lacks. Units and thresholds belong to the
    project's measures (docs/exchange.md)."""
    found: dict[str, Any] = {}
    for case in selection.cases:
        measures: dict[str, Any] = {}
        for metric, name, _ in METRICS:
            estimate = case.estimate(metric)
            if estimate is not None:
                measures[f"{name}-tokens-per-second"] = {
                    "value": round(estimate.median, 4),
                    "lower_value": round(estimate.low, 4),
                    "upper_value": round(estimate.high, 4),
                }
        for metric, name in (("ttft_ms", "time-to-first-token-ms"), ("peak_rss_bytes", "peak-rss-bytes")):
            estimate = case.estimate(metric)
            if estimate is not None:
                measures[name] = {"value": round(estimate.median, 4)}
        if measures:
            found[case.name] = measures
    return json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _facts(case: Case) -> list[str]:
    """What a reader of a chart must know of the number."""
    rows = [run.row for run in case.runs]
    said = [f"output check: {', '.join(sorted({str(row['check']) for row in rows}))}"]
    if any(row["synthetic"] for row in rows):
        said.append("synthetic weights")
    if any(row["memory_limit_bytes"] > 0 for row in rows):
        said.append(
            f"memory limit: {', '.join(sorted({str(row['limit_verdict']) or 'unproved' for row in rows}))}"
        )
    throttled = sorted({str(row["throttled"]) for row in rows})
    said.append(f"throttled: {', '.join(throttled)}")
    if any(row["disturbed"] for row in rows):
        said.append("disturbed")
    if any(row["provenance"] == "imported" for row in rows):
        said.append("imported, not measured by stbench")
    return said
